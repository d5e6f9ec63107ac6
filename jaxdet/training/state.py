"""Initial training states."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdet import rng
from jaxdet.data import sampler
from jaxdet.training.experiment import Experiment
from jaxdet.training.warm_start import WarmStart
from jaxdet.types import Array, Batch, StepContext, Task, TrainState, Tree

ZERO = np.float32(0)


def init_fn(experiment: Experiment) -> Callable[[], TrainState]:
    """A function without arguments that creates the initial state.

    `jax.eval_shape` of this function gives the structure of a checkpoint of the run.
    """
    return partial(
        create_state,
        experiment.splits["train"].first(1).arrays,
        experiment.initial_hparams,
        task=experiment.task,
        optimizer=experiment.optimizer,
        seed=experiment.config.seed,
        ema=experiment.config.ema,
        plateau=experiment.plateau,
    )


def create_state(
    data: Batch,
    hparams: dict[str, Array],
    *,
    task: Task,
    optimizer: Callable[[dict[str, Array]], optax.GradientTransformation],
    seed: int,
    ema: float,
    plateau: Any = None,
) -> TrainState:
    """The initial state of a run; JAX can trace this function.

    data: arrays of the training set; only their types and the shapes of their rows matter.
    hparams: traced hyper-parameters, see `Experiment.initial_hparams`.
    ema: decay of the moving averages; 0: none.
    """
    root = jax.random.key(seed)
    context = StepContext(True, jnp.int32(0), jnp.int32(0), hparams)
    batch, variables = _init_variables(root, data, task, hparams)
    params, stats = variables["params"], variables.get("batch_stats", {})
    _, (_, terms) = jax.eval_shape(lambda v, b: task.loss(v, b, root, context), variables, batch)
    return TrainState(
        step=jnp.int32(0),
        params=params,
        stats=stats,
        opt_state=optimizer(hparams).init(params),
        ema=jax.tree.map(jnp.copy, {"params": params, "stats": stats}) if ema else {},
        hparams=hparams,
        key=root,
        bookkeeping=_bookkeeping(terms) | ({"plateau": plateau.init(ZERO)} if plateau else {}),
    )


def variable_shapes(experiment: Experiment) -> Tree:
    """Shapes and types of the network's variables, found without the state of the optimizer."""

    def init(data):
        key, hparams = jax.random.key(0), experiment.initial_hparams
        _, variables = _init_variables(key, data, experiment.task, hparams)
        return join_variables(variables["params"], variables.get("batch_stats", {}))

    return jax.eval_shape(init, experiment.splits["train"].first(1).arrays)


def variables_of(state: TrainState) -> Tree:
    """The variables to evaluate: the moving averages if the state has them."""
    kept = state.ema or {"params": state.params, "stats": state.stats}
    return join_variables(kept["params"], kept["stats"])


def join_variables(params: Tree, stats: Tree) -> Tree:
    """Flax variables of parameters and batch statistics, which may be empty."""
    return {"params": params, **({"batch_stats": stats} if stats else {})}


def load_pretrained(state: TrainState, load: Callable[[Tree], Tree]) -> TrainState:
    """An initial state in which `load(variables)` replaces the variables."""
    variables = load(join_variables(state.params, state.stats))
    params, stats = variables["params"], variables.get("batch_stats", {})
    ema = {"params": params, "stats": stats} if state.ema else {}
    return state.replace(params=params, stats=stats, ema=jax.tree.map(jnp.copy, ema))


def validate_weights(experiment: Experiment, line: Callable[[str], None]) -> None:
    """Raise InputError if the pretrained weights of an experiment do not fit its network.

    If they are the variables of another run, `line` is called with a table of the copied variables.
    """
    load = experiment.load_pretrained
    if isinstance(load, WarmStart):
        line(load.summary(variable_shapes(experiment)))
    elif load:
        load(variable_shapes(experiment))


def plateau_scale(bookkeeping: dict[str, Any]) -> Any:
    """The factor by which plateaus have lowered the learning rate; 1 without such a schedule."""
    return bookkeeping["plateau"].scale if "plateau" in bookkeeping else 1.0


def _init_variables(
    root: Array, data: Batch, task: Task, hparams: dict[str, Array]
) -> tuple[Batch, Tree]:
    """(a batch of zeros, initial variables of the network)."""
    batch = _blank_batch(data, task, hparams)
    return batch, task.init(rng.fold_in(root, rng.INIT), batch)


def _blank_batch(data: Batch, task: Task, hparams: dict[str, Array]) -> Batch:
    """A batch with one row of zeros, prepared as for evaluation; augmentation changes no shapes."""
    context = StepContext(False, jnp.int32(0), jnp.int32(0), hparams)

    def prepare(data):
        rows = jnp.zeros(1, jnp.int32)
        keys = rng.row_keys(jax.random.key(0), rows)
        batch = {**sampler.gather(data, rows), "real": jnp.ones(1)}
        return task.augment(keys, batch, context)

    shapes = jax.eval_shape(prepare, data)
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)


def _bookkeeping(terms: dict[str, Any]) -> dict[str, Any]:
    return {
        "sums": {name: jnp.float32(0) for name in terms},
        "count": jnp.int32(0),  # number of steps in `sums`
        "bad_step": jnp.int32(-1),
        "bad_term": jnp.int32(-1),
        "evaluated": jnp.int32(-1),  # step of the last evaluation
        "best_score": jnp.float32(-jnp.inf),
        "best_loss": jnp.float32(jnp.inf),
        "best_step": jnp.int32(-1),
        "waited": jnp.int32(0),  # evaluations since the best one
    }
