"""Operations of any JAX function, per layer, read off its jaxpr (seed 003).

    counted = flops.count(net.apply, variables, images)
    counted.rows["LeNet/conv1", "forward"].multiplications
    counted.sum().total()

A layer is a path of the name stack: flax writes its modules there, `jax.named_scope` anything
else.  What `grad` adds to a path is told apart as `backward`, what `remat` computes again as well.
Nothing is compiled or run: arguments may be `jax.ShapeDtypeStruct`.  XLA's own count sees the body
of a loop once, splits nothing by kind, and moves work between layers; this one does not.
`ops.arithmetic` says what each primitive costs.
"""

import math
import re
from collections import Counter, defaultdict
from typing import Any, Literal, NamedTuple

import jax
from jax.extend import core

from jaxdet.flops.rules import RULES, OpCounts
from jaxdet.kernels import conv

Convention = Literal["flop", "mac"]
Padding = Literal["full", "valid"]

DIRECTIONS = ("forward", "backward")
REMAT_SCOPES = (
    "checkpoint",
    "rematted_computation",
)  # scopes that only say that something is recomputed
BODY_PARAMS = ("jaxpr", "call_jaxpr", "fun_jaxpr")  # parameters that hold the body of a call


class FlopReport(NamedTuple):
    """What a function does once."""

    rows: dict[tuple[str, str], OpCounts]  # (path, "forward" or "backward"), in order of appearance
    unknown: dict[str, int]  # primitives without a rule, and how often they run: not counted
    unbounded: tuple[str, ...]  # paths of `while` loops, whose bodies are counted once
    convention: str

    def sum(self, direction=None):
        """The `Count` of everything, or of one direction."""
        chosen = [c for (_, way), c in self.rows.items() if direction in (None, way)]
        return sum(chosen, OpCounts())

    def total(self, direction=None):
        """Number of operations under the convention that was asked for."""
        return self.sum(direction).total(self.convention)


class ScopedEquation(NamedTuple):
    """One equation on the way through a function."""

    eqn: Any
    path: str
    direction: str
    times: int  # how often it runs
    bounded: bool  # whether `times` is known
    call: str  # name of the outermost named function within the path: relu, log_softmax; or ""


def count(fn, *args, convention: Convention = "flop", padding: Padding = "full"):
    """Operations of `fn(*args)`, a `Counted`.

    convention: `flop` counts every operation; `mac` the multiply-adds of products alone.
    padding: whether the taps of a convolution or pool that fall on padding count (`full`, as on
      paper) or not (`valid`, as XLA counts).  Dead code is not counted.
    A `cond` counts as its larger branch, a `scan` as often as it runs, bodies of `pmap` and
    `shard_map` once a device, convolutions as `lax` computes them whatever `ops.conv` chose.
    """
    with conv.default_impl("lax"):
        closed = jax.make_jaxpr(fn)(*args)
    return count_jaxpr(closed, convention=convention, padding=padding)


def count_jaxpr(closed, *, convention: Convention = "flop", padding: Padding = "full"):
    """`count` of a closed jaxpr."""
    rows, unknown, unbounded = defaultdict(OpCounts), Counter(), {}
    for step in walk(closed, padding):
        name = step.eqn.primitive.name
        if not step.bounded:
            unbounded[step.path] = True
        if name in RULES:
            rows[step.path, step.direction] += RULES[name](step.eqn, padding) * step.times
        else:
            unknown[name] += step.times
    return FlopReport(dict(rows), dict(unknown), tuple(unbounded), convention)


def walk(closed, padding: Padding = "full"):
    """Every `Step` of a closed jaxpr, bodies of calls and loops included, in order."""
    return _walk(closed, ScopedEquation(None, "", DIRECTIONS[0], 1, True, ""), padding)


