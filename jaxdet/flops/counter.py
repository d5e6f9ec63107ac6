"""Operation counts of any JAX function, per layer, read from its jaxpr.

    report = flops.count(net.apply, variables, images)
    report.by_layer["LeNet/conv1", "forward"].multiplications
    report.total()

A layer is a path of the name stack, which holds Flax module names and `jax.named_scope`s.
Operations that `grad` adds to a layer, or that `remat` repeats, are counted as `backward`.
Nothing is compiled or run, so arguments may be `jax.ShapeDtypeStruct`s.  XLA's own cost analysis
counts a loop body once, does not separate kinds of operations, and moves work between layers.
`jaxdet.flops.rules` holds the cost of each primitive.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import jax
from jax.extend import core

from jaxdet.flops.rules import RULES, OpCounts, Padding
from jaxdet.kernels import conv

Convention = Literal["flop", "mac"]

DIRECTIONS = ("forward", "backward")
REMAT_SCOPES = ("checkpoint", "rematted_computation")  # name-stack entries that `remat` adds
BODY_PARAMS = ("jaxpr", "call_jaxpr", "fun_jaxpr")  # parameters that hold the body of a call


class FlopReport(NamedTuple):
    """Operations of one call of a function."""

    by_layer: dict[tuple[str, str], OpCounts]  # (path, direction), in order of first appearance
    unknown: dict[str, int]  # uncounted primitives without a rule: how often each runs
    unbounded: tuple[str, ...]  # paths of `while` loops, whose bodies are counted once
    convention: Convention

    def sum(self, direction: str | None = None) -> OpCounts:
        """Counts by kind over all layers, of one direction or of both."""
        chosen = [c for (_, way), c in self.by_layer.items() if direction in (None, way)]
        return sum(chosen, OpCounts())

    def total(self, direction: str | None = None) -> int:
        """Number of operations under this report's convention."""
        return self.sum(direction).total(self.convention)


class ScopedEquation(NamedTuple):
    """An equation of a jaxpr or of one of its bodies."""

    eqn: Any  # a core.JaxprEqn
    path: str
    direction: str
    repeats: int  # how often it runs
    bounded: bool  # False within a `while` loop, of which `repeats` assumes one iteration
    function: str  # outermost named function below `path`, such as relu; "" if none


def count(
    fn: Callable, *args: Any, convention: Convention = "flop", padding: Padding = "full"
) -> FlopReport:
    """Operations of `fn(*args)`.

    convention: `flop` counts every operation, `mac` only the multiply-adds of products.
    padding: whether taps of convolutions and pools that fall on padding count (`full`, as in
      papers) or not (`valid`, as in XLA).
    Dead code is not counted.  A `cond` costs as much as its most expensive branch, a `scan` as many
    bodies as its length, the bodies of `pmap` and `shard_map` once per device.  Convolutions count
    as `lax` computes them, whichever implementation `kernels.conv` chose.
    """
    with conv.default_impl("lax"):
        closed = jax.make_jaxpr(fn)(*args)
    return count_jaxpr(closed, convention=convention, padding=padding)


def count_jaxpr(
    closed: core.ClosedJaxpr, *, convention: Convention = "flop", padding: Padding = "full"
) -> FlopReport:
    """Operations of a closed jaxpr; options as in `count`."""
    by_layer, unknown, unbounded = defaultdict(OpCounts), Counter(), {}
    for scoped in walk(closed, padding):
        name = scoped.eqn.primitive.name
        if not scoped.bounded:
            unbounded[scoped.path] = True
        if name in RULES:
            counts = RULES[name](scoped.eqn, padding) * scoped.repeats
            by_layer[scoped.path, scoped.direction] += counts
        else:
            unknown[name] += scoped.repeats
    return FlopReport(dict(by_layer), dict(unknown), tuple(unbounded), convention)


def walk(closed: core.ClosedJaxpr, padding: Padding = "full") -> Iterator[ScopedEquation]:
    """Every equation of a closed jaxpr in order, bodies of calls and loops included."""
    return _walk(closed, ScopedEquation(None, "", DIRECTIONS[0], 1, True, ""), padding)


def live_equations(jaxpr: core.Jaxpr) -> list[core.JaxprEqn]:
    """The equations that the outputs or the effects of a jaxpr depend on, in order."""
    needed = {var for var in jaxpr.outvars if not isinstance(var, core.Literal)}
    live = []
    for eqn in reversed(jaxpr.eqns):
        if eqn.effects or needed.intersection(eqn.outvars):
            live.append(eqn)
            needed.update(var for var in eqn.invars if not isinstance(var, core.Literal))
    return live[::-1]


