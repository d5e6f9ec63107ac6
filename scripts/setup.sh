# Sourced by run.sh and test.sh: .venv with this project and the extras named in $1, made once.
# Quiet when all is there already; works from any directory.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
extras=${1:-}
python=${PYTHON:-python3}

stamp=.venv/installed${extras:+-$extras}
if ! cmp -s setup.cfg "$stamp"; then
    if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
        "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
            { echo "jaxdet wants Python 3.11 or newer; set PYTHON to one" >&2; exit 2; }
        echo "making .venv" >&2
        "$python" -m venv --clear .venv
    fi
    echo "installing jaxdet${extras:+ with $extras} into .venv (once, some minutes)" >&2
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -e ".${extras:+[$extras]}"
    cp setup.cfg "$stamp"
fi