def live_equations(jaxpr):
    """The equations of a jaxpr that its outputs or effects need, in order."""
    needed = {var for var in jaxpr.outvars if not isinstance(var, core.Literal)}
    kept = []
    for eqn in reversed(jaxpr.eqns):
        if eqn.effects or needed.intersection(eqn.outvars):
            kept.append(eqn)
            needed.update(var for var in eqn.invars if not isinstance(var, core.Literal))
    return kept[::-1]


def scope_inputs(closed, wanted, given="input"):
    """{path: paths whose results its equations read} of a closed jaxpr, without what is in calls.

    wanted: path -> whether it is one; through the others a result passes on.  What comes of the
    last argument is called `given`, and parameters have no path.
    """
    comes = {closed.jaxpr.invars[-1]: {f"/{given}": True}}  # variable -> paths
    found = defaultdict(dict)
    for eqn in live_equations(closed.jaxpr):
        path, direction = scope(eqn)
        if direction != DIRECTIONS[0]:
            continue
        read = [var for var in eqn.invars if not isinstance(var, core.Literal)]
        sources = {source: True for var in read for source in comes.get(var, ())}
        if wanted(path):
            found[path] |= {source: True for source in sources if source != path}
            sources = {path: True}
        comes |= dict.fromkeys(eqn.outvars, sources)
    return found


def scope(eqn, outer="", direction=DIRECTIONS[0]):
    """(path, direction) of an equation; the stack of a body is relative to that of its call."""
    stack = str(eqn.source_info.name_stack)
    if "transpose(" in stack or "rematted_computation" in stack:
        direction = DIRECTIONS[1]
    names = re.sub(r"\w+\(|\)", "", stack).split("/")
    inner = [name for name in names if name and name not in REMAT_SCOPES]
    return "/".join([outer] * bool(outer) + inner), direction


def _walk(jaxpr, outer, padding):
    for eqn in live_equations(getattr(jaxpr, "jaxpr", jaxpr)):
        path, direction = scope(eqn, outer.path, outer.direction)
        call = outer.call if path == outer.path else ""
        here = outer._replace(eqn=eqn, path=path, direction=direction, call=call)
        yield from _enter(here, padding)


def _enter(step, padding):
    """The steps of one equation: itself, or those of its body as often as it runs."""
    name, params = step.eqn.primitive.name, step.eqn.params
    if name in RULES:
        yield step
    elif name == "cond":
        yield from _largest_branch(step, padding)
    elif name == "while":
        once = step._replace(bounded=False)
        yield from _walk(params["cond_jaxpr"], once, padding)
        yield from _walk(params["body_jaxpr"], once, padding)
    elif bodies := [params[key] for key in BODY_PARAMS if _is_body(params.get(key))]:
        named = step.call or (str(params.get("name", "")) if name in ("jit", "pjit") else "")
        inside = step._replace(times=step.times * _repeats(step.eqn, padding), call=named)
        yield from _walk(bodies[0], inside, padding)
    else:
        yield step


def _is_body(value):
    return isinstance(value, core.Jaxpr | core.ClosedJaxpr)


def _repeats(eqn, padding):
    """How often the body of a call runs."""
    params = eqn.params
    match eqn.primitive.name:
        case "scan":
            return params["length"]
        case "xla_pmap":
            return params["axis_size"]
        case "shard_map":
            mesh = params["mesh"].shape  # an axis left to the compiler does not cut the arrays
            return math.prod(mesh[axis] for axis in params.get("newly_manual_axes", mesh))
        case "reduce" | "reduce_window" as name:  # with a function of one's own
            return RULES[f"{name}_sum"](eqn, padding).additions
    return 1


def _largest_branch(step, padding):
    """The steps of the branch with most operations."""
    branches = [list(_walk(body, step, padding)) for body in step.eqn.params["branches"]]
    return max(branches, key=lambda steps: sum(_cost(inner, padding) for inner in steps))


def _cost(step, padding):
    rule = RULES.get(step.eqn.primitive.name)
    return rule(step.eqn, padding).total() * step.times if rule else 0
