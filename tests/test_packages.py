"""Packages that only some features need: without them the rest works, and an error names them."""

import sys
from importlib import metadata

import numpy as np
import pytest

import jaxdet
from jaxdet import packages
from jaxdet.cli import main as cli
from jaxdet.data import parquet, tfds
from jaxdet.errors import InputError
from jaxdet.metrics import detection
from jaxdet.ops import augment
from jaxdet.training.progress import Progress
from tests import tiny

OPTIONAL = (*packages.INSTALL, "cv2", "grain", "huggingface_hub", "torch", "tqdm")


@pytest.fixture
def experiment():
    """A tiny locator; its scans come with scikit-learn."""
    return tiny.experiment()


@pytest.fixture
def bare(monkeypatch):
    """A machine without any of these packages, and jaxdet from a checkout."""
    version = metadata.version

    def without_jaxdet(name):
        if name == "jaxdet":
            raise metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(metadata, "version", without_jaxdet)
    for name in [*sys.modules]:
        if name.partition(".")[0] in OPTIONAL:
            monkeypatch.setitem(sys.modules, name, None)
    for name in OPTIONAL:
        monkeypatch.setitem(sys.modules, name, None)


SAMPLE = augment.Sample(np.zeros((4, 4, 3), np.float32), *np.zeros((4, 1, 4)))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: augment.color_jitter(None, SAMPLE), r"color_jitter: .*pip install dm-pix\)$"),
        (lambda: detection._evaluate({}, []), r"mAP: .*pip install faster-coco-eval\)$"),
        (lambda: tfds.open_dataset("mnist", None), r"tfds:NAME: .*install tensorflow-datasets\)$"),
        (parquet._load_pyarrow, r"parquet files: needs pyarrow \(pip install jaxdet\[data\]\)$"),
    ],
    ids=["augment", "coco", "tfds", "parquet"],
)
def test_a_missing_package_is_one_line_that_says_what_to_install(bare, monkeypatch, call, message):
    monkeypatch.setattr(augment.jax.random, "fold_in", lambda key, data: key)
    with pytest.raises(InputError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


def test_the_command_line_without_tyro_says_so_and_still_has_its_help(bare, capsys):
    assert cli.main(["train", "digits"]) == 2
    expected = "jaxdet: error: the command line: needs tyro (pip install tyro)\n"
    assert capsys.readouterr() == ("", expected)
    assert cli.main(["--version"]) == cli.main(["--help"]) == 0
    assert capsys.readouterr().out.startswith(f"jaxdet {jaxdet.__version__}\nusage: jaxdet")


def test_a_terminal_without_tqdm_shows_lines_only(bare, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    show = Progress()
    show.begin(0, 10)
    show.advance(5)
    show.line("epoch 1")
    show.close()
    said = "no progress bar without tqdm: pip install tqdm\nepoch 1\n"
    assert capsys.readouterr() == (said, "")


def test_the_api_trains_evaluates_and_predicts_without_them(experiment, bare, tmp_path):
    run = jaxdet.train(experiment, tmp_path / "run")
    assert (tmp_path / "run" / "environment.json").is_file()
    assert run.step == jaxdet.load(tmp_path / "run", experiment=experiment).step
    assert run.predict(np.zeros((56, 56), np.uint8)).box.shape == (4,)
