"""The experiments, networks and grids of `faces`; its data: tests/data/test_faces.py."""

import json
import shutil
from dataclasses import asdict, replace
from typing import get_args, get_type_hints

import jax
import numpy as np
import pytest
from flax import linen as nn
from PIL import Image

from jaxdet import configs, flops
from jaxdet.cli import flags, sweep
from jaxdet.cli.options import Sweep, Train
from jaxdet.config import check, from_json, to_words
from jaxdet.configs import faces
from jaxdet.configs.faces import Config, network
from jaxdet.data.normalize import CENTERED, EFFICIENTNET_LITE, IMAGENET
from jaxdet.data.sampler import shuffled_batches
from jaxdet.errors import InputError
from jaxdet.models import convnext, layers
from jaxdet.training import evaluator
from tests.cli.test_main import main
from tests.marks import long_for
from tests.models.helpers import outputs, shaped, size

IDENTITIES, EACH = 5, 10


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder of five identities with ten gray images each."""
    root = tmp_path_factory.mktemp("faces") / "data"
    random = np.random.default_rng(0)
    for identity in range(IDENTITIES):
        folder = root / f"s{identity}"
        folder.mkdir(parents=True)
        for number in range(EACH):
            pixels = random.integers(256, size=(12, 10)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.pgm")
    return root


def test_batches_hold_several_images_per_identity(root):
    config = Config(root=str(root), size=32, samples_per_class=4, batch=8)
    experiment = configs.build("faces", config)
    labels = experiment.splits["train"].arrays["label"]
    order = experiment.batch_order(experiment.splits["train"])
    rows = order(0, 0, len(labels), 8)
    assert (labels[rows].reshape(-1, 4) == labels[rows].reshape(-1, 4)[:, :1]).all()
    shuffled = configs.build("faces", Config(root=str(root), size=32))
    assert shuffled.batch_order(shuffled.splits["train"]) is shuffled_batches


def test_a_stream_gives_the_same_samples_in_the_same_order(root):
    pytest.importorskip("grain")
    config = Config(root=str(root), size=32, identities=3, samples_per_class=4, batch=8)
    held, streamed = (configs.build("faces", replace(config, stream=on)) for on in (False, True))
    assert not streamed.splits["train"].arrays
    for name, source in held.splits.items():
        assert streamed.splits[name].names == source.names
        seen = [evaluator.samples(each, name, 3, train=True) for each in (held, streamed)]
        for key, column in seen[0].items():
            np.testing.assert_array_equal(column, seen[1][key])
    count = len(held.splits["train"])
    sources = [(each, each.splits["train"]) for each in (held, streamed)]
    orders = [each.batch_order(source)(0, 1, count, 8) for each, source in sources]
    np.testing.assert_array_equal(*orders)


SIMILAR = {"b1", "b2", "b3", "resnet34"}  # to another model, with more layers
MODELS = {*get_args(get_type_hints(Config)["model"])} - SIMILAR
FAMILIES = {"bottleneck", "convnext_tiny", "lite0", "mobilenet_v2", "resnet18"}  # one model of each


@pytest.mark.parametrize("model", long_for(sorted(MODELS), MODELS - FAMILIES))
def test_every_model_gives_embeddings_and_logits(model):
    config = Config(model=model, width_multiplier=0.25, embedding_dim=24)
    net, _ = network(config, 7)
    (embedding, logits), _ = outputs(net, shaped(2, 64, 64, 3))
    assert (embedding.shape, logits.shape) == ((2, 24), (2, 7))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"root": ""}, "--root"),
        ({"size": 16}, "--size must be at least 32 pixels, got 16"),
        ({"identities": 9}, "--identities must be at most 5"),
        ({"identities": -1}, "--identities must be at least 0, got -1"),
        ({"samples_per_class": 3}, "--samples-per-class must divide --batch 32, got 3"),
        ({"samples_per_class": -1}, "--samples-per-class must be at least 0, got -1"),
        ({"test_fraction": 1.0}, "--test-fraction must be at least 0 and below 1, got 1"),
        ({"train_fraction": 0.0}, "--train-fraction must be above 0 and at most 1, got 0"),
        ({"scale": (1.2, 0.9)}, "--scale must be two positive factors.*got 1.2 0.9"),
        ({"rotate": 181.0}, "--rotate must be from 0 to 180 degrees, got 181"),
        ({"fc_widths": (4,), "head": "arcface"}, "--fc-widths needs --head softmax, got arcface"),
        ({"logit_scale": 8.0}, "--logit-scale needs --head arcface or cosface, got softmax"),
        ({"head": "l_softmax", "margin": 2.5}, "--margin must be 1, 2, 3 or 4 for .*, got 2.5"),
        ({"head": "l_softmax", "margin": 5.0}, "--margin must be 1, 2, 3 or 4 for .*, got 5"),
        ({"model": "convnext", "weights": "x"}, "--weights needs a --model with .*, got convnext"),
        ({"model": "bottleneck", "freeze_stages": 1}, "--freeze-stages needs a --model with"),
        ({"model": "bottleneck", "backbone_stages": 3}, "--backbone-stages needs a --model with"),
        ({"model": "lite0", "backbone_stages": 9}, "--backbone-stages must be from 2 to 8.*got 9"),
        ({"model": "lite0", "backbone_stages": 1}, "--backbone-stages must be from 2 to 8.*got 1"),
        ({"model": "lite0", "freeze_stages": 2}, "--freeze-stages 2 needs --weights"),
        ({"model": "lite0", "freeze_stages": 9}, "--freeze-stages must be from -8 to 8"),
        ({"model": "resnet18", "weights": "x"}, "--width-multiplier must be 1 with .*, got 0.5"),
    ],
    ids=str,
)
def test_an_invalid_option_is_named_in_one_line(root, changes, message):
    with pytest.raises(InputError, match=message) as error:
        configs.build("faces", replace(Config(root=str(root), size=32), **changes))
    assert "\n" not in str(error.value)


def test_an_unreadable_image_is_left_out_or_refused(root, tmp_path):
    shutil.copytree(root, tmp_path / "faces")
    (tmp_path / "faces" / "s1" / "3.pgm").write_bytes(b"no image")
    config = Config(root=str(tmp_path / "faces"), size=32)
    (note,) = configs.build("faces", config).notes
    assert "s1/3.pgm" in note
    with pytest.raises(InputError, match="s1/3.pgm"):
        configs.build("faces", replace(config, on_invalid="error"))


def test_identities_without_a_training_image_are_named(root, tmp_path):
    """An empty folder is noted and left out; one without a readable image is refused."""
    shutil.copytree(root, tmp_path / "data")
    for path in (tmp_path / "data" / "s1").iterdir():
        path.unlink()
    config = Config(root=str(tmp_path / "data"), size=32)
    experiment = configs.build("faces", config)
    assert experiment.metadata["classes"] == ["s0", "s2", "s3", "s4"]
    assert experiment.notes == (f"{config.root}/s1: no files in it",)
    with pytest.raises(InputError, match="s1: no files in it"):
        configs.build("faces", replace(config, on_invalid="error"))
    for path in (tmp_path / "data" / "s3").iterdir():
        path.write_bytes(b"no image")
    with pytest.raises(InputError, match="data: no training image of s3 can be used; add one"):
        configs.build("faces", config)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_the_dropout_rate_is_traced(dropout):
    """Runs that differ in it share one program."""
    assert network(Config(dropout=dropout, fc_widths=(8, 8)))[0].rates == (1.0, 1.0, 1.0)


def test_rotation_is_about_the_center():
    still = {"flip": False, "scale": (1.0, 1.0), "shift": 0.0, "brightness_contrast": 0.0}
    y, x = np.mgrid[-15.5:16, -15.5:16]
    ring = 127.5 + 127.5 * np.exp(-((np.hypot(x, y) - 8) ** 2) / 8)
    bar = np.where(abs(x) < 3, 255.0, 0.0)
    keys = jax.random.split(jax.random.key(0), 16)
    for image, differ in ((ring, False), (bar, True)):
        image = np.repeat(image[..., None], 3, -1).astype(np.float32)
        for rotate in (0.0, 90.0):
            transform = faces._transform(Config(**still, rotate=rotate))
            rotated = jax.jit(jax.vmap(transform, (0, None)))(keys, image)
            difference = np.abs(rotated - image[None]).max((1, 2, 3))
            assert (difference > 60).any() == (differ and rotate > 0)


# backbone


@pytest.mark.parametrize("freeze, count", [(2, 2), (-1, 5), (0, 0), (8, 6)])
def test_frozen_stages_count_among_those_that_are_built(root, freeze, count):
    config = Config(root=str(root), size=32, model="lite0", backbone_stages=6, weights="x")
    config = replace(config, freeze_stages=freeze, backbone_lr=0.5)
    assert network(config, 3)[0].features().frozen_stages == count
    factor = configs.build("faces", config).lr_multiplier
    stages = ("stem", *(f"stage{i}" for i in range(1, 6)))
    factors = [factor(f"features/{stage}_block1/kernel") for stage in stages]
    assert factors == [0.0] * count + [0.5] * (6 - count)
    assert factor("embedding/kernel") == 1.0


def test_every_learning_rate_is_the_same_by_default(root):
    assert configs.build("faces", Config(root=str(root), size=32)).lr_multiplier is None


def test_the_normalization_is_that_of_the_pretrained_weights(root):
    def normalization(**options):
        config = Config(root=str(root), size=32, **options)
        return configs.build("faces", config).task.normalization

    assert normalization() == CENTERED
    assert normalization(model="lite0", weights="x") == EFFICIENTNET_LITE
    assert normalization(width_multiplier=1.0, weights="x") == IMAGENET


def test_the_margins_are_those_of_the_options(root):
    """The default, 0, is that of the head's paper, which the head itself knows."""
    config = Config(root=str(root), size=32, head="arcface", logit_scale=16.0, margin=0.3)
    task = configs.build("faces", config).task
    assert dict(task.margins) == {"scale": 16.0, "margin": 0.3} and task.head == "arcface"
    assert configs.build("faces", replace(config, logit_scale=0.0, margin=0.0)).task.margins == ()


