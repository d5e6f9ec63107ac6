#!/usr/bin/env bash
# Run the GPU benchmarks and checks, the most important first: one JSON file per row and one table in OUT.
#   scripts/gpu.sh [--minutes 8] [--wheels DIR] [--rows NAME...] [--fresh] [--dry] OUT
# Runs from a plain checkout, without a network and without installing anything, with the packages
# of PYTHON (default: python3) and PYTHONPATH; --wheels DIR adds those that scripts/wheels.sh
# collected.  A row that cannot run says which package or data set it lacks; JAXDET_DATA is the
# folder of the data.  A second run with the same OUT measures the rows that are missing.
# --dry runs all rows on a CPU, with tiny networks.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
exec "${PYTHON:-python3}" -m benchmarks.gpu "$@"
