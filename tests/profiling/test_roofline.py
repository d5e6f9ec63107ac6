from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.extend import core
from PIL import Image

from jaxdet import flops
from jaxdet.models.lenet import LeNet
from jaxdet.plots import profiling as profiling_plots
from jaxdet.profiling import roofline, summary, timing

IMAGES = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)
Small = partial(LeNet, channels=(2,), fc_widths=(4,), classes=3)


def hurry(monkeypatch):
    """Measure each layer once, and peaks on small matrices and copies."""
    monkeypatch.setattr(timing, "measure", partial(_once, timing.measure))
    monkeypatch.setattr(roofline, "MATRIX_SIZE", {jax.default_backend(): 32})
    monkeypatch.setattr(roofline, "COPY_LENGTH", {jax.default_backend(): 1024})


def _once(measure, fn, *args, seconds):
    return measure(fn, *args, seconds=0.0, repeats=1)


@pytest.fixture
def seconds(monkeypatch):
    """Every measurement gives half a second, without running anything."""
    monkeypatch.setattr(timing, "measure", lambda *_, **__: SimpleNamespace(median=0.5))
    monkeypatch.setattr(roofline, "MATRIX_SIZE", {jax.default_backend(): 10})
    monkeypatch.setattr(roofline, "COPY_LENGTH", {jax.default_backend(): 7})
    return 0.5


def small(backward=False):
    return summary.summarize(Small(), IMAGES, backward=backward)


def test_layers_run_in_order_compute_the_network():
    closed = small().jaxpr
    rng = np.random.default_rng(0)
    inputs = [np.float32(rng.normal(size=aval.shape)) for aval in closed.in_avals]
    known = dict(zip(closed.jaxpr.invars, inputs, strict=True))
    for layer in roofline.split_by_layer(closed):
        run = core.jaxpr_as_fun(core.ClosedJaxpr(layer.jaxpr, ()))
        outputs = run(*(known[var] for var in layer.jaxpr.invars))
        known |= dict(zip(layer.jaxpr.outvars, outputs, strict=True))
    (expected,) = core.jaxpr_as_fun(closed)(*inputs)
    np.testing.assert_allclose(known[closed.jaxpr.outvars[0]], expected, rtol=1e-5)


@pytest.mark.parametrize("backward", [False, True])
def test_every_equation_belongs_to_exactly_one_layer(backward):
    closed = small(backward).jaxpr
    layers = list(roofline.split_by_layer(closed))
    assert len({(layer.path, layer.direction) for layer in layers}) == len(layers)
    equations = [eqn for layer in layers for eqn in layer.jaxpr.eqns]
    assert sorted(map(id, equations)) == sorted(map(id, flops.live_equations(closed.jaxpr)))


def test_layers_output_only_what_other_layers_read():
    layers = {layer.path: layer.jaxpr for layer in roofline.split_by_layer(small().jaxpr)}
    sizes = {
        path: [[var.aval.shape for var in each] for each in (jaxpr.invars, jaxpr.outvars)]
        for path, jaxpr in layers.items()
    }
    assert sizes["LeNet/conv1_relu"] == [[(1, 12, 12, 2)], [(1, 12, 12, 2)]]
    assert sizes["LeNet/conv1_pool"] == [[(1, 12, 12, 2)], [(1, 6, 6, 2)]]
    inputs, outputs = sizes["LeNet/logits"]
    assert (sorted(inputs), outputs) == ([(1, 4), (3,), (4, 3)], [(1, 3)])


def test_bytes_are_those_of_inputs_weights_and_outputs(seconds):
    measured = roofline.time_layers(small())
    assert measured["conv1"]["bytes"] == 4 * (16 * 16 * 3 + 5 * 5 * 3 * 2 + 2 + 12 * 12 * 2)
    assert measured["conv1_pool"]["bytes"] == 4 * (12 * 12 * 2 + 6 * 6 * 2)
    assert measured["logits"]["bytes"] == 4 * (4 + 4 * 3 + 3 + 3)


def test_peaks_are_operations_and_bytes_per_second(seconds):
    peaks = roofline.measure_peaks()
    assert peaks.operations_per_s == (10**3 + 9 * 10**2) / seconds
    assert peaks.bytes_per_s == 2 * 4 * 7 / seconds


def test_measure_adds_times_to_the_rows(seconds):
    network = small(backward=True)
    rows = summary.table_rows(network, backward=True)
    notes = roofline.notes(roofline.measure(network, rows), rows)
    assert all(row["forward_s"] == seconds for row in rows[:-1])
    backward = {row["layer"] for row in rows[:-1] if row.get("backward_s")}
    assert {"conv1", "conv1_pool", "dense1", "logits"} <= backward
    for row in rows:
        taken = row["forward_s"] + row.get("backward_s", 0)
        assert row["operations_per_s"] * taken == pytest.approx(row["total"])
    for key in ("forward_s", "backward_s", "bytes"):
        assert rows[-1][key] == sum(row.get(key, 0) for row in rows[:-1])
    assert [note.split()[0] for note in notes] == ["whole", "measured"]


def test_an_inference_pass_has_no_backward_times(seconds):
    assert not any("backward_s" in row for row in roofline.time_layers(small()).values())


def test_measured_layers_can_be_drawn(monkeypatch, tmp_path):
    hurry(monkeypatch)
    network, path = small(backward=True), tmp_path / "new" / "roofline.png"
    rows = summary.table_rows(network, backward=True)
    measured = roofline.measure(network, rows)
    assert measured.seconds > 0 and all(row["forward_s"] > 0 for row in rows)
    assert rows[-1]["backward_s"] > 0
    profiling_plots.roofline(rows[:-1], path, **measured.peaks._asdict())
    with Image.open(path) as picture:
        assert picture.size == (900, 600)


class Mixed(nn.Module):
    """Layers that exchange integers, booleans and keys, with a loop."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dropout(0.5, deterministic=not train, name="drop")(nn.Dense(4, name="dense")(x))
        with jax.named_scope("choose"):
            best, positive = x.argmax(-1), x.max(-1) > 0  # [B]
        with jax.named_scope("take"):
            x = jnp.where(positive[:, None], jnp.take_along_axis(x, best[:, None], -1), 0)
        with jax.named_scope("loop"):
            return jax.lax.fori_loop(0, 3, lambda i, x: jnp.sin(x) + i, x)


def test_layers_may_exchange_values_of_any_type(monkeypatch):
    hurry(monkeypatch)
    network = summary.summarize(Mixed(), jax.ShapeDtypeStruct((2, 5), jnp.float32), backward=True)
    measured = roofline.time_layers(network)
    assert {"dense", "choose", "take", "loop"} <= set(measured)
    assert all(row["bytes"] > 0 for path, row in measured.items() if path)
    assert roofline.time_network(network) > 0
