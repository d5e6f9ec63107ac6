#!/usr/bin/env bash
# Face verification, from folders of images to a table of identities (assignment 4).
#   scripts/faces.sh ROOT [options of jaxdet train faces]
# ROOT has classification/IDENTITY/FILE, or classification/train/, dev/ and test/ with folders of
# identities; known/IDENTITY/FILE; unknown_dev/ and unknown_test/ with images; verification_dev.csv
# with the labels of unknown_dev/; and, optionally, verification_sample_submission.csv, and
# verification_test.csv with the labels of unknown_test/, for scores.  If there are images directly
# in classification/test, they have no labels: a table of predictions is written for them, with the
# rows of classification_sample_submission.csv if that exists, and the test scores are those of dev.
# RUN names the run folder.  Run the script again to resume an interrupted training.
[ $# -gt 0 ] && [ -d "$1" ] || { echo "usage: $0 ROOT [options of jaxdet train faces]" >&2; exit 2; }
root=$(cd "$1" && pwd)
shift
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh" ""
run=${RUN:-runs/faces}
more=()
sample=$root/verification_sample_submission.csv
truth=$root/verification_test.csv
verified=("$run/threshold.json")
unlabeled=$root/classification/test
unlabelled_sample=$root/classification_sample_submission.csv
[ ! -f "$sample" ] || more+=(--sample "$sample")
if [ -f "$truth" ]; then
    more+=(--truth "$truth" --out "$run/verified.json")
    verified+=("$run/verified.json")
fi
.venv/bin/jaxdet train faces --root "$root/classification" --out "$run" --resume "$@"
.venv/bin/jaxdet eval "$run" --split test
if [ -d "$unlabeled" ] && [ -n "$(find "$unlabeled" -maxdepth 1 -type f -not -name '.*' -print -quit)" ]; then
    echo "labels of the images of classification/test:"
    options=()
    [ ! -f "$unlabelled_sample" ] || options+=(--sample "$unlabelled_sample")
    .venv/bin/jaxdet predict "$run" "$unlabeled" --submit "$run/classification.csv" "${options[@]}"
fi
echo "unknown_dev against known:"
.venv/bin/jaxdet verify dev "$run" --known "$root/known" --unknown "$root/unknown_dev" \
    --truth "$root/verification_dev.csv" --out "$run/threshold.json" --plots "$run/plots/verify" \
    --worst "$run/plots/verify/worst.png"
echo "unknown_test against known, with the threshold of unknown_dev:"
.venv/bin/jaxdet verify test "$run" --known "$root/known" --unknown "$root/unknown_test" \
    --threshold "$run/threshold.json" --submit "$run/verification.csv" "${more[@]}"
echo "scores of the run, and the cut-offs of assignment 4 that it reaches:"
.venv/bin/jaxdet compare "$run" --report "$run/report.md" --overwrite --verified "${verified[@]}"
