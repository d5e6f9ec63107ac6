"""Compiled programs are kept where the user says, and only after the user says so."""

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache as jax_cache

import jaxdet
from jaxdet import compilation_cache
from jaxdet.errors import InputError


@pytest.fixture
def restored():
    names = (compilation_cache.FOLDER, *compilation_cache.LIMITS)
    before = {name: getattr(jax.config, name) for name in names}
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    jax_cache.reset_cache()


def test_programs_are_kept_in_the_folder(restored, tmp_path, monkeypatch):
    jax.jit(lambda x: x + 1)(jnp.ones(3))  # JAX has decided by now whether it has a cache
    monkeypatch.setitem(compilation_cache.LIMITS, "jax_persistent_cache_min_compile_time_secs", 0.0)
    assert jaxdet.enable_compilation_cache(tmp_path / "programs") == tmp_path / "programs"
    jax.jit(lambda x: jnp.sin(x) * 3)(jnp.ones(5)).block_until_ready()
    assert any("lambda" in path.name for path in (tmp_path / "programs").iterdir())


def test_the_default_folder_is_that_of_the_command_line(restored, tmp_path, monkeypatch):
    monkeypatch.setenv("JAXDET_CACHE", str(tmp_path))
    assert jaxdet.enable_compilation_cache() == tmp_path
    assert jax.config.jax_compilation_cache_dir == str(tmp_path)
    monkeypatch.setenv("JAXDET_CACHE", "")
    with pytest.raises(InputError, match="^enable_compilation_cache needs a folder"):
        jaxdet.enable_compilation_cache()
