"""Learning-rate schedules and optimizers for optax, whose hyperparameters may be traced."""

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxdet.config import Optimizer, Schedule
from jaxdet.types import Array, Tree

SMALL_ARRAY = 2**15  # numbers


def schedule(
    name: Schedule,
    *,
    rate: Any,
    steps: Any,
    warmup: int = 0,
    decay_at: Sequence[float] = (),
    decay: float = 0.1,
    period: Any = 1,
    growth: int = 1,
) -> Callable[[Any], Any]:
    """The learning rate as a function of the update number: a warm-up, then the named schedule.

    "cosine" falls to 0 at `steps`; with a warm-up it is the one-cycle schedule (Smith and Topin
    2017, arXiv:1708.07120, without the momentum).  "restarts" falls to 0 after `period` updates and
    starts again, each cosine `growth` times as long as the previous one; the first period includes
    the warm-up (Loshchilov and Hutter 2016, arXiv:1608.03983).  "piecewise" multiplies by `decay`
    at each fraction of `steps` in `decay_at`.  "constant" and "plateau" do not change the rate; for
    "plateau", the rule `plateau` lowers it.

    rate: the rate after the warm-up.
    warmup: number of updates in which the rate rises linearly.
    `rate`, `steps` and `period` may be traced.
    """
    after = jnp.maximum(steps - warmup, 1)
    cosine = optax.cosine_decay_schedule(rate, 1.0)
    edges = jnp.round(jnp.float32(decay_at) * steps) - warmup

    def main(count):
        match name:
            case "cosine":
                return cosine(count / after)
            case "restarts":
                return cosine(_restart_phase((count + warmup) / period, growth))
            case "piecewise":
                return rate * decay ** (count >= edges).sum()
            case _:
                return rate

    ramp = optax.linear_schedule(rate / max(warmup, 1), rate, max(warmup - 1, 1))
    return optax.join_schedules([ramp, main], [warmup]) if warmup else main


def _restart_phase(time: Array, growth: int) -> Array:
    """Completed fraction of the current cosine, in [0, 1); the unit of time is the first cosine."""
    if growth == 1:
        return time % 1
    starts = [0]
    while starts[-1] < 2**31:  # update numbers are int32
        starts.append(growth * starts[-1] + 1)
    number = (time >= jnp.float32(starts)).sum() - 1
    lengths = jnp.float32([growth**n for n in range(len(starts))])
    return (time - jnp.float32(starts)[number]) / lengths[number]


@cache
def plateau(decay: float, patience: int) -> optax.GradientTransformationExtraArgs:
    """The rule that lowers the learning rate at a plateau, as an optax transformation.

    Its initial state is `init(zero)`.  `update(zero, state, value=)` multiplies `state.scale` by
    `decay` after `patience` consecutive values that are not lower than the best earlier value by
    more than a fraction of 1e-4.  PyTorch's ReduceLROnPlateau waits for one more value.
    """
    rule = optax.contrib.reduce_on_plateau(decay, patience, rtol=1e-4)
    return rule._replace(update=jax.jit(rule.update))  # not compiled, an update takes 0.1 s


class UpdateRule(NamedTuple):
    """How an optimizer turns a gradient into a step, before the learning rate."""

    scale: Callable[[Any, Any], optax.GradientTransformation]  # of (momentum, beta2)
    decoupled_decay: bool  # whether weight decay is added to the step, instead of the gradient


def _rmsprop(momentum: Any, decay: Any) -> optax.GradientTransformation:
    """RMSprop as in PyTorch: the mean square starts at 0, and epsilon is added to its root."""
    return optax.chain(optax.scale_by_rms(decay, eps_in_sqrt=False), optax.trace(momentum))


UPDATE_RULES: dict[Optimizer, UpdateRule] = {
    "adamw": UpdateRule(optax.scale_by_adam, decoupled_decay=True),
    "adam": UpdateRule(optax.scale_by_adam, decoupled_decay=False),
    "sgd": UpdateRule(lambda momentum, _: optax.trace(momentum, nesterov=True), True),
    "momentum": UpdateRule(lambda momentum, _: optax.trace(momentum), False),
    "rmsprop": UpdateRule(_rmsprop, False),
}


