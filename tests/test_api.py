"""`jaxdet.api`: the numbers of the command line, and a pure function that jax can transform."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import jaxdet
from jaxdet import api, configs
from jaxdet.cli import predict as predict_command
from jaxdet.config import conform
from jaxdet.configs import detect, digits
from jaxdet.metrics.bootstrap import interval
from jaxdet.models import registry
from jaxdet.training import checkpoint, loop, run_dir
from tests import tiny
from tests.cli.test_main import main
from tests.cli.test_objects import answers
from tests.cli.test_without_data import MAKERS, WORDS, small  # noqa: F401 (a fixture)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A function that trains a run of a system, once, and returns its folder."""
    root = tmp_path_factory.mktemp("runs")

    def folder(system):
        data, run = root / "data" / system, root / system
        if not run.exists():
            data.parent.mkdir(exist_ok=True)
            MAKERS[system](data)
            words = ["--root", data, *WORDS[system], "--quiet", "--out", run]
            assert main("train", system, *words) == 0
        return run

    return folder


@pytest.fixture(scope="module", params=configs.SYSTEMS)
def run(request, folder):
    """A run of each system."""
    return jaxdet.load(folder(request.param))


@pytest.fixture(scope="module")
def cifar10(folder):
    return jaxdet.load(folder("cifar10"))


