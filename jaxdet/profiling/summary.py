"""Layer-by-layer summary of a network: shapes, parameters and operations, from input to output.

    network = summary.summarize(net, jax.ShapeDtypeStruct((1, 32, 32, 3), "float32"))
    print(summary.to_text(summary.table_rows(network), summary.notes(network)))

Layers are modules and `jax.named_scope`s (pools, activations, flatten, concatenation).  Layers with
several inputs, such as the sum of a residual block, list the layers that they read.
"""

import json
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import errors, traverse_util
from flax import linen as nn
from jax.extend import core

from jaxdet import flops, tables
from jaxdet.errors import InputError
from jaxdet.flops.counter import Convention
from jaxdet.flops.rules import OpCounts, Padding
from jaxdet.kernels import conv
from jaxdet.models import layers as model_layers
from jaxdet.types import Array

HEADINGS = {
    "n": "n",
    "layer": "layer",
    "type": "type, hyper-parameters",
    "output": "output",
    "inputs": "inputs",
    "weights": "weights",
    "parameters": "parameters",
    "additions": "additions",
    "multiplications": "multiplications",
    "maxima": "maxima",
    "other": "other",
    "forward": "forward",
    "backward": "backward",
    "total": "total",
    "percent": "% of total",
    "forward_s": "forward s",
    "backward_s": "backward s",
    "bytes": "bytes",
    "operations_per_s": "operations / s",
}
NARROW_WITHOUT = ("inputs", "weights", "type", "other", "maxima", "additions", "multiplications")
TEXT_COLUMNS = ("layer", "type", "output", "inputs", "weights")  # which have no sum
OTHER_KINDS = ("minima", "comparisons", "divisions", "transcendentals")
ROOT = "(network)"  # name of the row of operations outside all layers
HIDDEN_FIELDS = ("name", "parent", "use_running_average")  # of modules; not hyper-parameters
POOLS = {"reduce_window_max": "max pool", "reduce_window_sum": "sum pool"}


class LayerSummary(NamedTuple):
    """One layer of a network."""

    path: str  # of the module or scope; "" is the network itself
    type: str  # with hyper-parameters
    output: tuple[int, ...]  # shape
    weights: dict[str, tuple[int, ...]]  # shapes of its own parameters
    parameters: int  # number of values in them
    forward: OpCounts
    backward: OpCounts
    inputs: tuple[str, ...] = ()  # layers whose outputs it reads; the images are `input`


class NetworkSummary(NamedTuple):
    """The summary of a network for inputs of one shape."""

    layers: tuple[LayerSummary, ...]
    jaxpr: core.ClosedJaxpr  # the pass that was counted, with convolutions as `lax` computes them
    report: flops.FlopReport
    trace: Callable[[], core.ClosedJaxpr]  # the same pass, with the convolutions of the network
    statistics: int  # number of values in the running statistics of batch norm


def summarize(
    net: nn.Module,
    images: Array | jax.ShapeDtypeStruct,
    variables: Any = None,
    *,
    backward: bool = False,
    convention: Convention = "flop",
    padding: Padding = "full",
) -> NetworkSummary:
    """Summary of `net` applied to images [B, H, W, C]; nothing is compiled or run.

    variables: arrays or shapes; by default as `net.init` would create them.
    backward: summarize a training pass, with batch statistics and with gradients for the parameters
      but not for the images.
    convention, padding: as in `flops.count`.
    Raises InputError, with the layer and the shapes, if the network cannot process the images.
    """
    recorder = _Recorder()
    with nn.intercept_methods(recorder):
        if variables is None:
            variables = jax.eval_shape(net.init, jax.random.key(0), images)
        else:
            jax.eval_shape(partial(net.apply, train=False), variables, images)
    apply = partial(_train_pass if backward else _inference_pass, net)
    trace = partial(jax.make_jaxpr(apply), variables, images)
    with conv.default_impl("lax"):
        closed = jax.make_jaxpr(apply)(variables, images)
    report = flops.count_jaxpr(closed, convention=convention, padding=padding)
    found = tuple(_summarize_layers(closed, report, recorder, variables))
    statistics = sum(leaf.size for leaf in jax.tree.leaves(variables.get("batch_stats", {})))
    return NetworkSummary(found, closed, report, trace, statistics)


def table_rows(network: NetworkSummary, *, backward: bool = False) -> list[dict[str, Any]]:
    """Rows of the table, one for each layer and a last one with sums; keys as in `HEADINGS`.

    backward: whether there are columns `forward` and `backward` beside `total`.
    """
    convention = network.report.convention
    whole = sum((layer.forward + layer.backward for layer in network.layers), OpCounts())
    rows = [_row(layer, convention, whole.total(convention)) for layer in network.layers]
    sums = {key: sum(row[key] for row in rows) for key in rows[0] if key not in TEXT_COLUMNS}
    rows.append({"layer": "sum", **sums})
    hidden = () if backward else ("forward", "backward")
    return [{key: value for key, value in row.items() if key not in hidden} for row in rows]


