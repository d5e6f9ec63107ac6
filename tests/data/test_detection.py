"""Detection data as arrays: held in memory, or streamed with the same result."""

import re
from dataclasses import replace
from importlib.util import find_spec

import jax
import numpy as np
import pytest
from PIL import Image

from jaxdet import configs
from jaxdet.configs.detect import Config
from jaxdet.data import detection, formats, images, sampler, sources, yolo
from jaxdet.errors import InputError
from jaxdet.training import evaluator
from jaxdet.training import state as training_state
from tests import datasets

SIZE = (64, 96)
needs_grain = pytest.mark.skipif(find_spec("grain") is None, reason="grain is not installed")


def test_load_letterboxes_images_and_boxes_and_pads_them(tmp_path):
    datasets.write_yolo(tmp_path / "set")
    found = yolo.read(tmp_path / "set")
    source, notes = detection.load(found.splits["train"], 64, 96, 4, first_id=5)
    assert not notes
    rows = source.arrays
    assert rows["image"].shape == (3, 64, 96, 3) and rows["image"].dtype == np.uint8
    np.testing.assert_array_equal(rows["id"], [5, 6, 7])
    np.testing.assert_array_equal(rows["valid"].sum(1), [2, 1, 0])
    np.testing.assert_array_equal(rows["size"], datasets.SIZES[:3])
    scale, offset = rows["to_original"][:, None, :2], rows["to_original"][:, None, 2:]
    back = rows["boxes"] * np.tile(scale, 2) + np.tile(offset, 2)
    for i in range(3):
        boxes = np.reshape([box for box, _ in datasets.BOXES[i]], (-1, 4))
        np.testing.assert_allclose(back[i][rows["valid"][i]], boxes, atol=1e-3)
        true, sides = rows["true_valid"][i], boxes[:, 2:] - boxes[:, :2]
        np.testing.assert_allclose(rows["true_boxes"][i][true], boxes, atol=1e-4)
        np.testing.assert_array_equal(rows["true_labels"][i], rows["labels"][i][: len(true)])
        np.testing.assert_allclose(rows["true_area"][i][true], sides.prod(1), rtol=1e-4)
        for (x0, y0, x1, y1), label in zip(
            rows["boxes"][i][rows["valid"][i]], rows["labels"][i], strict=False
        ):
            middle = rows["image"][i][int((y0 + y1) / 2), int((x0 + x1) / 2)]
            assert middle.argmax() == (0 if label == 0 else 2)  # red cells, blue dots
    assert (rows["image"][1][:, 0] == images.LETTERBOX_FILL).all()  # the image is narrow


def test_load_clips_boxes_and_notes_those_left_out(tmp_path):
    datasets.draw_image(0).save(tmp_path / "a.png")  # 60 x 40
    boxes = [(-5, -5, 10, 10), (20, 20, 20, 30), (70, 0, 80, 5), (5, 5, 5.5, 30), (1, 1, 9, 9)]
    one = detection.annotated_image(tmp_path / "a.png", [(box, 0, False) for box in boxes], "a.png")
    gone = detection.annotated_image(tmp_path / "gone.png", [], "gone.png")
    source, notes = detection.load([one, gone], 32, 64, 2)
    np.testing.assert_array_equal(source.arrays["valid"], [[True, True]])
    np.testing.assert_allclose(source.arrays["boxes"][0, 0], [8, 0, 16, 8], atol=1e-5)
    assert source.arrays["true_valid"].tolist() == [[True] * 3 + [False] * 2]
    true = [boxes[0], boxes[3], boxes[4]]  # whatever the size of the network's input
    np.testing.assert_array_equal(source.arrays["true_boxes"][0, :3], np.float32(true))
    np.testing.assert_array_equal(source.arrays["true_area"][0, :3], [225, 12.5, 64])
    assert [re.sub(".*/", "", note) for note in notes] == [
        "a.png: box 20 20 20 30 has no area",
        "a.png: box 70 0 80 5 is outside the 60 x 40 image",
        "a.png: box 5 5 5.5 30 is smaller than one pixel of the network's input: evaluated, not "
        "trained on",
        "gone.png: no such image",
    ]
    with pytest.raises(InputError, match="none of 1 images can be used; first problem: gone.png"):
        detection.load([gone], 32, 64, 2)


def test_boxes_beyond_max_boxes_are_noted(tmp_path):
    datasets.draw_image(3).save(tmp_path / "a.png")
    one = detection.annotated_image(
        tmp_path / "a.png", [(b, c, False) for b, c in datasets.BOXES[3]], "a.png"
    )
    source, notes = detection.load([one], 64, 64, 2)
    assert source.arrays["valid"].sum() == 2 and source.arrays["true_valid"].sum() == 3
    assert notes == ["a.png: 3 boxes, only the first 2 are trained on; raise --max-boxes"]


