import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from jaxdet import configs, files
from jaxdet.configs import detect
from jaxdet.data import array_cache, coco, formats, image_sizes, images
from jaxdet.errors import InputError
from tests import datasets


@pytest.fixture(autouse=True)
def _keep_small_files(monkeypatch):
    monkeypatch.setattr(array_cache, "MIN_BYTES", 0)
    monkeypatch.setattr(image_sizes, "MIN_IMAGES", 1)


@pytest.fixture
def source(tmp_path):
    """A file, a folder for entries, and a counting reader of the file's bytes."""
    path, calls = tmp_path / "a.bin", []
    path.write_bytes(b"abc")

    def make():
        calls.append(1)
        return {"bytes": np.frombuffer(path.read_bytes(), np.uint8)}

    return path, tmp_path / "cache", make, calls


def entries(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


def test_arrays_are_made_once_until_the_file_changes(source):
    path, folder, make, calls = source
    read = partial(array_cache.cached, make, [path])
    for _ in range(2):
        assert read(folder)["bytes"].tobytes() == b"abc"
    assert len(calls) == 1 and len(entries(folder)) == 1
    path.write_bytes(b"abcd")
    assert read(folder)["bytes"].tobytes() == b"abcd" and len(calls) == 2
    path.write_bytes(b"dcba")  # of the same size, at another time
    os.utime(path, ns=(1, 1))
    assert read(folder)["bytes"].tobytes() == b"dcba" and len(calls) == 3
    assert len(entries(folder)) == 1  # the old one is replaced
    read(None)
    assert len(calls) == 4


@pytest.mark.parametrize("damage", ["empty", "digest", "cut", "longer", "flipped", "format"])
def test_a_damaged_entry_is_made_again(source, damage, monkeypatch):
    path, folder, make, calls = source
    array_cache.cached(make, [path], folder)
    (entry,) = entries(folder)
    whole = entry.read_bytes()
    changed = {
        "empty": b"",
        "digest": whole[:20],
        "cut": whole[:-1],
        "longer": whole + b"0",
        "flipped": whole[:200] + bytes([whole[200] ^ 1]) + whole[201:],
        "format": whole,
    }
    entry.write_bytes(changed[damage])
    if damage == "format":
        monkeypatch.setattr(array_cache, "FORMAT", array_cache.FORMAT + 1)
    for _ in range(2):
        assert array_cache.cached(make, [path], folder)["bytes"].tobytes() == b"abc"
    assert len(calls) == 2


def test_pickled_objects_are_never_loaded(tmp_path):
    array_cache.store(tmp_path, "name", {"a": np.array([{}], object)})
    assert array_cache.load(tmp_path, "name") is None


def test_runs_at_the_same_time_write_whole_entries(source):
    path, folder, make, _ = source
    with ThreadPoolExecutor(8) as pool:
        found = [pool.submit(array_cache.cached, make, [path], folder) for _ in range(32)]
    assert all(each.result()["bytes"].tobytes() == b"abc" for each in found)
    assert len(entries(folder)) == 1


def test_a_folder_that_cannot_be_written_is_said(source, caplog):
    path, _, make, _ = source
    assert array_cache.cached(make, [path], path / "below")["bytes"].tobytes() == b"abc"
    (message,) = caplog.messages
    assert message.endswith("a.bin/below: cannot be written (Not a directory)")
    with pytest.raises(FileNotFoundError):
        array_cache.cached(partial(open, "/missing"), [path.with_name("gone")], path.parent)


# What is kept of a data set


def same(one, other):
    assert one._replace(splits={}) == other._replace(splits={})
    assert [*map(type, one.notes)] == [*map(type, other.notes)]  # `Remark`s stay remarks
    assert one.splits.keys() == other.splits.keys()
    for split, samples in one.splits.items():
        for a, b in zip(samples, other.splits[split], strict=True):
            for x, y in zip(a, b, strict=True):
                np.testing.assert_array_equal(x, y)
                assert type(x) is type(y) and getattr(x, "dtype", 0) == getattr(y, "dtype", 0)


def test_coco_is_the_same_from_an_entry(tmp_path, monkeypatch):
    root, folder = tmp_path / "set", tmp_path / "cache"
    datasets.write_coco(root)
    path = root / "annotations" / "instances_train2017.json"
    path.write_text(path.read_text().replace('"category_id": 7', '"category_id": 8', 1))
    (root / "annotations" / "instances_test.json").write_text('{"images": [], "categories": []}')
    fresh = formats.read(root)
    assert any("unknown class 8" in note for note in fresh.notes) and len(fresh.notes) == 2
    same(formats.read(root, cache=folder), fresh)
    with monkeypatch.context() as patch:
        patch.setattr(coco, "_read_files", lambda paths: pytest.fail("read again"))
        same(formats.read(root, cache=folder), fresh)
        (root / "train2017" / "0.png").rename(root / "0.png")  # images are searched for anew
        moved = formats.read(root, cache=folder)
        assert moved.splits["train"][0].image == root / "0.png"
    path.write_text(path.read_text().replace('"category_id": 8', '"category_id": 3', 1))
    assert len(formats.read(root, cache=folder).splits["train"][0].boxes) == 2


def test_sizes_are_read_anew_for_changed_images_only(tmp_path, monkeypatch):
    paths = [tmp_path / f"{number}.png" for number in range(5)]
    for number, path in enumerate(paths[:4]):
        datasets.draw_image(number).save(path)
    read, headers = images.read_size, []
    monkeypatch.setattr(images, "read_size", lambda file: headers.append(file) or read(file))

    def sizes():
        headers.clear()
        *found, missing = image_sizes.read(paths, tmp_path / "cache")
        assert isinstance(missing, InputError) and "no such image" in str(missing)
        return found

    assert sizes() == [*datasets.SIZES] and headers == paths
    assert sizes() == [*datasets.SIZES] and headers == paths[4:]
    datasets.draw_image(0).save(paths[2])
    paths[1].write_text("damaged")
    size, fault, *others = sizes()
    assert (size, *others) == (datasets.SIZES[0], datasets.SIZES[0], datasets.SIZES[3])
    assert "not a readable image" in str(fault)
    assert sorted(headers) == [paths[1], paths[2], paths[4]]
    assert image_sizes.read([b"", paths[0]], tmp_path / "cache")[1] == datasets.SIZES[0]


def test_a_stream_has_an_index_and_is_the_same_with_it(tmp_path, monkeypatch):
    pytest.importorskip("grain")
    datasets.write_coco(tmp_path / "set")
    config = detect.Config(root=str(tmp_path / "set"), size=(32, 64), stream=True)
    folder = tmp_path / "cache" / "index"
    found = []
    for cache in ("", str(folder.parent), str(folder.parent)):
        monkeypatch.setenv("JAXDET_CACHE", cache)
        found.append(configs.build("detect", config))
    assert len(entries(folder)) == 3  # annotations, and the sizes of two splits
    for experiment in found[1:]:
        assert experiment.notes == found[0].notes and experiment.image_ids == found[0].image_ids
        for split, source in experiment.splits.items():
            expected = found[0].splits[split].first(9).arrays
            for name, column in source.first(9).arrays.items():
                np.testing.assert_array_equal(column, expected[name])
    for entry in entries(folder):
        entry.unlink()
    configs.build("detect", replace(config, stream=False))
    assert not entries(folder)


def test_the_folder_for_later_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXDET_CACHE", str(tmp_path))
    assert files.cache_folder("index") == tmp_path / "index" and files.cache_folder() == tmp_path
    monkeypatch.setenv("JAXDET_CACHE", "")
    assert files.cache_folder() is None
    monkeypatch.delenv("JAXDET_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert files.cache_folder("index") == tmp_path / ".cache" / "jaxdet" / "index"
