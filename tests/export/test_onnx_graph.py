"""Networks in ONNX, run by onnxruntime, beside the same networks in JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

import jaxdet
from jaxdet.export import onnx_graph, onnx_nms, replay
from jaxdet.ops import nms
from tests.test_golden_runs import SCHEMA2

onnxruntime = pytest.importorskip("onnxruntime")


def run_onnx(content, images):
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_outputs()]
    return dict(zip(names, session.run(None, {"images": images}), strict=True)), session


def assert_same(function, shape=(6, 8, 3), batch=None, sizes=(1, 3)):
    """The ONNX model of a function gives the values of the function."""
    content = onnx_graph.to_bytes(function, shape, batch=batch)
    for size in sizes:
        images = np.random.default_rng(0).random((size, *shape), dtype=np.float32)
        found, session = run_onnx(content, images)
        expected = jax.device_get(jax.jit(function)(images))
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert found[name].dtype == value.dtype
            np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-6)
        assert session.get_inputs()[0].shape == [batch or "batch", *shape]


def elementwise(x):
    y = x - 0.5
    made = [jnp.exp(y), jnp.log1p(x), jnp.tanh(y), jax.nn.sigmoid(y), lax.rsqrt(x + 1), jnp.abs(y)]
    made += [y**3, y**-2.0, jnp.sin(y), jnp.cos(y), jnp.sqrt(x), -y, jnp.maximum(y, 0), 1 / (x + 1)]
    made += [jnp.where(y > 0, y, 2.0), jnp.clip(y, -0.1, 0.1), jnp.minimum(x, y + 0.1), lax.erf(y)]
    made += [(y != 0.25) * x, jax.nn.softmax(x), jax.nn.silu(y), jax.nn.gelu(y), jnp.square(y)]
    return {f"out{i:02d}": each for i, each in enumerate(made)}


def shapes(x):
    rows = jnp.arange(6.0)[None, :, None, None] * jnp.ones(8)[None, None, :, None]
    return {
        "concatenated": jnp.concatenate([x, jnp.broadcast_to(rows, (*x.shape[:3], 1))], -1),
        "flat": x.reshape(x.shape[0], -1),
        "flipped": x[:, :, ::-1],
        "label": x.reshape(x.shape[0], -1).argmax(-1),
        "padded": jnp.pad(x, ((0, 0), (1, 2), (0, 0), (0, 0)), constant_values=0.5),
        "parts": jnp.stack(jnp.split(x, 2, axis=2), 1),
        "ones": jnp.ones((x.shape[0], 2)),
        "part": x[:, 1:5:2, 3],
        "product": jnp.einsum("bhwc,bhvc->bhwv", x, x)
        + x.transpose(0, 1, 3, 2).sum((2,))[..., None],
    }


class Network(nn.Module):
    """One layer of each kind."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(6, (3, 3), strides=2, kernel_dilation=1)(x)
        x = nn.BatchNorm(use_running_average=True)(x)
        x = nn.Conv(6, (3, 3), feature_group_count=6, padding=((2, 0), (1, 1)))(nn.relu(x))
        x = nn.max_pool(x, (2, 2), (1, 1), "SAME") + nn.avg_pool(x, (3, 3), (1, 1), "SAME")
        x = nn.Conv(4, (2, 2), kernel_dilation=2, padding="VALID")(
            jnp.pad(x, ((0, 0),) + ((1, 1),) * 2 + ((0, 0),))
        )
        x = nn.LayerNorm()(x)
        return nn.Dense(5)(x.reshape(x.shape[0], -1))


@pytest.mark.parametrize("function", [elementwise, shapes])
def test_operations(function):
    assert_same(function)


def test_layers_and_a_fixed_batch():
    net = Network()
    variables = jax.jit(net.init)(jax.random.key(0), jnp.zeros((1, 6, 8, 3)))
    assert_same(lambda x: {"logits": net.apply(variables, x)}, batch=2, sizes=(2,))


