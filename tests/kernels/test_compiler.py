import jax
import jax.numpy as jnp
import pytest

from jaxdet.kernels import compiler

UNKNOWN = {"xla_cpu_no_such_option": "1"}, {compiler.YNN_FUSION: "LIBRARY_FUSION_TYPE_NONE"}


@pytest.fixture(autouse=True)
def forget(monkeypatch):
    """What was found out about the options, and the flags of the test run."""
    monkeypatch.setenv("XLA_FLAGS", "")
    compiler._is_known.cache_clear()
    yield
    compiler._is_known.cache_clear()


def test_this_version_of_xla_knows_the_options():
    assert compiler.compiler_options() == compiler.OPTIONS
    assert compiler.jit(jnp.sin)(0.0) == 0


@pytest.mark.parametrize("options", UNKNOWN)
def test_options_that_xla_does_not_know_are_left_out_without_a_word(monkeypatch, capfd, options):
    monkeypatch.setattr(compiler, "OPTIONS", options)
    with pytest.raises(jax.errors.JaxRuntimeError):
        jax.jit(jnp.sin, compiler_options=options)(0.0)
    capfd.readouterr()
    assert compiler.compiler_options() is None
    assert compiler.jit(jnp.sin)(0.0) == 0
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("backend", ["gpu", "tpu"])
def test_other_devices_compile_without_options(monkeypatch, backend):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    assert compiler.compiler_options() is None


def test_flags_of_the_user_win(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", f"--xla_a=1 --{compiler.YNN_FUSION}=+reduce")
    assert compiler.compiler_options() is None


def test_options_reach_the_compiler(monkeypatch):
    compiled, jit = [], jax.jit
    monkeypatch.setattr(jax, "jit", lambda fn, **given: compiled.append(given) or jit(fn, **given))
    compiler.jit(jnp.sin, donate_argnums=0)
    assert compiled[-1] == {"compiler_options": compiler.OPTIONS, "donate_argnums": 0}
