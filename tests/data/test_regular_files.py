import gzip
import os

import pytest

from jaxdet.data import digits, image_folder, regular_files
from jaxdet.errors import InputError


@pytest.mark.parametrize("read", [regular_files.read_text, regular_files.read_unpacked])
def test_pipes_devices_and_missing_files_are_refused_in_one_line(tmp_path, read):
    os.mkfifo(tmp_path / "pipe")
    for path, says in (
        (tmp_path / "pipe", "pipe: cannot be read: not a regular file"),
        ("/dev/zero", "/dev/zero: cannot be read: not a regular file"),
        (tmp_path, "not a regular file"),
        (tmp_path / "gone", "gone: cannot be read: No such file"),
        (tmp_path / ("n" * 300), "File name too long"),
        (tmp_path / "a\nb", r"a\\nb: cannot be read"),
        ("a\0b", "cannot be read"),
    ):
        with pytest.raises(InputError, match=says) as error:
            read(path)
        assert "\n" not in str(error.value)


def test_files_above_a_limit_are_refused(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("12345")
    assert regular_files.read_text(path, 5) == "12345"
    with pytest.raises(InputError, match="at most 4 bytes, got 5"):
        regular_files.read_text(path, 4)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_text_is_the_same_in_all_unicode_encodings(tmp_path, encoding):
    path = tmp_path / "a.txt"
    path.write_bytes("é\r\n\n b \n".encode(encoding))
    assert regular_files.read_lines(path) == [(1, "é"), (3, "b")]


def test_text_in_another_encoding_is_one_line(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"caf\xe9")
    with pytest.raises(InputError, match=r"a\.txt: cannot be read .*utf-8"):
        regular_files.read_text(path)


def test_archives_unpack_to_a_limited_size(tmp_path, monkeypatch):
    monkeypatch.setattr(regular_files, "MAX_UNPACKED", 1000)
    path = tmp_path / "a.tar.gz"
    path.write_bytes(gzip.compress(bytes(1000)))
    assert regular_files.read_unpacked(path) == bytes(1000)
    for name in ("a.tar.gz", "train-images-idx3-ubyte.gz"):
        (tmp_path / name).write_bytes(gzip.compress(bytes(1001)))
    for read in (
        lambda: image_folder.read(path),
        lambda: digits.read_idx(tmp_path / "train-images-idx3-ubyte.gz"),
    ):
        with pytest.raises(InputError, match="must unpack to at most 1000 bytes"):
            read()
