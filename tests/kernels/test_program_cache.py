import jax
import numpy as np
import pytest

from jaxdet.kernels import program_cache


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The folder of kept programs, in a compilation cache of its own."""
    monkeypatch.setattr(program_cache, "_enabled", True)
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    yield tmp_path / program_cache.FOLDER
    jax.config.update("jax_compilation_cache_dir", before)


def counted(calls):
    """A function that notes every time it is traced."""

    def double(tree, x):
        calls.append(x.shape)
        return {"out": tree["a"] + 2 * x}

    return double


def test_a_program_is_traced_once_per_identity_and_shape(folder):
    calls, tree, x = [], {"a": np.float32(1)}, np.ones(3, np.float32)
    for identity in ("one", "one", "two"):
        program = program_cache.compiled(counted(calls), [identity], tree, x)
        np.testing.assert_array_equal(program(tree, x)["out"], [3, 3, 3])
    program_cache.compiled(counted(calls), ["one"], tree, np.ones(4, np.float32))
    assert calls == [(3,), (3,), (4,)]


def test_settings_of_jax_are_part_of_the_identity(folder):
    calls, tree, x = [], {"a": np.float32(1)}, np.ones(3, np.float32)
    program_cache.compiled(counted(calls), ["one"], tree, x)
    with jax.default_matmul_precision("float32"):
        program_cache.compiled(counted(calls), ["one"], tree, x)
    assert len(calls) == 2


def test_a_damaged_program_is_traced_again(folder):
    calls, tree, x = [], {"a": np.float32(1)}, np.ones(3, np.float32)
    program_cache.compiled(counted(calls), ["one"], tree, x)
    (path,) = folder.iterdir()
    path.write_bytes(b"damaged")
    program = program_cache.compiled(counted(calls), ["one"], tree, x)
    np.testing.assert_array_equal(program(tree, x)["out"], [3, 3, 3])


def test_values_are_remembered(folder):
    made = []
    for _ in range(2):
        assert program_cache.remembered(["a"], lambda: made.append(0) or {"x": [1, 2]}) == {
            "x": [1, 2]
        }
    assert len(made) == 1 and program_cache.remembered(["b"], lambda: 3) == 3


@pytest.mark.parametrize("identity", [None, ["one"]])
def test_nothing_is_kept_unless_enabled_and_named(folder, monkeypatch, identity):
    monkeypatch.setattr(program_cache, "_enabled", identity is None)
    calls, tree, x = [], {"a": np.float32(1)}, np.ones(3, np.float32)
    for _ in range(2):
        assert program_cache.remembered(identity, lambda: calls.append(0)) is None
        program_cache.compiled(counted(calls), identity, tree, x)(tree, x)
    assert len(calls) == 4 and not folder.exists()