# options of stages


LAST_ROWS = {  # of the grid `reference`
    "model": "bottleneck",
    "channels": (32, 64, 128, 256, 512),
    "strides": (1, 1, 2, 2, 2),
    "se_ratios": (0.25,) * 5,
    "stage_dropout": (0.2, 0, 0.2, 0, 0.2),
}
FIRST_ROW = {
    "model": "bottleneck",
    "channels": (32, 32, 64, 64, 128, 128, 128, 128),
    "strides": (1, 1, 2, 1, 2, 1, 1, 1),
    "block": "convnext",
    "depthwise": False,
    "activation": "relu",
}


def backbone(**options):
    """The backbone of a configuration."""
    net, _ = network(Config(**options), 7)
    return net.features()


def test_the_networks_of_the_reference_grid():
    last, first = backbone(**LAST_ROWS), backbone(**FIRST_ROW)
    assert (last.widths, last.strides) == (LAST_ROWS["channels"], LAST_ROWS["strides"])
    assert (last.squeezes, last.rates) == (LAST_ROWS["se_ratios"], LAST_ROWS["stage_dropout"])
    assert last.activation is nn.relu6 and last.block().depthwise
    assert first.activation is nn.relu and len(first.widths) == 8
    block = first.block(**first.shared_fields())
    assert isinstance(block, convnext.Block) and not block.depthwise
    assert block.kernel_init is layers.KAIMING_FAN_OUT
    assert (
        backbone(model="convnext").kernel_init is layers.KAIMING_FAN_OUT is not convnext.KERNEL_INIT
    )


