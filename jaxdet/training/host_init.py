"""Run a function once on the host, with NumPy, when compiling it would dominate the time.

Initializing a network is such a case: for ResNet18 it takes seconds to compile and 0.3 s to run.

    state = host_init.initialize(create)

Random bits are drawn by NumPy's Philox, seeded with the key's data: values have the distribution
that the function asks for and are the same for the same key on every machine, but they are not the
values that jax would draw.  Equations that no output depends on are skipped; in a module's `init`,
this is the whole forward pass.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy
from jax.extend import core

from jaxdet import flops
from jaxdet.types import Array, Tree


def initialize(fn: Callable[..., Tree], *args: Tree) -> Tree:
    """`fn(*args)` as a tree of arrays on the host; random keys stay jax keys."""
    closed, shapes = jax.make_jaxpr(fn, return_shape=True)(*args)
    outputs = _run(closed.jaxpr, closed.consts, jax.tree.leaves(args))
    return jax.tree.unflatten(jax.tree.structure(shapes), outputs)


def _run(jaxpr: Any, consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
    known = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))

    def value(atom):
        if isinstance(atom, core.Literal):
            aval: Any = atom.aval
            return np.asarray(atom.val, aval.dtype)
        return known[atom]

    for eqn in flops.live_equations(jaxpr):
        outputs = _apply(jaxpr, eqn, [value(atom) for atom in eqn.invars])
        known.update(zip(eqn.outvars, outputs, strict=True))
    return [value(atom) for atom in jaxpr.outvars]


def _apply(jaxpr: Any, eqn: Any, values: list[Any]) -> list[Any]:
    """Outputs of one equation, computed by NumPy if it has a rule in `RULES`, else by jax."""
    name, params = eqn.primitive.name, eqn.params
    if name in ("jit", "pjit"):
        inner = params["jaxpr"]
        return _run(inner.jaxpr, inner.consts, values)
    if name == "random_bits" and not eqn.invars[0].aval.shape:
        return [_random_bits(*values, **params)]
    if name in RULES and all(jnp.issubdtype(v.aval.dtype, DTYPES[name]) for v in eqn.invars):
        aval = eqn.outvars[0].aval
        return [np.asarray(RULES[name](*values, **params), aval.dtype).reshape(aval.shape)]
    return _apply_with_jax(jaxpr, eqn, values)


def _apply_with_jax(jaxpr: Any, eqn: Any, values: list[Any]) -> list[Any]:
    """Outputs of one equation, compiled and run separately."""
    variables = {
        atom: value
        for atom, value in zip(eqn.invars, values, strict=True)
        if not isinstance(atom, core.Literal)
    }
    single = jaxpr.replace(
        constvars=[],
        invars=list(variables),
        outvars=list(eqn.outvars),
        eqns=[eqn],
        effects=eqn.effects,
    )
    return core.jaxpr_as_fun(core.ClosedJaxpr(single, ()))(*variables.values())


def _random_bits(key: jax.Array, *, bit_width: int, shape: tuple[int, ...], **_: Any) -> np.ndarray:
    seed = np.asarray(jax.random.key_data(key)).astype(np.uint32).tobytes()
    generator = np.random.Generator(np.random.Philox(key=int.from_bytes(seed, "little") % 2**128))
    return generator.integers(2**bit_width, size=shape, dtype=f"uint{bit_width}")


def _broadcast(
    x: Array, *, shape: tuple[int, ...], broadcast_dimensions: tuple[int, ...], **_: Any
) -> np.ndarray:
    sides = [1] * len(shape)
    for axis, side in zip(broadcast_dimensions, np.shape(x), strict=True):
        sides[axis] = side
    return np.broadcast_to(np.reshape(x, sides), shape)


def _without_params(fn: Callable) -> Callable:
    """A rule that calls a NumPy function and ignores the parameters of the primitive."""
    return lambda *values, **_: fn(*values)


FLOATS = {
    "div": np.divide,
    "erf": lambda x: scipy.special.erf(x),
    "erf_inv": lambda x: scipy.special.erfinv(x),
    "exp": np.exp,
    "log": np.log,
    "log1p": np.log1p,
    "sqrt": np.sqrt,
    "cos": np.cos,
    "nextafter": np.nextafter,
    "stop_gradient": np.asarray,
}
NUMBERS = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "neg": np.negative,
    "max": np.maximum,
    "min": np.minimum,
    "lt": np.less,
    "convert_element_type": np.asarray,  # `_apply` converts the result
    "copy": np.copy,
}
INTEGERS = {"or": np.bitwise_or, "and": np.bitwise_and, "shift_right_logical": np.right_shift}
RULES = {name: _without_params(fn) for name, fn in (FLOATS | NUMBERS | INTEGERS).items()} | {
    "broadcast_in_dim": _broadcast,
    "bitcast_convert_type": lambda x, *, new_dtype: np.asarray(x).view(new_dtype),
    "reshape": lambda x, *, new_sizes, **_: np.reshape(x, new_sizes),
    "transpose": lambda x, *, permutation: np.transpose(x, permutation),
}
DTYPES = {  # of the inputs that a rule accepts; others are run by jax
    **dict.fromkeys(RULES, np.number),
    **dict.fromkeys(FLOATS, np.floating),
    **dict.fromkeys(INTEGERS, np.unsignedinteger),
}
