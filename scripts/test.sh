#!/usr/bin/env bash
# From nothing to a tested checkout: set up with the test extras, then the whole test suite.
# Options are those of pytest.  Tests on real data read its place from JAXDET_DATA.
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh" test
exec .venv/bin/python -m pytest "$@"
