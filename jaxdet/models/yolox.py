"""YOLOX (Ge et al. 2021, arXiv:2107.08430): CSPDarknet, a path aggregation network, decoupled head.

    net = S(classes=80)
    output = net.apply(variables, images)  # a `DetectorOutput`; cells from stride 8 to stride 32

The published weights, under the Apache-2.0 license, expect the normalization `normalize.BGR_255`
and the letterbox `images.TOP_LEFT`.  With 80 classes, `S` has 8,968,255 parameters and, at 640 x
640 pixels, 13.3 G multiply-adds.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
from flax import linen as nn

from jaxdet.models import layers, necks, pretrained
from jaxdet.models.detector import Detector
from jaxdet.models.heads import DecoupledHead
from jaxdet.types import Array

CLASSES = 80  # of the published weights, see `data.coco`
STEM_CHANNELS, HEAD_CHANNELS = 64, 256  # at a width of 1
STAGE_BLOCKS = (1, 3, 3, 1)  # bottlenecks per stage, in multiples of the base depth
NORM = {"epsilon": 1e-3, "momentum": 0.97}  # of the published networks


class CSPDarknet(layers.Freezable):
    """The backbone: a space-to-depth stem, and four stages of a 3x3 convolution and a `C3` block.

    Each stage halves the map and doubles the channels; the last one has spatial pyramid pooling.

    width, depth: multipliers of the number of channels, and of bottlenecks.
    depthwise: whether 3x3 convolutions after the stem are separable.
    """

    width: float = 1.0
    depth: float = 1.0
    depthwise: bool = False
    activation: layers.Activation = nn.silu

    @nn.nowrap
    def stage_names(self) -> tuple[str, ...]:
        """The names `stem`, `stage1`, `stage2`, `stage3` and `stage4`."""
        return layers.numbered_stages(len(STAGE_BLOCKS))

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> tuple[Array, ...]:
        """Maps of strides 8, 16 and 32 of images [B, H, W, C], whose sides are multiples of 32."""
        channels = int(STEM_CHANNELS * self.width)
        base_depth = max(round(3 * self.depth), 1)
        x = space_to_depth(x)
        x = self.conv_norm_act(x, channels, 3, "stem", train=self.stage_train(train, 0))
        x, maps = self.stop_frozen_gradient(x, 0, train), []
        for i, blocks in enumerate(STAGE_BLOCKS, 1):
            channels, last = 2 * channels, i == len(STAGE_BLOCKS)
            own_train = self.stage_train(train, i)
            options = {"depthwise": self.depthwise, "stride": 2, "train": own_train}
            x = self.conv_3x3(x, channels, f"stage{i}_halve", **options)
            if last:
                x = PyramidPooling(**self.shared_fields(), name=f"stage{i}_pool")(x, own_train)
            block = necks.C3(
                **self.shared_fields(),
                channels=channels,
                blocks=blocks * base_depth,
                depthwise=self.depthwise,
                shortcut=not last,
                name=f"stage{i}_csp",
            )
            x = self.stop_frozen_gradient(block(x, own_train), i, train)
            maps.append(x)
        return tuple(maps[1:])


class PyramidPooling(layers.ConvModule):
    """Spatial pyramid pooling: max pools of 5, 9 and 13 pixels beside their input (He et al. 2014).

    A 1x1 convolution before the pools halves the channels; another one after the pools restores
    their number.
    """

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """Map x [B, H, W, C] to the same shape."""
        channels = x.shape[-1]
        maps = [self.conv_norm_act(x, channels // 2, 1, "reduce", train=train)]
        for side in (5, 9, 13):  # a pool of 9 pixels is a pool of 5 after another, and so on
            maps.append(layers.max_pool(maps[-1], f"pool{side}", kernel=5, stride=1, padding=2))
        return self.conv_norm_act(layers.concatenate(*maps), channels, 1, "expand", train=train)


class PathAggregation(layers.ConvModule):
    """The neck: coarse maps are upsampled and joined to finer maps, then fine maps to coarser ones.

    Unlike in `necks.PAN`, each map keeps its own number of channels, and maps are concatenated in
    both directions.

    blocks: bottlenecks of each `C3` block.
    depthwise: whether 3x3 convolutions are separable.
    """

    blocks: int = 3
    depthwise: bool = False
    activation: layers.Activation = nn.silu

    @nn.compact
    def __call__(self, maps: Sequence[Array], train: bool = False) -> tuple[Array, ...]:
        """Maps [B, h, w, C], fine to coarse, to maps of the same shapes."""
        block = partial(
            necks.C3,
            **self.shared_fields(),
            blocks=self.blocks,
            depthwise=self.depthwise,
            shortcut=False,
        )
        kept, merged = [maps[-1]], maps[-1]  # `kept` goes from coarse to fine
        for i in reversed(range(1, len(maps))):
            finer = maps[i - 1]
            channels = finer.shape[-1]
            reduced = self.conv_norm_act(merged, channels, 1, f"reduce{i + 1}", train=train)
            kept[-1] = reduced
            larger = necks.upsample_nearest(reduced, finer.shape[1:3], f"enlarge{i + 1}")
            joined = layers.concatenate(larger, finer)
            merged = block(channels=channels, name=f"top_down{i}")(joined, train)
            kept.append(merged)
        outputs, (_, *reduced) = [merged], reversed(kept)
        for i, (finer, coarser) in enumerate(zip(maps[:-1], reduced, strict=True), 1):
            options = {"depthwise": self.depthwise, "stride": 2, "train": train}
            halved = self.conv_3x3(outputs[-1], finer.shape[-1], f"halve{i}", **options)
            joined = layers.concatenate(halved, coarser)
            channels = maps[i].shape[-1]
            outputs.append(block(channels=channels, name=f"bottom_up{i + 1}")(joined, train))
        return tuple(outputs)


def space_to_depth(x: Array) -> Array:
    """Map x [B, H, W, C] of even sides to [B, H / 2, W / 2, 4 C].

    The four pixels of a square follow each other column by column: top left, bottom left, top
    right, bottom right.
    """
    with jax.named_scope("space_to_depth"):
        squares = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return layers.concatenate(*squares)


def build(
    width: float,
    depth: float,
    depthwise: bool = False,
    *,
    classes: int = CLASSES,
    axis_name: str | None = None,
    frozen_stages: int = 0,
    freeze_bn: bool = False,
    **options: Any,
) -> Detector:
    """A YOLOX network for images whose sides are multiples of 32.

    width, depth, depthwise, frozen_stages, freeze_bn: see `CSPDarknet`.
    options: further fields of all `layers.ConvModule`s, see `layers.layer_options`.
    """
    shared = {**NORM, "depthwise": depthwise, **options}
    return Detector(
        backbone=partial(
            CSPDarknet,
            width=width,
            depth=depth,
            frozen_stages=frozen_stages,
            freeze_bn=freeze_bn,
            **shared,
        ),
        neck=partial(PathAggregation, blocks=round(3 * depth), **shared),
        head=partial(DecoupledHead, classes=classes, channels=int(HEAD_CHANNELS * width), **shared),
        center_offsets=True,
        axis_name=axis_name,
    )


Nano = partial(build, 0.25, 0.33, True)
Tiny = partial(build, 0.375, 0.33)
S = partial(build, 0.5, 0.33)
M = partial(build, 0.75, 0.67)
L = partial(build, 1.0, 1.0)
X = partial(build, 1.25, 1.33)

LEVELS, MAX_BLOCKS = (1, 2, 3), 12  # the latter of `X`
TORCH_MODULES = {  # of github.com/Megvii-BaseDetection/YOLOX
    "features/stem": "backbone.backbone.stem.conv",
    **{f"features/stage{i}_halve": f"backbone.backbone.dark{i + 1}.0" for i in (1, 2, 3, 4)},
    **{f"features/stage{i}_csp": f"backbone.backbone.dark{i + 1}.1" for i in (1, 2, 3)},
    "features/stage4_pool": "backbone.backbone.dark5.1",
    "features/stage4_csp": "backbone.backbone.dark5.2",
    "neck/reduce3": "backbone.lateral_conv0",
    "neck/top_down2": "backbone.C3_p4",
    "neck/reduce2": "backbone.reduce_conv1",
    "neck/top_down1": "backbone.C3_p3",
    "neck/halve1": "backbone.bu_conv2",
    "neck/bottom_up2": "backbone.C3_n3",
    "neck/halve2": "backbone.bu_conv1",
    "neck/bottom_up3": "backbone.C3_n4",
    **{f"head/level{i}_stem": f"head.stems.{i - 1}" for i in LEVELS},
    **{
        f"head/level{i}_class{j}": f"head.cls_convs.{i - 1}.{j - 1}" for i in LEVELS for j in (1, 2)
    },
    **{f"head/level{i}_box{j}": f"head.reg_convs.{i - 1}.{j - 1}" for i in LEVELS for j in (1, 2)},
    **{f"head/level{i}_classes": f"head.cls_preds.{i - 1}" for i in LEVELS},
    **{f"head/level{i}_sides": f"head.reg_preds.{i - 1}" for i in LEVELS},
    **{f"head/level{i}_objectness": f"head.obj_preds.{i - 1}" for i in LEVELS},
}
TORCH_LAYERS = {  # inside these modules
    **{"deep": "conv1", "around": "conv2", "out": "conv3"},
    **{"reduce": "conv1", "expand": "conv2"},
    **{"conv1": "conv1", "conv2": "conv2"},
    **{f"block{i}": f"m.{i - 1}" for i in range(1, MAX_BLOCKS + 1)},
}
SEPARABLE = {"_depthwise": "dconv", "_pointwise": "pconv"}  # halves of a separable convolution
CLASS_ARRAY = "head.cls_preds.0.bias"  # has one value per class


def torch_name(path: str) -> str:
    """Name of a variable in the published weights.

    `batch_stats/features/stage1_csp/block2/conv1_norm/mean` is
    `backbone.backbone.dark2.1.m.1.conv1.bn.running_mean`.
    """
    _, *modules, layer, leaf = path.split("/")
    parts = ["bn" if layer.endswith("_norm") else "conv"]
    layer = layer.removesuffix("_norm")
    for half, name in SEPARABLE.items():
        if layer.endswith(half):
            layer, parts = layer.removesuffix(half), [name, *parts]
    outer, inner = [*modules, layer][:2], [*modules, layer][2:]
    module = TORCH_MODULES["/".join(outer)]
    parts = [] if "_preds" in module else parts
    inside = [TORCH_LAYERS[name] for name in inner]
    return ".".join([module, *inside, *parts, pretrained.TORCH_LEAVES[leaf]])


def weight_map(network: Detector, arrays: Mapping[str, Array]) -> pretrained.WeightMap:
    """The `WeightMap` of the published weights, for the whole network."""
    classes = len(arrays[CLASS_ARRAY]) if CLASS_ARRAY in arrays else CLASSES
    return pretrained.WeightMap(torch_name, classes=classes)
