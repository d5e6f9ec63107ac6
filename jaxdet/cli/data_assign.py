"""`jaxdet data assign RUN`: which cells of a detector learn which true box."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxdet import tables
from jaxdet.cli import common
from jaxdet.errors import InputError
from jaxdet.training import evaluator
from jaxdet.types import StepContext


def run(options):
    """Draw the first photos of a split, and print how many cells of each size learn a box."""
    common.check_picture(options.out, options.count)
    _, system, _, state = common.restored(options, **common.judged(options))
    if system.assigned is None:
        raise InputError(f"{options.run}: answers of this system are not of cells")
    batch = evaluator.samples(system, options.split, options.count)
    context = StepContext(False, jnp.int32(0), jnp.int32(options.epoch), system.hparams)
    kept = evaluator.eval_variables(state)
    found = jax.jit(partial(_assigned, system, context))(kept, batch)
    targets, points, strides = jax.device_get(found)
    rows = _counts(batch, targets, strides)
    if options.json:
        print(json.dumps(rows))
    else:
        print(tables.to_markdown(rows, list(rows[0])))
    _draw(batch, targets, points, strides, options)
    return 0


def _assigned(system, context, variables, batch):
    return system.assigned(variables, batch, context)


def _counts(batch, targets, strides):
    """A row a photo: true boxes, those without a cell, cells by stride."""
    rows = []
    for i, valid in enumerate(batch["valid"] & ~batch["crowd"]):
        on, index = targets.positive[i], targets.indices[i]
        empty = sum(not (on & (index == g)).any() for g in np.flatnonzero(valid))
        cells = {f"cells of {s:g}": int((on & (strides == s)).sum()) for s in np.unique(strides)}
        rows.append({"photo": i, "boxes": int(valid.sum()), "without a cell": empty, **cells})
    return rows


def _draw(batch, targets, points, strides, options):
    from jaxdet.plots import detection as detection_plots

    marks = []
    for i in range(len(batch["image"])):
        on = targets.positive[i]
        much = targets.scores[i].max(-1)[on]
        marks.append((points[on], strides[on], targets.indices[i][on], much))
    true = [boxes[on] for boxes, on in zip(batch["boxes"], batch["valid"], strict=True)]
    detection_plots.assignments(batch["image"], true, marks, options.out)
    if not options.json:
        print(f"wrote {options.out}")
