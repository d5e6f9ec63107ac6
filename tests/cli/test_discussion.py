"""Sentences and tables of a report, from the figures of made-up runs."""

import re
from types import SimpleNamespace

import pytest

from jaxdet.cli import discussion
from jaxdet.configs.objects import Config


def made_up(name, train, val, **row):
    """A run with these losses of training, from the first epoch on, and of validation."""
    lines = [
        {"epoch": epoch, "train": None, "val": {"loss": loss, "accuracy": 0.5, "right_iou": -loss}}
        for epoch, loss in enumerate(val)
    ]
    for line, loss in zip(lines[1:], train, strict=True):
        line["train"] = {"loss": loss, "accuracy": 0.4, "box": loss / 2}
    row = {"run": name, "system": "objects", **row}
    return SimpleNamespace(row=row, metrics=lines, config=Config(root="r", epochs=len(train)))


def test_settings_are_the_commands_of_the_runs():
    _, text = discussion.settings([made_up("a", [1, 2], [3, 2, 1])])
    assert text == "- `a`: `jaxdet train objects --epochs 2 --root r`"


def test_losses_are_those_of_the_best_and_the_last_epoch_and_of_all():
    runs = [made_up("a", [4.0, 2.0], [3.0, 1.0, 1.5]), made_up("b", [8.0], [7.0, 6.0])]
    *_, some, _, every = discussion.losses(runs)
    assert some.splitlines() == [
        "| run | checkpoint | epoch | training loss | training box | validation loss |",
        "| --- | --- | --- | --- | --- | --- |",
        "| a | best | 1 | 4 | 2 | 1 |",
        "| a | last | 2 | 2 | 1 | 1.5 |",
        "| b | best | 1 | 8 | 4 | 6 |",
        "| b | last | 1 | 8 | 4 | 6 |",
    ]
    assert every.splitlines() == [
        "| epoch | a, validation | b, validation | a, training | b, training |",
        "| --- | --- | --- | --- | --- |",
        "| 0 | 3 | 7 |  |  |",
        "| 1 | 1 | 6 | 4 | 8 |",
        "| 2 | 1.5 |  | 2 |  |",
    ]
    assert not list(discussion.losses([made_up("a", [], [])]))


@pytest.mark.parametrize(
    "train, val, says",
    [
        ([4, 2], [3, 2, 1], "falls from 4 to 2; .* is 1, after epoch 2, the last one: more"),
        ([4, 2], [3, 1, 1.2], "is 1, after epoch 1; at the end it is 1.2: the run overfits"),
        ([4, 5], [3, 1, 1.05], "rises from 4 to 5; .*at the end it is 1.05: the run does not over"),
        ([4], [3, 1], None),
    ],
)
def test_the_discussion_says_how_the_losses_develop(train, val, says):
    text = "\n".join(discussion.discussion([made_up("a", train, val)]))
    if says is None:
        assert text == ""
    else:
        assert text.startswith("## Discussion\n- `a`: ")
        assert re.search(says, text)


def test_the_discussion_ranks_runs_and_counts_failures():
    scores = {"a": (0.9, 0.7, 12.0), "b": (0.95, 0.6, 3.0), "c": (0.8, 0.7, 4.0)}
    runs = [
        made_up(name, [], [1], accuracy=accuracy, iou=iou, epoch_seconds=seconds)
        for name, (accuracy, iou, seconds) in scores.items()
    ]
    runs[0].row |= {"count": 20, "correct": 18, "iou50": 0.75}
    _, text = discussion.discussion(runs)
    assert text.splitlines() == [
        "- Highest accuracy: `b` 0.95, then `a` 0.9, `c` 0.8.",
        "- Highest mean IoU: `a` 0.7, then `c` 0.7, `b` 0.6.",
        "- Lowest median time per epoch in seconds: `b` 3, then `c` 4, `a` 12.",
        "- `a` gives 2 of 20 images a wrong label, and 5 images a box with an IoU of at most 0.5.",
    ]
    equal = discussion.discussion([made_up(name, [], [1], accuracy=1.0) for name in "ab"])
    assert [*equal][1] == "- All runs have the same accuracy, 1."
