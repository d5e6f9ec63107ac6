#!/usr/bin/env bash
# Set up with the test extras, then run the whole test suite.
# Options are those of pytest; `-n 0` runs without workers. Tests on real data need JAXDET_DATA, the
# folder of the data.
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh" test
exec "$venv/bin/python" -m pytest -n 2 --dist loadfile "$@"
