"""A published detector predicts, is evaluated and starts a training from its weight file alone."""

import json
import re
from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest
from PIL import Image

import jaxdet
from jaxdet import configs
from jaxdet.configs import detect
from jaxdet.data import coco
from jaxdet.data.normalize import normalize
from jaxdet.errors import InputError
from jaxdet.export import replay
from jaxdet.models import registry, yolox
from jaxdet.training.state import variable_shapes
from tests.cli.test_main import main
from tests.models.test_yolox import NAMES, formula

torch = pytest.importorskip("torch")
DOG, SIDE = coco.CLASSES.index("dog"), 64
SIZE = 40, 60  # height and width of the images


def value(name, shape):
    """A tensor of weights by which each cell of stride 32 sees a dog of 64 x 64 pixels."""
    if "_preds" not in name:
        return formula(name, shape)
    out = np.zeros(shape)
    if name == "head.obj_preds.2.bias":
        out += 2
    elif name.endswith("bias"):
        out += {"cls": -8, "reg": [0, 0, np.log(2), np.log(2)], "obj": -8}[name[5:8]]
    if "cls_preds" in name and name.endswith("bias"):
        out[DOG] = 3
    return out


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A checkpoint of yolox_nano as YOLOX writes it, with more than the network in it."""
    arrays = {n: torch.tensor(value(n, shape)).float() for n, shape in NAMES["nano"].items()}
    path = tmp_path_factory.mktemp("weights") / "yolox_nano.pth"
    optimizer = {"state": {}, "param_groups": [{"lr": 0.01}]}
    extra = {"start_epoch": 300, "best_ap": np.float64(0.258), "optimizer": optimizer}
    torch.save({"model": arrays, **extra}, path)
    return path


@pytest.fixture(scope="module", autouse=True)
def plain_convolutions():
    """The network with XLA's convolutions, which compile in half the time."""

    def nano(**options):
        return yolox.Nano(**{**options, "conv_general_dilated": None})

    with pytest.MonkeyPatch.context() as patch:
        spec = replace(registry.get("yolox_nano"), constructor=nano, image_size=SIDE)
        patch.setitem(registry.MODELS, "yolox_nano", spec)
        yield


def write_coco(root, categories, splits):
    """A COCO folder with a dog on the whole of each image."""
    (root / "annotations").mkdir(parents=True)
    numbers = {name: number for number, name in enumerate(categories, 1)}
    for split in splits:
        (root / split).mkdir()
        for i, pixels in enumerate(random_images(2)):
            Image.fromarray(pixels).save(root / split / f"{i}.png")
        box = {"bbox": [0, 0, SIZE[1], SIZE[0]], "category_id": numbers["dog"], "iscrowd": 0}
        content = {
            "images": [{"id": i, "file_name": f"{i}.png"} for i in range(2)],
            "annotations": [{**box, "id": i, "image_id": i} for i in range(2)],
            "categories": [{"id": number, "name": name} for name, number in numbers.items()],
        }
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root


def random_images(count):
    """Images of noise."""
    return np.random.default_rng(0).integers(0, 256, (count, *SIZE, 3), np.uint8)


def test_a_weight_file_is_a_run_that_predicts(weights):
    run = jaxdet.load_pretrained("yolox_nano", weights)
    assert run.classes == coco.CLASSES and run.config.size == (SIDE, SIDE)
    (image,) = random_images(1)
    found = run.predict(image)
    best = found.scores > 0.5
    np.testing.assert_allclose(found.scores[best], 1 / (1 + np.exp(-2)) / (1 + np.exp(-3)), 1e-5)
    assert found.labels[best].tolist() == [DOG] * 4
    scale = [60 / 64, 40 / 42] * 2  # the image has 64 x 42 pixels in the network's input
    expected = np.float32([[0, 0, 32, 32], [0, 0, 64, 32], [0, 0, 32, 64], [0, 0, 64, 64]]) * scale
    expected = np.minimum(expected, [60, 40, 60, 40])
    order = np.lexsort(found.boxes[best].T)
    np.testing.assert_allclose(found.boxes[best][order], expected[np.lexsort(expected.T)], 1e-5)


def test_images_are_prepared_as_published(weights):
    """At the top left, padded with 114, BGR, 0..255."""
    run = jaxdet.load_pretrained("yolox_nano", weights)
    (image,) = random_images(1)
    image[:] = [10, 20, 30]
    prepared = run.prepare(image)
    pixels = normalize(prepared.image[None], run.experiment.task.normalization)[0]
    np.testing.assert_allclose(pixels[:42], np.broadcast_to([30, 20, 10], (42, 64, 3)), 1e-5)
    np.testing.assert_allclose(pixels[42:], np.full((22, 64, 3), 114), 1e-5)
    assert not prepared.offset.any()


