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
from jaxdet.profiling import roofline, summary, timing

IMAGES = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)
Small = partial(LeNet, widths=(2,), dense=(4,), classes=3)


def hurry(monkeypatch):
    """One repeat of each layer, and small matrices and copies: a measurement for tests."""
    monkeypatch.setattr(timing, "measure", partial(_once, timing.measure))
    monkeypatch.setattr(roofline, "MATRIX_SIZE", {jax.default_backend(): 32})
    monkeypatch.setattr(roofline, "COPY_LENGTH", {jax.default_backend(): 1024})


def _once(measure, fn, *args, seconds):
    return measure(fn, *args, seconds=0.0, repeats=1)


@pytest.fixture
def seconds(monkeypatch):
    """Every call takes the same half of a second, and is not made."""
    monkeypatch.setattr(timing, "measure", lambda *_, **__: SimpleNamespace(median=0.5))
    monkeypatch.setattr(roofline, "MATRIX_SIZE", {jax.default_backend(): 10})
    monkeypatch.setattr(roofline, "COPY_LENGTH", {jax.default_backend(): 7})
    return 0.5


def taken_apart(backward=False):
    return summary.summarize(Small(), IMAGES, backward=backward)


def test_pieces_in_order_are_the_network():
    closed = taken_apart().closed
    draw = np.random.default_rng(0)
    given = [np.float32(draw.normal(size=aval.shape)) for aval in closed.in_avals]
    known = dict(zip(closed.jaxpr.invars, given, strict=True))
    for piece in roofline.split_by_layer(closed):
        run = core.jaxpr_as_fun(core.ClosedJaxpr(piece.jaxpr, ()))
        made = run(*(known[var] for var in piece.jaxpr.invars))
        known |= dict(zip(piece.jaxpr.outvars, made, strict=True))
    (expected,) = core.jaxpr_as_fun(closed)(*given)
    np.testing.assert_allclose(known[closed.jaxpr.outvars[0]], expected, rtol=1e-5)


@pytest.mark.parametrize("backward", [False, True])
def test_every_equation_is_in_one_piece(backward):
    closed = taken_apart(backward).closed
    pieces = list(roofline.split_by_layer(closed))
    assert len({(piece.path, piece.direction) for piece in pieces}) == len(pieces)
    equations = [eqn for piece in pieces for eqn in piece.jaxpr.eqns]
    assert sorted(map(id, equations)) == sorted(map(id, flops.live_equations(closed.jaxpr)))


def test_a_piece_makes_only_what_others_need():
    pieces = {piece.path: piece.jaxpr for piece in roofline.split_by_layer(taken_apart().closed)}
    sizes = {
        path: [[var.aval.shape for var in each] for each in (jaxpr.invars, jaxpr.outvars)]
        for path, jaxpr in pieces.items()
    }
    assert sizes["LeNet/conv1_relu"] == [[(1, 12, 12, 2)], [(1, 12, 12, 2)]]
    assert sizes["LeNet/conv1_pool"] == [[(1, 12, 12, 2)], [(1, 6, 6, 2)]]
    given, made = sizes["LeNet/logits"]
    assert (sorted(given), made) == ([(1, 4), (3,), (4, 3)], [(1, 3)])


def test_bytes_are_inputs_weights_and_outputs_once(seconds):
    measured = roofline.time_layers(taken_apart())
    assert measured["conv1"]["bytes"] == 4 * (16 * 16 * 3 + 5 * 5 * 3 * 2 + 2 + 12 * 12 * 2)
    assert measured["conv1_pool"]["bytes"] == 4 * (12 * 12 * 2 + 6 * 6 * 2)
    assert measured["logits"]["bytes"] == 4 * (4 + 4 * 3 + 3 + 3)


def test_ceilings_are_operations_and_bytes_a_second(seconds):
    top = roofline.measure_peaks()
    assert top.operations_per_s == (10**3 + 9 * 10**2) / seconds
    assert top.bytes_per_s == 2 * 4 * 7 / seconds


def test_add_fills_the_rows(seconds, tmp_path):
    found = taken_apart(backward=True)
    rows = summary.table_rows(found, backward=True)
    notes = roofline.add(rows, found, tmp_path / "roofline.png")
    assert all(row["forward_s"] == seconds for row in rows[:-1])
    slow = {row["layer"] for row in rows[:-1] if row.get("backward_s")}
    assert {"conv1", "conv1_pool", "dense1", "logits"} <= slow
    for row in rows:
        taken = row["forward_s"] + row.get("backward_s", 0)
        assert row["operations_per_s"] * taken == pytest.approx(row["total"])
    for key in ("forward_s", "backward_s", "bytes"):
        assert rows[-1][key] == sum(row.get(key, 0) for row in rows[:-1])
    assert [note.split()[0] for note in notes] == ["whole", "ceilings", "wrote"]


def test_without_a_backward_pass_there_is_nothing_to_measure_of_one(seconds):
    assert not any("backward_s" in row for row in roofline.time_layers(taken_apart()).values())


def test_layers_are_measured_and_drawn(monkeypatch, tmp_path):
    hurry(monkeypatch)
    found, path = taken_apart(backward=True), tmp_path / "new" / "roofline.png"
    rows = summary.table_rows(found, backward=True)
    roofline.add(rows, found, path)
    assert all(row["forward_s"] > 0 for row in rows)
    assert rows[-1]["backward_s"] > 0
    with Image.open(path) as picture:
        assert picture.size == (900, 600)


class Mixed(nn.Module):
    """Layers with whole numbers, truth values, keys and loops between them."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dropout(0.5, deterministic=not train, name="drop")(nn.Dense(4, name="dense")(x))
        with jax.named_scope("choose"):
            best, sure = x.argmax(-1), x.max(-1) > 0  # [B]
        with jax.named_scope("take"):
            x = jnp.where(sure[:, None], jnp.take_along_axis(x, best[:, None], -1), 0)
        with jax.named_scope("loop"):
            return jax.lax.fori_loop(0, 3, lambda i, x: jnp.sin(x) + i, x)


def test_numbers_of_any_type_go_between_layers(monkeypatch):
    hurry(monkeypatch)
    found = summary.summarize(Mixed(), jax.ShapeDtypeStruct((2, 5), jnp.float32), backward=True)
    measured = roofline.time_layers(found)
    assert {"dense", "choose", "take", "loop"} <= set(measured)
    assert all(row["bytes"] > 0 for path, row in measured.items() if path)
    assert roofline.time_network(found) > 0
