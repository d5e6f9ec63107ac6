"""Data that are read when they are needed are the same as those that memory holds."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from jaxdet import configs
from jaxdet.configs.detect import Config
from jaxdet.data import detection, formats, sampler, sources, stream
from jaxdet.errors import InputError
from jaxdet.training import evaluator
from jaxdet.training import state as training_state
from tests import datasets

pytest.importorskip("grain")
SIZE = (64, 96)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The same photos in memory and streamed, and the folder."""
    root = tmp_path_factory.mktemp("data") / "yolo"
    datasets.yolo(root)
    found = formats.read(str(root)).parts["train"]
    held, _ = detection.load(found, *SIZE, 5, first_id=3)
    streamed, notes = detection.stream(found, *SIZE, 5, first_id=3)
    assert not notes
    return held, streamed, root


def same(one, other):
    assert one.keys() == other.keys()
    for name, column in one.items():
        np.testing.assert_array_equal(column, other[name])
        assert column.dtype == other[name].dtype


def test_batches_are_those_of_the_arrays_in_the_order_asked_for(both, caplog):
    held, streamed, _ = both
    index = sampler.shuffled_batches(0, 1, len(held), 2)
    found = list(streamed.batches(index))
    assert len(found) == len(index) > 1
    for row, batch in zip(held.batches(index), found, strict=True):
        same(held[row], batch)
    assert not caplog.records  # small batches give grain nothing to complain of


def test_the_first_records_are_arrays(both):
    held, streamed, _ = both
    assert len(streamed) == len(held) and not streamed.arrays
    same(held.first(2).arrays, streamed.first(2).arrays)
    assert streamed.first(99).names == held.names


def odd(folder):
    """Four scenes of which two can be used; two of the boxes of these, and slots, cannot."""
    datasets.photo(0).save(folder / "a.png")  # 60 x 40
    datasets.photo(1).save(folder / "b.jpg")
    (folder / "text.png").write_text("no photo")
    boxes = {
        "gone.png": [(1, 1, 9, 9)],
        "a.png": [(2, 2, 20, 20), (20, 20, 20, 30), (70, 0, 80, 5), (1, 1, 9, 9), (3, 3, 8, 8)],
        "text.png": [],
        "b.jpg": [(1, 1, 9, 9)],
    }
    return [
        detection.annotated_image(folder / name, [(box, 0, False) for box in of_photo], name)
        for name, of_photo in boxes.items()
    ]


def test_what_cannot_be_used_is_told_and_left_out_as_in_memory(tmp_path):
    found = odd(tmp_path)
    held, notes = detection.load(found, *SIZE, 2, first_id=3)
    streamed, told = detection.stream(found, *SIZE, 2, first_id=3)
    assert told == notes and len(notes) == 5
    assert len(streamed) == 2 and streamed.names == held.names == ["a.png", "b.jpg"]
    same(streamed.first(9).arrays, held.arrays)
    np.testing.assert_array_equal(streamed.take([1, 0]).arrays["id"], [6, 4])
    with pytest.raises(
        InputError, match="none of 1 photos can be used; first: gone.png: .*no such"
    ):
        detection.stream(found[:1], *SIZE, 2)
    with pytest.raises(InputError, match="none of 0 photos can be used"):
        detection.stream([], *SIZE, 2)


def test_a_damaged_photo_ends_a_stream_by_its_name(tmp_path):
    found = odd(tmp_path)
    whole = found[3].image.read_bytes()
    found[3].image.write_bytes(whole[:-200])
    streamed, _ = detection.stream(found, *SIZE, 2)
    assert streamed.names == ["a.png", "b.jpg"]
    with pytest.raises(InputError, match=r"^b\.jpg: .*not a readable image.*take it away") as error:
        list(streamed.batches(np.arange(2)[None]))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("part", ["train", "val"])
def test_a_box_that_cannot_be_used_stops_a_streamed_run_that_wants_all(tmp_path, part):
    datasets.yolo(tmp_path / "set")
    number = datasets.PARTS[part][0]
    with open(tmp_path / "set" / "labels" / part / f"{number}.txt", "a") as file:
        file.write("0 .5 .5 0 .2\n")
    config = Config(root=str(tmp_path / "set"), size=SIZE, stream=True)
    (note,) = configs.build("detect", config).notes
    assert note.startswith(f"{number}.png: box ") and note.endswith("has no area")
    with pytest.raises(InputError, match=rf"{number}\.png: box .* has no area \(1 such\)"):
        configs.build("detect", replace(config, on_bad_row="error"))


@pytest.mark.parametrize("name", datasets.FORMATS)
def test_every_format_streams_what_memory_would_hold(tmp_path, name):
    if name == "parquet":
        pytest.importorskip("pyarrow")
    datasets.FORMATS[name](tmp_path / "set")
    for of_part in formats.read(tmp_path / "set").parts.values():
        held, notes = detection.load(of_part, *SIZE, 5)
        streamed, told = detection.stream(of_part, *SIZE, 5)
        assert told == notes and streamed.names == held.names
        same(streamed.first(9).arrays, held.arrays)


def test_a_state_and_samples_are_those_of_data_in_memory(both):
    *_, root = both
    config = Config(root=str(root), size=SIZE, batch=2, devices=1, shift=0.3, light=0, colour=0)
    held, streamed = (configs.build("detect", replace(config, stream=on)) for on in (False, True))
    made_of = [jax.eval_shape(training_state.maker(system, config)) for system in (held, streamed)]
    assert jax.tree.structure(made_of[0]) == jax.tree.structure(made_of[1])
    one, other = (evaluator.samples(system, "train", 2, train=True) for system in (held, streamed))
    same(one, other)


def test_without_the_package_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setattr(stream, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"jaxdet\[data\]"):
        sources.StreamSource(None, 1)