def test_each_option_reaches_its_network():
    both = {"dilations": (1, 2, 1, 1), "se_ratios": (0, 0, 0, 0.5), "strides": (1, 2, 2, 1)}
    both |= {"channels": (8, 16, 24, 32), "blocks": (1, 1, 2, 1), "depthwise": False}
    for model in faces.STAGED:
        more = {"stage_dropout": (0, 0, 0, 0.1), "activation": "gelu", "size": 64}
        net = backbone(model=model, **both, **more)
        for option, field in faces.PER_STAGE.items():
            assert getattr(net, field) == (both | more)[option], (model, option)
        _, variables = outputs(net, shaped(1, 64, 64, 3))
        names = flops.count(net.apply, variables, shaped(1, 64, 64, 3)).by_layer
        assert any("gelu" in path or "activation" in path for path, _ in names)
        kernels = variables["params"]["stage3_block2"]["conv"]["kernel"]
        assert kernels.ndim == 4 and kernels.shape[2] == kernels.shape[3]


def test_without_options_networks_are_the_published_ones():
    for model, expected in (("bottleneck", 4_429_728), ("convnext", 27_818_592)):
        assert size(outputs(backbone(model=model), shaped(1, 64, 64, 3))[1]["params"]) == expected


REFUSED = {
    "another model": (
        {"channels": (8, 8)},
        "--channels needs --model bottleneck or convnext, got resnet18",
    ),
    "another activation": ({"activation": "relu"}, "--activation needs --model"),
    "convnext blocks": ({"model": "convnext", "block": "convnext"}, "--block needs --model"),
    "no strides": (
        {"model": "bottleneck", "channels": (8, 16)},
        "--strides must be 2 values, one for each of --channels 8 16",
    ),
    "no blocks": (
        {"model": "convnext", "channels": (8, 16)},
        "--blocks must be 2 values",
    ),
    "too few": (
        {"model": "bottleneck", "se_ratios": (0, 0.25)},
        "--se-ratios must be 5 values, one per stage, got 0 0.25",
    ),
    "no probability": (
        {"model": "bottleneck", "stage_dropout": (0, 0, 0, 0, 1)},
        "--stage-dropout must be at least 0 and below 1, got 0 0 0 0 1",
    ),
    "too large": (
        {"model": "bottleneck", "se_ratios": (0, 0, 0, 0, 2)},
        "--se-ratios must be from 0 to 1, got 0 0 0 0 2",
    ),
    "no stride": (
        {"model": "bottleneck", "strides": (0, 1, 1, 1, 1)},
        "--strides must be at least 1, got 0 1 1 1 1",
    ),
    "too small": (
        {"model": "convnext", "strides": (2, 2, 2, 2), "size": 63},
        "--size must be at least 64 pixels for a stem of stride 4 and --strides 2 2 2 2, got 63",
    ),
}


