#!/usr/bin/env bash
# Run the GPU benchmarks and checks, the most important first: one JSON file per row and one table in OUT.
#   scripts/gpu.sh [--minutes 8] [--wheels DIR] [--rows NAME...] [--fresh] [--dry] OUT
# Runs from a plain checkout, without a network and without installing anything, with the packages
# of PYTHON (python3) and PYTHONPATH; --wheels DIR adds those that scripts/wheels.sh collected.  Rows
# say which package or data set they lack; JAXDET_DATA is the folder of the data.  A second run with
# the same OUT goes on with the rows that are missing.  --dry runs all rows, tiny, on a CPU.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
exec "${PYTHON:-python3}" -m benchmarks.gpu "$@"
