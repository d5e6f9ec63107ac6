"""What a network is made of: one row a layer, from input to output, with all its operations.

The seed's columns: F, the type of a layer and its hyper-parameters; X, the shape of its output; W,
the shapes of its parameters; and operations by kind.  Modules, and what runs under a
`jax.named_scope` (pools, activations, flatten, join), are layers; a sum names what it adds.
"""

import json
import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import MISSING, fields
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import errors, traverse_util
from flax import linen as nn

from jaxdet import flops, tables
from jaxdet.errors import InputError
from jaxdet.flops.rules import OpCounts
from jaxdet.kernels import conv
from jaxdet.models import layers

COLUMNS = {
    "n": "n",
    "layer": "layer",
    "F": "F: type, hyper-parameters",
    "X": "X: output",
    "of": "of the X of",
    "W": "W: weights",
    "parameters": "parameters",
    "additions": "additions",
    "multiplications": "multiplications",
    "maxima": "maxima",
    "other": "other",
    "forward": "forward",
    "backward": "backward",
    "total": "total",
    "share": "share %",
    "forward_s": "forward s",
    "backward_s": "backward s",
    "bytes": "bytes",
    "operations_per_s": "operations / s",
}
HIDDEN_FIELDS = ("name", "parent", "use_running_average")  # of a module: where, when, not what
TEXT_COLUMNS = ("layer", "F", "X", "of", "W")  # columns that do not add up
ROOT = "(network)"  # what no layer below it does
OTHER_KINDS = ("minima", "comparisons", "divisions", "transcendentals")
POOLS = {"reduce_window_max": "max pool", "reduce_window_sum": "sum pool"}


class LayerSummary(NamedTuple):
    """One row."""

    path: str  # of the module or scope; "" is the network itself
    kind: str  # type and hyper-parameters
    output: tuple[int, ...]
    weights: dict[str, tuple[int, ...]]
    parameters: int
    forward: OpCounts
    backward: OpCounts
    sources: tuple[str, ...] = ()  # layers whose outputs it takes; the images are `input`


class NetworkSummary(NamedTuple):
    """A network on one input, taken apart."""

    layers: tuple[LayerSummary, ...]
    closed: Any  # the jaxpr that was counted: convolutions as `lax` computes them
    counted: flops.FlopReport
    trace: Callable  # () -> the jaxpr that is run: convolutions as the network computes them
    statistics: int  # numbers that are kept beside the parameters and do not learn: batch norm's


def summarize(net, images, variables=None, *, backward=False, convention="flop", padding="full"):
    """The layers of `net` on `images`, a `Network`; nothing is compiled or run.

    images: array or `jax.ShapeDtypeStruct` [B, H, W, C].  variables: arrays or shapes; those that
    `net.init` would make for the images by default.  With `backward`, the pass is one of training:
    batch statistics, and gradients by the parameters but not by the images.
    Raises InputError that names the layer and the shapes where the network cannot take the images.
    """
    spy = _Spy()
    with nn.intercept_methods(spy):
        if variables is None:
            variables = jax.eval_shape(net.init, jax.random.key(0), images)
        else:
            jax.eval_shape(partial(net.apply, train=False), variables, images)
    made = _backward if backward else _forward
    trace = partial(jax.make_jaxpr(partial(made, net)), variables, images)
    with conv.default_impl("lax"):
        closed = jax.make_jaxpr(partial(made, net))(variables, images)
    counted = flops.count_jaxpr(closed, convention=convention, padding=padding)
    found = tuple(_layers(closed, counted, spy, variables))
    kept = sum(leaf.size for leaf in jax.tree.leaves(variables.get("batch_stats", {})))
    return NetworkSummary(found, closed, counted, trace, kept)


def table_rows(found, *, backward=False):
    """Rows of the table as dictionaries, whole numbers and shapes; the last one is the sum."""
    convention = found.counted.convention
    whole = sum((layer.forward + layer.backward for layer in found.layers), OpCounts())
    lines = [_row(layer, convention, whole.total(convention)) for layer in found.layers]
    sums = {key: sum(line[key] for line in lines) for key in lines[0] if key not in TEXT_COLUMNS}
    lines.append({"layer": "sum", **sums})
    return lines if backward else [_without_backward(line) for line in lines]


def remarks(counted):
    """One line for each thing that the sums leave out."""
    lines = [f"not counted: {name}, {times} times" for name, times in counted.unknown.items()]
    return lines + [
        f"while loop in {path or 'the network'}: its length is not known, its body is counted once"
        for path in counted.unbounded
    ]


def statistics(found):
    """A line about the running statistics of a `Network`, in a list; [] where it has none."""
    said = f"running statistics: {found.statistics:,} numbers, not counted: they do not learn"
    return [said] if found.statistics else []


def text(rows, notes, form="markdown"):
    """The table and what is to be said of it: `markdown`, `json` or `csv` (without the notes)."""
    if form == "json":
        return json.dumps({"layers": rows, "notes": notes}, indent=2)
    columns = {key: name for key, name in COLUMNS.items() if any(key in row for row in rows)}
    if form == "csv":
        return tables.to_csv(rows, [*columns, *OTHER_KINDS])
    return "\n".join([tables.to_markdown(rows, columns), *([""] if notes else []), *notes])


def relative_path(path):
    """A path of the name stack below the network, whose own name comes first."""
    return path.partition("/")[2]


def _forward(net, variables, images):
    return net.apply(variables, images, train=False)


