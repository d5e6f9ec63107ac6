import os
import pickle
import re
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest

from jaxdet.data import cifar10, image_folder
from jaxdet.errors import InputError
from tests import datasets

IMAGE = datasets.encode_image()
ROWS = {name: 3 for names in cifar10.BATCH_FILES.values() for name in names} | {"test_batch": 2}


def batch(name):
    """Values [N, 3072] and labels of a batch: random, different for each name."""
    draw = np.random.default_rng([*name.encode()])
    values = draw.integers(0, 256, (ROWS[name], cifar10.VALUES_PER_IMAGE), np.uint8)
    return values, draw.integers(0, 10, ROWS[name]).tolist()


def expected(split):
    """Images and labels of a split."""
    found = [batch(name) for name in cifar10.BATCH_FILES[split]]
    values = np.concatenate([values for values, _ in found]).reshape(-1, 3, 32, 32)
    image = np.stack([values[:, channel] for channel in range(3)], axis=-1)
    return image, [label for _, labels in found for label in labels]


def text(value):
    return b"U" + bytes([len(value)]) + value if len(value) < 256 else sized(value)


def sized(value):
    return b"T" + struct.pack("<i", len(value)) + value


def array(values, kind=b"u1", shape=None, order=b"|"):
    """An array as NumPy 1 pickled it under Python 2, with protocol 2."""
    rows, columns = shape or values.shape
    start = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85U\x01b\x87R(K\x01"
    sides = struct.pack("<BiBi", ord("J"), rows, ord("J"), columns) + b"\x86"
    dtype = b"cnumpy\ndtype\n" + text(kind) + b"K\0K\x01\x87R(K\x03" + text(order)
    dtype += b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb"
    return start + sides + dtype + b"\x89" + sized(values.tobytes()) + b"tb"


def numbers(labels):
    return b"](" + b"".join(struct.pack("<Bi", ord("J"), label) for label in labels) + b"e"


def python2(values, labels):
    """A batch as CIFAR-10's author pickled it; bytes are opcodes already."""
    values = values if isinstance(values, bytes) else array(values)
    labels = labels if isinstance(labels, bytes) else numbers(labels)
    items = text(b"batch_label") + text(b"training batch 1 of 5")
    items += text(b"labels") + labels + text(b"data") + values
    return b"\x80\x02}q\x01(" + items + b"u."


def python3(protocol, names=(b"data", b"labels")):
    return lambda *both: pickle.dumps(dict(zip(names, both, strict=True)), protocol)


def binary(values, labels):
    return np.column_stack([np.uint8(labels), values]).tobytes()


def files(write=python2, ending="", **changed):
    """The files of CIFAR-10 in a form of its author; `changed` are contents by name."""
    found = {f"{name}{ending}": write(*batch(name)) for name in ROWS}
    return {**found, "batches.meta": b"names", "readme.html": b""} | changed


FORMS = {
    "Python 2": files(),
    **{f"protocol {number}": files(python3(number)) for number in (2, 3, 4)},
    "text keys": files(python3(3, ("data", "labels"))),
    "columns first": files(lambda values, labels: python3(4)(np.asfortranarray(values), labels)),
    "arrays": files(lambda values, labels: python3(4)(values, np.array(labels, ">i8"))),
    "binary": files(binary, ".bin"),
}


def check(found):
    sources, classes = found
    assert classes[:3] == ("airplane", "automobile", "bird") and len(classes) == 10
    assert list(sources) == ["train", "test"]
    for split, source in sources.items():
        image, label = expected(split)
        np.testing.assert_array_equal(source.arrays["image"], image, strict=True)
        np.testing.assert_array_equal(source.arrays["label"], np.int32(label), strict=True)
        assert source.arrays["image"].flags.c_contiguous
    np.testing.assert_array_equal(sources["train"].arrays["id"], np.arange(15, dtype=np.int32))
    np.testing.assert_array_equal(sources["test"].arrays["id"], [15, 16])


@pytest.mark.parametrize("form", FORMS)
def test_batches_of_every_form_are_read(tmp_path, form):
    check(cifar10.read(datasets.write_tree(tmp_path / "batches", FORMS[form])))


@pytest.mark.parametrize("form", ["Python 2", "binary"])
def test_batches_are_found_in_folders_and_tar_files(tmp_path, form):
    packed = datasets.below("cifar-10-batches", FORMS[form])
    check(cifar10.read(datasets.write_tree(tmp_path / "around", packed)))
    folder = datasets.write_tree(tmp_path / "packed", {"notes.txt": b"", "more/a.png": IMAGE})
    check(cifar10.read(datasets.write_tar_gz(folder / "cifar-10.tar.gz", packed)))
    check(cifar10.read(str(folder)))
    (folder / "cifar-10.tar.gz").rename(folder / "other.tgz")
    check(cifar10.read(folder))


@pytest.fixture
def refused(tmp_path):
    """A function that reads batches and returns the error message after their path."""

    def read(found):
        place = datasets.write_tree(tmp_path / "batches", found)
        with pytest.raises(InputError) as raised:
            cifar10.read(place)
        text = str(raised.value)
        assert text.startswith(f"{place}") and "\n" not in text
        return text.removeprefix(str(place))

    return read


VALUES, LABELS = batch("test_batch")
HUGE = array(VALUES, shape=(2**30, 2**30))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is cut short or damaged"),
        (python2(VALUES, LABELS)[:-100], "is cut short or damaged"),
        (python2(VALUES, [1, 10]), "row 1: label must be 0 to 9, got 10"),
        (python2(VALUES, [-1, 1]), "row 0: label must be 0 to 9, got -1"),
        (python2(VALUES, [1]), r"labels must be integers \[2\], one per image, got int64 \[1\]"),
        (python2(VALUES, b"](](e"), "cut short or damaged"),
        (python2(VALUES, array(VALUES)), r"labels must be .* got uint8 \[2, 3072\]"),
        (
            python2(VALUES[:, :-1], LABELS),
            r"images must be uint8 \[N, 3072\] with N of at least 1, got uint8 \[2, 3071\]",
        ),
        (python2(VALUES[:0], []), r"images must be .* got uint8 \[0, 3072\]"),
        (
            python2(array(VALUES.astype("i4"), b"i4", order=b"<"), LABELS),
            "images must be .* got int32",
        ),
        (python2(array(VALUES, b"O8"), LABELS), "array type must be one of u1, i4, i8, got 'O8'"),
        (python2(HUGE, LABELS), "is cut short or damaged"),
        (pickle.dumps([1, 2], 2), "must hold a dict with data and labels, got a list"),
        (
            pickle.dumps({b"fine_labels": [1]}, 2),
            r"must hold a dict with keys data and labels, got keys \['fine_labels'\]",
        ),
        (b"\x80\x02}r\xff\xff\xff\x7f.", "is damaged: its pickle stores an object at index"),
    ],
)
def test_an_invalid_pickle_is_named(refused, content, message):
    assert re.match(rf"/test_batch: .*{message}", refused(files(test_batch=content)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "file size must be a positive multiple of 3073 bytes, got 0; download it again"),
        (
            binary(VALUES, LABELS)[:-1],
            "file size must be a positive multiple of 3073 bytes, got 6145",
        ),
        (binary(VALUES, [9, 10]), "row 1: label must be 0 to 9, got 10"),
    ],
)
def test_invalid_records_are_named(refused, content, message):
    changed = files(binary, ".bin", **{"data_batch_4.bin": content})
    assert refused(changed).startswith(f"/data_batch_4.bin: {message}")


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("form", ["Python 2", "binary"])
def test_a_missing_batch_is_named(refused, form, name):
    ending = ".bin" if form == "binary" else ""
    found = {file: each for file, each in FORMS[form].items() if file != name + ending}
    assert refused(found).startswith(f": {name}{ending} is missing; download")


