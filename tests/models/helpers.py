"""Helpers for the tests of models: shapes and random values of variables."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np


def shaped(*shape, dtype=jnp.float32):
    """An array of this shape and type without values."""
    return jax.ShapeDtypeStruct(shape, dtype)


def outputs(net, *inputs):
    """(outputs, variables) of a network, as shapes."""
    return _trace(net, *jax.tree.map(lambda x: shaped(*x.shape, dtype=x.dtype), inputs))


@cache  # tracing a large network takes a second
def _trace(net, *shapes):
    return jax.eval_shape(net.init_with_output, jax.random.key(0), *shapes)


def variable_shapes(net):
    """Variables of a network for images of 64 x 64 pixels, as shapes."""
    return outputs(net, shaped(1, 64, 64, 3))[1]


def size(tree):
    """Number of values in a tree of arrays."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def paths(tree):
    """Leaves by path: `params/stem/kernel`."""
    leaves = jax.tree.leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def random_like(shapes):
    """Random variables of these shapes, statistics and biases too, that keep outputs near 1."""
    draw = np.random.default_rng(0)

    def normal(x):
        return np.float32(draw.normal(size=x.shape) / np.prod(x.shape[:-1]) ** 0.5)

    variables = jax.tree.map(normal, shapes)
    return {**variables, "batch_stats": jax.tree.map(abs, variables.get("batch_stats", {}))}


@partial(jax.jit, static_argnums=0)
def apply(net, variables, x):
    """Outputs in evaluation, at full precision on any device."""
    with jax.default_matmul_precision("highest"):
        return net.apply(variables, x)


def torch_arrays(variables, names):
    """The arrays {name: array} of a weight file with these values; kernels are [out, in, ...]."""
    return {
        names(path): np.moveaxis(leaf, (-1, -2), (0, 1)) if path.endswith("kernel") else leaf
        for path, leaf in paths(variables).items()
    }