def test_predict_takes_a_weight_file_in_place_of_a_run(weights, tmp_path, capsys):
    image, results = tmp_path / "0.png", tmp_path / "results.json"
    Image.fromarray(random_images(1)[0]).save(image)
    published = ["--weights", weights, "--model", "yolox_nano"]
    assert main("predict", *published, image, "--classes", "dog", "--save-json", results) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if ".png " in line]
    assert lines and {(name, label) for name, label, *_ in lines} == {(str(image), "dog")}
    assert {one["category_id"] for one in json.loads(results.read_text())} == {18}  # COCO's dog
    for words, message in {
        ("predict", *published[:2], image): "--weights needs --model, one of yolox_nano, ",
        (
            "predict",
            *published[:3],
            "lite0",
            image,
        ): "--model must be one of yolox_nano,.* got lite0",
        ("eval", *published): "--root must name the data: .*yolox_nano.pth is a weight file",
    }.items():
        assert main(*words) == 2
        assert re.search(message, capsys.readouterr().err)


@pytest.mark.long
def test_export_takes_a_weight_file_with_the_letterbox_in_the_program(
    weights, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(replay, "run_process", replay.main)
    monkeypatch.setattr(replay, "SIZES", [(1, 1), (30, 9), (7, 160), (160, 150)])
    published = ["--weights", weights, "--model", "yolox_nano", "--format"]
    out = tmp_path / "dog.jaxdet"
    assert main("export", out, *published, "stablehlo") == 0
    assert re.search(r"replayed 16 images of noise.* scores differ", capsys.readouterr().out)
    images = [*random_images(1), np.zeros((90, 33, 3), np.uint8), np.zeros((9, 150, 3), np.uint8)]
    run, model = jaxdet.load_pretrained("yolox_nano", weights), jaxdet.load_exported(out)
    for expected, found in zip(run.predict(images), model.predict(images), strict=True):
        assert max(replay.difference(expected, found, score_threshold=0.01)) < 1e-3
    assert jaxdet.load(out).classes == coco.CLASSES
    assert main("export", tmp_path / "dog.onnx", *published, "onnx", "--nms", "true") == 0
    assert "scores differ by at most" in capsys.readouterr().out
    assert main("export", tmp_path / "dog", *published, "checkpoint") == 2
    assert "is not a run" in capsys.readouterr().err
    assert main("export", out, *published[:2], "--format", "onnx") == 2
    assert "--weights needs --model, one of" in capsys.readouterr().err


@pytest.mark.long
def test_eval_gives_the_scores_of_coco_on_some_of_the_classes(weights, tmp_path, capsys):
    root = write_coco(tmp_path / "data", ["cat", "dog"], ["val"])
    published = ["--weights", weights, "--model", "yolox_nano"]
    assert main("eval", *published, "--root", root, "--json") == 0
    scores = json.loads(capsys.readouterr().out)
    areas, counts = ("small", "medium", "large"), (1, 10, 100)
    names = ["map", "map50", "map75", *(f"map_{area}" for area in areas)]
    names += [f"recall{count}" for count in counts] + [f"recall_{area}" for area in areas]
    assert {*names} < scores.keys() and scores["recall100"] == 1
    assert scores["labels"]["dog"]["count"] == 2 and scores["labels"]["cat"]["count"] == 0
    assert main("eval", *published, "--choose-threshold", "f1") == 2
    assert "--choose-threshold needs a run, " in capsys.readouterr().err


def test_other_data_may_have_some_of_the_classes_and_no_training_images(tmp_path):
    root = write_coco(tmp_path / "data", ["dog", "cat"], ["val"])
    config = detect.Config(root=str(root), model="yolox_nano", size=(SIDE, SIDE))
    experiment = configs.build_external("detect", config, coco.CLASSES, tmp_path)
    assert experiment.metadata["classes"] == [*coco.CLASSES]
    assert "category_ids" not in experiment.metadata  # the data have ids for two classes only
    assert experiment.splits["val"].arrays["true_labels"].tolist() == [[DOG], [DOG]]
    with pytest.raises(InputError, match="must have training images, got only val$"):
        configs.build("detect", config)


def test_classes_may_be_named(weights, tmp_path):
    with pytest.raises(InputError, match="must be 80 names, one for each class of .*, got 2$"):
        jaxdet.load_pretrained("yolox_nano", weights, classes=["a", "b"])
    arrays = torch.load(weights, weights_only=False)["model"]
    few = {n: x[:3] if "cls_preds" in n else x for n, x in arrays.items()}
    torch.save(few, tmp_path / "few.pth")
    load = partial(jaxdet.load_pretrained, "yolox_nano", tmp_path / "few.pth")
    assert load().classes == ("class 0", "class 1", "class 2")
    assert load(classes="abc").classes == ("a", "b", "c")


def test_training_starts_with_the_outputs_of_common_classes(weights, tmp_path):
    root = write_coco(tmp_path / "data", ["widget", "dog"], ["train", "val"])
    config = detect.Config(
        root=str(root), model="yolox_nano", weights=str(weights), size=(SIDE, SIDE)
    )
    experiment = configs.build("detect", config)
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), variable_shapes(experiment))
    params = experiment.load_pretrained(zeros)["params"]
    assert params["head"]["level1_classes"]["bias"].tolist() == [0, 3]
    assert params["head"]["level3_objectness"]["bias"].tolist() == [2]
    summary = experiment.load_pretrained.summary(zeros)
    assert "classes: 1 kept (dog), 1 new (widget), 79 dropped (" in summary
    with pytest.raises(InputError, match="--neck pan has no effect with --model yolox_nano"):
        configs.build("detect", replace(config, neck="pan"))