def scope_inputs(
    closed: core.ClosedJaxpr, is_layer: Callable[[str], bool], input_name: str = "input"
) -> dict[str, dict[str, bool]]:
    """{path: paths of the layers whose outputs it reads}, for the forward pass of a closed jaxpr.

    is_layer: whether a path is a layer; results pass through all other paths.  The last argument of
    the jaxpr is called `input_name`; parameters have no path.  Bodies of calls are not entered.
    The inner dictionaries serve as ordered sets.
    """
    origins = {closed.jaxpr.invars[-1]: {f"/{input_name}": True}}  # variable -> paths
    inputs = defaultdict(dict)
    for eqn in live_equations(closed.jaxpr):
        path, direction = scope(eqn)
        if direction != DIRECTIONS[0]:
            continue
        read = [var for var in eqn.invars if not isinstance(var, core.Literal)]
        sources = {source: True for var in read for source in origins.get(var, ())}
        if is_layer(path):
            inputs[path] |= {source: True for source in sources if source != path}
            sources = {path: True}
        origins |= dict.fromkeys(eqn.outvars, sources)
    return inputs


def scope(eqn: core.JaxprEqn, outer: str = "", direction: str = DIRECTIONS[0]) -> tuple[str, str]:
    """(path, direction) of an equation.

    outer, direction: those of the enclosing call, to which the name stack of a body is relative.
    """
    stack = str(eqn.source_info.name_stack)
    if "transpose(" in stack or "rematted_computation" in stack:
        direction = DIRECTIONS[1]
    names = re.sub(r"\w+\(|\)", "", stack).split("/")
    inner = [name for name in names if name and name not in REMAT_SCOPES]
    return "/".join([outer] * bool(outer) + inner), direction


def _walk(jaxpr, outer: ScopedEquation, padding: Padding) -> Iterator[ScopedEquation]:
    for eqn in live_equations(getattr(jaxpr, "jaxpr", jaxpr)):
        path, direction = scope(eqn, outer.path, outer.direction)
        function = outer.function if path == outer.path else ""
        here = outer._replace(eqn=eqn, path=path, direction=direction, function=function)
        yield from _expand(here, padding)


def _expand(scoped: ScopedEquation, padding: Padding) -> Iterator[ScopedEquation]:
    """The equation itself, or those of its body with the number of times that the body runs."""
    name, params = scoped.eqn.primitive.name, scoped.eqn.params
    if name in RULES:
        yield scoped
    elif name == "cond":
        branches = [list(_walk(body, scoped, padding)) for body in params["branches"]]
        yield from max(branches, key=lambda branch: _cost(branch, padding))
    elif name == "while":
        once = scoped._replace(bounded=False)
        yield from _walk(params["cond_jaxpr"], once, padding)
        yield from _walk(params["body_jaxpr"], once, padding)
    elif bodies := [params[key] for key in BODY_PARAMS if _is_jaxpr(params.get(key))]:
        called = str(params.get("name", "")) if name in ("jit", "pjit") else ""
        inside = scoped._replace(
            repeats=scoped.repeats * _body_repeats(scoped.eqn, padding),
            function=scoped.function or called,
        )
        yield from _walk(bodies[0], inside, padding)
    else:
        yield scoped


def _is_jaxpr(value) -> bool:
    return isinstance(value, core.Jaxpr | core.ClosedJaxpr)


def _body_repeats(eqn, padding: Padding) -> int:
    """How often the body of a call runs."""
    params = eqn.params
    match eqn.primitive.name:
        case "scan":
            return params["length"]
        case "xla_pmap":
            return params["axis_size"]
        case "shard_map":
            mesh = params["mesh"].shape  # axes left to the compiler do not split the arrays
            return math.prod(mesh[axis] for axis in params.get("newly_manual_axes", mesh))
        case "reduce" | "reduce_window" as name:  # with a custom reduction function
            return RULES[f"{name}_sum"](eqn, padding).additions
    return 1


def _cost(branch: list[ScopedEquation], padding: Padding) -> int:
    """Operations of the equations of one branch of a `cond`."""
    known = [scoped for scoped in branch if scoped.eqn.primitive.name in RULES]
    counts = (RULES[s.eqn.primitive.name](s.eqn, padding).total() * s.repeats for s in known)
    return sum(counts)