def assert_same_bits(found, expected):
    """Two trees of arrays have the same structure, types and bits."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


# predict, evaluate, embed: the numbers of the commands


@pytest.fixture(scope="module")
def image_files(tmp_path_factory):
    """{file: pixels} of a color, a grayscale and a transparent image, of three sizes."""
    folder, random = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    shapes = {"color": (70, 90, 3), "grey": (64, 60), "transparent": (80, 66, 4)}
    found = {}
    for name, shape in shapes.items():
        path = folder / f"{name}.png"
        found[path] = random.integers(0, 256, shape, np.uint8)
        Image.fromarray(found[path]).save(path)
    return found


FORMS = {  # what `predict` takes in place of a file
    "path": lambda path, pixels: path,
    "text": lambda path, pixels: str(path),
    "bytes": lambda path, pixels: path.read_bytes(),
    "PIL image": lambda path, pixels: Image.open(path),
    "uint8": lambda path, pixels: pixels,
    "float32": lambda path, pixels: np.float32(pixels) / 255,
    "float64": lambda path, pixels: pixels / 255,
    "jax": lambda path, pixels: jnp.asarray(pixels),
    "with channel": lambda path, pixels: pixels[..., None] if pixels.ndim == 2 else pixels,
}


def test_predictions_are_those_of_the_command(run, image_files, monkeypatch, capsys):
    shown, add = [], predict_command.Output.add

    def record(self, example, found):
        shown.append(found)
        add(self, example, found)

    monkeypatch.setattr(predict_command.Output, "add", record)
    words = ["predict", run.folder, *image_files, "--json"]
    if run.system == "detect":  # of which the command leaves out low scores
        words += ["--score-threshold", run.config.score_threshold]
    assert main(*words) == 0
    for name, form in FORMS.items():
        found = run.predict([form(*item) for item in image_files.items()])
        assert len(found) == len(image_files), name
        assert_same_bits(found, shown)
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    for prediction, line in zip(shown, printed, strict=True):
        if isinstance(prediction, jaxdet.Detections):
            names, objects = [run.classes[label] for label in prediction.labels], line["objects"]
        else:
            names, objects = [run.classes[prediction.label]], [line]
        assert [of["label"] for of in objects] == names


def test_one_image_gives_one_value_and_an_array_of_images_as_many(run, image_files):
    path, pixels = next(iter(image_files.items()))
    one = run.predict(path)
    assert isinstance(one, jaxdet.Detections | jaxdet.Localization | jaxdet.Classification)
    assert all(isinstance(column, np.ndarray | np.generic) for column in one)
    assert {str(column.dtype) for column in one} == {"float32", "int32"}
    assert_same_bits(run.predict([path])[0], one)
    assert_same_bits(run.predict(pixels), one)
    several = np.stack([pixels, pixels[::-1]])
    expected = run.predict([pixels, pixels[::-1]])
    assert_same_bits(run.predict(several), expected)
    assert_same_bits(run.predict(jnp.asarray(several)), expected)
    assert run.predict([]) == []


def test_scores_are_those_of_the_command(run):
    (printed,) = answers("eval", run.folder, "--split", "val")
    scores = json.loads(json.dumps(run.evaluate("val")))
    assert printed["step"] == run.step
    assert {name: printed[name] for name in scores} == scores


def test_embeddings_are_those_of_predict_fn(folder, image_files):
    run = jaxdet.load(folder("faces"))
    found = run.embed(list(image_files))
    images = np.stack([run.prepare(path).image for path in image_files])
    rows = run.predict_arrays(images, api.PREDICT_BATCH)
    np.testing.assert_array_equal(found, [row["embedding"] for row in rows])
    path, pixels = next(iter(image_files.items()))
    one = run.embed(path)
    np.testing.assert_array_equal(run.embed(pixels), one)
    np.testing.assert_array_equal(run.embed(pixels[None]), one[None])


@pytest.mark.parametrize(
    "system, image, other",
    [("digits", (60, 64), (72, 58)), ("cifar10", (40, 30, 3), None)],
)
def test_each_shape_of_input_is_compiled_once(folder, system, image, other, monkeypatch):
    """A jitted function is traced once per program."""
    run, traced = jaxdet.load(folder(system)), []
    predict = run.predict_fn()

    def traced_predict(variables, images):
        traced.append(images.shape)
        return predict(variables, images)

    monkeypatch.setattr(run, "predict_fn", lambda: traced_predict)
    image = np.zeros(image, np.uint8)
    run.predict([image] * 3)
    run.predict([image] * 17)
    assert len(traced) == 1 and traced[0][0] == api.PREDICT_BATCH
    run.predict(image)
    run.predict([image])
    assert len(traced) == 2 and traced[1] == (1, *traced[0][1:])
    if other:
        run.predict([image, np.zeros(other, np.uint8)])
        run.predict([np.zeros(other, np.uint8)] * 2)
        assert len(traced) == 3 and traced[2] != traced[0]


@pytest.mark.parametrize(
    "image, says",
    [
        ("gone.png", "gone.png: no such image"),
        (b"no image", "8 bytes: not a readable image"),
        (None, "an image must be a path, bytes, a PIL image or an array, got NoneType"),
        (7, "got int"),
        ({"image": 1}, "got dict"),
        (np.zeros((3, 40, 40), np.uint8), r"with C of 1, 3 or 4, got \(3, 40"),
        (np.zeros((40, 40, 2), np.uint8), r"got \(40, 40, 2\)"),
        (np.zeros((0, 40, 3), np.uint8), r"got \(0, 40, 3\)"),
        (np.zeros((1, 1, 40, 40, 3), np.uint8), r"got \(1, 1, 40, 40, 3\)"),
        (np.zeros((40, 40), np.int64), r"uint8 \(0..255\) or float .*, got int64"),
        (np.zeros((40, 40), bool), r"uint8 \(0..255\) or float .*, got bool"),
        (np.full((40, 40), 255.0), r"values in \[0, 1\], got .* to 255; pass uint8"),
        (np.full((40, 40), np.nan), r"values in \[0, 1\]"),
    ],
    ids=lambda x: x if isinstance(x, str) else type(x).__name__,
)
def test_images_of_other_kinds_are_refused(cifar10, image, says):
    for one in (image, [image]):
        with pytest.raises(jaxdet.InputError, match=says):
            cifar10.predict(one)


def test_wrong_arguments_are_named(cifar10, tmp_path):
    for call, says in {
        lambda: cifar10.predict(["a.png"], batch_size=0): "batch_size must be at least 1, got 0",
        lambda: cifar10.evaluate("tset"): "--split must be one of .*got tset",
        lambda: cifar10.evaluate("test", root=tmp_path / "gone"): "no CIFAR-10 in .*gone",
        lambda: cifar10.evaluate("test", sizze=3): "--sizze is not an option of cifar10",
        lambda: cifar10.evaluate("test", tta=3): "--tta must be true or false, got 3",
        lambda: cifar10.embed(["a.png"]): "need a run of faces, got a run of cifar10",
        cifar10.audit: "audit needs a run of detect, got a run of cifar10",
        lambda: cifar10.audit(top=0): "--top must be at least 1, got 0",
        cifar10.choose_threshold: "choose_threshold needs a run of detect, got a run of cifar10",
        lambda: cifar10.choose_threshold("best"): "must be f1, recall=R or precision=P",
        cifar10.chosen_thresholds: "cifar10 has no chosen thresholds; choose them with",
        lambda: cifar10.bootstrap(resamples=-1): "--bootstrap must be at least 0, got -1",
        lambda: cifar10.report(tmp_path): "exists; choose another --out, or give --overwrite",
        lambda: jaxdet.report([], tmp_path / "r.html"): "at least one run folder, got none",
        lambda: jaxdet.report([tmp_path / "none"], tmp_path / "r.html"): "none is not a run",
        lambda: jaxdet.load(tmp_path): "is not a run",
        lambda: jaxdet.load(tmp_path / "gone"): "gone is not a run",
        lambda: jaxdet.load(cifar10.folder, "frist"): "--checkpoint must be best, last or .*frist",
        lambda: jaxdet.load(cifar10.folder, 7): "--checkpoint must be .*got 7",
        lambda: jaxdet.load(cifar10.folder, topk=7): "--topk is not an option of cifar10",
    }.items():
        with pytest.raises(jaxdet.InputError, match=says):
            call()


@pytest.mark.parametrize(
    "config, says",
    [
        ({"epochs": 3}, "dict is not a configuration of digits, "),
        (digits, "module is not a configuration of digits, "),
        (digits.Config, "type is not a configuration of digits, "),
        (digits.Config(epochs="3"), '--epochs must be .*integer, got "3"'),
        (digits.Config(epochs=2.5), "--epochs must be .*integer, got 2.5"),
        (digits.Config(lr="fast"), '--lr must be .*number, got "fast"'),
        (digits.Config(eval_first=1), "--eval-first must be true or false, got 1"),
        (digits.Config(channels=8), "--channels must be a list, got 8"),
        (digits.Config(channels=(8, "9")), r'--channels\[1\] must be .*integer, got "9"'),
        (digits.Config(schedule="cosin"), '--schedule must be one of cosine, .*got "cosin"'),
        (digits.Config(epochs=-1), "--epochs must be at least"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_wrong_configurations_are_named(config, says, tmp_path):
    with pytest.raises(jaxdet.InputError, match=says):
        jaxdet.train(config, tmp_path / "run")
    assert not [*tmp_path.iterdir()]


def test_models_may_be_registered_after_the_configuration(monkeypatch, tmp_path):
    spec = registry.ModelSpec("own", "jaxdet.models.resnet:ResNet18", "backbone")
    monkeypatch.setitem(registry.MODELS, "own", spec)
    for model, says in {
        "own": str(tmp_path / "data"),
        "onw": "unknown model 'onw'; models, nearest first: own, ",
        "simple": "--model must be one of lite0, .*, own, got simple",
    }.items():
        config = detect.Config(root=str(tmp_path / "data"), model=model)
        with pytest.raises(jaxdet.InputError, match=says):
            jaxdet.train(config, tmp_path / "run")


@pytest.mark.parametrize("weights, says", [("gone.pth", "gone.pth"), ("package:x", "package:x")])
def test_missing_weights_are_named_before_the_data_are_read(weights, says, tmp_path, monkeypatch):
    monkeypatch.setattr(detect, "build", lambda config: pytest.fail("reads the data"))
    config = detect.Config(root=str(tmp_path))
    with pytest.raises(jaxdet.InputError, match=says):
        jaxdet.train(detect.Config(root=str(tmp_path), weights=weights), tmp_path / "run")
    with pytest.raises(jaxdet.InputError, match=says):
        jaxdet.train(config, tmp_path / "run", weights=weights)
    own = jaxdet.Experiment(task=None, splits={}, hparams={}, metadata={}, config=config)
    with pytest.raises(jaxdet.InputError, match="weights needs a configuration of a system"):
        jaxdet.train(own, tmp_path / "run", weights=weights)


def test_a_run_has_a_report_and_resampled_scores(cifar10, tmp_path):
    samples = cifar10.bootstrap("val", 20)
    assert {"accuracy"} <= samples.keys() and samples["accuracy"].shape == (20,)
    one = cifar10.report(tmp_path / "one.html", split="val", bootstrap=20)
    several = jaxdet.report([cifar10.folder], tmp_path / "a" / "b.html", split="val", bootstrap=0)
    texts = [path.read_text() for path in (one, several)]
    low, high = interval(samples["accuracy"])
    assert ["95% interval" in text for text in texts] == [True, False]
    assert f"{low:.4g} to {high:.4g}" in texts[0]


def test_lists_and_paths_are_values_of_a_configuration(tmp_path):
    config = detect.Config(root=tmp_path / "data", size=[64, 96], lr=1)
    found = conform(config)
    assert found == detect.Config(root=str(tmp_path / "data"), size=(64, 96), lr=1.0)
    with pytest.raises(jaxdet.InputError, match=str(tmp_path / "data")):
        jaxdet.train(config, tmp_path / "run")


# predict_fn under the transformations of jax


@pytest.fixture(scope="module")
def pure(run):
    """(predict_fn, variables, two images of the input's size, their predictions under jit)."""
    height, width, *_ = run.metadata["input"]
    random = np.random.default_rng(1)
    pixels = [random.integers(0, 256, (height, width, 3), np.uint8) for _ in range(2)]
    images = np.stack([run.prepare(one).image for one in pixels])
    fn, variables = run.predict_fn(), jax.tree.map(jnp.asarray, run.variables)
    return fn, variables, images, jax.jit(fn)(variables, images)


def test_predict_fn_under_jit_has_the_rows_of_predict(run, pure):
    """To the bit for the same variables; folded batch norms change the last digits."""
    fn, _, images, unfolded = pure
    expected = jax.jit(fn)(run.inference_variables, images)
    rows = run.predict_arrays(images, 2)
    assert rows[0].keys() == expected.keys()
    for name, column in expected.items():
        np.testing.assert_array_equal(np.stack([row[name] for row in rows]), column)
        np.testing.assert_allclose(column, unfolded[name], 1e-4, 1e-5)


def test_predict_fn_under_vmap_maps_batches(pure):
    fn, variables, images, expected = pure
    found = jax.jit(jax.vmap(fn, (None, 0)))(variables, np.stack([images, images[::-1]]))
    for name, column in expected.items():
        np.testing.assert_allclose(found[name][0], column, 1e-4, 1e-5, err_msg=name)
        np.testing.assert_allclose(found[name][1], column[::-1], 1e-4, 1e-5, err_msg=name)


def test_scores_have_gradients_by_images_and_variables(pure):
    fn, variables, images, expected = pure

    def total(params, images):
        found = fn({**variables, "params": params}, images)
        return found["scores" if "scores" in found else "score"].sum()

    params = variables["params"]
    value, (by_params, by_images) = jax.jit(jax.value_and_grad(total, (0, 1)))(params, images)
    np.testing.assert_allclose(
        value, sum(expected[name].sum() for name in ("score", "scores") if name in expected), 1e-5
    )
    assert jax.tree.structure(by_params) == jax.tree.structure(params)
    assert by_images.shape == images.shape
    for tree in (by_params, by_images):
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]
        assert all(np.isfinite(leaf).all() for leaf in leaves)
        assert any(leaf.any() for leaf in leaves)


