"""Predictions for image files need the run folder alone: its data may be gone."""

import json
import re
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from jaxdet.configs import SYSTEMS, faces
from jaxdet.models import plain
from jaxdet.training import run_dir
from tests import datasets, tiny
from tests.cli import test_cifar10, test_detect, test_objects
from tests.cli import test_main as test_cli
from tests.cli import test_verify as test_verify_command
from tests.cli.test_main import main
from tests.cli.test_objects import answers
from tests.marks import long_for


def write_identities(root):
    """A folder per identity, of images in the color of that identity."""
    for name, color in test_verify_command.TRAINED.items():
        for i in range(6):
            test_verify_command.face(root / name / f"{i}.png", color, i)


MAKERS = {
    "digits": test_cli.mnist,
    "objects": test_objects.write_objects,
    "detect": datasets.write_yolo,
    "cifar10": datasets.write_image_folder,
    "faces": write_identities,
}
WORDS = {
    "digits": [*tiny.WORDS, "--source", "mnist", "--epochs", "1"],
    "objects": test_objects.WORDS,
    "detect": [*test_detect.WORDS, "--freeze-stages", "0"],
    "cifar10": [*test_cifar10.SMALL, "--epochs", "1"],
    "faces": test_verify_command.WORDS,
}


class Trained(NamedTuple):
    """A run whose data are gone."""

    system: str
    folder: Path  # of the run, of an image, and of the data as `moved`
    answer: list  # for the image, while the data were there


@pytest.fixture(scope="module", autouse=True)
def small():
    """Networks that compile fast."""
    with test_detect.small(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(plain, "simple", test_objects.one_convolution)
        patch.setattr(faces, "_features", lambda config: test_verify_command.Features)
        yield


# In tests/test_golden_runs.py, runs of all systems predict image files without their data.
LONG = {"objects", "cifar10", "faces"}


@pytest.fixture(scope="module", params=long_for(SYSTEMS, LONG))
def trained(request, tmp_path_factory):
    name, folder = request.param, tmp_path_factory.mktemp("gone")
    MAKERS[name](folder / "data")
    pixels = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "image.png")
    words = ["--root", folder / "data", *WORDS[name], "--quiet", "--out", folder / "run"]
    assert main("train", name, *words) == 0
    older(folder / "run", folder / "older")  # which reads its data
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        answer = answers("predict", "older", "image.png")
    shutil.move(folder / "data", folder / "moved")
    return Trained(name, folder, answer)


def older(run, folder):
    """The run as earlier versions wrote it."""
    shutil.copytree(run, folder)
    kept = json.loads((folder / "config.json").read_text())
    del kept["metadata"]["record"]
    (folder / "config.json").write_text(json.dumps(kept))


@pytest.fixture
def place(trained, monkeypatch):
    """The working folder."""
    monkeypatch.chdir(trained.folder)
    return trained


def test_predictions_for_files_need_no_data(place):
    assert answers("predict", "run", "image.png") == place.answer
    assert len(place.answer) == 1


@pytest.mark.parametrize("words", [["run"], ["older", "image.png"]], ids=" ".join)
def test_missing_data_are_named_in_one_line(place, capfd, words):
    assert main("predict", *words, "--split", "val") == 2
    out, err = capfd.readouterr()
    data = re.escape(str(place.folder / "data"))
    assert re.fullmatch(f"jaxdet: error: .*{data}.*\n", err), err
    assert out == ""


def test_the_data_may_be_elsewhere(place):
    found = answers("predict", "run", "--root", "moved", "--split", "val", "--count", "1")
    assert len(found) == 1


def test_the_network_is_described(place, capsys):
    assert main("describe", "run") == 0
    assert re.search(r" parameters +additions ", capsys.readouterr().out)


def test_invalid_configurations_are_refused_without_data(place, capfd):
    kept = json.loads(Path("run/config.json").read_text())
    shutil.copytree("run", "wrong")
    kept["config"]["batch"] = 0
    Path("wrong/config.json").write_text(json.dumps(kept))
    assert main("predict", "wrong", "image.png") == 2
    shutil.rmtree("wrong")
    assert capfd.readouterr().err.startswith("jaxdet: error: --batch must be at least 1, got 0")


def test_run_records_the_shape_and_type_of_its_data(place):
    record = run_dir.read_metadata("run")["record"]
    assert record["image"][0] == "uint8" and record["id"] == ["int32", []]
    side = {"digits": [28, 28], "objects": [64, 64, 3], "detect": [64, 96, 3]}
    assert record["image"][1] == side.get(place.system, [32, 32, 3])
