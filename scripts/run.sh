#!/usr/bin/env bash
# Set up, then train the digit locator, evaluate it and draw its predictions.
# Options are those of `jaxdet train digits`. Run it again to resume; finished steps are skipped.
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh" ""
run=runs/digits
.venv/bin/jaxdet train digits --out $run --resume "$@"
.venv/bin/jaxdet eval $run --checkpoint best --split test
.venv/bin/jaxdet predict $run --split test --figure $run/plots/test.png >/dev/null
echo "true (green) and predicted (red) boxes: $PWD/$run/plots/test.png"
echo "curves: $PWD/$run/plots/convergence.png"
