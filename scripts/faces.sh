#!/usr/bin/env bash
# Faces, from folders to a table of who is on unknown images (seed 004's main.py).
#   scripts/faces.sh ROOT [options of jaxdet train faces]
# ROOT has classification/PERSON/FILE, or its parts train, dev and test; known/IDENTITY/FILE;
# unknown_dev/ and unknown_test/ with images; verification_dev.csv with the labels of the former;
# and, where they are there, verification_sample_submission.csv, and verification_test.csv for
# scores.  Images right in classification/test are of people nobody told: they get a table, in the
# rows of classification_sample_submission.csv if that is there, and what is scored as the test is
# dev.  RUN names the run folder.
# Run it again: a training that was cut short goes on.
[ $# -gt 0 ] && [ -d "$1" ] || { echo "usage: $0 ROOT [options of jaxdet train faces]" >&2; exit 2; }
root=$(cd "$1" && pwd)
shift
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh" ""
run=${RUN:-runs/faces}
more=()
sample=$root/verification_sample_submission.csv
truth=$root/verification_test.csv
verified=("$run/threshold.json")
untold=$root/classification/test
untold_sample=$root/classification_sample_submission.csv
[ ! -f "$sample" ] || more+=(--sample "$sample")
if [ -f "$truth" ]; then
    more+=(--truth "$truth" --out "$run/verified.json")
    verified+=("$run/verified.json")
fi
.venv/bin/jaxdet train faces --root "$root/classification" --out "$run" --resume "$@"
echo "classification, and all pairs of images of the test split:"
.venv/bin/jaxdet eval "$run" --split test
if [ -d "$untold" ] && [ -n "$(find "$untold" -maxdepth 1 -type f -not -name '.*' -print -quit)" ]; then
    echo "who is on the images of classification/test:"
    options=()
    [ ! -f "$untold_sample" ] || options+=(--sample "$untold_sample")
    .venv/bin/jaxdet predict "$run" "$untold" --submit "$run/classification.csv" "${options[@]}"
fi
echo "unknown_dev against known:"
.venv/bin/jaxdet verify dev "$run" --known "$root/known" --unknown "$root/unknown_dev" \
    --truth "$root/verification_dev.csv" --out "$run/threshold.json" --plots "$run/plots/verify" \
    --worst "$run/plots/verify/worst.png"
echo "unknown_test against known, by that threshold:"
.venv/bin/jaxdet verify test "$run" --known "$root/known" --unknown "$root/unknown_test" \
    --threshold "$run/threshold.json" --submit "$run/verification.csv" "${more[@]}"
echo "the run, and the cut-offs of seed 004:"
.venv/bin/jaxdet compare "$run" --report "$run/report.md" --overwrite --verified "${verified[@]}"
