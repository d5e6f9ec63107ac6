"""`jaxdet eval RUN`: scores, one `name value` a line."""

import json

from jaxdet import tables
from jaxdet.cli import common
from jaxdet.metrics import detection as detection_metrics
from jaxdet.profiling import timing
from jaxdet.training import evaluator, parallel


def run(options):
    """Print the scores of one part of the data, or of all."""
    config, system, step, state = common.restored(options, also=["all"], **common.judged(options))
    kept, epoch = evaluator.eval_variables(state), evaluator.completed_epochs(state)
    among = parallel.devices(config.devices)
    for split in ALL if options.split == "all" else (options.split,):
        scorer = evaluator.Evaluator(system, split, config.eval_batch, among)
        scorer.prepare(kept)
        (losses, rows), seconds = timing.timed(lambda of=scorer: of.measured(kept, epoch))
        scores = {**losses, **system.task.report(rows)}
        if options.plots:
            _draw(system, rows, scores, options.plots / split)
        scores |= evaluator.summary(scores, scorer.operations(kept), seconds)
        if options.json:
            print(json.dumps({"step": step, "split": split, **scores}))
        else:
            print(_text(split, scores), end="")
    return 0


def _draw(system, rows, scores, folder):
    """What was taken for what, and how precision falls with recall, as pictures in a folder."""
    from jaxdet.plots import detection as detection_plots

    names = system.about["classes"]
    if system.many:
        least = f"scores from {detection_metrics.SCORE_THRESHOLD:g}, IoU over {detection_metrics.IOU_THRESHOLD:g}"
        counts = detection_metrics.confusion_matrix(rows, names)
        detection_plots.confusion_matrix(
            counts, [*names, "background"], folder / "confusion.png", least
        )
        curves = detection_metrics.precision_recall(rows, names)
        path, marked = (
            folder / "precision_recall.png",
            (0.1, detection_metrics.SCORE_THRESHOLD, 0.5),
        )
        detection_plots.precision_recall(curves, detection_metrics.RECALL_LEVELS, path, marked)
        detection_plots.bar_chart(_maps(scores), folder / "map.png", label="mAP, IoU .5 to .95")
    elif "confusion" in scores:
        detection_plots.confusion_matrix(scores["confusion"], names, folder / "confusion.png")


def _maps(scores):
    """mAP of all, of sizes and of classes, where there is something to find."""
    sizes = {size: scores[f"map_{size}"] for size in ("small", "medium", "large")}
    classes = {name: of_label["map"] for name, of_label in scores["labels"].items()}
    every = {"all": scores["map"], **sizes, **classes}
    return {name: value for name, value in every.items() if value >= 0}


ALL = ("train", "val", "test")
SETS = {"train": "train", "val": "validation"}  # as seed 000 calls them


def _text(split, scores):
    """A score a line; those of labels first, in the words of seed 000, with their confusion."""
    numbers = {k: v for k, v in scores.items() if not isinstance(v, dict | list)}
    lines = [f"{name} {value!r}\n" for name, value in numbers.items()]
    labels = scores.get("labels")
    if not labels:
        return "".join(lines)
    if "confusion" not in scores:
        rows = [{"class": name, **of_label} for name, of_label in labels.items()]
        return "".join([*lines, tables.to_markdown(rows, list(rows[0])), "\n"])
    head = [
        f"*** {SETS.get(split, split)} set accuracy\n",
        f"Mean accuracy for all labels: {scores['accuracy']!r}\n",
    ]
    for name, of_label in labels.items():
        head.append(
            f"    Mean accuracy for label {name}: {of_label.get('accuracy', 'no sample')!r}\n"
        )
        head.append(f"             {of_label['correct']} over {of_label['count']} samples\n")
    return "".join([*head, common.by_label(scores), "\n", *lines])
