import csv
import io
import json

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

from jaxdet import configs, flops
from jaxdet.errors import InputError
from jaxdet.flops.rules import OpCounts
from jaxdet.models.lenet import LeNet
from jaxdet.models.resnet import ResNet
from jaxdet.profiling import summary
from tests import tiny

Tiny = ResNet(stages=(1, 1), width=8, classes=3)
NETWORKS = {
    "lenet": (LeNet(), (2, 32, 32, 3)),
    "resnet": (Tiny, (2, 32, 32, 3)),
    "digits": configs.network_of_config("digits", tiny.CONFIG),
}
each_network = pytest.mark.parametrize("net, shape", NETWORKS.values(), ids=NETWORKS)


def shaped(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def columns(rows, *names):
    return [tuple(row[name] for name in names) for row in rows]


def test_lenet_matches_the_published_table():
    rows = summary.table_rows(summary.summarize(LeNet(), shaped(1, 32, 32, 3)))
    assert columns(rows[:-1], "layer", "output", "parameters", "multiplications", "maxima") == [
        ("conv1", [1, 28, 28, 6], 456, 352_800, 0),
        ("conv1_relu", [1, 28, 28, 6], 0, 0, 4_704),
        ("conv1_pool", [1, 14, 14, 6], 0, 0, 3_528),
        ("conv2", [1, 10, 10, 16], 2_416, 240_000, 0),
        ("conv2_relu", [1, 10, 10, 16], 0, 0, 1_600),
        ("conv2_pool", [1, 5, 5, 16], 0, 0, 1_200),
        ("flatten", [1, 400], 0, 0, 0),
        ("dense1", [1, 120], 48_120, 48_000, 0),
        ("dense1_relu", [1, 120], 0, 0, 120),
        ("dense2", [1, 84], 10_164, 10_080, 0),
        ("dense2_relu", [1, 84], 0, 0, 84),
        ("logits", [1, 10], 850, 840, 0),
    ]
    assert all(row["additions"] == row["multiplications"] for row in rows)
    last = rows[-1]
    assert (last["layer"], last["parameters"], last["total"]) == ("sum", 62_006, 1_314_676)
    assert (last["additions"], last["multiplications"], last["maxima"]) == (
        651_720,
        651_720,
        11_236,
    )
    assert last["percent"] == pytest.approx(100)


def test_rows_have_types_hyper_parameters_and_weight_shapes():
    rows = summary.table_rows(summary.summarize(LeNet(), shaped(1, 32, 32, 3)))
    found = {row["layer"]: (row["type"], row["weights"]) for row in rows[:-1]}
    assert found["conv1"] == (
        "Conv, features 6, kernel_size 5x5, padding VALID",
        {"kernel": [5, 5, 3, 6], "bias": [6]},
    )
    assert found["conv1_relu"] == ("relu", {})
    assert found["conv1_pool"] == ("max pool 2x2, strides 2x2", {})
    assert found["logits"] == ("Dense, features 10", {"kernel": [84, 10], "bias": [10]})


def test_layers_are_listed_from_input_to_output():
    found = summary.summarize(Tiny, shaped(1, 32, 32, 3))
    block = "conv1", "conv1_norm", "conv1_relu", "conv2", "conv2_norm", "add", "relu"
    projected = *block[:5], "around", "around_norm", *block[5:]
    assert [layer.path for layer in found.layers] == [
        *("stem", "stem_norm", "stem_relu", "stem_pool"),
        *(f"stage1_block1/{name}" for name in block),
        *(f"stage2_block1/{name}" for name in projected),
        *("pool", "logits"),
    ]
    outputs = {layer.path: layer.output for layer in found.layers}
    assert outputs["stem_pool"] == (1, 8, 8, 8)
    assert outputs["stage2_block1/relu"] == (1, 4, 4, 16)
    assert outputs["pool"] == (1, 16)


def test_concatenations_sums_and_dropout_are_layers_with_their_inputs():
    config = configs.config("cifar10")(model="inception", dropout=0.5, norm=True)
    found = summary.summarize(
        configs.network_of_config("cifar10", config).net, shaped(1, 32, 32, 3)
    )
    rows = {row["layer"]: row for row in summary.table_rows(found)}
    parts = [f"conv2/{name}_relu" for name in ("conv1x1", "conv3x3", "conv5x5", "project")]
    assert (rows["conv2/join"]["inputs"], rows["conv2/join"]["output"]) == (
        ", ".join(parts),
        [1, 16, 16, 16],
    )
    order = [*rows]
    assert order[order.index("dense1_relu") :] == [
        *("dense1_relu", "dense1_drop", "dense2", "dense2_relu", "dense2_drop", "logits", "sum")
    ]
    drop = rows["dense2_drop"]
    assert (drop["type"], drop["output"], drop["weights"]) == ("Dropout, rate 0.5", [1, 84], {})
    assert drop["total"] == drop["parameters"] == 0
    assert summary.notes(found) == [
        f"running statistics: {2 * (6 + 16)} numbers, not in the parameters"
    ]
    assert summary.notes(summary.summarize(LeNet(), shaped(1, 32, 32, 3))) == []
    (first, *_, second) = [row for row in summary.table_rows(_tiny()) if row.get("inputs")]
    assert first["inputs"] == "stem_pool, stage1_block1/conv2_norm"
    assert second["inputs"] == "stage2_block1/around_norm, stage2_block1/conv2_norm"


def _tiny():
    return summary.summarize(Tiny, shaped(1, 32, 32, 3))


@each_network
@pytest.mark.parametrize("options", [{}, {"padding": "valid"}, {"convention": "mac"}])
@pytest.mark.parametrize("backward", [False, True])
def test_layers_sum_to_the_whole_network(net, shape, options, backward):
    found = summary.summarize(net, shaped(*shape), backward=backward, **options)
    for direction in flops.DIRECTIONS:
        whole = sum((getattr(layer, direction) for layer in found.layers), OpCounts())
        assert whole == found.report.sum(direction)
        assert bool(whole.total()) == (backward or direction == "forward")
    rows = summary.table_rows(found, backward=True)
    assert rows[-1]["total"] == found.report.total() == sum(row["total"] for row in rows[:-1])
    assert all(row["total"] == row["forward"] + row["backward"] for row in rows)
    assert sum(row["percent"] for row in rows[:-1]) == pytest.approx(100)
    assert (found.report.unknown, found.report.unbounded) == ({}, ())


@each_network
def test_parameters_sum_to_those_of_the_network(net, shape):
    params = jax.eval_shape(net.init, jax.random.key(0), shaped(*shape))["params"]
    found = summary.summarize(net, shaped(*shape))
    assert sum(layer.parameters for layer in found.layers) == sum(
        leaf.size for leaf in jax.tree.leaves(params)
    )
    weights = [size for layer in found.layers for size in layer.weights.values()]
    assert sorted(weights) == sorted(leaf.shape for leaf in jax.tree.leaves(params))


@each_network
def test_a_training_pass_has_the_same_layers(net, shape):
    forward, both = (summary.summarize(net, shaped(*shape), backward=b) for b in (False, True))
    first, second = (
        [(x.path, x.type, x.output, x.weights) for x in f.layers] for f in (forward, both)
    )
    assert first == second
    assert all(x.backward.total() for x in both.layers if x.parameters)
    assert "backward" not in summary.table_rows(forward)[0]
    assert summary.table_rows(both, backward=True)[-1]["backward"] == both.report.total("backward")


def test_gradients_cost_two_products_per_layer_except_in_the_first():
    found = summary.summarize(LeNet(), shaped(1, 32, 32, 3), backward=True, padding="valid")
    layers = {layer.path: layer for layer in found.layers if layer.parameters}
    ratio = {
        path: layer.backward.multiply_adds / layer.forward.multiply_adds
        for path, layer in layers.items()
    }
    assert ratio == {"conv1": 1, "conv2": 2, "dense1": 2, "dense2": 2, "logits": 2}


def test_mac_counts_only_layers_with_products():
    found = summary.summarize(Tiny, shaped(1, 32, 32, 3), convention="mac")
    rows = {row["layer"]: row["total"] for row in summary.table_rows(found)[:-1]}
    assert rows["stem"] == 16 * 16 * 8 * 7 * 7 * 3
    assert rows["logits"] == 16 * 3
    assert {layer for layer, total in rows.items() if total} == {
        *("stem", "stage1_block1/conv1", "stage1_block1/conv2", "logits"),
        *("stage2_block1/conv1", "stage2_block1/conv2", "stage2_block1/around"),
    }


class Odd(nn.Module):
    """A network with an unused layer, a loop, an unknown primitive and a parameter of its own."""

    @nn.compact
    def __call__(self, x, train=False):
        scale = self.param("scale", nn.initializers.ones, ())
        nn.Dense(2, name="unused")(x)
        with jax.named_scope("search"):
            x = jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x + 1, x)
        return jnp.fft.fft(nn.Dense(3, name="used")(x)).real * scale


