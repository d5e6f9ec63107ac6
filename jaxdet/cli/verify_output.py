"""What `jaxdet verify` says and draws of its scores."""

import json

import numpy as np

from jaxdet.cli import common
from jaxdet.data import images
from jaxdet.metrics import verification as scoring

SHOWN = 112  # pixels a side of images in pictures


def rates(scores, same):
    """{name: value} of all thresholds together, of pairs of which both kinds are there."""
    shares = zip(scoring.FAR_LEVELS, scoring.tar_at_far(scores, same), strict=True)
    return {
        "auc": scoring.auc(scores, same),
        "eer": scoring.eer(scores, same),
        **{f"tar_at_far_{far:g}": float(share) for far, share in shares},
    }


def plot(options, scores, same):
    """Pictures of pairs: the histogram of their scores, and the ROC curve where there are both."""
    from jaxdet.plots import verification as verification_plots

    options.plots.mkdir(parents=True, exist_ok=True)
    verification_plots.score_histogram(scores, same, options.plots / "scores.png")
    if same.any() and not same.all():
        verification_plots.roc(scoring.roc(scores, same), options.plots / "roc.png")
    say(options, f"wrote pictures to {options.plots}")


def draw(options, sides, titles, wrong, amount):
    """Pairs of images whose answer is wrong, those first that are wrong by most."""
    order = [i for i in np.argsort(-amount, kind="stable") if wrong[i]][: options.count]
    if not order:
        say(options, f"no mistakes: {options.worst} is not written")
        return
    pictures = [[images.read_resized_float(path, SHOWN)[0] for path in sides[i]] for i in order]
    common.draw(
        [np.concatenate(two, 1) for two in pictures],
        options.worst,
        titles=[titles[i] for i in order],
        quiet=options.json,
    )


def tell(options, scores):
    """Scores, one `name value` a line, or as JSON, which has the hash of the network as well."""
    if options.json:
        print(json.dumps(scores))
    else:
        shown = (f"{name} {value}\n" for name, value in scores.items() if name != "manifest")
        print("".join(shown), end="")


def say(options, line):
    """Print a line, where JSON is not wanted."""
    if not options.json:
        print(line)
