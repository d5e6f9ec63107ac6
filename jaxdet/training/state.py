"""The state of a run and the one step that all systems train with; `fit` makes runs of them."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdet import rng
from jaxdet.data import sampler
from jaxdet.training import evaluator, optim, parallel
from jaxdet.types import At, TrainState

ZERO = np.float32(0)
LENGTH = ("epoch_steps", "steps")  # of a plan: numbers that a step reads from the state


class Plan(NamedTuple):
    """How long a run is, and what a step does besides the gradient."""

    epoch_steps: int
    steps: int
    accumulate: int
    ema: float


def devices(config):
    """The devices of `config`, once they can share its batches."""
    among = parallel.devices(config.devices)
    parallel.check(config.batch, among)
    parallel.check(config.eval_batch, among, "--eval-batch")
    return among


def plan(config, count):
    """The plan of `config` for a training set of `count` rows."""
    epoch_steps = -(-count // config.batch)
    return Plan(epoch_steps, config.epochs * epoch_steps, config.accumulate, config.ema)


def learning_rate(config, plan, peak=None):
    """The schedule of `config`: update number -> learning rate; its own peak, or a traced one.

    `plan.steps` may be traced as well.
    """
    return optim.schedule(
        config.schedule,
        rate=config.lr if peak is None else peak,
        steps=jnp.maximum(plan.steps // plan.accumulate, 1),
        warmup=config.warmup,
        drops=config.drops,
        drop=config.drop,
        cycle=config.cycle * plan.epoch_steps / plan.accumulate,
        grow=config.cycle_factor,
    )


def plateau(config):
    """When the learning rate of `config` drops: `optim.plateau`, or None where it never does so."""
    if config.schedule == "plateau":
        return optim.plateau(config.drop, config.drop_patience)
    return None


def numbers(system, config):
    """What of a run is a number and no more, and may be another in the same program."""
    found = system.hyper | {name: getattr(config, name) for name in optim.NUMBERS}
    length = plan(config, len(system.splits["train"]))._asdict()
    return {name: np.float32(value) for name, value in found.items()} | {
        name: np.int32(length[name]) for name in LENGTH
    }


def optimizer(config, plan, learns=None):
    """The optax transformation of `config` as a function of `numbers`; see `optim.optimizer`."""
    return partial(_optimizer, config, plan, learns)


def _optimizer(config, plan, learns, hyper):
    length = {name: hyper[name] for name in LENGTH}
    return optim.optimizer(
        config.optimizer,
        learning_rate(config, plan._replace(**length), hyper["lr"]),
        **{name: hyper[name] for name in ("momentum", "beta2", "weight_decay")},
        clip=config.clip,
        accumulate=plan.accumulate,
        learns=learns,
    )


def maker(system, config):
    """The function of no arguments that makes the state before the first step.

    Trace it with `eval_shape` to know what a checkpoint of the run holds.
    """
    arrays = system.splits["train"].first(1).arrays
    chosen = optimizer(config, plan(config, len(system.splits["train"])), system.learns)
    return partial(
        create,
        arrays,
        numbers(system, config),
        task=system.task,
        optimizer=chosen,
        seed=config.seed,
        ema=config.ema,
        plateau=plateau(config),
    )


def create(data, hyper, *, task, optimizer, seed, ema, plateau=None):
    """The state before the first step; `data` gives the shapes of a batch.

    Traceable: `jit` it to make the state, `eval_shape` it to know what a checkpoint holds.
    """
    root = jax.random.key(seed)
    at = At(True, jnp.int32(0), jnp.int32(0), hyper)
    batch = _blank_batch(data, task, at)
    made = task.init(rng.fold_in(root, rng.INIT), batch)
    params, stats = made["params"], made.get("batch_stats", {})
    _, (_, terms) = jax.eval_shape(lambda v, b: task.loss(v, b, root, at), made, batch)
    return TrainState(
        step=jnp.int32(0),
        params=params,
        stats=stats,
        opt_state=optimizer(hyper).init(params),
        ema=jax.tree.map(jnp.copy, {"params": params, "stats": stats}) if ema else {},
        hyper=hyper,
        key=root,
        book=_fresh_book(terms) | ({"plateau": plateau.init(ZERO)} if plateau else {}),
    )


def begun_from(state, weights):
    """A state before its first step, with `weights(variables)` in place of its variables."""
    made = weights(evaluator.join(state.params, state.stats))
    params, stats = made["params"], made.get("batch_stats", {})
    ema = {"params": params, "stats": stats} if state.ema else {}
    return state.replace(params=params, stats=stats, ema=jax.tree.map(jnp.copy, ema))


def try_weights(system, config):
    """InputError where the system's pretrained weights cannot be used, before anything is made."""
    if system.weights:
        state = jax.eval_shape(maker(system, config))
        system.weights(evaluator.join(state.params, state.stats))


def _blank_batch(data, task, at):
    """One row of zeros, as the network will see rows."""

    def draw(data):
        rows = jnp.zeros(1, jnp.int32)
        drawn = rng.row_keys(jax.random.key(0), rows)
        return task.augment(drawn, {**sampler.gather(data, rows), "real": jnp.ones(1)}, at)

    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(draw, data))


def _fresh_book(terms):
    return {
        "sums": {name: jnp.float32(0) for name in terms},
        "count": jnp.int32(0),  # steps in `sums`
        "bad_step": jnp.int32(-1),
        "bad_term": jnp.int32(-1),
        "evaluated": jnp.int32(-1),  # step of the last evaluation
        "best_score": jnp.float32(-jnp.inf),
        "best_loss": jnp.float32(jnp.inf),
        "best_step": jnp.int32(-1),
        "waited": jnp.int32(0),  # evaluations since the best one
    }


def scale_of(book):
    """What plateaus have left of the learning rate, as a share of it."""
    return book["plateau"].scale if "plateau" in book else 1.0
