"""jaxdet: detection, localization, classification and face verification as pure JAX functions.

    run = jaxdet.train(jaxdet.configs.detect.Config(root="bccd"), "runs/bccd")
    run = jaxdet.load("runs/bccd")
    run.predict(["image.jpg"])

Everything is imported on first use: `import jaxdet` does not import jax.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxdet import configs, flops, losses, metrics, models, ops
    from jaxdet.api import (
        Classification,
        Detections,
        Localization,
        Run,
        load,
        load_exported,
        load_pretrained,
        report,
        train,
    )
    from jaxdet.compilation_cache import enable_compilation_cache
    from jaxdet.data.face_detector import FaceDetector
    from jaxdet.errors import InputError
    from jaxdet.export.model import ExportedModel
    from jaxdet.flops import count as count_flops
    from jaxdet.training.experiment import Experiment
    from jaxdet.training.progress import Callback, Progress
    from jaxdet.types import Faces

__version__ = "0.1.0.dev0"

__all__ = [
    "Callback",
    "Classification",
    "Detections",
    "Experiment",
    "ExportedModel",
    "FaceDetector",
    "Faces",
    "InputError",
    "Localization",
    "Progress",
    "Run",
    "configs",
    "count_flops",
    "enable_compilation_cache",
    "flops",
    "load",
    "load_exported",
    "load_pretrained",
    "losses",
    "metrics",
    "models",
    "ops",
    "report",
    "train",
]

_MODULES = ("configs", "flops", "losses", "metrics", "models", "ops")
_NAMES = {
    "Callback": "jaxdet.training.progress:Callback",
    "Classification": "jaxdet.api:Classification",
    "Detections": "jaxdet.api:Detections",
    "Experiment": "jaxdet.training.experiment:Experiment",
    "ExportedModel": "jaxdet.export.model:ExportedModel",
    "FaceDetector": "jaxdet.data.face_detector:FaceDetector",
    "Faces": "jaxdet.types:Faces",
    "InputError": "jaxdet.errors:InputError",
    "Localization": "jaxdet.api:Localization",
    "Progress": "jaxdet.training.progress:Progress",
    "Run": "jaxdet.api:Run",
    "count_flops": "jaxdet.flops:count",
    "enable_compilation_cache": "jaxdet.compilation_cache:enable_compilation_cache",
    "load": "jaxdet.api:load",
    "load_exported": "jaxdet.api:load_exported",
    "load_pretrained": "jaxdet.api:load_pretrained",
    "report": "jaxdet.api:report",
    "train": "jaxdet.api:train",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"jaxdet.{name}")
    if name in _NAMES:
        module, _, attribute = _NAMES[name].partition(":")
        return getattr(import_module(module), attribute)
    raise AttributeError(f"module 'jaxdet' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