def test_a_value_without_a_rule_matters_only_if_it_is_used():
    def masked(x, index):
        label = jnp.full(x.shape[:1], index)
        own = jnp.take_along_axis(x[:, 0, 0], label[:, None], 1, mode="clip")
        return {"out": jnp.where(label[:, None] == jnp.arange(3)[None], jnp.sin(own), x[:, 0, 0])}

    assert_same(lambda x: masked(x, -1))
    with pytest.raises(jaxdet.InputError, match="no rule for the primitive gather"):
        onnx_graph.to_bytes(lambda x: masked(x, 1), (6, 8, 3))


@pytest.mark.parametrize(
    "system",
    ["digits", *(pytest.param(name, marks=pytest.mark.long) for name in ("objects", "cifar10"))]
    + [pytest.param(name, marks=pytest.mark.long) for name in ("faces", "detect")],
)
def test_every_system_is_exported_and_replayed(system, tmp_path, monkeypatch):
    if system == "digits":  # the others in a process of its own
        monkeypatch.setattr(replay, "run_process", replay.main)
    run, said = jaxdet.load(SCHEMA2 / system, "last"), []
    path = run.export(tmp_path / "m.onnx", "onnx", show=said.append)
    assert "replayed 16 images" in said[0]
    shape = onnxruntime.InferenceSession(path).get_inputs()[0].shape
    assert shape == ["batch", *run.metadata["input"]]
    if system == "detect":
        hard = jaxdet.load(SCHEMA2 / system, "last", nms_type="hard", score_threshold=0.0)
        hard.export(tmp_path / "n.onnx", "onnx", nms=True, show=said.append)
        assert "scores differ by at most" in said[1]
        tiled = jaxdet.load(SCHEMA2 / system, "last", tiles="2x2")
        for other, nms, message in (
            (run, True, "needs --nms-type hard, got linear"),
            (tiled, False, "needs a run without --tiles, got 2x2"),
        ):
            with pytest.raises(jaxdet.InputError, match=message):
                other.export(tmp_path / "o.onnx", "onnx", nms=nms)


def candidates(x):
    """Boxes and scores of two classes that overlap much, with equal scores and empty boxes."""
    flat = x.reshape(x.shape[0], -1, 8)  # [B, 48, 8]
    low, size = 30 * flat[..., :2] - 5, jnp.floor(13 * flat[..., 2:4])
    boxes = jnp.concatenate([low, low + size], -1)
    return {"boxes": boxes, "scores": jnp.floor(8 * flat[..., 4:6]) / 8}


@pytest.mark.parametrize("options", [(24, 0.5, 9, 0.0), (1000, 0.2, 500, 0.35)])
def test_suppression_keeps_the_boxes_of_the_task(options):
    count, iou_threshold, most, score_threshold = options
    limits = {"iou_threshold": iou_threshold, "max_detections": most}
    limits |= {"score_threshold": score_threshold}
    shape, size = (24, 16, 1), (20, 22)
    finish = onnx_nms.Suppression(*size, candidates=count, **limits)
    content = onnx_graph.to_bytes(candidates, shape, finish=finish)
    images = np.random.default_rng(0).random((3, *shape), dtype=np.float32)
    images[2] = 0  # no score above the threshold
    found, _ = run_onnx(content, images)
    for i, (boxes, scores) in enumerate(zip(*candidates(images).values(), strict=True)):
        top, places = lax.top_k(scores.ravel(), min(count, scores.size))
        clipped = jnp.clip(boxes, 0, np.float32([22, 20, 22, 20])[None])[places // 2]
        kept = nms.nms(clipped, top, places % 2, **limits)
        valid, own = np.asarray(kept.valid), found["valid"][i]
        assert valid.sum() == own.sum() and (i == 2) == (not own.any())
        np.testing.assert_allclose(found["boxes"][i][own], kept.boxes[valid], atol=1e-5)
        np.testing.assert_array_equal(found["scores"][i][own], kept.scores[valid])
        labels = (places % 2)[kept.indices[valid]]
        np.testing.assert_array_equal(found["labels"][i][own], labels)
        assert not found["boxes"][i][~own].any() and not found["labels"][i][~own].any()