def test_predict_fn_is_exported(pure):
    fn, variables, images, expected = pure
    exported = jax.export.export(jax.jit(fn))(variables, images)
    assert_same_bits(exported.call(variables, images), expected)


def test_an_exported_predict_fn_is_serialized(pure):
    pytest.importorskip("flatbuffers")
    fn, variables, images, expected = pure
    content = jax.export.export(jax.jit(fn))(variables, images).serialize()
    assert_same_bits(jax.export.deserialize(content).call(variables, images), expected)


# train


class Raise(jaxdet.Callback):
    """Raises at the second checkpoint."""

    def __init__(self):
        self.count = 0

    def on_checkpoint(self, event):
        """Count, and raise."""
        self.count += 1
        if self.count == 2:
            raise RuntimeError("from a callback")


def untimed_metrics(folder):
    """The lines of `metrics.jsonl`, without times."""
    return [{k: v for k, v in line.items() if k != "time"} for line in run_dir.read_metrics(folder)]


def test_a_callback_that_raises_leaves_a_run_that_is_resumed(tmp_path, monkeypatch):
    experiment, folder = tiny.experiment(), tmp_path / "run"
    compiled = loop.CompiledSteps(experiment)
    monkeypatch.setattr(loop, "CompiledSteps", lambda experiment: compiled)
    with pytest.raises(RuntimeError, match="from a callback"):
        jaxdet.train(experiment, folder, callbacks=[Raise()])
    assert not [*folder.rglob("*.partial")]
    steps = checkpoint.steps(folder)
    assert steps and [line["step"] for line in run_dir.read_metrics(folder)] == steps
    assert jaxdet.load(folder, "last").step == steps[-1]
    resumed = jaxdet.train(experiment, folder, resume=True)
    whole = jaxdet.train(experiment, tmp_path / "whole")
    assert checkpoint.steps(folder)[-1] > steps[-1]
    assert_same_bits(resumed.variables, whole.variables)
    assert untimed_metrics(folder) == untimed_metrics(tmp_path / "whole")


def test_folders_are_not_replaced_unless_that_is_asked_for(cifar10, tmp_path):
    run, notes = tmp_path / "run", tmp_path / "notes"
    shutil.copytree(cifar10.folder, run)
    notes.mkdir()
    (notes / "thesis.txt").touch()
    before = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}
    for folder, options in (
        (run, {}),
        (notes, {}),
        (notes, {"resume": True}),
        (notes, {"overwrite": True}),
    ):
        with pytest.raises(jaxdet.InputError, match=folder.name):
            jaxdet.train(cifar10.config, folder, **options)
    assert {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")} == before
