"""All models by name: how each is built, frozen and loaded from published weights.

    net = registry.get("resnet18").build(classes=10)
    features = registry.backbone("resnet18")(name="features")  # a Flax module that returns maps
    variables = registry.load_pretrained("resnet18", "hf:timm/resnet18.a1_in1k", variables)

Adding a model is one file in `jaxdet/models` and one line in `_SPECS`.  Constructors are given by
name and imported when they are used, so that listing the models imports neither jax nor flax.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jaxdet.errors import InputError

if TYPE_CHECKING:
    from flax import linen as nn

    from jaxdet.data.images import Letterbox
    from jaxdet.data.normalize import Normalization
    from jaxdet.types import Tree

Kind = Literal[
    "backbone", "detector", "staged", "localizer", "cifar", "classifier", "sliding", "cascade"
]


@dataclass(frozen=True)
class ModelSpec:
    """A row of the table of models.

    constructor: "module:name" of the model's constructor, or the constructor itself.
    kind: "backbone", a `layers.Freezable` that returns maps, fine to coarse, for classes=0;
      "detector", a whole `detector.Detector`; "staged", a backbone whose stages are options of the
      `faces` system; "localizer", built from a number of classes, which returns label and box;
      "cifar", a choice of the `cifar10` system; "classifier", any other classifier; "sliding", a
      window network; "cascade", a network of `mtcnn`, which has its own functions.
    weight_map: "module:name" of a function (network, arrays) -> `pretrained.WeightMap`; "" where
      there are no published weights.
    image_size: height and width, in pixels, of the images for which the model is described.
    normalization: "module:name" of the `Normalization` that its published weights expect.
    letterbox: "module:name" of the `Letterbox` that the published weights of a detector expect.
    classes: "module:name" of the class names of these weights.
    """

    name: str
    constructor: str | Callable[..., Any]
    kind: Kind
    weight_map: str = ""
    image_size: int = 224
    normalization: str = "jaxdet.data.normalize:IMAGENET"
    letterbox: str = "jaxdet.data.images:CENTERED"
    classes: str = ""

    def build(self, *args: Any, **fields: Any) -> "nn.Module":
        """Build the module with these fields."""
        return _resolve(self.constructor)(*args, **fields)


_RESNET = "jaxdet.models.resnet:weight_map"
_EFFICIENTNET = "jaxdet.models.efficientnet:weight_map"
_MOBILENET = "jaxdet.models.mobilenet:weight_map"
_CONVNEXT = "jaxdet.models.convnext:weight_map"
_LITE = "jaxdet.data.normalize:EFFICIENTNET_LITE"
_YOLOX = partial(
    ModelSpec,
    kind="detector",
    weight_map="jaxdet.models.yolox:weight_map",
    image_size=640,
    normalization="jaxdet.data.normalize:BGR_255",
    letterbox="jaxdet.data.images:TOP_LEFT",
    classes="jaxdet.data.coco:CLASSES",
)

_SPECS = (
    ModelSpec("lite0", "jaxdet.models.efficientnet:Lite0", "backbone", _EFFICIENTNET, 224, _LITE),
    ModelSpec("lite1", "jaxdet.models.efficientnet:Lite1", "backbone", _EFFICIENTNET, 240, _LITE),
    ModelSpec("lite2", "jaxdet.models.efficientnet:Lite2", "backbone", _EFFICIENTNET, 260, _LITE),
    ModelSpec("b0", "jaxdet.models.efficientnet:B0", "backbone", _EFFICIENTNET),
    ModelSpec("b1", "jaxdet.models.efficientnet:B1", "backbone", _EFFICIENTNET, 240),
    ModelSpec("b2", "jaxdet.models.efficientnet:B2", "backbone", _EFFICIENTNET, 260),
    ModelSpec("b3", "jaxdet.models.efficientnet:B3", "backbone", _EFFICIENTNET, 300),
    ModelSpec("resnet18", "jaxdet.models.resnet:ResNet18", "backbone", _RESNET),
    ModelSpec("resnet34", "jaxdet.models.resnet:ResNet34", "backbone", _RESNET),
    ModelSpec("resnet50", "jaxdet.models.resnet:ResNet50", "backbone", _RESNET),
    ModelSpec("mobilenet_v2", "jaxdet.models.mobilenet:V2", "backbone", _MOBILENET),
    ModelSpec("mobilenet_v3", "jaxdet.models.mobilenet:V3Large", "backbone", _MOBILENET),
    ModelSpec("mobilenet_v3_small", "jaxdet.models.mobilenet:V3Small", "backbone", _MOBILENET),
    ModelSpec("convnext_tiny", "jaxdet.models.convnext:Tiny", "backbone", _CONVNEXT),
    ModelSpec("convnext_small", "jaxdet.models.convnext:Small", "backbone", _CONVNEXT),
    _YOLOX("yolox_nano", "jaxdet.models.yolox:Nano", image_size=416),
    _YOLOX("yolox_tiny", "jaxdet.models.yolox:Tiny", image_size=416),
    _YOLOX("yolox_s", "jaxdet.models.yolox:S"),
    _YOLOX("yolox_m", "jaxdet.models.yolox:M"),
    _YOLOX("yolox_l", "jaxdet.models.yolox:L"),
    _YOLOX("yolox_x", "jaxdet.models.yolox:X"),
    ModelSpec("bottleneck", "jaxdet.models.inverted_residual:InvertedResidualNet", "staged"),
    ModelSpec("convnext", "jaxdet.models.convnext:Tiny", "staged"),
    ModelSpec("simple", "jaxdet.models.plain:simple", "localizer"),
    ModelSpec("deeper", "jaxdet.models.plain:deeper", "localizer"),
    ModelSpec("vgg", "jaxdet.models.plain:vgg", "localizer", "jaxdet.models.plain:vgg_weight_map"),
    ModelSpec("tutorial", "jaxdet.models.lenet:LeNet", "cifar", image_size=32),
    ModelSpec("doubled", "jaxdet.models.lenet:Doubled", "cifar", image_size=32),
    ModelSpec("extra_conv", "jaxdet.models.lenet:ExtraConv", "cifar", image_size=32),
    ModelSpec("extra_dense", "jaxdet.models.lenet:ExtraDense", "cifar", image_size=32),
    ModelSpec("extra_both", "jaxdet.models.lenet:ExtraBoth", "cifar", image_size=32),
    ModelSpec("two_3x3", "jaxdet.models.lenet:Smaller", "cifar", image_size=32),
    ModelSpec("inception", "jaxdet.models.lenet:Parallel", "cifar", image_size=32),
    ModelSpec("resnet20", "jaxdet.models.cifar:ResNet20", "cifar", image_size=32),
    ModelSpec("narrow", "jaxdet.models.cifar:Narrow", "cifar", image_size=32),
    ModelSpec("tiny", "jaxdet.models.cifar:Tiny", "cifar", image_size=32),
    ModelSpec("deep", "jaxdet.models.cifar:Deep", "cifar", image_size=32),
    ModelSpec("tiniest", "jaxdet.models.cifar:Tiniest", "cifar", image_size=32),
    ModelSpec("lenet", "jaxdet.models.lenet:LeNet", "classifier", image_size=32),
    ModelSpec("ng_sliding", "jaxdet.models.sliding:NgSlidingNet", "sliding", image_size=28),
    ModelSpec("ng_windows", "jaxdet.models.sliding:NgWindowNet", "sliding", image_size=14),
    ModelSpec("mtcnn_pnet", "jaxdet.models.mtcnn:PNet", "cascade", image_size=12),
    ModelSpec("mtcnn_rnet", "jaxdet.models.mtcnn:RNet", "cascade", image_size=24),
    ModelSpec("mtcnn_onet", "jaxdet.models.mtcnn:ONet", "cascade", image_size=48),
)
MODELS: dict[str, ModelSpec] = {spec.name: spec for spec in _SPECS}


def get(name: str) -> ModelSpec:
    """The `ModelSpec` called `name`; if unknown, InputError lists all names, nearest first."""
    if name not in MODELS:
        import difflib  # for this message only

        near = difflib.get_close_matches(name, MODELS, n=len(MODELS), cutoff=0.0)
        raise InputError(f"unknown model {name!r}; models, nearest first: {', '.join(near)}")
    return MODELS[name]


def names(*kinds: Kind) -> tuple[str, ...]:
    """Names of the models of these kinds, in the order of the table."""
    return tuple(name for name, spec in MODELS.items() if spec.kind in kinds)


def backbone(name: str, *, stages: int = 0) -> Callable[..., "nn.Module"]:
    """Constructor of a module that returns the feature maps of a model, fine to coarse.

    stages: number of stages that are built, counted from the first; 0 means all.
    For a localizer or a detector it is the constructor of its backbone.  Raises InputError for a
    model without a backbone.
    """
    spec = get(name)
    if spec.kind == "localizer":
        constructor = spec.build(1).features
    elif spec.kind == "detector":
        constructor = spec.build().backbone
    elif spec.kind in ("backbone", "staged"):
        constructor = partial(_resolve(spec.constructor), classes=0)
    else:
        known = ", ".join(names("backbone", "staged", "localizer"))
        raise InputError(f"{name} is not a backbone; backbones: {known}")
    return partial(constructor, **constructor().first_stages(stages)) if stages else constructor


def stage_names(name: str) -> tuple[str, ...]:
    """Names of the stages of a backbone that may be frozen, in order: `stem`, `stage1`, ..."""
    return backbone(name)().stage_names()


def frozen_stages(name: str, count: int, *, built: int = 0) -> tuple[str, ...]:
    """Names of the first `count` stages of a backbone; a count of -2 is all but the last two.

    built: number of stages of the backbone that are built, counted from the first; 0 means all.
    """
    return stage_names(name)[: built or None][:count]


def in_stages(layer: str, stages: Sequence[str]) -> bool:
    """Whether a layer, such as `stage1_block2`, belongs to one of these stages."""
    return any(layer == stage or layer.startswith(f"{stage}_") for stage in stages)


def lr_multiplier(
    frozen: Sequence[str], backbone_lr: float = 1.0, *, module: str = "features"
) -> Callable[[str], float] | None:
    """The function from the path of a parameter to the factor of its learning rate.

    The factor is 0 in the `frozen` stages of the backbone `module`, `backbone_lr` in its other
    stages, and 1 elsewhere.  None is returned if all factors are 1.
    """
    if not frozen and backbone_lr == 1:
        return None

    def factor(path: str) -> float:
        first, layer, *_ = path.split("/")
        if first != module:
            return 1.0
        return 0.0 if in_stages(layer, frozen) else backbone_lr

    return factor


def normalization(name: str) -> "Normalization":
    """The normalization that the published weights of a model expect."""
    return _resolve(get(name).normalization)


def letterbox(name: str) -> "Letterbox":
    """The letterbox that the published weights of a detector expect; centered for other models."""
    return _resolve(get(name).letterbox)


def is_detector(name: str) -> bool:
    """Whether a model is a whole detector rather than a backbone.  Raises InputError if unknown."""
    return get(name).kind == "detector"


def load_detector(name: str, source: str | Path) -> tuple["Tree", tuple[str, ...]]:
    """Variables of a detector with published weights, and the names of its classes.

    source: weight file or reference to one, see `pretrained.fetch`.  If it has another number of
    classes than the published weights, the classes are called `class 0`, `class 1` and so on.

    Raises InputError if the model is not a detector, or the weights do not fit.
    """
    import jax

    from jaxdet import pickles
    from jaxdet.models import pretrained

    if not is_detector(name):
        raise InputError(f"--model must be one of {', '.join(names('detector'))}, got {name}")
    spec, arrays = get(name), pickles.read_arrays(pretrained.fetch(source))
    weight_map = _resolve(spec.weight_map)(spec.build(), arrays)
    net = spec.build(classes=weight_map.classes)
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), "float32")
    shapes = jax.eval_shape(net.init, jax.random.key(0), images)
    variables = pretrained.assign_arrays(shapes, arrays, weight_map.names, source=source)
    published = _resolve(spec.classes)
    if len(published) == weight_map.classes:
        return variables, published
    return variables, tuple(f"class {i}" for i in range(weight_map.classes))


def load_pretrained(
    name: str,
    source: str | Path,
    variables: "Tree",
    *,
    module: str = "features",
    stages: int = 0,
    **fields: Any,
) -> "Tree":
    """The variables of a network, with published weights in its backbone.

    name: model of the backbone.
    source: weight file or reference to one, see `pretrained.fetch`.
    module: name of the backbone in the network; "" if the network itself is the backbone.
    stages: number of stages of the backbone that are built, counted from the first; 0 means all.
    fields: fields of the backbone that change the names in the file, such as `norm`.

    Raises InputError if there are no published weights for the model, or if the weights do not fit.
    """
    from jaxdet import pickles
    from jaxdet.models import pretrained

    spec = get(name)
    if not spec.weight_map:
        raise InputError(
            f"no pretrained weights for {name}; choose another --model, or omit --weights"
        )
    arrays = pickles.read_arrays(pretrained.fetch(source))
    net = backbone(name)(**fields)
    weight_map = _resolve(spec.weight_map)(net, arrays)
    later = _array_names_after(stages, net, weight_map.names) if stages else ()

    def array_name(path: str) -> str | None:
        collection, *modules = path.split("/")
        if module and modules.pop(0) != module:
            return None
        return weight_map.names("/".join([collection, *modules]))

    unused = (*pretrained.HEADS, *weight_map.heads, *later)
    return pretrained.assign_arrays(variables, arrays, array_name, unused=unused, source=source)


def _array_names_after(
    stages: int, net: Any, array_name: Callable[[str], str | None]
) -> tuple[str, ...]:
    """Names, in a weight file, of the variables of all stages after the first `stages`."""
    import jax

    images = jax.ShapeDtypeStruct((1, 64, 64, 3), "float32")
    variables = jax.eval_shape(net.init, jax.random.key(0), images)
    paths = [
        jax.tree_util.keystr(key_path, simple=True, separator="/")
        for key_path, _ in jax.tree.leaves_with_path(variables)
    ]
    left = net.stage_names()[stages:]
    named = [array_name(path) for path in paths if in_stages(path.split("/")[1], left)]
    return tuple(name for name in named if name is not None)


def _resolve(reference: str | Callable[..., Any]) -> Any:
    """The object that "module:name" refers to."""
    if not isinstance(reference, str):
        return reference
    module, _, name = reference.partition(":")
    return getattr(import_module(module), name)