def test_root_operations_and_unused_layers_are_listed():
    found = summary.summarize(Odd(), shaped(2, 4))
    rows = {row["layer"]: row for row in summary.table_rows(found)}
    assert set(rows) == {"search", "used", "unused", summary.ROOT, "sum"}
    assert rows[summary.ROOT]["weights"] == {"scale": []}
    assert rows[summary.ROOT]["multiplications"] == 6
    assert (rows["unused"]["parameters"], rows["unused"]["total"]) == (10, 0)
    assert rows["sum"]["parameters"] == 10 + 15 + 1
    assert summary.notes(found) == [
        "not counted: fft, 1 times",
        "while loop in Odd/search: counted as one iteration",
    ]


@pytest.mark.parametrize(
    "net, shape, message",
    [
        (
            LeNet(),
            (1, 8, 8, 3),
            "layer conv2: its output is empty, shape 1x0x0x16 from 1x2x2x6; use a larger",
        ),
        (
            LeNet(),
            (1, 15, 15, 3),
            "layer dense1: its input is empty, shape 1x0; use a larger --input",
        ),
        (LeNet(), (2, 3, 32, 3), "layer conv1: its output is empty, shape 2x0x28x6 from 2x3x32x3"),
        (
            *configs.network_of_config("digits", tiny.CONFIG)[:1],
            (1, 20, 20, 1),
            "40 pixels, got 20 x 20",
        ),
    ],
)
def test_inputs_that_are_too_small_name_the_layer_and_shapes(net, shape, message):
    with pytest.raises(InputError, match=message):
        summary.summarize(net, shaped(*shape))


