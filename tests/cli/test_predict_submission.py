"""Tables of predicted labels for the images of a folder."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxdet.api import Run
from jaxdet.cli import predict_submission
from jaxdet.cli.options import Predict
from jaxdet.config import TrainConfig
from jaxdet.data import images, verification_protocol
from jaxdet.errors import InputError
from jaxdet.tasks.detect import DetectionTask
from jaxdet.training.experiment import Experiment
from tests import tiny

COLORS = (2, 0, 1, 1, 2, 0, 0)  # the strongest color of each image, and its class


def strongest(_, batch):
    return {"label": batch.mean((1, 2)).argmax(-1), "score": batch.max((1, 2, 3))}


def make_run(task):
    """A run whose network is a function, evaluated in batches of 3."""
    experiment = Experiment(
        task=task,
        splits={},
        hparams={},
        metadata={"classes": ["red", "green", "blue"]},
        config=TrainConfig(eval_batch=3),
        read_image=partial(images.read_resized_float, side=4),
    )
    return Run(Path("run"), experiment, step=0, variables={}, epoch=0)


TASK = tiny.FunctionTask(None, None, None, predict=strongest, measure=None, report=None)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Images `test/00.png` to `test/06.png`, in the working folder."""
    monkeypatch.chdir(tmp_path)
    Path("test").mkdir()
    for number, color in enumerate(COLORS):
        pixels = np.full((6, 5, 3), 20, np.uint8)
        pixels[..., color] = 200
        Image.fromarray(pixels).save(f"test/{number:02d}.png")
    return Path("test")


def submitted(folder, **more):
    """The text of the table for a folder."""
    options = Predict(run=Path("run"), images=(folder,), submit=Path("new/table.csv"), **more)
    files, table = predict_submission.list_files(options)
    assert predict_submission.run(make_run(TASK), options, files, table) == 0
    return options.submit.read_text()


def rows(names):
    return "".join(f"{name},{color}\n" for name, color in zip(names, COLORS, strict=True))


def test_a_row_has_a_file_and_the_number_of_its_class(folder, capsys):
    names = [f"{number:02d}.png" for number in range(len(COLORS))]
    assert submitted(folder) == "id,label\n" + rows(names)
    assert capsys.readouterr().out == "wrote new/table.csv\n"
    assert submitted(folder, json=True) and not capsys.readouterr().out


@pytest.mark.parametrize("heading", ["Image,Label\n", ""])
def test_rows_are_those_of_the_sample(folder, heading):
    numbers = range(7, 7 + len(COLORS))
    blank = "".join(f"{number},0\n" for number in numbers)
    Path("sample.csv").write_text(heading + blank)
    assert submitted(folder, sample=Path("sample.csv")) == heading + rows(numbers)


def test_a_sample_in_another_order_is_filled_by_name(folder):
    names = [path.name for path in verification_protocol.list_probes(folder)]
    Path("sample.csv").write_text("id,label\n" + "".join(f"{name},0\n" for name in names[::-1]))
    text = submitted(folder, sample=Path("sample.csv"))
    assert text.splitlines() == ["id,label", *rows(names).splitlines()[::-1]]


def test_a_sample_of_other_images_is_refused(folder):
    names = [path.name for path in verification_protocol.list_probes(folder)]
    cases = (names[:-1], ".*, got none for 06"), ([*names, "07.png"], ".* probes, got 07.png")
    for wrong, says in cases:
        text = "".join(f"{name},0\n" for name in wrong)
        Path("sample.csv").write_text(f"id,label\n{text}")
        with pytest.raises(InputError, match=f"sample.csv.*: {says}") as e:
            submitted(folder, sample=Path("sample.csv"))
        assert "\n" not in str(e.value)
    assert not Path("new").exists()


def test_an_image_that_cannot_be_read_is_named(folder):
    (folder / "03.png").write_bytes(b"no image")
    with pytest.raises(InputError, match="test/03.png: not a readable image"):
        submitted(folder)
    assert not Path("new").exists()


@pytest.mark.parametrize("given", [(), ("test", "test"), ("test/00.png",), ("none",)])
def test_exactly_one_folder_is_required(folder, given):
    options = Predict(run=Path("run"), images=tuple(map(Path, given)), submit=Path("table.csv"))
    with pytest.raises(InputError, match="--submit needs exactly one folder of images"):
        predict_submission.list_files(options)


def test_images_in_folders_of_classes_are_refused(folder):
    with pytest.raises(InputError, match="probes must be directly in"):
        predict_submission.list_files(
            Predict(run=Path("r"), images=(Path("."),), submit=Path("t.csv"))
        )


def test_detection_runs_are_refused(folder):
    run = make_run(DetectionTask(None, (), None, None, None))
    with pytest.raises(InputError, match="--submit needs a run that predicts one label per image"):
        predict_submission.run(run, Predict(run=Path("r")), [], None)