def _backward(net, variables, images):
    """Outputs and new statistics of a training pass, and the gradient for ones at the outputs."""
    rest = {name: tree for name, tree in variables.items() if name != "params"}

    def run(params):
        return net.apply(
            {**rest, "params": params},
            images,
            train=True,
            mutable=list(rest),
            rngs={"dropout": jax.random.key(0)},
        )

    outputs, pull, stats = jax.vjp(run, variables["params"], has_aux=True)
    return outputs, stats, pull(jax.tree.map(jnp.ones_like, outputs))


def _layers(closed, counted, spy, variables):
    """Layers in the order in which they first do something; then those that do nothing."""
    steps = defaultdict(list)
    for step in flops.walk(closed):
        steps[relative_path(step.path)].append(step)
    weights = _weights(variables["params"])
    found = {}
    for path in [*_with_dropout(steps, spy), *(path for path in weights if path not in steps)]:
        layer = _layer(path, steps.get(path, []), counted, spy, weights.get(path, {}))
        told = path in spy.dropped or (path and path not in spy.kinds)  # join only moves numbers
        if told or layer.parameters or (layer.forward + layer.backward).total():
            found[path] = layer
    feeds = flops.scope_inputs(closed, lambda path: relative_path(path) in found)
    sources = {relative_path(path): tuple(map(relative_path, of)) for path, of in feeds.items()}
    for path, layer in found.items():
        yield layer._replace(sources=sources.get(path, ()))


def _with_dropout(steps, spy):
    """Paths of `steps` in order, and before that which follows it each dropout that has none."""
    order, follows = list(steps), None
    for path in reversed(spy.kinds):
        if path in spy.dropped and path not in steps:
            order.insert(order.index(follows) if follows else len(order), path)
        follows = path if path in order else follows
    return order


def _layer(path, steps, counted, spy, weights):
    counts = {way: OpCounts() for way in flops.DIRECTIONS}
    for (full, way), count in counted.rows.items():
        if relative_path(full) == path:
            counts[way] += count
    ahead = [step for step in steps if step.direction == flops.DIRECTIONS[0]]
    made = ahead[-1].eqn.outvars[0].aval.shape if ahead else ()
    kind = spy.kinds.get(path) or _scope_kind(ahead)
    size = sum(math.prod(shape) for shape in weights.values())
    return LayerSummary(path, kind, spy.outputs.get(path, made), weights, size, *counts.values())


def _weights(params):
    """{path of a module: {name: shape}} of its own parameters."""
    found = defaultdict(dict)
    for (*path, name), leaf in traverse_util.flatten_dict(params).items():
        found["/".join(path)][name] = leaf.shape
    return found


def _scope_kind(steps):
    """What a scope without a module does: its function's name, its pool, or its operations."""
    for step in steps:
        if step.call:
            return step.call
        if step.eqn.primitive.name in POOLS:
            params = step.eqn.params
            kernel, strides = params["window_dimensions"][1:-1], params["window_strides"][1:-1]
            return f"{POOLS[step.eqn.primitive.name]} {_sides(kernel)}, strides {_sides(strides)}"
    return " ".join(dict.fromkeys(step.eqn.primitive.name for step in steps))


def _module_kind(module):
    """Class of a module and the plain fields that are not their defaults."""
    said = [type(module).__name__]
    for field in fields(module):
        value = getattr(module, field.name, None)
        known = field.default is not MISSING and value == field.default
        if field.name not in HIDDEN_FIELDS and not known and _is_plain(value):
            said.append(f"{field.name} {_sides(value)}")
    return ", ".join(said)


def _is_plain(value):
    if isinstance(value, tuple):
        return bool(value) and all(isinstance(each, int) for each in value)
    return isinstance(value, bool | int | float | str)


def _sides(value):
    return "x".join(map(_sides, value)) if isinstance(value, tuple) else str(value)


class _Spy:
    """Notes what each module is and makes, and says where a shape does not fit."""

    def __init__(self):
        self.kinds, self.outputs = {}, {}
        self.dropped = set()  # dropouts; a rate of 1 stands for one that is a number of the run

    def __call__(self, call, args, kwargs, context):
        module = context.module
        if context.method_name != "__call__":
            return call(*args, **kwargs)
        path = "/".join(module.path)
        self.kinds.setdefault(path, _module_kind(module))
        if isinstance(module, layers.Dropout) and 0 < module.rate < 1:
            self.dropped.add(path)
        given = " ".join(_sides(arg.shape) for arg in args if hasattr(arg, "shape"))
        name = path or type(module).__name__
        if any(0 in arg.shape for arg in args if hasattr(arg, "shape")):
            raise InputError(f"layer {name} is given {given}: take a larger --input")
        try:
            outputs = call(*args, **kwargs)
        except InputError:
            raise
        except (TypeError, ValueError, ZeroDivisionError, errors.FlaxError) as error:
            why = str(error).splitlines()[0]
            raise InputError(f"layer {name} cannot take {given}: {why}") from error
        for leaf in jax.tree.leaves(outputs):
            self.outputs[path] = leaf.shape
            if 0 in leaf.shape:
                made = _sides(leaf.shape)
                raise InputError(f"layer {name} makes {made} of {given}: take a larger --input")
        return outputs


def _row(layer, convention, whole):
    both = layer.forward + layer.backward
    line = {
        "layer": layer.path or ROOT,
        "F": layer.kind,
        "X": list(layer.output),
        **({"of": ", ".join(layer.sources)} if len(layer.sources) > 1 else {}),
        "W": {name: list(shape) for name, shape in layer.weights.items()},
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
    return line | {"share": 100 * line["total"] / max(whole, 1)}


def _without_backward(line):
    return {key: value for key, value in line.items() if key not in ("forward", "backward")}
