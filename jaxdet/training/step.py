"""The one train step of all systems."""

from functools import partial

import jax
import jax.numpy as jnp
import optax

from jaxdet import rng
from jaxdet.data import sampler
from jaxdet.training import evaluator, parallel
from jaxdet.training import state as training_state
from jaxdet.types import At


def train_step(state, data, rows, *, task, optimizer, plan, axis, scale=1.0):
    """One step: gather, augment, share of the loss, summed gradient, update, averages.

    `data` is the whole set on the device and `rows [B]` indices into it; without `data`, `rows`
    is the batch itself.  Pure; `axis` names the device axis under pmap, `scale` is `At.scale`.  A
    step whose loss or gradient is not finite changes nothing but `book`.
    """
    epoch = evaluator.epoch(state)
    at = At(True, state.step // plan.accumulate, epoch, state.hyper, axis, scale)
    batch = _batch(state, data, rows, task, at)
    dropout = rng.fold_in(state.key, rng.DROPOUT, state.step, parallel.rank(axis))

    def share(params):
        return task.loss(evaluator.join(params, state.stats), batch, dropout, at)

    (_, (stats, terms)), grads = jax.value_and_grad(share, has_aux=True)(state.params)
    terms, grads = parallel.total((terms, grads), axis)
    bad = _not_finite(terms, grads)
    chosen = optimizer(_numbers_now(state))
    updates, opt_state = chosen.update(grads, state.opt_state, state.params)
    moved = state.replace(
        params=optax.apply_updates(state.params, updates), stats=stats, opt_state=opt_state
    )
    moved = moved.replace(ema=_averaged(moved, plan))
    kept = jax.tree.map(partial(jnp.where, bad.any()), state, moved)
    return kept.replace(step=state.step + 1, book=_noted(state, terms, bad))


def _numbers_now(state):
    """The numbers of a state, with what plateaus have left of the learning rate."""
    if "plateau" not in state.book:
        return state.hyper
    return {**state.hyper, "lr": state.hyper["lr"] * training_state.scale_of(state.book)}


def _batch(state, data, rows, task, at):
    batch = sampler.gather(data, rows)
    count = len(jax.tree.leaves(rows)[0])
    places = parallel.places(count, at.axis)
    drawn = rng.row_keys(rng.fold_in(state.key, rng.AUGMENT, state.step), places)
    return task.augment(drawn, {"real": jnp.ones(count), **batch}, at)


def _not_finite(terms, grads):
    """Whether each term (in sorted order), and at the end the gradient, is not a number."""
    values = [terms[name] for name in sorted(terms)] + [optax.tree.norm(grads)]
    return ~jnp.isfinite(jnp.stack(values))


def _noted(state, terms, bad):
    """The book after a step: sums of the terms, and the first bad step and term."""
    book = state.book
    first = bad.any() & (book["bad_step"] < 0)
    return book | {
        "sums": {name: book["sums"][name] + terms[name] for name in terms},
        "count": book["count"] + 1,
        "bad_step": jnp.where(first, state.step, book["bad_step"]),
        "bad_term": jnp.where(first, jnp.argmax(bad), book["bad_term"]),
    }


def _averaged(state, plan):
    """Moving averages of parameters and statistics; the decay grows from .1 to `plan.ema`."""
    if not state.ema:
        return state.ema
    updates = (state.step + 1) // plan.accumulate
    decay = jnp.minimum(plan.ema, (1 + updates) / (10 + updates))
    decay = jnp.where((state.step + 1) % plan.accumulate == 0, decay, 1.0)
    now = {"params": state.params, "stats": state.stats}
    return jax.tree.map(lambda old, new: old * decay + new * (1 - decay), state.ema, now)
