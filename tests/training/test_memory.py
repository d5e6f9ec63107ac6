import jax
import pytest

from jaxdet.cli.main import main
from jaxdet.configs import detect, digits
from jaxdet.errors import DeviceMemoryError
from jaxdet.training import evaluator, memory, parallel
from tests.test_golden_runs import SCHEMA2

MESSAGE = "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 12.3GiB.\n[tf-allocator] more"


def fail(*_, **__):
    raise jax.errors.JaxRuntimeError(MESSAGE)


def test_out_of_memory_is_one_line_with_what_to_lower():
    config = detect.Config(batch=64, size=(480, 640))
    with pytest.raises(DeviceMemoryError) as caught, memory.explained(config, "batch"):
        fail()
    text = str(caught.value)
    assert text.startswith("out of memory on cpu at --batch 64 --size 480 640 (12.3GiB more")
    for advice in ("lower --batch or --size", "--accumulate", "--bfloat16", "--stream"):
        assert advice in text
    assert "XLA_PYTHON_CLIENT" not in text and "\n" not in text


def test_on_a_gpu_the_variables_of_jax_are_named(monkeypatch):
    class Device:
        platform, device_kind = "gpu", "NVIDIA H100"

    monkeypatch.setattr(jax, "local_devices", lambda: [Device])
    with (
        pytest.raises(DeviceMemoryError) as caught,
        memory.explained(digits.Config(), "eval_batch"),
    ):
        fail()
    text = str(caught.value)
    assert text.startswith("out of memory on NVIDIA H100 at --eval-batch 250 (")
    assert "XLA_PYTHON_CLIENT_MEM_FRACTION" in text and "XLA_PYTHON_CLIENT_PREALLOCATE" in text


def test_other_errors_of_the_runtime_pass():
    with pytest.raises(jax.errors.JaxRuntimeError), memory.explained(digits.Config(), "batch"):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")


def test_a_command_without_memory_fails_in_one_line(monkeypatch, capsys):
    monkeypatch.setattr(evaluator.parallel, "compile_step", lambda *_, **__: fail)
    assert main(["eval", str(SCHEMA2 / "digits")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("jaxdet: error: out of memory") and error.count("\n") == 1


@pytest.fixture
def gpu(monkeypatch):
    """A machine with an NVIDIA GPU and a jax without CUDA."""
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setattr(parallel.Path, "glob", lambda *_: iter(["/dev/nvidia0"]))
    monkeypatch.setattr(parallel, "find_spec", lambda name: None)


def test_a_gpu_without_the_plugin_is_told_of(gpu, monkeypatch):
    assert "has an NVIDIA GPU, but jax has no CUDA plugin" in parallel.unused_gpu()
    with pytest.raises(ValueError, match="--devices must be .* no CUDA plugin"):
        parallel.local_devices(99)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")  # chosen
    assert parallel.unused_gpu() == ""


def test_a_gpu_with_the_plugin_or_no_gpu_is_not(gpu, monkeypatch):
    monkeypatch.setattr(parallel, "find_spec", lambda name: name == "jax_cuda13_plugin" or None)
    assert parallel.unused_gpu() == ""
    monkeypatch.setattr(parallel.Path, "glob", lambda *_: iter([]))
    monkeypatch.setattr(parallel, "find_spec", lambda name: None)
    assert parallel.unused_gpu() == ""