@pytest.mark.parametrize("module", ["os", "posix", "subprocess", "builtins", "numpy"])
def test_a_pickle_that_calls_a_program_is_refused_without_running_it(refused, tmp_path, module):
    proof = tmp_path / "proof"
    call = f"c{module}\nsystem\nX".encode() + struct.pack("<i", len(f"touch {proof}"))
    call += f"touch {proof}".encode() + b"\x85R"
    for content in (b"\x80\x02" + call + b".", python2(VALUES, call), python2(call, LABELS)):
        message = refused(files(test_batch=content))
        expected = f"/test_batch: refers to '{module}.system', which is not an array"
        assert message.startswith(expected)
    assert not proof.exists()


@pytest.mark.parametrize(
    "code",
    [
        b"cnumpy\nload\n",
        b"cnumpy.core.multiarray\nfromfile\n",
        b"cnumpy.core.multiarray\nscalar\n",
        b"c_codecs\nencode.__self__\n",
        b"c_codecs\nlookup\n",
        b"\x8c\x02os\x8c\x06system\x93",
        b"\x82\x01",
    ],
)
def test_no_opcode_accesses_another_global(refused, code):
    assert "refers to" in refused(files(test_batch=b"\x80\x04" + code + b"."))


def test_pickles_cannot_set_attributes(refused, tmp_path):
    reconstruct = b"cnumpy.core.multiarray\n_reconstruct\n"
    dtype = b"cnumpy\ndtype\n"
    for name in (reconstruct, dtype, dtype + text(b"u1") + b"\x85R", b"cnumpy\nndarray\n"):
        for key in (b"__defaults__", b"dtype", b"__setstate__"):
            evil = b"N}" + text(key) + b"Ns\x86b"
            refused(files(test_batch=b"\x80\x02" + name + evil + b"."))
    check(cifar10.read(datasets.write_tree(tmp_path / "batches", files())))


