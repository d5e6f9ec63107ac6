"""Out-of-memory errors of a device, explained in terms of the options."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax

from jaxdet.config import option
from jaxdet.errors import DeviceMemoryError


@contextmanager
def explained(config: Any, batch: str, fitting: Callable[[], int] | None = None) -> Iterator[None]:
    """A context that turns the out-of-memory error of XLA into a `DeviceMemoryError`.

    config: the configuration of the run.
    batch: the field with the number of images per step.
    fitting: called after an error, returns the number of images per step that would fit.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        fits = _try(fitting) if fitting else 0
        raise DeviceMemoryError(_explain(str(error), config, batch, fits)) from error


def _try(fitting: Callable[[], int]) -> int:
    try:
        return fitting()
    except (DeviceMemoryError, jax.errors.JaxRuntimeError):
        return 0


def _explain(message: str, config: Any, batch: str, fits: int) -> str:
    """An out-of-memory error as one line: the options that need the memory, and remedies."""
    device = jax.local_devices()[0]
    wanted = re.search(r"[\d.]+ ?[KMGT]?i?B\b|\d+ bytes", message)
    amount = f" ({wanted[0]} more were needed)" if wanted else ""
    used = {batch: getattr(config, batch), "size": getattr(config, "size", None)}
    text = " ".join(f"{option(name)} {_words(value)}" for name, value in used.items() if value)
    advice = [f"lower {' or '.join(option(name) for name, value in used.items() if value)}"]
    if 0 < fits < getattr(config, batch):
        advice[0] += f" ({option(batch)} {fits} would fit)"
    if batch == "batch":
        advice.append("use --accumulate to keep the number of images per update")
    if getattr(config, "bfloat16", True) is False:
        advice.append("use --bfloat16")
    if getattr(config, "stream", True) is False:
        advice.append("use --stream, which keeps the data on the host")
    if device.platform != "cpu":
        advice.append(
            "give jax more of the GPU with XLA_PYTHON_CLIENT_MEM_FRACTION=.95, or share it with "
            "other processes with XLA_PYTHON_CLIENT_PREALLOCATE=false"
        )
    return f"out of memory on {device.device_kind} at {text}{amount}: {'; '.join(advice)}"


def _words(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
