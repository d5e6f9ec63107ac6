"""Packages that only some features need, imported on first use."""

from importlib import import_module
from typing import Any

from jaxdet.errors import InputError

INSTALL = {  # module -> argument of `pip install`
    "dm_pix": "dm-pix",
    "flatbuffers": "jaxdet[export]",
    "faster_coco_eval": "faster-coco-eval",
    "onnx": "jaxdet[export]",
    "onnxruntime": "jaxdet[export]",
    "pyarrow": "jaxdet[data]",
    "safetensors": "jaxdet[weights]",
    "sklearn": "scikit-learn",
    "tensorboardX": "jaxdet[track]",
    "tensorflow_datasets": "tensorflow-datasets",
    "tyro": "tyro",
}


def load(name: str, purpose: str) -> Any:
    """Import a package in `INSTALL`, or a module of such a package.

    `purpose` names the feature that needs it.  Raises InputError, with the command to install the
    package, if it is missing.
    """
    package = name.partition(".")[0]
    try:
        import_module(package)
        return import_module(name)
    except ImportError as error:
        raise InputError(f"{purpose}: needs {package} (pip install {INSTALL[package]})") from error
