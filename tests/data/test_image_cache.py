import errno
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from jaxdet.data import image_cache, images
from jaxdet.errors import InputError
from tests import datasets


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "a.png"
    datasets.draw_image(0).save(path)  # 60 x 40
    return path


def counting(calls):
    """`images.read_letterboxed`, which notes its calls."""

    def read_letterboxed(file, *shape):
        calls.append(shape)
        return images.read_letterboxed(file, *shape)

    return read_letterboxed


def entries(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


def test_cached_images_have_the_same_bits_and_are_decoded_once(tmp_path, file):
    calls, folder = [], tmp_path / "cache" / "new"
    read = image_cache.cached(counting(calls), folder)
    for shape in ((32, 64), (64, 32), (32, 64)):
        for _ in range(2):
            pixels, size = read(file, *shape)
            expected, expected_size = images.read_letterboxed(file, *shape)
            np.testing.assert_array_equal(pixels, expected, strict=True)
            assert size == expected_size
    assert calls == [(32, 64), (64, 32)] and len(entries(folder)) == 2
    read_resized = image_cache.cached(images.read_resized, folder)
    for _ in range(2):
        np.testing.assert_array_equal(
            read_resized(file, side=32)[0], images.read_resized(file, 32)[0]
        )
    assert len(entries(folder)) == 3


def test_a_changed_image_is_decoded_again(tmp_path, file):
    read = image_cache.cached(images.read_letterboxed, tmp_path / "cache")
    before, _ = read(file, 32, 32)
    size = file.stat().st_size
    content = bytearray(images.file_bytes(file))
    datasets.draw_image(1).save(file)
    after, _ = read(file, 32, 32)
    np.testing.assert_array_equal(after, images.read_letterboxed(file, 32, 32)[0])
    assert (before != after).any()
    file.write_bytes(content)  # of the former size, but at another time
    os.utime(file, ns=(1, 1))
    assert file.stat().st_size == size
    read(file, 32, 32)
    assert len(entries(tmp_path / "cache")) == 3
    file.unlink()
    with pytest.raises(InputError, match="a.png: no such image"):
        read(file, 32, 32)


@pytest.mark.parametrize("damage", ["empty", "header", "cut", "longer", "flipped"])
def test_a_damaged_entry_is_written_again(tmp_path, file, damage):
    calls = []
    read = image_cache.cached(counting(calls), tmp_path / "cache")
    expected, _ = read(file, 32, 32)
    (entry,) = entries(tmp_path / "cache")
    whole = entry.read_bytes()
    changed = {
        "empty": b"",
        "header": whole[:5],
        "cut": whole[:-1],
        "longer": whole + b"0",
        "flipped": whole[:100] + bytes([whole[100] ^ 1]) + whole[101:],
    }
    entry.write_bytes(changed[damage])
    for _ in range(2):
        np.testing.assert_array_equal(read(file, 32, 32)[0], expected)
    assert len(calls) == 2 and entry.read_bytes() == whole


def test_readers_at_the_same_time_write_whole_entries(tmp_path, file):
    reads = [image_cache.cached(images.read_letterboxed, tmp_path / "cache") for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        found = [pool.submit(read, file, 64, 64) for read in reads for _ in range(4)]
    for each in found:
        np.testing.assert_array_equal(each.result()[0], found[0].result()[0])
    assert [path.suffix for path in entries(tmp_path / "cache")] == [".rgb"]


def test_images_that_are_no_files_are_not_cached(tmp_path, file):
    read = image_cache.cached(images.read_letterboxed, tmp_path / "cache")
    content = images.file_bytes(file)
    for given in (content, lambda: content):
        np.testing.assert_array_equal(
            read(given, 32, 32)[0], images.read_letterboxed(file, 32, 32)[0]
        )
    assert not entries(tmp_path / "cache")
    assert image_cache.cached(images.read_letterboxed, "") is images.read_letterboxed


def test_a_folder_that_cannot_be_written_is_named_once(tmp_path, file, monkeypatch, caplog):
    with pytest.raises(InputError, match="--image-cache must be a folder .* got .*a.png"):
        image_cache.cached(images.read_letterboxed, file)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(type(file), "write_bytes", full)
    read = image_cache.cached(images.read_letterboxed, tmp_path / "cache")
    for side in (32, 64):
        assert read(file, side, side)[0].shape == (side, side, 3)
    (message,) = caplog.messages
    assert message.endswith("cache: cannot be written (No space left on device)")
