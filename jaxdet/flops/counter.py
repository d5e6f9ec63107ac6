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
from jax import lax
from jax.extend import core
from jax.interpreters import partial_eval

from jaxdet.flops.rules import RULES, OpCounts, Padding, Taps, count_operations
from jaxdet.kernels import conv

Convention = Literal["flop", "mac"]

DIRECTIONS = ("forward", "backward")
REMAT_SCOPES = ("checkpoint", "rematted_computation")  # name-stack entries that `remat` adds
BODY_PARAMS = ("jaxpr", "call_jaxpr", "fun_jaxpr")  # parameters that hold the body of a call
LAYOUT_CHANGES = (
    *("broadcast_in_dim", "convert_element_type", "copy", "expand_dims", "reshape", "squeeze"),
    "transpose",
)


class FlopReport(NamedTuple):
    """Operation counts of one call of a function.

    The `direction` of an operation is the pass that it belongs to, "forward" or "backward".
    """

    by_layer: dict[tuple[str, str], OpCounts]  # (path, direction), in order of first appearance
    unknown: dict[str, int]  # {primitive without a rule, not counted: how often it runs}
    unbounded: tuple[str, ...]  # paths of `while` loops, whose bodies are counted once
    convention: Convention

    def sum(self, direction: str | None = None) -> OpCounts:
        """Counts by kind, summed over all layers, of one pass or, by default, of both."""
        chosen = [c for (_, way), c in self.by_layer.items() if direction in (None, way)]
        return sum(chosen, OpCounts())

    def total(self, direction: str | None = None) -> int:
        """Number of operations under this report's convention, of one pass or, by default, both."""
        return self.sum(direction).total(self.convention)


class ScopedEquation(NamedTuple):
    """An equation of a jaxpr, or of the body of a call or loop in it."""

    eqn: Any  # a core.JaxprEqn
    path: str
    direction: str
    repeats: int  # how often it runs
    bounded: bool  # False within a `while` loop, of which `repeats` assumes one iteration
    function: str  # outermost named function below `path`, such as relu; "" if none
    taps: Taps  # which taps of a convolution or pool count


def count(
    fn: Callable, *args: Any, convention: Convention = "flop", padding: Padding = "full"
) -> FlopReport:
    """Count the operations of `fn(*args)`.

    convention: `flop` counts every operation, `mac` only the multiply-adds of dot products and
      convolutions.
    padding: whether taps of convolutions and pools that fall on padding count (`full`, as in
      papers) or not (`valid`, as in XLA).  Padding that JAX itself adds never counts: each gradient
      of a convolution has as many multiplications as the convolution.
    Dead code is not counted, not even within the bodies of calls and scans.  A `cond` counts as its
      most expensive branch, a `while` loop as one iteration, a `scan` as all of its iterations; the
      bodies of `pmap` and `shard_map` count once per device.  Convolutions are counted as `lax`
      computes them, whichever algorithm `kernels.conv` would choose.
    """
    with conv.default_impl("lax"):
        closed = jax.make_jaxpr(fn)(*args)
    return count_jaxpr(closed, convention=convention, padding=padding)


def count_jaxpr(
    closed: core.ClosedJaxpr, *, convention: Convention = "flop", padding: Padding = "full"
) -> FlopReport:
    """Count the operations of a closed jaxpr; options as in `count`."""
    by_layer, unknown, unbounded = defaultdict(OpCounts), Counter(), {}
    for scoped in walk(closed, padding):
        name = scoped.eqn.primitive.name
        if not scoped.bounded:
            unbounded[scoped.path] = True
        if name in RULES:
            counts = count_operations(scoped.eqn, scoped.taps) * scoped.repeats
            by_layer[scoped.path, scoped.direction] += counts
        else:
            unknown[name] += scoped.repeats
    return FlopReport(dict(by_layer), dict(unknown), tuple(unbounded), convention)


def walk(closed: core.ClosedJaxpr, padding: Padding = "full") -> Iterator[ScopedEquation]:
    """The equations of a closed jaxpr in order, without dead code; padding as in `count`.

    Calls and loops are replaced by the equations of their bodies, a `cond` by the equations of
    its most expensive branch.
    """
    return _walk(closed, ScopedEquation(None, "", DIRECTIONS[0], 1, True, "", padding), padding)