def test_the_truth_is_the_same_whatever_the_size_of_the_input(tmp_path):
    Image.new("RGB", (640, 480)).save(tmp_path / "p.png")
    boxes = [((160, 120, 352, 264), 0), ((509, 381, 515, 387), 1)]
    one = detection.annotated_image(tmp_path / "p.png", boxes, "p.png")
    found = [detection.load([one], *size, 2) for size in ((32, 32), (320, 416))]
    for name in ("boxes", "labels", "valid", "crowd", "area"):
        small, large = (source.arrays[f"true_{name}"] for source, _ in found)
        np.testing.assert_array_equal(small, large)
    np.testing.assert_array_equal(found[0][0].arrays["true_boxes"][0], [b for b, _ in boxes])
    assert [source.arrays["valid"].sum() for source, _ in found] == [1, 2]
    assert [len(notes) for _, notes in found] == [1, 0]


def test_repeated_images_are_dropped_and_validation_is_split_off(tmp_path):
    datasets.write_yolo(tmp_path / "set")
    text = (tmp_path / "set" / "data.yaml").read_text()
    (tmp_path / "set" / "data.yaml").write_text(text.replace("images/val", "images/train"))
    found = yolo.read(tmp_path / "set")
    repeats = detection.faults(found.notes)
    assert len(repeats) == 3 and "0.png is in train already, left out" in repeats[0]
    assert not found.splits["val"]
    splits = detection.with_validation(found.splits, 0.34, 0)
    assert len(splits["val"]) == 1 and len(splits["train"]) == 2
    with pytest.raises(InputError, match="--val-fraction must leave .*, got 0.01 of 3 images"):
        detection.with_validation(found.splits, 0.01, 0)
    three = detection.with_validation(found.splits, 0.34, 0, 0.34)
    assert three["val"] == splits["val"] and list(map(len, three.values())) == [1, 1, 1]
    assert {one.name for own in three.values() for one in own} == {"0.png", "1.png", "2.png"}
    with pytest.raises(InputError, match="--test-fraction must leave images for both test"):
        detection.with_validation(found.splits, 0.34, 0, 0.9)
    whole = found.splits | {"val": found.splits["train"][:1]}
    assert detection.with_validation(whole, 0.34, 0) == whole


