"""Optimisers and learning-rate schedules: a handful of optax parts, joined by name."""

import jax
import jax.numpy as jnp
import optax

NUMBERS = ("lr", "momentum", "beta2", "weight_decay")  # what runs of one program may differ in


def schedule(kind, *, rate, steps, warmup=0, drops=(), drop=0.1, cycle=1, grow=1):
    """Learning rate as a function of the update number: a linear warm-up, then `kind`.

    `cosine` falls to 0 at `steps`, and with a warm-up is one cycle up and down (Smith and Topin
    2017, arXiv:1708.07120, but for the momentum); `restarts` does so after `cycle` updates and
    begins again, in cycles each `grow` times as long as the one before (a whole number), counted
    from the first update (warm restarts, Loshchilov and Hutter 2016, arXiv:1608.03983); `piecewise`
    multiplies by `drop` at each fraction of `steps` named in `drops` (seed 003: .5 and .75);
    `constant` stays, and so does `plateau`, which the function of that name lets drop.  `warmup`
    counts updates.  `rate`, `steps` and `cycle` may be traced: runs of several lengths share one
    program.
    """
    after = jnp.maximum(steps - warmup, 1)
    fall = optax.cosine_decay_schedule(rate, 1.0)
    edges = jnp.round(jnp.float32(drops) * steps) - warmup

    def main(count):
        match kind:
            case "cosine":
                return fall(count / after)
            case "restarts":
                return fall(_phase((count + warmup) / cycle, grow))
            case "piecewise":
                return rate * drop ** (count >= edges).sum()
            case "constant" | "plateau":
                return rate

    ramp = optax.linear_schedule(rate / max(warmup, 1), rate, max(warmup - 1, 1))
    return optax.join_schedules([ramp, main], [warmup]) if warmup else main


def _phase(place, grow):
    """How much of its cycle is over, in [0, 1), at a place that counts lengths of the first."""
    if grow == 1:
        return place % 1
    starts = [0]
    while starts[-1] < 2**31:  # places are updates at most, an int32
        starts.append(grow * starts[-1] + 1)
    number = (place >= jnp.float32(starts)).sum() - 1
    lengths = jnp.float32([grow**n for n in range(len(starts))])
    return (place - jnp.float32(starts)[number]) / lengths[number]


def plateau(drop, patience):
    """A rule of when the rate drops, as an optax transformation of values, less is better.

    Its state begins as `init(zero)`.  `update(zero, state, value=)` multiplies `scale` of the state
    by `drop` after `patience` values in a row that are not better than the best by a ten-thousandth
    of it (as in PyTorch, which waits for one more).
    """
    return optax.contrib.reduce_on_plateau(drop, patience, rtol=1e-4)


def optimizer(
    kind,
    rate,
    *,
    momentum=0.9,
    beta2=0.999,
    weight_decay=0.0,
    clip=0.0,
    accumulate=1,
    learns=None,
):
    """An optax transformation: clip by global norm, then `adamw` or `sgd` (Nesterov).

    Weight decay is decoupled and spares biases and normalisation scales (arrays of rank 1);
    `clip = 0` does not clip.  With `accumulate > 1` the mean gradient of that many calls makes
    one update.  `learns(path)`, of a parameter's path "a/b/kernel", is a factor of its learning
    rate: at 0 or False it stays as it is and takes no memory, at 1 or True it learns as all do.
    `rate`, `momentum`, `beta2` and `weight_decay` may be traced.
    """
    match kind:
        case "adamw":
            scale = optax.scale_by_adam(momentum, beta2)
        case "sgd":
            scale = optax.trace(momentum, nesterov=True)
    parts = [
        optax.clip_by_global_norm(clip) if clip else optax.identity(),
        scale,
        optax.add_decayed_weights(weight_decay, kernels),
        optax.scale_by_learning_rate(rate),
    ]
    whole = optax.chain(*parts)
    if accumulate > 1:
        whole = optax.MultiSteps(whole, accumulate).gradient_transformation()
    return whole if learns is None else _partly(whole, learns)


def _partly(whole, learns):
    """`whole` on the parameters that learn, scaled, and nothing on the others."""

    def factor(path):
        return float(learns(jax.tree_util.keystr(path, simple=True, separator="/")))

    def kinds(params):
        kind = {True: "learns", False: "stays"}
        return jax.tree_util.tree_map_with_path(lambda path, _: kind[factor(path) > 0], params)

    def scaled(updates, _):
        return jax.tree_util.tree_map_with_path(lambda path, x: factor(path) * x, updates)

    moving = optax.chain(whole, optax.stateless(scaled))
    return optax.partition({"learns": moving, "stays": optax.set_to_zero()}, kinds)


def kernels(params):
    """True for the leaves that are weights (rank 2 and more): those that decay."""
    return jax.tree.map(lambda p: p.ndim > 1, params)
