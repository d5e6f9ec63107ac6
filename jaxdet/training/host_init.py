"""Run a function once on the host, with NumPy, where to compile it would take longest of all.

That is so for a network's initial values: ResNet18 takes seconds to compile and 0.3 s to run.

    state = host.evaluate(make)

Random bits are drawn by NumPy's Philox from the key's data, so that values have the distribution
that the function gives them, are the same for the same key everywhere, but are not those that jax
would draw.  What nothing needs is left out: of a module's `init`, the whole forward pass.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from scipy import special

from jaxdet import flops


def initialize(fn, *args):
    """`fn(*args)` as a tree of arrays on the host; keys stay keys of jax."""
    closed, shapes = jax.make_jaxpr(fn, return_shape=True)(*args)
    values = _run(closed.jaxpr, closed.consts, jax.tree.leaves(args))
    return jax.tree.unflatten(jax.tree.structure(shapes), values)


def _run(jaxpr, consts, args):
    known = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))

    def value(atom):
        literal = isinstance(atom, core.Literal)
        return np.asarray(atom.val, atom.aval.dtype) if literal else known[atom]

    for eqn in flops.live_equations(jaxpr):
        made = _apply(jaxpr, eqn, [value(atom) for atom in eqn.invars])
        known.update(zip(eqn.outvars, made, strict=True))
    return [value(atom) for atom in jaxpr.outvars]


def _apply(jaxpr, eqn, values):
    """Outputs of one equation: by NumPy where that knows how, else by jax."""
    name, params = eqn.primitive.name, eqn.params
    if name in ("jit", "pjit"):
        body = params["jaxpr"]
        return _run(body.jaxpr, body.consts, values)
    if name == "random_bits" and not eqn.invars[0].aval.shape:
        return [_random_bits(*values, **params)]
    if name in RULES and all(jnp.issubdtype(v.aval.dtype, KINDS[name]) for v in eqn.invars):
        made = eqn.outvars[0].aval
        return [np.asarray(RULES[name](*values, **params), made.dtype).reshape(made.shape)]
    return _by_jax(jaxpr, eqn, values)


def _by_jax(jaxpr, eqn, values):
    """Outputs of one equation, run by itself."""
    given = {atom: value for atom, value in zip(eqn.invars, values, strict=True) if _is_var(atom)}
    alone = jaxpr.replace(
        constvars=[], invars=list(given), outvars=list(eqn.outvars), eqns=[eqn], effects=eqn.effects
    )
    return core.jaxpr_as_fun(core.ClosedJaxpr(alone, ()))(*given.values())


def _is_var(atom):
    return not isinstance(atom, core.Literal)


def _random_bits(key, *, bit_width, shape, **_):
    seed = np.asarray(jax.random.key_data(key)).astype(np.uint32).tobytes()
    draw = np.random.Generator(np.random.Philox(key=int.from_bytes(seed, "little") % 2**128))
    return draw.integers(2**bit_width, size=shape, dtype=f"uint{bit_width}")


def _broadcast(x, *, shape, broadcast_dimensions, **_):
    sides = [1] * len(shape)
    for axis, side in zip(broadcast_dimensions, np.shape(x), strict=True):
        sides[axis] = side
    return np.broadcast_to(np.reshape(x, sides), shape)


def _plain(fn):
    """A NumPy function that needs none of the primitive's parameters."""
    return lambda *values, **_: fn(*values)


FLOATS = {
    "div": np.divide,
    "erf": special.erf,
    "erf_inv": special.erfinv,
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
    "convert_element_type": np.asarray,  # `_apply` converts what comes out
    "copy": np.copy,
}
WHOLE = {"or": np.bitwise_or, "and": np.bitwise_and, "shift_right_logical": np.right_shift}
RULES = {name: _plain(fn) for name, fn in (FLOATS | NUMBERS | WHOLE).items()} | {
    "broadcast_in_dim": _broadcast,
    "bitcast_convert_type": lambda x, *, new_dtype: np.asarray(x).view(new_dtype),
    "reshape": lambda x, *, new_sizes, **_: np.reshape(x, new_sizes),
    "transpose": lambda x, *, permutation: np.transpose(x, permutation),
}
KINDS = {  # of the inputs that a rule takes; jax runs the others
    **dict.fromkeys(RULES, np.number),
    **dict.fromkeys(FLOATS, np.floating),
    **dict.fromkeys(WHOLE, np.unsignedinteger),
}
