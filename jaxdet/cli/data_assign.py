"""`jaxdet data assign RUN`: show the cells of a detector that are assigned to each true box."""

import json
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdet import tables
from jaxdet.cli import common
from jaxdet.cli.options import Assign
from jaxdet.errors import InputError
from jaxdet.kernels import compiler
from jaxdet.training import evaluator
from jaxdet.types import Array, AssigningTask, Batch, StepContext


def run(options: Assign) -> int:
    """Draw the first images of a split, and count the assigned cells; returns the exit code."""
    common.check_picture(options.out, options.count)
    run = common.load(options)
    task = run.experiment.task
    if not isinstance(task, AssigningTask):
        raise InputError(
            f"{options.run} must be a run of detect, which assigns cells to boxes, got a run of "
            f"{run.system}"
        )
    experiment = run.with_data(root=options.root)
    split = common.choose_split(options.split, [*experiment.splits])
    batch = evaluator.samples(experiment, split, options.count)
    context = StepContext(False, jnp.int32(0), jnp.int32(options.epoch), experiment.hparams)
    assignments = compiler.jit(partial(task.assignments, context=context))
    targets, centers, strides = jax.device_get(assignments(run.variables, batch))
    rows = _count_cells(batch, targets, strides)
    if options.json:
        print(json.dumps(rows))
    else:
        print(tables.aligned(rows, list(rows[0])))
    _draw(batch, targets, centers, strides, options)
    return 0


def _count_cells(batch: Batch, targets: Any, strides: Array) -> list[dict[str, Any]]:
    """Counts per image, without crowds: true boxes, boxes without a cell, cells per stride."""
    rows = []
    for i, valid in enumerate(batch["valid"] & ~batch["crowd"]):
        on, indices = targets.positive[i], targets.indices[i]
        unassigned = sum(not (on & (indices == g)).any() for g in np.flatnonzero(valid))
        cells = {f"cells of {s:g}": int((on & (strides == s)).sum()) for s in np.unique(strides)}
        counts = {"boxes": int(valid.sum()), "without a cell": unassigned}
        rows.append({"image": i, **counts, **cells})
    return rows


def _draw(batch: Batch, targets: Any, centers: Array, strides: Array, options: Assign) -> None:
    from jaxdet.plots import detection as detection_plots

    cells = []
    for i in range(len(batch["image"])):
        on = targets.positive[i]
        scores = targets.scores[i].max(-1)[on]
        cells.append((centers[on], strides[on], targets.indices[i][on], scores))
    true = [boxes[on] for boxes, on in zip(batch["boxes"], batch["valid"], strict=True)]
    detection_plots.assignments(batch["image"], true, cells, options.out)
    if not options.json:
        print(f"wrote {options.out}")
