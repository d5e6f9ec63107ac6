"""Code blocks of README.md and docs/ run: Python as it is, commands on small data and networks."""

import importlib
import io
import re
import shlex
import shutil
from contextlib import redirect_stdout
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

import jaxdet
from benchmarks import all as all_benchmarks
from benchmarks import experiments
from jaxdet import api, configs
from jaxdet.configs import detect, faces
from jaxdet.export import replay
from jaxdet.models import plain, pretrained, registry
from jaxdet.models.detector import Detector
from jaxdet.training import parallel, time_budget
from tests import datasets, tiny
from tests.cli import test_detect, test_objects, test_verify
from tests.cli.test_main import main
from tests.data import test_face_detector
from tests.models import test_mtcnn
from tests.models.helpers import random_like, torch_arrays, variable_shapes

ROOT = Path(jaxdet.__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
GOLDENS = Path(__file__).parent / "goldens"
SHORT = {"epochs": 1, "batch": 64, "layout": "c6s4,p2", "channels": (8,), "fc_widths": (16,)}

NOT_RUN = {  # commands -> why they do not run here; the test that runs them as far as it can
    "bash scripts/run.sh": ("network", "test_run_script_trains_evaluates_and_draws"),
    "bash scripts/test.sh": ("these tests", "test_the_test_command_runs_pytest_on_the_checkout"),
    "bash scripts/gpu.sh": ("a GPU", "test_gpu_script_runs_rows_from_any_directory"),
    "sbatch scripts/train.sbatch": (
        "Slurm",
        "test_signalled_job_is_requeued_and_resumes_to_its_scores",
    ),
}
PRETRAINED = ["--weights", "package:lite0"]  # left out: the package is optional
BLOOD_CELLS = [  # left out: the small data have other classes
    ["--classes", "RBC", "WBC"],
    ["--classes", "RBC", "Platelets"],
]
SMALL = {  # options that are put after those of the page
    "digits": tiny.WORDS,
    "objects": [
        *("--size", "64", "--batch", "32", "--eval-batch", "16"),
        *("--transfer", "scratch"),  # which without weights must be
    ],
    "detect": [
        *("--size", "64", "96", "--batch", "2", "--eval-batch", "1", "--neck-channels", "8"),
        *("--freeze-stages", "0"),  # which without weights must be
    ],
    "cifar10": ["--batch", "16", "--eval-batch", "16"],
    "faces": ["--size", "32", "--batch", "8", "--eval-batch", "8"],
}
OF_DETECT = ("convert", "yolox_s")  # words of commands about detect that do not name it
OUTPUTS = {"--out", "--report", "--plots", "--save-dir", "--save-txt", "--save-json", "--figure"}
OUTPUTS |= {"--submit", "--json", "--markdown", "--plot"}


def blocks(text, language):
    """The fenced blocks of a page in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.S | re.M)


def scenarios():
    """{title: commands} of the bash blocks, in order: pages, and sections of the assignments."""
    found = {}
    for page in PAGES:
        for part in re.split(r"^## (?=Assignment)", page.read_text(), flags=re.M):
            lines = [
                line
                for block in blocks(part, "bash")
                for line in block.replace("\\\n", " ").splitlines()
            ]
            commands = [words for line in lines if (words := shlex.split(line, comments=True))]
            if commands:
                title = part.partition(":")[0] if part.startswith("Assignment") else page.name
                found[title] = commands
    return found


SCENARIOS = scenarios()
RUN = {
    title: run
    for title, commands in SCENARIOS.items()
    if (run := [words for words in commands if " ".join(words[:2]) not in NOT_RUN])
}


def test_every_block_runs():
    python = {page.name for page in PAGES if blocks(page.read_text(), "python")}
    assert python == {"README.md", "detection.md", "python.md", "runs.md", "sliding_windows.md"}
    assert {"README.md", "detection.md", "benchmarks.md", "Assignment 4"} < RUN.keys()
    languages = {
        word for page in PAGES for word in re.findall(r"^```(\w+)", page.read_text(), re.M)
    }
    assert languages == {"bash", "python"}


def test_commands_that_do_not_run_here_run_in_the_tests_of_the_scripts():
    commands = [" ".join(words[:2]) for part in SCENARIOS.values() for words in part]
    tests = (ROOT / "tests" / "test_scripts.py").read_text()
    for command, (_, test) in NOT_RUN.items():
        assert command in commands and (ROOT / command.split()[1]).is_file()
        assert f"def {test}(" in tests


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """{system: folder of its data}."""
    root, random = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    test_objects.write_objects(root / "objects", each=80)
    datasets.write_yolo(root / "detect")
    for kind in ("images", "labels"):
        shutil.copytree(root / "detect" / kind / "val", root / "detect" / kind / "test")
    with (root / "detect" / "data.yaml").open("a") as file:
        file.write("test: images/test\n")
    datasets.write_image_folder(root / "cifar10")
    for i in range(22):
        color = random.integers(0, 255, 3)
        for k in range(5):
            test_verify.face(root / "faces" / f"n{i:02d}" / f"{k}.png", color, 5 * i + k)
    return {system: root / system for system in configs.SYSTEMS}


@pytest.fixture
def small_networks(monkeypatch):
    """Networks that compile in no time, under the names of the real ones."""
    for name in ("simple", "deeper", "vgg"):
        monkeypatch.setattr(plain, name, test_objects.one_convolution)
    monkeypatch.setattr(faces, "_features", lambda config: test_verify.Features)
    small_detector(monkeypatch)
    with test_detect.small():
        yield


def small_detector(monkeypatch):
    """A detector of three convolutions in place of YOLOX-s."""
    parts = {"backbone": test_detect.Features, "neck": test_detect.Neck}

    def build(classes=2, frozen_stages=0, freeze_bn=False, **options):
        head = partial(test_detect.Head, classes=classes)
        return Detector(**parts, head=head, center_offsets=True)

    def weight_map(network, arrays):
        return pretrained.WeightMap(lambda path: path, classes=2)

    made = {"constructor": build, "weight_map": weight_map, "classes": datasets.CLASSES}
    spec = replace(registry.get("yolox_s"), image_size=64, **made)
    monkeypatch.setitem(registry.MODELS, "yolox_s", spec)


def write_small_detector(path):
    """Weights of this detector."""
    net = registry.get("yolox_s").build()
    arrays = torch_arrays(random_like(variable_shapes(net)), lambda name: name)
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, path)


def small_face_detector(monkeypatch, folder):
    """MTCNN with weights by which bright windows are faces, in place of the package's."""
    test_mtcnn.write_weights(folder, test_face_detector.value)
    monkeypatch.setattr(pretrained, "fetch_folder", lambda source: folder)


@pytest.fixture
def few_runs(monkeypatch):
    """One epoch of a time budget; two runs of an experiment and of a grid; two benchmarks.

    What they start as processes runs in this one.
    """
    plan_epochs = time_budget.plan_epochs

    def plan_one_epoch(*arguments):
        planned = plan_epochs(*arguments)
        assert planned.config.epochs > 1
        return tiny.replace(planned, config=tiny.replace(planned.config, epochs=1))

    def run_here(*words):
        out = io.StringIO()
        with redirect_stdout(out):
            assert main(*_words_of_jaxdet([*words])) == 0
        return out.getvalue()

    def run_module_here(words, environment):
        _, module, *options = words
        return importlib.import_module(module).main(options) and "failed"

    monkeypatch.setattr(all_benchmarks, "NAMES", ("flops", "target_encoding"))
    monkeypatch.setattr(all_benchmarks, "run_python", run_module_here)
    monkeypatch.setattr(time_budget, "plan_epochs", plan_one_epoch)
    monkeypatch.setattr(time_budget.Clock, "plan_epochs", lambda clock, done, planned: planned)
    monkeypatch.setattr(experiments, "jaxdet", run_here)
    for name, experiment in experiments.EXPERIMENTS.items():
        cut = experiment._replace(runs=experiment.runs[:2])
        monkeypatch.setitem(experiments.EXPERIMENTS, name, cut)
    for system in configs.SYSTEMS:
        grids = configs.config(system).GRIDS
        for name, grid in grids.items():
            if not isinstance(grid, str):
                monkeypatch.setitem(grids, name, grid[:2])
    monkeypatch.setitem(detect.Config.GRIDS, "ablation", "--neck fpn pan --nms-type hard linear")


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("title", RUN)
def test_commands_run(title, data, small_networks, few_runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    for name in ("images/a.jpg", "canvas.png"):
        Image.fromarray(np.zeros((40, 56, 3), np.uint8)).save(name)
    write_small_detector("yolox_s.pth")
    small_face_detector(monkeypatch, tmp_path / "mtcnn")
    for words in RUN[title]:
        words = [str(data[_system(words)]) if word == "DIR" else word for word in words]
        for name in {"runs/a", "runs/b"} & {*words}:
            shutil.copytree("runs/detect", name, dirs_exist_ok=True)
        if "train" not in words and "runs/digits" in words and not Path("runs/digits").exists():
            shutil.copytree(GOLDENS / "schema2" / "digits", "runs/digits")  # made by run.sh
        match words:
            case ["jaxdet", *words]:
                code = main(*_words_of_jaxdet(words))
            case ["python", "-m", module, *words]:
                quick = all_benchmarks.QUICK_OPTIONS.get(module.partition(".")[2], "")
                code = importlib.import_module(module).main([*words, *quick.split()])
            case _:
                raise AssertionError(f"unknown command {shlex.join(words)}")
        assert not code, words
        for option, value in zip(words, words[1:], strict=False):
            assert option not in OUTPUTS or value.startswith("--") or Path(value).exists(), words


def _system(words):
    """The system that a command is about."""
    systems = {name: one.system for name, one in experiments.EXPERIMENTS.items()}
    named = [(systems | dict.fromkeys(OF_DETECT, "detect")).get(word, word) for word in words]
    return next((word for word in named if word in configs.SYSTEMS), "faces")


def _words_of_jaxdet(words):
    """The words of a command, with few epochs, small images and one device."""
    match words:
        case ["train" | "sweep", system, *_] | ["data", "preview", system, *_]:
            small = SMALL[system]
            if "yolox_s" in words:  # which has a neck of its own
                small = _without(small, ["--neck-channels", "8"])
            for left_out in (PRETRAINED, *BLOOD_CELLS):
                words = _without(words, left_out)
            words = [*words, *small, "--devices", "1"]
            if words[0] == "data":
                return [*words, "--count", "2"]
            return [*_with_few_epochs(words), "--warmup", "0", "--quiet"]
    return words


def _without(words, part):
    """The words without one part of them."""
    size = len(part)
    starts = [i for i in range(len(words)) if words[i : i + size] == part]
    return words[: starts[0]] + words[starts[0] + size :] if starts else words


def _with_few_epochs(words):
    """The words with 1, 2, ... epochs in place of the given ones."""
    words = [*words]
    if "--epochs" not in words:
        return [*words, "--epochs", "1"]
    for few, i in enumerate(range(words.index("--epochs") + 1, len(words)), 1):
        if words[i].startswith("--"):
            break
        words[i] = str(few)
    return words


@pytest.fixture
def examples(tmp_path, monkeypatch):
    """A folder with the images and the run that examples name; trainings are cut short."""
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 255, (40, 56, 3), np.uint8)
    for name in ("a.jpg", "b.jpg"):
        Image.fromarray(pixels).save(name)
    monkeypatch.setattr(registry, "MODELS", dict(registry.MODELS))
    monkeypatch.setattr(parallel, "local_devices", lambda count=0: jax.local_devices()[:1])
    return tmp_path


def python(page):
    """The Python blocks of a page."""
    return blocks((ROOT / page).read_text(), "python")


@pytest.mark.long
def test_the_python_of_the_readme_runs(examples, monkeypatch):
    train = api.train

    def short(config, folder, **options):
        return train(tiny.replace(config, **SHORT, window=40), folder, **options)

    monkeypatch.setattr(api, "train", short)
    (code,) = python("README.md")
    namespace = {}
    for _ in range(2):  # a second time too
        exec(code, namespace)
    assert namespace["image"].shape == (64, 64)
    assert [path.name for path in (examples / "runs").iterdir()] == ["scans"]  # `run.sh`: digits


@pytest.mark.long
def test_the_python_of_the_api_page_runs(examples, monkeypatch):
    small_detector(monkeypatch)
    write_small_detector("yolox_s.pth")
    small_face_detector(monkeypatch, examples / "mtcnn")
    code = python("docs/python.md")
    namespace = {}
    for block in code:
        exec(block, namespace)
    assert namespace["shape"] == (1, 64, 96, 3)
    assert {path.name for path in (examples / "runs").iterdir()} >= {"own-data", "regression"}


@pytest.mark.long
def test_the_python_of_the_detection_page_runs(examples, monkeypatch, capsys):
    load = api.load
    shutil.copytree(GOLDENS / "schema1" / "detect", "runs/detect")

    def golden(folder, *_, **options):
        changed = {"score_threshold": 0.0, "root": str(GOLDENS / "data" / "detect")}
        return load(folder, "last", **options | changed)

    monkeypatch.setattr(api, "load", golden)
    monkeypatch.setattr(replay, "run_process", replay.main)
    predicting, methods, exported = python("docs/detection.md")
    exec(predicting, {})
    assert {line.split()[0] for line in capsys.readouterr().out.splitlines()} == {"a.jpg", "b.jpg"}
    exec(methods, {})
    written = {path.name for path in examples.iterdir()}
    assert {"audit.csv", "audit.png", "report.html"} <= written
    assert (examples / "runs" / "detect" / "thresholds.json").is_file()
    capsys.readouterr()
    golden("runs/detect").export("detector.jaxdet", "stablehlo")
    exec(exported, {})
    assert capsys.readouterr().out.count("array([") > 2


def test_the_python_of_the_page_on_sliding_windows_runs():
    (code,) = python("docs/sliding_windows.md")
    exec(code, {})


@pytest.mark.long
def test_the_python_of_the_page_on_runs_runs(examples):
    shutil.copytree(GOLDENS / "schema2" / "digits", examples / "runs" / "digits")
    namespace = {}
    for block in python("docs/runs.md"):
        exec(block, namespace)
    assert namespace["variables"]["params"].keys() == namespace["before"].variables["params"].keys()
    assert (examples / "runs" / "continued" / "config.json").is_file()
    assert namespace["after"].step > 0