def notes(network: NetworkSummary) -> list[str]:
    """Sentences on numbers that the sums of the table leave out or count only once."""
    lines = []
    if network.statistics:
        lines.append(f"running statistics: {network.statistics:,} numbers, not in the parameters")
    for name, repeats in network.report.unknown.items():
        lines.append(f"not counted: {name}, {repeats} times")
    for path in network.report.unbounded:
        lines.append(f"while loop in {path or 'the network'}: counted as one iteration")
    return lines


def to_text(
    rows: Sequence[dict[str, Any]], notes: Sequence[str] = (), width: int | None = None
) -> str:
    """The table in aligned columns, and the notes below it.

    width: number of characters per line, such as a terminal's.  If the table is wider, columns of
      `NARROW_WITHOUT` are left out until it fits, and a note names them.
    """
    shown, left_out = _headings(rows, HEADINGS), []
    table = tables.aligned(rows, shown)
    for key in NARROW_WITHOUT:
        if width is None or table.index("\n") <= width:
            break
        if key in shown:
            left_out.append(shown.pop(key))
            table = tables.aligned(rows, shown)
    if left_out:
        notes = [*notes, f"too wide for the terminal: {', '.join(left_out)}; --csv has all columns"]
    return _with_notes(table, notes)


def to_markdown(
    rows: Sequence[dict[str, Any]],
    notes: Sequence[str] = (),
    headings: Mapping[str, str] = HEADINGS,
) -> str:
    """The table and the notes below it, in Markdown."""
    return _with_notes(tables.to_markdown(rows, _headings(rows, headings)), notes)


def to_json(rows: Sequence[dict[str, Any]], notes: Sequence[str] = ()) -> str:
    """JSON of `{"layers": rows, "notes": notes}`."""
    return json.dumps({"layers": rows, "notes": list(notes)}, indent=2)


def to_csv(rows: Sequence[dict[str, Any]]) -> str:
    """The table as comma-separated values, with a column for each kind of `other` operations."""
    return tables.to_csv(rows, [*_headings(rows, HEADINGS), *OTHER_KINDS])


def relative_path(path: str) -> str:
    """A path of the name stack without its first name, the name of the network."""
    return path.partition("/")[2]


def _headings(rows, headings) -> dict[str, str]:
    return {key: name for key, name in headings.items() if any(key in row for row in rows)}


def _with_notes(table, notes) -> str:
    return "\n".join([table, *([""] if notes else []), *notes])


def _inference_pass(net, variables, images):
    return net.apply(variables, images, train=False)


def _train_pass(net, variables, images):
    """Outputs and new statistics of a training step, and the gradient of the sum of outputs."""
    rest = {name: tree for name, tree in variables.items() if name != "params"}

    def run(params):
        return net.apply(
            {**rest, "params": params},
            images,
            train=True,
            mutable=list(rest),
            rngs={"dropout": jax.random.key(0)},
        )

    outputs, pullback, stats = jax.vjp(run, variables["params"], has_aux=True)
    return outputs, stats, pullback(jax.tree.map(jnp.ones_like, outputs))


def _summarize_layers(closed, report, recorder, variables):
    """Layers in the order in which they first run, then layers that never run."""
    equations = defaultdict(list)
    for scoped in flops.walk(closed):
        equations[relative_path(scoped.path)].append(scoped)
    weights = _weights(variables["params"])
    found = {}
    idle = [path for path in weights if path not in equations]
    for path in [*_with_dropout(equations, recorder), *idle]:
        layer = _summarize_layer(
            path, equations.get(path, []), report, recorder, weights.get(path, {})
        )
        is_scope = path and path not in recorder.types  # a concatenation only moves numbers
        costs = layer.parameters or (layer.forward + layer.backward).total()
        if is_scope or costs or path in recorder.dropouts:
            found[path] = layer
    sources = flops.scope_inputs(closed, lambda path: relative_path(path) in found)
    inputs = {relative_path(path): tuple(map(relative_path, of)) for path, of in sources.items()}
    for path, layer in found.items():
        yield layer._replace(inputs=inputs.get(path, ()))


def _with_dropout(equations, recorder):
    """Paths of `equations`, with the dropouts inserted, which have no equations in inference."""
    order, following = list(equations), None
    for path in reversed(recorder.types):
        if path in recorder.dropouts and path not in equations:
            order.insert(order.index(following) if following else len(order), path)
        following = path if path in order else following
    return order


