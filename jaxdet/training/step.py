"""The training step of all systems: a pure function, on one device or on several."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxdet import rng
from jaxdet.data import sampler
from jaxdet.training import optim, parallel
from jaxdet.training.experiment import Plan
from jaxdet.training.state import join_variables, plateau_scale
from jaxdet.types import Array, Batch, StepContext, Task, TrainState, Tree


def completed_epochs(state: TrainState) -> Array:
    """Passes over the training set that a state has completed."""
    return state.step // state.hparams["epoch_steps"]


def train_step(
    state: TrainState,
    data: Batch,
    rows: Any,
    *,
    task: Task,
    optimizer: Callable[[dict[str, Array]], optax.GradientTransformation],
    plan: Plan,
    axis: str | None,
    scale: float = 1.0,
) -> TrainState:
    """The state after one training step.

    A step gathers and augments a batch, computes the gradient of the loss, summed over devices, and
    updates the parameters and the moving averages.  A step whose loss or gradient is not finite
    changes only the step number and the bookkeeping.

    data, rows: all training arrays, on the device, and indices [B] of rows; or {} and the batch
      itself.
    axis: name of the device axis under pmap; None on one device.
    scale: see `StepContext`.
    """
    epoch = completed_epochs(state)
    context = StepContext(True, state.step // plan.accumulate, epoch, state.hparams, axis, scale)
    batch = _prepare_batch(state, data, rows, task, context)
    dropout = rng.fold_in(state.key, rng.DROPOUT, state.step, parallel.rank(axis))

    def share(params):
        return task.loss(join_variables(params, state.stats), batch, dropout, context)

    (_, (stats, terms)), grads = jax.value_and_grad(share, has_aux=True)(state.params)
    terms, grads = parallel.psum((terms, grads), axis)
    bad = _not_finite(terms, grads)
    updates, opt_state = optimizer(_current_hparams(state)).update(
        grads, state.opt_state, state.params
    )
    updated = state.replace(
        params=optax.apply_updates(state.params, updates), stats=stats, opt_state=opt_state
    )
    updated = updated.replace(ema=_moving_averages(updated, plan))
    kept = jax.tree.map(partial(jnp.where, bad.any()), state, updated)
    return kept.replace(step=state.step + 1, bookkeeping=_record(state, terms, bad))


def train_steps(
    state: TrainState, data: Batch, count: Array, rows: Any, **options: Any
) -> TrainState:
    """The state after `train_step` on each of the first `count` of N batches.

    rows: rows of all batches, [B, N, ...].

    `count` is traced, so that one program takes one step or several, with the same bits.
    """

    def body(i, state):
        return train_step(state, data, jax.tree.map(lambda r: r[:, i], rows), **options)

    return jax.lax.fori_loop(0, count, body, state)


def _current_hparams(state: TrainState) -> dict[str, Array]:
    """The hyper-parameters of a state, with the learning rate lowered by plateaus."""
    if "plateau" not in state.bookkeeping:
        return state.hparams
    return {**state.hparams, "lr": state.hparams["lr"] * plateau_scale(state.bookkeeping)}


def _prepare_batch(
    state: TrainState, data: Batch, rows: Any, task: Task, context: StepContext
) -> Batch:
    batch = sampler.gather(data, rows)
    count = len(jax.tree.leaves(rows)[0])
    root = rng.fold_in(state.key, rng.AUGMENT, state.step)
    keys = rng.row_keys(root, parallel.row_indices(count, context.axis))
    return task.augment(keys, {"real": jnp.ones(count), **batch}, context)


def _not_finite(terms: dict[str, Array], grads: Tree) -> Array:
    """Mask of the terms, sorted by name, and of the gradient norm: which are not finite."""
    values = [terms[name] for name in sorted(terms)] + [optim.global_norm(grads)]
    return ~jnp.isfinite(jnp.stack(values))


def _record(state: TrainState, terms: dict[str, Array], bad: Array) -> dict[str, Any]:
    """The bookkeeping after a step: sums of the terms, and the first bad step and term."""
    before = state.bookkeeping
    first = bad.any() & (before["bad_step"] < 0)
    return before | {
        "sums": {name: before["sums"][name] + terms[name] for name in terms},
        "count": before["count"] + 1,
        "bad_step": jnp.where(first, state.step, before["bad_step"]),
        "bad_term": jnp.where(first, jnp.argmax(bad), before["bad_term"]),
    }


def _moving_averages(state: TrainState, plan: Plan) -> Tree:
    """Moving averages of parameters and statistics; their decay grows from 2/11 to `plan.ema`."""
    if not state.ema:
        return state.ema
    done = state.step + 1
    updates = -(-done // plan.accumulate)
    decay = jnp.minimum(plan.ema, (1 + updates) / (10 + updates))
    updated = (done % plan.accumulate == 0) | (done == state.hparams["steps"])
    decay = jnp.where(updated, decay, 1.0)
    now = {"params": state.params, "stats": state.stats}
    return jax.tree.map(lambda old, new: old * decay + new * (1 - decay), state.ema, now)
