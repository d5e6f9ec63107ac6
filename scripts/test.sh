#!/usr/bin/env bash
# From nothing to a tested checkout: set up with the test extras, then the whole test suite.
# Options are those of pytest; `-n 0` runs one test after the other.  Tests on real data read its place from JAXDET_DATA.
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh" test
exec .venv/bin/python -m pytest -n 2 --dist loadfile "$@"