@pytest.mark.parametrize(
    "net, shape, message",
    [
        (
            LeNet(),
            (1, 32, 32, 1),
            "layer conv1 cannot process shape 1x32x32x1: .*kernel.*5, 5, 3, 6",
        ),
        (LeNet(), (1, 36, 36, 3), "layer dense1 cannot process shape 1x576: .*kernel.*400, 120"),
        (Tiny, (1, 32, 32, 4), "layer stem cannot process shape 1x32x32x4: .*kernel.*7, 7, 3, 8"),
    ],
)
def test_inputs_that_do_not_fit_the_weights_name_the_layer(net, shape, message):
    variables = jax.eval_shape(net.init, jax.random.key(0), shaped(1, 32, 32, 3))
    with pytest.raises(InputError, match=message) as caught:
        summary.summarize(net, shaped(*shape), variables)
    assert "\n" not in str(caught.value)


def test_tables_can_be_parsed_back():
    found = summary.summarize(LeNet(), shaped(1, 32, 32, 3), backward=True)
    rows = summary.table_rows(found, backward=True)
    assert json.loads(summary.to_json(rows, ["a note"])) == {
        "layers": rows,
        "notes": ["a note"],
    }
    kept = list(csv.DictReader(io.StringIO(summary.to_csv(rows))))
    assert [int(row["backward"]) for row in kept] == [row["backward"] for row in rows]
    assert [row["layer"] for row in kept] == [row["layer"] for row in rows]
    heading, _, *lines, blank, note = summary.to_markdown(rows, ["a note"]).split("\n")
    names = [word.strip() for word in heading.strip("|").split("|")]
    assert names[:5] == [
        "layer",
        "type, hyper-parameters",
        "output",
        "weights",
        "parameters",
    ]
    cells = [[word.strip() for word in line.strip("|").split("|")] for line in lines]
    totals = [int(line[names.index("total")].replace(",", "")) for line in cells]
    assert totals == [row["total"] for row in rows]
    assert (blank, note) == ("", "a note")
    text = summary.to_text(rows, ["a note"]).split("\n")
    assert text[0].split()[:2] == ["layer", "type,"] and text[-2:] == ["", "a note"]
    assert len(text) == len(lines) + 4


def test_a_narrow_terminal_gets_fewer_columns_and_is_told_so():
    rows = summary.table_rows(summary.summarize(LeNet(), shaped(1, 32, 32, 3)))
    whole = summary.to_text(rows, ["a note"])
    width = whole.index("\n")
    assert summary.to_text(rows, ["a note"], width) == whole
    narrow = summary.to_text(rows, ["a note"], width - 1)
    assert narrow.index("\n") < width and "weights" not in narrow.split("\n")[0]
    assert narrow.endswith("a note\ntoo wide for the terminal: weights; --csv has all columns")
    least = summary.to_text(rows, [], 1)
    assert least.split("\n")[0].split() == [
        "layer",
        "output",
        "parameters",
        "total",
        "%",
        "of",
        "total",
    ]
