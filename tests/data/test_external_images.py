import shutil

import numpy as np
import pytest

from jaxdet.data import external_images, localization
from jaxdet.data.detection import Remark
from jaxdet.errors import InputError
from tests.data.test_images import save_gradient

CLASSES = ("cat", "face", "dog")


def read(root):
    """({image name: box in pixels of the original}, notes) of a folder."""
    found = external_images.read(root, CLASSES, 32)
    arrays, names = found.source.arrays, found.source.names
    corners = localization.to_original(arrays["boxes"][:, 0], arrays["size"], 32)
    labels = [CLASSES[i] for i in arrays["label"]]
    assert [name.split("/")[0] for name in names] == labels
    boxes = [tuple(np.round(box, 3).tolist()) for box in corners]
    assert found.all_have_boxes == all(map(any, boxes))
    return dict(zip(names, boxes, strict=True)), found.notes


@pytest.fixture(params=["", "images"], ids=["root", "images"])
def base(request, tmp_path):
    """The folder of the folders of two labels with an image each, a.jpg of 20 x 30 pixels."""
    for label in ("cat", "face"):
        save_gradient(tmp_path / request.param / label / "a.jpg")
    return tmp_path / request.param


NONE = (0, 0, 0, 0)


def test_labels_are_names_of_folders(base, tmp_path):
    found, notes = read(tmp_path)
    assert found == {"cat/a.jpg": NONE, "face/a.jpg": NONE}
    (note,) = notes
    assert isinstance(note, Remark)
    assert note.endswith("2 of 2 images have no box: the loss and the box scores are left out")


@pytest.mark.parametrize("folder", ["", "annotations"])
@pytest.mark.parametrize("name", ["b.jpg", "photos/b.jpg"])
def test_a_table_counts_before_folders(base, tmp_path, folder, name):
    save_gradient(base / name)
    (tmp_path / folder).mkdir(exist_ok=True)
    rows = f"file,label\n{name},dog\na.jpg,1,2,13,14,face\na.jpg,,,,,cat\n"
    (tmp_path / folder / "labels.csv").write_text(rows)
    found, notes = read(tmp_path)
    assert found == {f"dog/{name}": NONE, "face/a.jpg": (1, 2, 13, 14), "cat/a.jpg": NONE}
    assert [note.rsplit(": ")[-1] for note in notes] == [
        "the loss is left out, and the box scores cover only the other 1"
    ]


def test_what_cannot_be_used_is_noted(base, tmp_path):
    shutil.copy(base / "cat" / "a.jpg", base / "bare.jpg")
    (base / "face" / "b.jpg").write_text("no image")
    rows = ["a.jpg,1,2,13,face", "a.jpg,1,x,13,14,face", "../a.jpg,cat", "gone.jpg,cat"]
    rows += ["a.jpg,1,1,9,9,face", "a.jpg,face"]
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    found, notes = read(tmp_path)
    assert found == {"face/a.jpg": (1, 1, 9, 9), "cat/a.jpg": NONE}
    says = ["5 columns", "four numbers", "path below", "row 5 already", "bare.jpg: has no label"]
    says += ["1 of 2 images", "gone.jpg: no such image", "b.jpg: not a readable image"]
    assert len(notes) == len(says)
    assert all(text in note for text, note in zip(says, notes, strict=True))


@pytest.mark.parametrize("rows, place", [("a.jpg,bird", "labels.csv row 1"), ("", "bird/a.jpg")])
def test_an_unknown_label_is_refused(base, tmp_path, rows, place):
    (tmp_path / "labels.csv").write_text(rows)
    if not rows:
        shutil.move(base / "cat", base / "bird")
    with pytest.raises(InputError, match=f"{place}: unknown label 'bird', must be one of cat, f"):
        read(tmp_path)


def test_a_folder_without_labeled_images_is_refused(tmp_path):
    save_gradient(tmp_path / "a.jpg")
    with pytest.raises(InputError, match="no labeled images; .*first problem: .*has no label"):
        read(tmp_path)