def optimizer(
    name: Optimizer,
    learning_rate: Any,
    *,
    momentum: Any = 0.9,
    beta2: Any = 0.999,
    weight_decay: Any = 0.0,
    clip: float = 0.0,
    accumulate: int = 1,
    steps: Any = None,
    lr_multiplier: Callable[[str], float] | None = None,
) -> optax.GradientTransformation:
    """An optimizer: clipping of the gradient by its global norm, then the rule `name`.

    name: one of `UPDATE_RULES`.

    weight_decay: of kernels only, not of biases and normalization scales (arrays of rank 1).
      "adamw" (Loshchilov and Hutter 2017, arXiv:1711.05101) and "sgd", which has Nesterov momentum,
      have decoupled weight decay.  "adam", "momentum" (the heavy ball) and "rmsprop" add the
      gradient of an L2 penalty instead, as PyTorch does.
    clip: largest norm of the gradient; 0 does not clip.
    accumulate: number of calls whose mean gradient makes one update.
    steps: total number of calls, if known: then the calls left over at the end make a last update.
    lr_multiplier: function from the path of a parameter, such as "a/b/kernel", to a factor of its
      learning rate; if it is 0, the parameter is frozen and has no optimizer state.

    The learning rate, `momentum`, `beta2`, `weight_decay` and `steps` may be traced.
    """
    rule = UPDATE_RULES[name]
    scale = rule.scale(momentum, beta2)
    decay = optax.add_decayed_weights(weight_decay, is_kernel)
    whole = optax.chain(
        optax.stateless(partial(_clip, clip)) if clip else optax.identity(),
        *((scale, decay) if rule.decoupled_decay else (decay, scale)),
        optax.scale_by_learning_rate(learning_rate),
    )
    if accumulate > 1:
        calls = accumulate if steps is None else partial(_calls_of_update, accumulate, steps)
        whole = optax.MultiSteps(whole, calls).gradient_transformation()
    return whole if lr_multiplier is None else _with_multiplier(whole, lr_multiplier)


def global_norm(tree: Tree) -> Array:
    """Square root of the sum of the squares of all numbers in a tree."""
    # Small arrays are joined: a sum is compiled for every size, in the same time for a small one.
    rows = [leaf.reshape(-1) for leaf in jax.tree.leaves(tree)]
    small = [row for row in rows if len(row) < SMALL_ARRAY]
    joined = [row for row in rows if len(row) >= SMALL_ARRAY]
    joined += [jnp.concatenate(small)] if small else []
    return jnp.sqrt(sum(jnp.vdot(row, row) for row in joined))


def _clip(limit: float, updates: Tree, _: Any = None) -> Tree:
    """`optax.clip_by_global_norm` with `global_norm`."""
    norm = global_norm(updates)
    return jax.tree.map(lambda x: jnp.where(norm < limit, x, x / norm * limit), updates)


def _calls_of_update(accumulate: int, steps: Any, update: Array) -> Array:
    """Number of calls in update number `update`; calls left over at the end make an update too."""
    rest = steps % accumulate
    return jnp.where((update == steps // accumulate) & (rest > 0), rest, accumulate)


def _with_multiplier(
    whole: optax.GradientTransformation, lr_multiplier: Callable[[str], float]
) -> optax.GradientTransformation:
    """`whole` for trainable parameters, scaled by their factors; zero updates for frozen ones."""

    def factor(path):
        return float(lr_multiplier(jax.tree_util.keystr(path, simple=True, separator="/")))

    def labels(params):
        names = {True: "trainable", False: "frozen"}
        return jax.tree_util.tree_map_with_path(lambda path, _: names[factor(path) > 0], params)

    def scale(updates, _):
        return jax.tree_util.tree_map_with_path(lambda path, x: factor(path) * x, updates)

    trainable = optax.chain(whole, optax.stateless(scale))
    return optax.partition({"trainable": trainable, "frozen": optax.set_to_zero()}, labels)


def is_kernel(params: Tree) -> Tree:
    """True for the leaves of rank 2 and more, to which weight decay applies."""
    return jax.tree.map(lambda p: p.ndim > 1, params)