def test_a_truncated_tar_is_named(tmp_path):
    path = datasets.write_tar_gz(tmp_path / "cifar-10-python.tar.gz", FORMS["Python 2"])
    path.write_bytes(path.read_bytes()[:-1000])
    for root in (path, tmp_path):
        with pytest.raises(InputError, match=f"^{path}: is cut short or damaged .*fetch it again"):
            cifar10.read(root)


# Folders of images

IMAGES = {
    "train/cat/0.png": datasets.encode_image(40, (32, 32)),
    "train/cat/1.png": datasets.encode_image(80, (32, 32)),
    "train/ship/0.png": datasets.encode_image(120, (32, 32)),
    "test/cat/0.png": datasets.encode_image(160, (32, 32)),
}


@pytest.mark.parametrize("form", [datasets.write_tree, datasets.write_tar, datasets.write_tar_gz])
@pytest.mark.parametrize("inside", [False, True])
def test_images_in_folders_of_classes(tmp_path, form, inside):
    place = tmp_path / "data" / "some.tar.gz" if inside else tmp_path / "data"
    place.parent.mkdir(exist_ok=True)
    form(place, datasets.below("cifar-jpg", {**IMAGES, "README.md": b"text"}))
    if inside and form is datasets.write_tree:
        place = place / "cifar-jpg"
    sources, classes = cifar10.read(tmp_path / "data" if form is not datasets.write_tree else place)
    assert classes == ("cat", "ship")
    arrays = sources["train"].arrays
    assert (arrays["image"].shape, arrays["image"].dtype) == ((3, 32, 32, 3), np.uint8)
    np.testing.assert_array_equal(arrays["label"], [0, 0, 1])
    np.testing.assert_array_equal(arrays["id"], [0, 1, 2])
    np.testing.assert_array_equal(sources["test"].arrays["id"], [3])
    assert sources["train"].names == ["cat/0.png", "cat/1.png", "ship/0.png"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            {"train/cat/2.png": b"x"},
            "/train/cat/2.png: not a readable image .*; every file of CIFAR-10 must be usable",
        ),
        ({"test/fox": None}, "/test/fox: no files in it; every file of CIFAR-10 must be usable"),
        (
            {"test/a/0.png": b"", "test/b": None},
            r"/test/b: no files in it \(and 1 more\); every file of CIFAR-10",
        ),
    ],
)
def test_every_image_must_be_usable(refused, more, message):
    assert re.match(message, refused({**IMAGES, **more}))


# No data