@pytest.mark.parametrize("changes, message", REFUSED.values(), ids=REFUSED)
def test_invalid_options_of_stages_are_named_in_one_line(changes, message):
    for function in (network, lambda config: configs.build("faces", config)):
        with pytest.raises(InputError, match=message) as error:
            function(Config(root="nowhere", **changes))
        assert "\n" not in str(error.value)


def test_options_of_stages_survive_the_command_line_and_json(capsys):
    assert main("train", "faces", "--help") == 0
    text = capsys.readouterr().out
    for name in faces.STAGE_OPTIONS:
        assert f"--{name.replace('_', '-')} " in text
    config = Config(**LAST_ROWS)
    assert from_json(Config, json.loads(json.dumps(asdict(config)))) == config
    found = flags.parse_with_config("train faces", to_words(config), (Train(), Config()))
    assert found[1] == config


# grids


def grid_runs(grid, *words):
    """{configuration: folder} of the runs of a grid."""
    options = Sweep(grid=grid)
    return sweep.run_titles("faces", options, sweep.resolve_grid("faces", options, words, {}))


@pytest.mark.parametrize("name", long_for(Config.GRIDS, {"reference_tenth"}))  # see below
def test_every_run_of_a_grid_has_a_network(name):
    found = grid_runs(name)
    assert len(set(found.values())) == len(found) > 1
    for config in found:
        check(config)
        configs.network("faces", config)


ROWS = [  # epochs, period, learning rate of rows 5 to 12 of the table of assignment 4
    *((500, 20, 0.01), (150, 20, 0.1), (150, 50, 0.01), (150, 60, 0.01)),
    *((95, 100, 0.01), (145, 150, 0.01), (195, 200, 0.01), (478, 20, 0.001)),
]


def test_the_reference_grid():
    found = {title: config for config, title in grid_runs("reference").items()}
    assert list(found) == [f"reference{row:02d}" for row in range(1, 13)]
    last = Config(batch=128, **LAST_ROWS, activation="relu6", optimizer="sgd", schedule="restarts")
    for row, (epochs, period, lr) in enumerate(ROWS, 5):
        options = {"epochs": epochs, "restart_period": period, "lr": lr}
        expected = replace(last, **options, patience=max(100, period))
        assert found[f"reference{row:02d}"] == expected
    first = found["reference01"]
    assert all(getattr(first, name) == value for name, value in FIRST_ROW.items())
    assert found["reference03"].schedule == "plateau" and found["reference03"].optimizer == "adamw"
    assert {config.epochs for config in grid_runs("reference", "--epochs", "3")} == {3}


def test_a_tenth_of_the_reference_grid_has_complete_cycles():
    runs, whole = (list(grid_runs(name)) for name in ("reference_tenth", "reference"))
    found = [(config.epochs, config.restart_period) for config in runs[4:]]
    assert found == [(50, 2), (16, 2), (15, 5), (12, 6), (10, 10), (15, 15), (20, 20), (48, 2)]
    for run, full in zip(runs, whole, strict=True):
        period = run.restart_period if run.schedule == "restarts" else 1
        assert run.epochs % period == 0 and run.patience >= period
        names = ("epochs", "restart_period", "patience")
        assert replace(run, **{name: getattr(full, name) for name in names}) == full


def test_the_table_row_of_a_run():
    runs = {title: config for config, title in grid_runs("reference").items()}
    assert faces.table_row(runs["reference04"]) == {
        "architecture": "bottleneck, inverted blocks, with depthwise, "
        "channels 32 64 128 256 512, strides 1 2 2 2 2",
        "dropout": "0.2 0 0.2 0 0.2, 0 of the embedding",
        "scheduler": "restarts, 5 epochs, times 1",
        "optimizer": "adamw",
        "lr": 0.01,
        "SE": "0 0 0.25 0.25 0.25",
        "activation": "relu6",
    }
    plain = faces.table_row(Config(schedule="plateau"))
    assert (plain["architecture"], plain["SE"]) == ("resnet18, width 0.5", "the model's")
    assert plain["scheduler"] == "plateau, 0.1 after 10, loss"
