"""Experiments and networks of the configuration of faces; its data: tests/data/test_faces.py."""

import json
import shutil
from dataclasses import replace
from typing import get_args, get_type_hints

import jax
import numpy as np
import pytest
from PIL import Image

from jaxdet import configs
from jaxdet.configs import faces
from jaxdet.configs.faces import Config, network
from jaxdet.errors import InputError
from jaxdet.training import evaluator
from tests.cli.test_main import main
from tests.models.test_resnet import outputs, shaped

PEOPLE, EACH = 5, 10


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Five people with ten grey images each."""
    root = tmp_path_factory.mktemp("faces") / "data"
    random = np.random.default_rng(0)
    for person in range(PEOPLE):
        folder = root / f"s{person}"
        folder.mkdir(parents=True)
        for number in range(EACH):
            pixels = random.integers(256, size=(12, 10)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.pgm")
    return root


def test_groups_stand_together_in_a_batch(root):
    system = configs.build("faces", Config(root=str(root), size=32, samples_per_class=4, batch=8))
    labels = system.splits["train"].arrays["label"]
    rows = system.order(0, 0, len(labels), 8)
    assert (labels[rows].reshape(-1, 4) == labels[rows].reshape(-1, 4)[:, :1]).all()
    assert configs.build("faces", Config(root=str(root), size=32)).order is None


def test_a_stream_gives_the_same_samples_in_the_same_order(root):
    pytest.importorskip("grain")
    config = Config(root=str(root), size=32, identities=3, samples_per_class=4, batch=8)
    held, streamed = (configs.build("faces", replace(config, stream=on)) for on in (False, True))
    assert not streamed.splits["train"].arrays
    for part, source in held.splits.items():
        assert streamed.splits[part].names == source.names
        seen = [evaluator.samples(system, part, 3, train=True) for system in (held, streamed)]
        for name, column in seen[0].items():
            np.testing.assert_array_equal(column, seen[1][name])
    count = len(held.splits["train"])
    np.testing.assert_array_equal(held.order(0, 1, count, 8), streamed.order(0, 1, count, 8))


ALIKE = {"b1", "b2", "b3", "resnet34"}  # but for how many layers they have


@pytest.mark.parametrize("model", sorted({*get_args(get_type_hints(Config)["model"])} - ALIKE))
def test_every_model_gives_embeddings_and_logits(model):
    config = Config(model=model, width_multiplier=0.25, embedding_dim=24)
    net, _ = network(config, 7)
    (embedding, logits), _ = outputs(net, shaped(2, 64, 64, 3))
    assert (embedding.shape, logits.shape) == ((2, 24), (2, 7))


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"root": ""}, "--root"),
        ({"size": 16}, "--size 16: at least 32"),
        ({"identities": 9}, "--identities must be at most 5"),
        ({"samples_per_class": 3}, "--samples-per-class 3: a divisor of --batch 32"),
        ({"test_fraction": 1.0}, "--test-fraction 1"),
        ({"train_fraction": 0.0}, "--train-fraction 0: above 0 and at most 1"),
        ({"scale": (1.2, 0.9)}, "--scale"),
        ({"rotate": 181.0}, "--rotate 181"),
        ({"fc_widths": (4,), "head": "arcface"}, "--fc-widths is not for --head arcface"),
        ({"logit_scale": 8.0}, "--scale is not for --head softmax"),
        ({"head": "l_softmax", "margin": 2.5}, "--margin 2.5: --head l_softmax wants 1, 2, 3 or 4"),
        ({"head": "l_softmax", "margin": 5.0}, "--margin 5: --head l_softmax wants 1, 2, 3 or 4"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_in_one_line(root, changes, said):
    with pytest.raises(InputError, match=said) as error:
        configs.build("faces", replace(Config(root=str(root), size=32), **changes))
    assert "\n" not in str(error.value)


def test_a_file_that_is_no_image_is_left_out_or_stops(root, tmp_path):
    shutil.copytree(root, tmp_path / "faces")
    (tmp_path / "faces" / "s1" / "3.pgm").write_bytes(b"no image")
    config = Config(root=str(tmp_path / "faces"), size=32)
    (note,) = configs.build("faces", config).notes
    assert "s1/3.pgm" in note
    with pytest.raises(InputError, match="s1/3.pgm"):
        configs.build("faces", replace(config, on_invalid="error"))


def test_people_without_an_image_to_learn_are_named(root, tmp_path):
    """A folder without files is noted and no class; one whose files are no images stops."""
    shutil.copytree(root, tmp_path / "data")
    for path in (tmp_path / "data" / "s1").iterdir():
        path.unlink()
    config = Config(root=str(tmp_path / "data"), size=32)
    system = configs.build("faces", config)
    assert system.about["classes"] == ["s0", "s2", "s3", "s4"]
    assert system.notes == (f"{config.root}/s1: no files in it",)
    with pytest.raises(InputError, match="s1: no files in it"):
        configs.build("faces", replace(config, on_invalid="error"))
    for path in (tmp_path / "data" / "s3").iterdir():
        path.write_bytes(b"no image")
    with pytest.raises(InputError, match="data: no training image of s3 can be used; add one"):
        configs.build("faces", config)


def test_inspect_counts_images_and_names_what_cannot_be_used(root, tmp_path, capsys):
    data = tmp_path / "data"
    shutil.copytree(root, data)
    shutil.rmtree(data / "s0")
    for place in ("s0", "s1"):
        (data / place).mkdir(exist_ok=True)
        (data / place / "3.pgm").write_bytes(b"no image")
    (data / "s9").mkdir()
    words = ["data", "inspect", "faces", "--root", data]
    assert main(*words) == 2
    told, error = capsys.readouterr()
    heads, _, nobody, half, *whole = [line for line in told.splitlines() if line.startswith("|")]
    assert heads == "| label | all | unusable | height | width |"
    assert (nobody, half) == ("| s0 | 0 | 1 |  |  |", "| s1 | 9 | 1 | 12 to 12 | 10 to 10 |")
    assert len(whole) == PEOPLE - 2
    for place in ("s0/3.pgm: not a readable image", "s1/3.pgm: not a", "s9: no files in it"):
        assert told.count(f"{data}/{place}") == 1
    assert error.startswith("jaxdet: error: 3 rows cannot be used")
    assert main(*words, "--on-invalid", "skip", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["bad"]) == 3 and found["labels"][1]["all"] == 9


def test_inspect_wants_a_folder_with_images_of_people(tmp_path, capsys):
    for words, said in (
        (["--root", tmp_path], "no folder of a class"),
        ([], "--root must be a folder"),
    ):
        assert main("data", "inspect", "faces", *words) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_networks_take_their_dropout_from_the_state(dropout):
    """One program then serves runs that differ in it."""
    assert network(Config(dropout=dropout, fc_widths=(8, 8)))[0].rates == (1.0, 1.0, 1.0)


def test_images_are_turned_about_their_middle_where_that_is_asked_for():
    still = {"flip": False, "scale": (1.0, 1.0), "shift": 0.0, "brightness_contrast": 0.0}
    y, x = np.mgrid[-15.5:16, -15.5:16]
    ring = 127.5 + 127.5 * np.exp(-((np.hypot(x, y) - 8) ** 2) / 8)
    bar = np.where(abs(x) < 3, 255.0, 0.0)
    keys = jax.random.split(jax.random.key(0), 16)
    for image, differ in ((ring, False), (bar, True)):
        image = np.repeat(image[..., None], 3, -1).astype(np.float32)
        for rotate in (0.0, 90.0):
            change = jax.jit(jax.vmap(faces._change(Config(**still, rotate=rotate)), (0, None)))
            apart = np.abs(change(keys, image) - image[None]).max((1, 2, 3))
            assert (apart > 60).any() == (differ and rotate > 0)