@pytest.mark.parametrize(
    "found", [{}, {"train/cat/0.png": IMAGE}, {"a.tar": datasets.encode_tar({})}]
)
def test_without_data_the_expected_layouts_are_named(tmp_path, found):
    for root in (datasets.write_tree(tmp_path / "data", found), tmp_path / "gone"):
        with pytest.raises(InputError, match=f"^no CIFAR-10 in {root}; expected") as raised:
            cifar10.read(root)
        message = str(raised.value)
        assert "cifar-10-python.tar.gz" in message and "\n" not in message
        assert "does not download" in message


@pytest.mark.parametrize("root", [None, ""])
def test_a_missing_root_is_refused(root):
    with pytest.raises(InputError, match="^--root must be given; expected"):
        cifar10.read(root)


# tensorflow-datasets


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    datasets.prepare_tfds_images(folder, "tiny", shape=(32, 32, 3))
    datasets.prepare_tfds_images(folder, "gray", shape=(32, 32, 1))
    datasets.prepare_tfds_images(folder, "unlabeled", shape=(32, 32, 3), label="name")
    return folder


def test_a_prepared_set(prepared):
    sources, classes = cifar10.read("tfds:tiny", prepared)
    assert classes == tuple("0123456789")
    for split, source in sources.items():
        arrays = source.arrays
        assert arrays["image"].shape == (datasets.TFDS_ROWS[split], 32, 32, 3)
        np.testing.assert_array_equal(arrays["label"], arrays["image"][:, 0, 0, 0] % 10)
    np.testing.assert_array_equal(sources["test"].arrays["id"], np.arange(12, 77))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", "not found; prepare it once"),
        ("gray", r"image \(32, 32, 3\).*\(32, 32, 1\)"),
        ("unlabeled", "label with class names, got .*'name'"),
    ],
)
def test_an_unprepared_or_unsuitable_set_is_refused(prepared, name, message):
    with pytest.raises(InputError, match=f"^tfds set '{name}': .*{message}"):
        cifar10.read(f"tfds:{name}", prepared)


# Real images


@pytest.mark.skipif("JAXDET_DATA" not in os.environ, reason="JAXDET_DATA is not set")
def test_images_of_the_real_tar_file(tmp_path):
    found = {}
    with tarfile.open(
        Path(os.environ["JAXDET_DATA"]) / "cifar10" / "cifar10_jpg_tree.tar.gz"
    ) as tar:
        for member, _ in zip(tar, range(40), strict=False):
            content = tar.extractfile(member).read() if member.isreg() else None
            found[member.name] = found[member.name.replace("/test", "/train")] = content
    datasets.write_tar_gz(tmp_path / "some.tar.gz", found)
    sources, classes = cifar10.read(tmp_path)
    assert classes[0] in cifar10.CLASSES and "cifar-jpg/README.md" in found
    images = [source.arrays["image"] for source in sources.values()]
    assert images[0].shape[0] > 30 and images[0].shape[1:] == (32, 32, 3)
    np.testing.assert_array_equal(*images)


@pytest.mark.parametrize("write, ending", [(python2, ""), (binary, ".bin")])
def test_the_summary_counts_the_labels_of_each_split(tmp_path, write, ending):
    rows, bad = cifar10.summarize(datasets.write_tree(tmp_path / "batches", files(write, ending)))
    labels = {split: expected(split)[1] for split in cifar10.BATCH_FILES}
    sides = {"height": "32 to 32", "width": "32 to 32"}
    assert bad == [] and [row["label"] for row in rows] == list(cifar10.CLASSES)
    for i, row in enumerate(rows):
        counts = {split: own.count(i) for split, own in labels.items()}
        assert row == {"label": cifar10.CLASSES[i], **counts, **sides}


def test_the_summary_of_image_files_is_that_of_their_folders(tmp_path):
    tree = {f"{split}/{name}/1.png": IMAGE for split in cifar10.BATCH_FILES for name in "ab"}
    place = datasets.write_tree(tmp_path / "tree", tree | {"test/a/2.png": b"not an image"})
    assert cifar10.summarize(place) == image_folder.summarize(image_folder.read(place))
    with pytest.raises(InputError, match="no CIFAR-10 in .*gone"):
        cifar10.summarize(tmp_path / "gone")
