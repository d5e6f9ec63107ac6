# Create .venv with this project and the extras named in $1, once; sourced by the other scripts.
# PYTHON is the interpreter (default: python3), VENV the folder (default: .venv).  Prints nothing if
# all is installed; works from any directory.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
extras=${1:-}
python=${PYTHON:-python3}
venv=${VENV:-.venv}

stamp=$venv/installed${extras:+-$extras}
if ! cmp -s setup.cfg "$stamp"; then
    if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
        "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
            { echo "jaxdet needs Python 3.11 or newer: set PYTHON to its path" >&2; exit 2; }
        echo "creating $venv" >&2
        "$python" -m venv --clear "$venv"
    fi
    echo "installing jaxdet${extras:+ with $extras} into $venv (once, a few minutes)" >&2
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
        -e ".${extras:+[$extras]}"
    cp setup.cfg "$stamp"
fi
