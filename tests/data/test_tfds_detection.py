import runpy
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from jaxdet.data import detection, formats
from jaxdet.data import tfds as tfds_data
from jaxdet.errors import InputError
from tests.data.test_tfds import png

PHOTOS = {"train": 3, "validation": 2}
BOX = (0.25, 0.5, 0.75, 1.0)  # y0 x0 y1 x1


def prepare(folder, set_name, *, boxes=True):
    """A set whose photo i of 8 x 12 pixels is of the level i and has i boxes of one place."""

    class Tiny(tfds.core.GeneratorBasedBuilder):
        __module__ = "__main__"  # found in a package, it would need importlib_resources
        VERSION = tfds.core.Version("1.0.0")
        name = set_name

        def _info(self):
            kind = tfds.features.ClassLabel(names=["cat", "dog"])
            features = {"image": tfds.features.Image(shape=(None, None, 3), encoding_format="png")}
            if boxes:
                one = {"bbox": tfds.features.BBoxFeature(), "label": kind, "is_crowd": np.bool_}
                features["objects"] = tfds.features.Sequence(one)
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {part: self._generate_examples(count) for part, count in PHOTOS.items()}

        def _generate_examples(self, count):
            for i in range(count):
                one = {"bbox": tfds.features.BBox(*BOX[:2], *BOX[2:]), "label": i % 2}
                objects = [one | {"is_crowd": i == 2}] * i
                yield i, {"image": png(i, (8, 12, 3)), **({"objects": objects} if boxes else {})}

    Tiny(data_dir=folder, file_format="array_record").download_and_prepare()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    tfds.disable_progress_bar()
    with tfds.core.registered.skip_registration():
        prepare(folder, "boxed")
        prepare(folder, "bare", boxes=False)
    return folder


def test_every_record_is_a_scene_with_boxes_in_pixels(root):
    found = tfds_data.read_detection("boxed", root)
    assert found.classes == ("cat", "dog")
    assert {name: len(of_part) for name, of_part in found.parts.items()} == {"train": 3, "val": 2}
    rows, notes = detection.load(found.parts["train"], 8, 12, 3)
    assert not notes
    levels = rows.arrays["image"][:, 0, 0, 0]
    for level, boxes, valid, crowd in zip(
        levels, *(rows.arrays[name] for name in ("boxes", "valid", "crowd")), strict=True
    ):
        assert valid.sum() == level
        np.testing.assert_allclose(boxes[valid], np.float32([[6, 2, 12, 6]] * level).reshape(-1, 4))
        assert crowd[valid].all() == (level == 2) or level == 0


def test_photos_are_read_when_they_are_needed(root):
    one = tfds_data.read_detection("boxed", root).parts["train"][2]
    assert callable(one.image) and one.image().startswith(b"\x89PNG")
    streamed, notes = detection.stream([one], 8, 12, 2)
    row = streamed.read(0)
    assert not notes
    assert row["valid"].sum() == len(one.boxes) and (row["image"] == len(one.boxes)).all()


def test_the_script_writes_parquet_of_a_set(root, tmp_path, monkeypatch, capsys):
    pytest.importorskip("pyarrow")
    from tests.data.test_parquet import same

    before = tfds_data.read_detection("boxed", root)
    monkeypatch.setattr(tfds_data, "read_detection", partial(tfds_data.read_detection, root=root))
    script = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "to_parquet.py"))
    assert script["main"](["tfds:boxed", str(tmp_path / "out")]) == 0
    flags = "boxes of crowds or difficult objects, now as all others: 2"
    assert capsys.readouterr() == (f"{{'train': 3, 'val': 2}}\n{flags}\n", "")
    same(before, formats.read(tmp_path / "out"))


def test_a_set_without_boxes_or_unknown_is_refused_in_one_line(root, monkeypatch):
    with pytest.raises(InputError, match="'bare': has image; image and objects with bbox"):
        tfds_data.read_detection("bare", root)
    monkeypatch.setenv("TFDS_DATA_DIR", str(root))
    with pytest.raises(InputError, match="prepare it once"):
        formats.read("tfds:no_such_set")