def live_equations(jaxpr: core.Jaxpr) -> list[core.JaxprEqn]:
    """The equations that the outputs or the effects of a jaxpr depend on, in order.

    Dead code is removed from the bodies of calls, branches and scans as well.
    """
    return partial_eval.dce_jaxpr(jaxpr, used_outputs=True, instantiate=True)[0].eqns


def scope_inputs(
    closed: core.ClosedJaxpr, is_layer: Callable[[str], bool], input_name: str = "input"
) -> dict[str, dict[str, bool]]:
    """{path of a layer: paths of the layers whose outputs it reads}, in the forward pass.

    is_layer: whether a path is a layer; operations outside layers are followed back to the layers
      whose outputs they read.
    input_name: the last argument of the jaxpr counts as a layer with the path `/` + `input_name`;
      the other arguments, the parameters, do not.
    Bodies of calls are not entered.  The inner dictionaries serve as ordered sets.
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
    """(path, direction) of an equation; the direction is "forward" or "backward".

    outer, direction: path and direction of the enclosing call, which the name stack continues.
    """
    stack = str(eqn.source_info.name_stack)
    if "transpose(" in stack or "rematted_computation" in stack:
        direction = DIRECTIONS[1]
    names = re.sub(r"\w+\(|\)", "", stack).split("/")
    inner = [name for name in names if name and name not in REMAT_SCOPES]
    return "/".join([outer] * bool(outer) + inner), direction


def _walk(jaxpr, outer: ScopedEquation, padding: Padding) -> Iterator[ScopedEquation]:
    sources = {}  # variable -> equation
    for eqn in live_equations(getattr(jaxpr, "jaxpr", jaxpr)):
        sources |= dict.fromkeys(eqn.outvars, eqn)
        path, direction = scope(eqn, outer.path, outer.direction)
        function = outer.function if path == outer.path else ""
        here = outer._replace(eqn=eqn, path=path, direction=direction, function=function)
        if eqn.primitive.name == "conv_general_dilated":
            here = here._replace(taps=_convolution_taps(eqn, outer.direction, sources, padding))
        yield from _expand(here, padding)


def _convolution_taps(eqn, direction, sources, padding: Padding) -> Taps:
    """The taps of a convolution that count; taps on padding that JAX adds do not."""
    if padding == "valid" or _within(eqn, lax.conv_transpose):
        return "valid"
    return "transposed" if _mirrored(eqn.invars[1], direction, sources) else "full"


def _mirrored(kernel, direction, sources) -> bool:
    """Whether gradients with respect to the input mirror the kernel an odd number of times."""
    times = 0
    while not isinstance(kernel, core.Literal) and kernel in sources:
        eqn = sources[kernel]
        if eqn.primitive.name == "rev" and scope(eqn, "", direction)[1] == DIRECTIONS[1]:
            times += 1
        elif eqn.primitive.name not in LAYOUT_CHANGES:
            break
        kernel = eqn.invars[0]
    return times % 2 == 1


def _within(eqn, fn) -> bool:
    """Whether an equation was traced in a call of `fn`."""
    code = fn.__code__
    traceback = eqn.source_info.traceback
    return any(
        (frame.function_name, frame.file_name) == (code.co_qualname, code.co_filename)
        for frame in (traceback.frames if traceback else ())
    )


def _expand(scoped: ScopedEquation, padding: Padding) -> Iterator[ScopedEquation]:
    """The equation itself or, for a call, loop or `cond`, the equations of its body."""
    name, params = scoped.eqn.primitive.name, scoped.eqn.params
    if name in RULES:
        yield scoped
    elif name == "cond":
        branches = [list(_walk(body, scoped, padding)) for body in params["branches"]]
        yield from max(branches, key=_cost)
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
    """Number of times that the body of a call runs."""
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


def _cost(branch: list[ScopedEquation]) -> int:
    known = [scoped for scoped in branch if scoped.eqn.primitive.name in RULES]
    return sum(count_operations(s.eqn, s.taps).total() * s.repeats for s in known)