def _summarize_layer(path, equations, report, recorder, weights):
    counts = {direction: OpCounts() for direction in flops.DIRECTIONS}
    for (full_path, direction), count in report.by_layer.items():
        if relative_path(full_path) == path:
            counts[direction] += count
    forward = [scoped for scoped in equations if scoped.direction == flops.DIRECTIONS[0]]
    output = forward[-1].eqn.outvars[0].aval.shape if forward else ()
    return LayerSummary(
        path=path,
        type=recorder.types.get(path) or _scope_type(forward),
        output=recorder.outputs.get(path, output),
        weights=weights,
        parameters=sum(math.prod(shape) for shape in weights.values()),
        forward=counts["forward"],
        backward=counts["backward"],
    )


def _weights(params):
    """{path of a module: {name: shape}} of the parameters of each module itself."""
    found = defaultdict(dict)
    leaves: dict[tuple[str, ...], Any] = traverse_util.flatten_dict(params)
    for (*path, name), leaf in leaves.items():
        found["/".join(path)][name] = leaf.shape
    return found


def _scope_type(equations) -> str:
    """Type of a scope without a module: its function, its pool, or its primitives."""
    for scoped in equations:
        if scoped.function:
            return scoped.function
        if scoped.eqn.primitive.name in POOLS:
            params = scoped.eqn.params
            kernel, strides = params["window_dimensions"][1:-1], params["window_strides"][1:-1]
            return f"{POOLS[scoped.eqn.primitive.name]} {_sides(kernel)}, strides {_sides(strides)}"
    return " ".join(dict.fromkeys(scoped.eqn.primitive.name for scoped in equations))


def _module_type(module) -> str:
    """Class of a module, and its fields that are simple values other than their defaults."""
    words = [type(module).__name__]
    for field in fields(module):
        value = getattr(module, field.name, None)
        is_default = field.default is not MISSING and value == field.default
        if field.name not in HIDDEN_FIELDS and not is_default and _is_simple(value):
            words.append(f"{field.name} {_sides(value)}")
    return ", ".join(words)


def _is_simple(value) -> bool:
    if isinstance(value, tuple):
        return bool(value) and all(isinstance(each, int) for each in value)
    return isinstance(value, bool | int | float | str)


def _sides(value) -> str:
    return "x".join(map(_sides, value)) if isinstance(value, tuple) else str(value)


class _Recorder:
    """Interceptor that records the type and output of each module, and reports unfit shapes."""

    def __init__(self):
        self.types, self.outputs = {}, {}
        self.dropouts = set()  # rate 1 stands for a rate that comes with the call: not listed

    def __call__(self, call, args, kwargs, context):
        module = context.module
        if context.method_name != "__call__":
            return call(*args, **kwargs)
        path = "/".join(module.path)
        self.types.setdefault(path, _module_type(module))
        if isinstance(module, model_layers.Dropout) and 0 < module.rate < 1:
            self.dropouts.add(path)
        inputs = [arg.shape for arg in args if hasattr(arg, "shape")]
        given = " ".join(map(_sides, inputs))
        name = path or type(module).__name__
        if any(0 in shape for shape in inputs):
            raise InputError(
                f"layer {name}: its input is empty, shape {given}; use a larger --input"
            )
        try:
            outputs = call(*args, **kwargs)
        except InputError:
            raise
        except (TypeError, ValueError, ZeroDivisionError, errors.FlaxError) as error:
            why = str(error).splitlines()[0]
            raise InputError(f"layer {name} cannot process shape {given}: {why}") from error
        for leaf in jax.tree.leaves(outputs):
            self.outputs[path] = leaf.shape
            if 0 in leaf.shape:
                output = _sides(leaf.shape)
                raise InputError(
                    f"layer {name}: its output is empty, shape {output} from {given}; "
                    "use a larger --input"
                )
        return outputs


def _row(layer, convention, whole):
    both = layer.forward + layer.backward
    row = {
        "layer": layer.path or ROOT,
        "type": layer.type,
        "output": list(layer.output),
        **({"inputs": ", ".join(layer.inputs)} if len(layer.inputs) > 1 else {}),
        "weights": {name: list(shape) for name, shape in layer.weights.items()},
        "parameters": layer.parameters,
        "additions": both.additions,
        "multiplications": both.multiplications,
        "maxima": both.maxima,
        **{name: getattr(both, name) for name in OTHER_KINDS},
        "other": sum(getattr(both, name) for name in OTHER_KINDS),
        "forward": layer.forward.total(convention),
        "backward": layer.backward.total(convention),
        "total": both.total(convention),
    }
    return row | {"percent": 100 * row["total"] / max(whole, 1)}
