"""Data that are read when they are needed are the same as those that memory holds."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from jaxdet import configs, evaluate, train
from jaxdet.configs.detect import Config
from jaxdet.data import batches, formats, scenes, stream
from jaxdet.errors import InputError
from tests import made

pytest.importorskip("grain")
SIZE = (64, 96)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The same photos in memory and streamed, and the folder."""
    root = tmp_path_factory.mktemp("data") / "yolo"
    made.yolo(root)
    found = formats.read(str(root)).parts["train"]
    held, _ = scenes.load(found, *SIZE, 5, first_id=3)
    return held, scenes.streamed(found, *SIZE, 5, first_id=3), root


def same(one, other):
    assert one.keys() == other.keys()
    for name, column in one.items():
        np.testing.assert_array_equal(column, other[name])
        assert column.dtype == other[name].dtype


def test_batches_are_those_of_the_arrays_in_the_order_asked_for(both, caplog):
    held, streamed, _ = both
    index = batches.order(0, 1, len(held), 2)
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


def test_a_photo_that_cannot_be_read_shows_nothing(both, tmp_path):
    _, _, root = both
    found = formats.read(str(root)).parts["train"]
    broken = found[1]._replace(image=tmp_path / "gone.jpg")
    row = scenes.streamed([found[0], broken], *SIZE, 5).read(1)
    assert not row["valid"].any() and len(np.unique(row["image"])) == 1
    whole = scenes.streamed(found, *SIZE, 5).read(0)
    for name, column in whole.items():
        assert (row[name].shape, row[name].dtype) == (column.shape, column.dtype), name


def test_a_state_and_samples_are_those_of_data_in_memory(both):
    *_, root = both
    config = Config(root=str(root), size=SIZE, batch=2, devices=1, shift=0.3, light=0, colour=0)
    held, streamed = (configs.build("detect", replace(config, stream=on)) for on in (False, True))
    made_of = [jax.eval_shape(train.maker(system, config)) for system in (held, streamed)]
    assert jax.tree.structure(made_of[0]) == jax.tree.structure(made_of[1])
    one, other = (evaluate.samples(system, "train", 2, train=True) for system in (held, streamed))
    same(one, other)


def test_without_the_package_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setattr(stream, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"jaxdet\[data\]"):
        stream.Stream(None, 1)