def test_a_fraction_of_the_samples_is_drawn_by_the_seed_in_their_order():
    samples = list(range(20))
    drawn = [detection.draw_fraction(samples, 0.26, seed) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert all(
        len(set(own)) == 5 and own == sorted(own) and set(own) < set(samples) for own in drawn
    )
    assert detection.draw_fraction(samples, 1.0, 0) == samples
    assert len(detection.draw_fraction(samples, 0.001, 0)) == 1
    assert detection.draw_fraction([], 0.5, 0) == []


# Streams


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The same images in memory and streamed, and the folder."""
    root = tmp_path_factory.mktemp("data") / "yolo"
    datasets.write_yolo(root)
    found = formats.read(str(root)).splits["train"]
    held, _ = detection.load(found, *SIZE, 5, first_id=3)
    streamed, notes = detection.stream(found, *SIZE, 5, first_id=3)
    assert not notes
    return held, streamed, root


def same(one, other):
    assert one.keys() == other.keys()
    for name, column in one.items():
        np.testing.assert_array_equal(column, other[name])
        assert column.dtype == other[name].dtype


@needs_grain
def test_streamed_batches_equal_those_in_memory(both, caplog):
    held, streamed, _ = both
    index = sampler.shuffled_batches(0, 1, len(held), 2)
    found = list(streamed.batches(index))
    assert len(found) == len(index) > 1
    for row, batch in zip(held.batches(index), found, strict=True):
        same(held[row], batch)
    assert not caplog.records  # grain has no complaints about small batches


@needs_grain
def test_streamed_batches_are_the_same_from_an_image_cache(both, tmp_path):
    held, _, root = both
    found = formats.read(str(root)).splits["train"]
    index = sampler.shuffled_batches(0, 1, len(held), 2)
    for _ in range(2):  # written, and read
        streamed, _ = detection.stream(found, *SIZE, 5, first_id=3, cache=tmp_path / "cache")
        for row, batch in zip(index, streamed.batches(index), strict=True):
            same(held[row], batch)
    assert len([*tmp_path.rglob("*.rgb")]) == len(held)


@needs_grain
def test_first_reads_records_into_memory(both):
    held, streamed, _ = both
    assert len(streamed) == len(held) and not streamed.arrays
    same(held.first(2).arrays, streamed.first(2).arrays)
    assert streamed.first(99).names == held.names


def write_faulty(folder):
    """Four images of which two can be used, with two unusable boxes and more boxes than 2."""
    datasets.draw_image(0).save(folder / "a.png")  # 60 x 40
    datasets.draw_image(1).save(folder / "b.jpg")
    (folder / "text.png").write_text("not an image")
    boxes = {
        "gone.png": [(1, 1, 9, 9)],
        "a.png": [(2, 2, 20, 20), (20, 20, 20, 30), (70, 0, 80, 5), (1, 1, 9, 9), (3, 3, 8, 8)],
        "text.png": [],
        "b.jpg": [(1, 1, 9, 9)],
    }
    return [
        detection.annotated_image(folder / name, [(box, 0, False) for box in own], name)
        for name, own in boxes.items()
    ]


@needs_grain
def test_a_stream_leaves_out_and_notes_the_same_as_memory(tmp_path):
    found = write_faulty(tmp_path)
    held, notes = detection.load(found, *SIZE, 2, first_id=3)
    streamed, stream_notes = detection.stream(found, *SIZE, 2, first_id=3)
    assert stream_notes == notes and len(notes) == 5
    assert len(streamed) == 2 and streamed.names == held.names == ["a.png", "b.jpg"]
    same(streamed.first(9).arrays, held.arrays)
    np.testing.assert_array_equal(streamed.take([1, 0]).arrays["id"], [6, 4])
    with pytest.raises(
        InputError, match="none of 1 images can be used; first problem: gone.png: .*no such"
    ):
        detection.stream(found[:1], *SIZE, 2)
    with pytest.raises(InputError, match="none of 0 images can be used"):
        detection.stream([], *SIZE, 2)


@needs_grain
def test_an_image_that_is_damaged_later_is_left_out_or_an_error(tmp_path, caplog):
    found = write_faulty(tmp_path)
    streamed = {
        what: detection.stream(found, *SIZE, 2, first_id=3, on_invalid=what)[0]
        for what in ("skip", "error")
    }
    found[3].image.write_bytes(found[3].image.read_bytes()[:-200])
    index = np.array([[0, 1], [1, 0]])
    assert [batch["id"].tolist() for batch in streamed["skip"].batches(index)] == [[4, 4]] * 2
    masks = [mask.tolist() for _, mask in streamed["skip"].masked_batches(index, np.ones((2, 2)))]
    assert masks == [[1, 0], [0, 1]]
    (warning,) = caplog.messages
    assert re.match(r"b\.jpg: .*not a readable image.*; left out$", warning)
    with pytest.raises(sources.UnreadableError, match=r"^b\.jpg: .*not a readable") as error:
        list(streamed["error"].batches(index))
    assert "\n" not in str(error.value) and not hasattr(error.value, "__notes__")


@needs_grain
@pytest.mark.parametrize("split", ["train", "val"])
def test_on_invalid_error_refuses_unusable_boxes_of_a_stream(tmp_path, split):
    datasets.write_yolo(tmp_path / "set")
    number = datasets.SPLITS[split][0]
    with open(tmp_path / "set" / "labels" / split / f"{number}.txt", "a") as file:
        file.write("0 .5 .5 0 .2\n")
    config = Config(root=str(tmp_path / "set"), size=SIZE, stream=True)
    (note,) = detection.faults(configs.build("detect", config).notes)
    assert note.startswith(f"{number}.png: box ") and note.endswith("has no area")
    with pytest.raises(InputError, match=rf"{number}\.png: box .* has no area \(problem 1 of 1\)"):
        configs.build("detect", replace(config, on_invalid="error"))


@needs_grain
@pytest.mark.parametrize("name", datasets.FORMATS)
def test_every_format_streams_the_same_as_memory(tmp_path, name):
    if name == "parquet":
        pytest.importorskip("pyarrow")
    datasets.FORMATS[name](tmp_path / "set")
    for samples in formats.read(tmp_path / "set").splits.values():
        held, notes = detection.load(samples, *SIZE, 5)
        streamed, stream_notes = detection.stream(samples, *SIZE, 5)
        assert stream_notes == notes and streamed.names == held.names
        same(streamed.first(9).arrays, held.arrays)


@needs_grain
def test_state_and_samples_equal_those_of_data_in_memory(both):
    *_, root = both
    config = Config(
        root=str(root),
        model="resnet18",
        size=SIZE,
        batch=2,
        devices=1,
        shift=0.3,
        brightness_contrast=0,
        color_jitter=0,
    )
    held, streamed = (configs.build("detect", replace(config, stream=on)) for on in (False, True))
    states = [jax.eval_shape(training_state.init_fn(one)) for one in (held, streamed)]
    assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])
    one, other = (evaluator.samples(system, "train", 2, train=True) for system in (held, streamed))
    same(one, other)


def test_a_stream_without_grain_names_the_package_to_install(monkeypatch):
    monkeypatch.setattr(sources, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"jaxdet\[data\]"):
        sources.StreamSource(None, 1)
