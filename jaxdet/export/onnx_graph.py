"""Networks in ONNX: each primitive of a jaxpr becomes one or a few ONNX nodes.

    content = onnx_graph.to_bytes(function, (64, 64, 3))  # function: images -> {name: array}

The first axis of the inputs is the batch.  It is traced as `BATCH`, a prime number that no other
side of a network has, so that the axes that depend on it are known and can be left open.  A value
that is broadcast keeps sides of 1, since the operators of ONNX broadcast too; it is expanded only
for operators that need its whole shape.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdet import packages
from jaxdet.errors import InputError
from jaxdet.flops.counter import BODY_PARAMS, live_equations
from jaxdet.kernels import conv

BATCH = 7919
OPSET, IR_VERSION = 20, 10
UNARY = {
    **{"exp": "Exp", "log": "Log", "tanh": "Tanh", "logistic": "Sigmoid", "sqrt": "Sqrt"},
    **{"abs": "Abs", "neg": "Neg", "sin": "Sin", "cos": "Cos", "floor": "Floor", "ceil": "Ceil"},
    **{"sign": "Sign", "erf": "Erf", "not": "Not"},
}
BINARY = {
    **{"add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "max": "Max", "min": "Min"},
    **{"pow": "Pow", "gt": "Greater", "lt": "Less", "ge": "GreaterOrEqual", "le": "LessOrEqual"},
    **{"eq": "Equal", "and": "And", "or": "Or", "add_any": "Add"},
}
REDUCTIONS = {"reduce_max": "ReduceMax", "reduce_sum": "ReduceSum", "reduce_min": "ReduceMin"}
SAME = ("stop_gradient", "copy", "reduce_precision", "optimization_barrier")
FOLDED = {*UNARY, *BINARY, *SAME, "log1p", "rsqrt", "integer_pow", "ne", "square", "clamp"}


class Value(NamedTuple):
    """A value of a jaxpr: a constant, or an output of a node.

    Its `kept` shape has a side of 1 where the values along an axis are all the same.
    """

    shape: tuple[int, ...]
    kept: tuple[int, ...]
    dtype: np.dtype
    name: str = ""  # of the tensor in the graph
    array: np.ndarray | None = None  # of a constant, of the shape `kept`


class Unsupported(NamedTuple):
    """The output of a primitive without a rule; an error only if another output depends on it."""

    primitive: str


def to_bytes(
    function: Callable[..., dict[str, Any]],
    shape: Sequence[int],
    *,
    batch: int | None = None,
    metadata: dict[str, str] | None = None,
    finish: "Finish | None" = None,
) -> bytes:
    """The ONNX model of a function of images [B, H, W, C] float32, which returns named arrays.

    shape: H, W and C.  batch: number of images; None: any number.
    metadata: properties of the model.
    finish: adds nodes to the graph; its outputs replace the outputs of the function.

    Raises InputError if a primitive of the function has no rule.
    """
    onnx = packages.load("onnx", "--format onnx")
    images = jax.ShapeDtypeStruct((BATCH, *shape), jnp.float32)
    with conv.default_impl("lax"):
        closed, outputs = jax.make_jaxpr(function, return_shape=True)(images)
    graph = Graph(onnx, "images")
    given = Value(images.shape, images.shape, np.dtype(np.float32), "images")
    found = graph.lower(closed.jaxpr, [_constant(each) for each in closed.consts], [given])
    named: dict[str, Value] = {}
    for name, value in zip(_names(outputs), found, strict=True):
        if isinstance(value, Unsupported):
            raise InputError(f"--format onnx: ONNX has no rule for the primitive {value.primitive}")
        named[name] = value
    if finish:
        named = finish(graph, named)
    for name, value in named.items():
        graph.node("Identity", [graph.whole(value)], name)

    def info(name, value):
        sides = [batch or "batch" if side == BATCH else side for side in value.shape]
        kind = onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
        return onnx.helper.make_tensor_value_info(name, kind, sides)

    made = onnx.helper.make_graph(
        graph.live_nodes([*named]),
        "jaxdet",
        [info("images", given)],
        [info(name, value) for name, value in named.items()],
    )
    made.initializer.extend(graph.used_constants(made.node))
    opset = [onnx.helper.make_opsetid("", OPSET)]
    model = onnx.helper.make_model(made, opset_imports=opset, ir_version=IR_VERSION)
    onnx.helper.set_model_props(model, metadata or {})
    onnx.checker.check_model(model)
    return model.SerializeToString()


class Graph:
    """The nodes and constants of an ONNX graph that is being built."""

    def __init__(self, onnx: Any, batched: str):
        self.onnx, self.batched = onnx, batched  # an input, whose first side is the batch
        self.nodes: list[Any] = []
        self.constants: dict[str, np.ndarray] = {}
        self.numbers: Iterator[int] = count()

    def lower(
        self, jaxpr: Any, constants: Sequence[Any], arguments: Sequence[Any]
    ) -> list[Value | Unsupported]:
        """Add the equations of a jaxpr; return the values of its outputs."""
        known = dict(zip(jaxpr.constvars, constants, strict=True))
        known |= dict(zip(jaxpr.invars, arguments, strict=True))

        def read(var):
            return _constant(var.val) if hasattr(var, "val") else known[var]

        for eqn in live_equations(jaxpr) if not constants else jaxpr.eqns:
            found = self._equation(eqn, [read(var) for var in eqn.invars])
            known |= dict(zip(eqn.outvars, found, strict=True))
        return [read(var) for var in jaxpr.outvars]

    def node(self, kind: str, inputs: Sequence[str], name: str = "", **attributes: Any) -> str:
        """Add a node with one output; return the name of the output."""
        name = name or f"v{next(self.numbers)}"
        self.nodes.append(self.onnx.helper.make_node(kind, [*inputs], [name], **attributes))
        return name

    def top_k(self, name: str, count: int) -> tuple[str, str]:
        """Names of tensors: the largest values along the last axis, descending; their places."""
        outputs = [f"v{next(self.numbers)}" for _ in range(2)]
        inputs = [name, self.constant(np.int64([count]))]
        self.nodes.append(self.onnx.helper.make_node("TopK", inputs, outputs, axis=-1))
        return outputs[0], outputs[1]

    def rows(self, name: str, places: str) -> str:
        """The name of a tensor [B, N, ...]: the rows at `places` [B, N] of a tensor [B, A, ...]."""
        places = self.node("Unsqueeze", [places, self.constant(np.int64([2]))])
        return self.node("GatherND", [name, places], batch_dims=1)

    def filled(self, shape: str, number: float) -> str:
        """The name of a float32 tensor of equal numbers; the tensor `shape` has its shape."""
        value = self.onnx.numpy_helper.from_array(np.float32([number]))
        return self.node("ConstantOfShape", [shape], value=value)

    def tensor(self, value: Value) -> str:
        """The name of the tensor of a value, in its `kept` shape."""
        return self.constant(value.array) if value.array is not None else value.name

    def constant(self, array: Any) -> str:
        """Add a constant; return its name."""
        name = f"c{next(self.numbers)}"
        self.constants[name] = np.asarray(array)
        return name

    def whole(self, value: Value) -> str:
        """The name of the tensor of a value, expanded to its whole shape."""
        name = self.tensor(value)
        if value.kept == value.shape:
            return name
        return self.node("Expand", [name, self._sides(value.shape)])

    def live_nodes(self, outputs: Sequence[str]) -> list[Any]:
        """The nodes on which the outputs depend, in order."""
        needed, kept = {*outputs}, []
        for node in reversed(self.nodes):
            if needed & {*node.output}:
                needed |= {*node.input}
                kept.append(node)
        return kept[::-1]

    def used_constants(self, nodes: Sequence[Any]) -> list[Any]:
        """The constants that nodes read, as initializers."""
        used = {name for node in nodes for name in node.input}
        make = self.onnx.numpy_helper.from_array
        return [make(array, name) for name, array in self.constants.items() if name in used]

    def _sides(self, shape: Sequence[int]) -> str:
        """The name of a tensor with a shape, in which the number of images replaces `BATCH`."""
        if not any(side % BATCH == 0 for side in shape if side):
            return self.constant(np.int64(shape))
        size = self.node("Shape", [self.batched], start=0, end=1)
        factors = np.int64([side // BATCH if _is_batched(side) else 0 for side in shape])
        fixed = np.int64([0 if _is_batched(side) else side for side in shape])
        product = self.node("Mul", [self.constant(factors), size])
        return self.node("Add", [product, self.constant(fixed)])

    def _equation(self, eqn: Any, inputs: list[Any]) -> Sequence[Value | Unsupported]:
        kind, params = eqn.primitive.name, eqn.params
        body = next((params[name] for name in BODY_PARAMS if name in params), None)
        if body is not None and kind not in ("scan", "while", "cond"):
            constants = [_constant(each) for each in getattr(body, "consts", ())]
            return self.lower(getattr(body, "jaxpr", body), constants, inputs)
        if kind == "select_n" and (chosen := _chosen(inputs)) is not None:
            return [chosen]
        if bad := [each for each in inputs if isinstance(each, Unsupported)]:
            return [bad[0]] * len(eqn.outvars)
        avals = [var.aval for var in eqn.outvars]
        if folded := _fold(eqn, inputs):
            return folded
        rule = getattr(self, f"_{kind}", None)
        if kind in SAME:
            return inputs[:1]
        if kind in UNARY:
            return [self._elementwise(UNARY[kind], inputs, avals[0])]
        if kind in BINARY:
            return [self._elementwise(BINARY[kind], inputs, avals[0])]
        if kind in REDUCTIONS:
            return [self._reduce(REDUCTIONS[kind], inputs[0], avals[0], params)]
        if rule is None:
            return [Unsupported(kind)] * len(avals)
        found = rule(inputs, avals[0] if len(avals) == 1 else avals, params)
        return found if isinstance(found, list) else [found]

    def _elementwise(self, kind: str, inputs: Sequence[Value], aval: Any) -> Value:
        kept = np.broadcast_shapes(*(each.kept for each in inputs))
        name = self.node(kind, [self.tensor(each) for each in inputs])
        return Value(aval.shape, kept, np.dtype(aval.dtype), name)

    def _whole_value(self, name: str, aval: Any) -> Value:
        return Value(aval.shape, aval.shape, np.dtype(aval.dtype), name)

    def _scalar(self, number: float, like: Value) -> str:
        return self.constant(np.asarray(number, like.dtype))

    def _rsqrt(self, inputs, aval, params):
        root = self.node("Sqrt", [self.tensor(inputs[0])])
        return Value(aval.shape, inputs[0].kept, inputs[0].dtype, self.node("Reciprocal", [root]))

    def _log1p(self, inputs, aval, params):
        total = self.node("Add", [self.tensor(inputs[0]), self._scalar(1, inputs[0])])
        return Value(aval.shape, inputs[0].kept, inputs[0].dtype, self.node("Log", [total]))

    def _square(self, inputs, aval, params):
        return self._elementwise("Mul", inputs * 2, aval)

    def _integer_pow(self, inputs, aval, params):
        exponent = self._scalar(params["y"], inputs[0])
        name = self.node("Pow", [self.tensor(inputs[0]), exponent])
        return Value(aval.shape, inputs[0].kept, inputs[0].dtype, name)

    def _ne(self, inputs, aval, params):
        return self._elementwise("Not", [self._elementwise("Equal", inputs, aval)], aval)

    def _clamp(self, inputs, aval, params):
        low, value, high = inputs
        return self._elementwise("Min", [self._elementwise("Max", [value, low], aval), high], aval)

    def _select_n(self, inputs, aval, params):
        predicate, *cases = inputs
        if predicate.dtype != bool or len(cases) != 2:
            return Unsupported("select_n")
        return self._elementwise("Where", [predicate, *cases[::-1]], aval)

    def _convert_element_type(self, inputs, aval, params):
        to = self.onnx.helper.np_dtype_to_tensor_dtype(np.dtype(aval.dtype))
        name = self.node("Cast", [self.tensor(inputs[0])], to=to)
        return Value(aval.shape, inputs[0].kept, np.dtype(aval.dtype), name)

    def _broadcast_in_dim(self, inputs, aval, params):
        kept = [1] * len(aval.shape)
        for axis, side in zip(params["broadcast_dimensions"], inputs[0].kept, strict=True):
            kept[axis] = side
        return self._reshaped(inputs[0], tuple(kept), aval)

    def _reshape(self, inputs, aval, params):
        if params.get("dimensions") is not None:
            return Unsupported("reshape")
        value = inputs[0]
        if math.prod(value.kept) == 1:
            return self._reshaped(value, (1,) * len(aval.shape), aval)
        whole = value._replace(name=self.whole(value), array=None, kept=value.shape)
        return self._reshaped(whole, aval.shape, aval)

    def _expand_dims(self, inputs, aval, params):
        kept = list(inputs[0].kept)
        for axis in sorted(params["dimensions"]):
            kept.insert(axis, 1)
        return self._reshaped(inputs[0], tuple(kept), aval)

    def _squeeze(self, inputs, aval, params):
        gone = {axis % len(inputs[0].shape) for axis in params["dimensions"]}
        kept = tuple(side for axis, side in enumerate(inputs[0].kept) if axis not in gone)
        return self._reshaped(inputs[0], kept, aval)

    def _reshaped(self, value: Value, kept: tuple[int, ...], aval: Any) -> Value:
        """Give a value the shape of `aval`, and its tensor the shape `kept` of equal size."""
        found = Value(aval.shape, kept, value.dtype)
        if value.array is not None:
            return found._replace(array=value.array.reshape(kept))
        open_axes = [axis for axis, side in enumerate(kept) if _is_batched(side)]
        if len(open_axes) > 1:
            shape = self._sides(kept)
        else:
            sides = [-1 if axis in open_axes else side for axis, side in enumerate(kept)]
            shape = self.constant(np.int64(sides))
        return found._replace(name=self.node("Reshape", [value.name, shape]))

    def _transpose(self, inputs, aval, params):
        order = [int(axis) for axis in params["permutation"]]
        name = self.node("Transpose", [self.tensor(inputs[0])], perm=order)
        kept = tuple(inputs[0].kept[axis] for axis in order)
        return Value(aval.shape, kept, inputs[0].dtype, name)

    def _slice(self, inputs, aval, params):
        starts, ends = params["start_indices"], params["limit_indices"]
        steps = params["strides"] or (1,) * len(starts)
        return self._sliced(inputs[0], starts, ends, steps, aval)

    def _rev(self, inputs, aval, params):
        sides = inputs[0].shape
        flipped = [axis in params["dimensions"] for axis in range(len(sides))]
        starts = [side - 1 if flip else 0 for side, flip in zip(sides, flipped, strict=True)]
        ends = [-side - 1 if flip else side for side, flip in zip(sides, flipped, strict=True)]
        steps = [-1 if flip else 1 for flip in flipped]
        return self._sliced(inputs[0], starts, ends, steps, aval)

    def _sliced(self, value, starts, ends, steps, aval):
        axes = [
            axis
            for axis, side in enumerate(value.shape)
            if (starts[axis], ends[axis], steps[axis]) != (0, side, 1)
        ]
        if not axes:
            return value
        bounds = [self.constant(np.int64([each[axis] for axis in axes])) for each in (starts, ends)]
        bounds += [self.constant(np.int64(each)) for each in (axes, [steps[axis] for axis in axes])]
        return self._whole_value(self.node("Slice", [self.whole(value), *bounds]), aval)

    def _pad(self, inputs, aval, params):
        value, fill = inputs
        edges = params["padding_config"]
        if any(interior or low < 0 or high < 0 for low, high, interior in edges):
            return Unsupported("pad")
        pads = np.int64([low for low, _, _ in edges] + [high for _, high, _ in edges])
        name = self.node("Pad", [self.whole(value), self.constant(pads), self.tensor(fill)])
        return self._whole_value(name, aval)

    def _concatenate(self, inputs, aval, params):
        names = [self.whole(each) for each in inputs]
        return self._whole_value(self.node("Concat", names, axis=int(params["dimension"])), aval)

    def _stack(self, inputs, aval, params):
        axis = next(int(each) for name, each in params.items() if name in ("axis", "dimension"))
        place = self.constant(np.int64([axis]))
        names = [self.node("Unsqueeze", [self.whole(each), place]) for each in inputs]
        return self._whole_value(self.node("Concat", names, axis=axis), aval)

    def _split(self, inputs, avals, params):
        avals = avals if isinstance(avals, list) else [avals]
        axis, start, found = int(params["axis"]), 0, []
        for aval, size in zip(avals, params["sizes"], strict=True):
            bounds = [self.constant(np.int64([each])) for each in (start, start + size, axis)]
            name = self.node("Slice", [self.whole(inputs[0]), *bounds])
            found.append(self._whole_value(name, aval))
            start += size
        return found

    def _reduce(self, kind, value, aval, params):
        axes = self.constant(np.int64(params["axes"]))
        name = self.node(kind, [self.whole(value), axes], keepdims=0)
        return self._whole_value(name, aval)

    def _argmax(self, inputs, aval, params):
        (axis,) = params["axes"]
        index = self.node("ArgMax", [self.whole(inputs[0])], axis=int(axis), keepdims=0)
        to = self.onnx.helper.np_dtype_to_tensor_dtype(np.dtype(aval.dtype))
        return self._whole_value(self.node("Cast", [index], to=to), aval)

    def _dot_general(self, inputs, aval, params):
        (left, right), (batch_left, batch_right) = params["dimension_numbers"]
        letters = (chr(ord("a") + i) for i in count())
        a = [next(letters) for _ in inputs[0].shape]
        b = [next(letters) for _ in inputs[1].shape]
        for i, j in zip((*left, *batch_left), (*right, *batch_right), strict=True):
            b[j] = a[i]
        out = [a[i] for i in batch_left]
        out += [each for i, each in enumerate(a) if i not in (*left, *batch_left)]
        out += [each for j, each in enumerate(b) if j not in (*right, *batch_right)]
        equation = f"{''.join(a)},{''.join(b)}->{''.join(out)}"
        names = [self.whole(each) for each in inputs]
        if equation.count("b,bc->ac") and len(a) == len(b) == 2:
            return self._whole_value(self.node("MatMul", names), aval)
        return self._whole_value(self.node("Einsum", names, equation=equation), aval)

    def _conv_general_dilated(self, inputs, aval, params):
        numbers = params["dimension_numbers"]
        if {*params["lhs_dilation"]} > {1} or params["batch_group_count"] != 1:
            return Unsupported("conv_general_dilated")
        image, kernel = (
            self.node("Transpose", [self.whole(each)], perm=[int(axis) for axis in order])
            for each, order in zip(inputs, numbers[:2], strict=True)
        )
        pads = params["padding"]
        found = self.node(
            "Conv",
            [image, kernel],
            strides=[*params["window_strides"]],
            dilations=[*params["rhs_dilation"]],
            pads=[low for low, _ in pads] + [high for _, high in pads],
            group=params["feature_group_count"],
        )
        back = np.argsort(numbers[2]).tolist()
        return self._whole_value(self.node("Transpose", [found], perm=back), aval)

    def _reduce_window_max(self, inputs, aval, params):
        return self._pool("MaxPool", inputs, aval, params)

    def _reduce_window_sum(self, inputs, aval, params):
        mean = self._pool("AveragePool", inputs, aval, params, count_include_pad=1)
        if isinstance(mean, Unsupported):
            return mean
        size = self._scalar(math.prod(params["window_dimensions"]), mean)
        return self._whole_value(self.node("Mul", [mean.name, size]), aval)

    def _pool(self, kind, inputs, aval, params, **options):
        window, pads = params["window_dimensions"], params["padding"]
        plain = {*params["base_dilation"], *params["window_dilation"], window[0], window[-1]} == {1}
        if len(window) != 4 or not plain or (*pads[0], *pads[3]) != (0, 0, 0, 0):
            return Unsupported(f"reduce_window of {kind}")
        image = self.node("Transpose", [self.whole(inputs[0])], perm=[0, 3, 1, 2])
        found = self.node(
            kind,
            [image],
            kernel_shape=[*window[1:3]],
            strides=[*params["window_strides"][1:3]],
            pads=[low for low, _ in pads[1:3]] + [high for _, high in pads[1:3]],
            **options,
        )
        return self._whole_value(self.node("Transpose", [found], perm=[0, 2, 3, 1]), aval)


Finish = Callable[[Graph, dict[str, Value]], dict[str, Value]]


def _constant(array: Any) -> Value:
    array = np.asarray(array)
    return Value(array.shape, array.shape, array.dtype, array=array)


def _is_batched(side: int) -> bool:
    return side > 0 and side % BATCH == 0


def _names(outputs: Any) -> list[str]:
    """The names of the arrays in a dict, in the order of their leaves."""
    return [str(path[0].key) for path, _ in jax.tree_util.tree_flatten_with_path(outputs)[0]]


def _chosen(inputs: Sequence[Any]) -> Any:
    """The case of `select_n` that a constant predicate chooses everywhere, else None."""
    predicate, *cases = inputs
    if isinstance(predicate, Unsupported) or predicate.array is None or not predicate.array.size:
        return None
    values = np.unique(predicate.array)
    return cases[int(values[0])] if len(values) == 1 else None


def _fold(eqn: Any, inputs: Sequence[Value]) -> list[Value]:
    """The outputs of an equation of constants, computed by JAX if possible; else []."""
    if any(each.array is None for each in inputs):
        return []
    avals = [var.aval for var in eqn.outvars]
    arrays = [each.array for each in inputs]
    if eqn.primitive.name in FOLDED:
        kept = np.broadcast_shapes(*(each.kept for each in inputs))
        found = eqn.primitive.bind(*(np.broadcast_to(each, kept) for each in arrays), **eqn.params)
        return [Value(avals[0].shape, kept, np.dtype(avals[0].dtype), array=np.asarray(found))]
    if eqn.primitive.name == "convert_element_type":
        array = np.asarray(arrays[0]).astype(avals[0].dtype)
        return [Value(avals[0].shape, inputs[0].kept, array.dtype, array=array)]
    shapes = [each.shape for each in (*inputs, *avals)]
    if eqn.primitive.name in ("broadcast_in_dim", "expand_dims", "squeeze") or any(
        _is_batched(side) for shape in shapes for side in shape
    ):
        return []
    whole = [np.broadcast_to(each.array, each.shape) for each in inputs]
    found = eqn.primitive.bind(*whole, **eqn.params)
    return [_constant(each) for each in (found if eqn.primitive.multiple_results else [found])]
