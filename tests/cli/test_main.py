import json
import os
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import jaxdet
from jaxdet import configs
from jaxdet.cli import flags, options
from jaxdet.cli import main as cli
from jaxdet.errors import InputError
from jaxdet.training import checkpoint, evaluator, run_dir
from tests import tiny

TRAIN = ["train", "digits", *tiny.WORDS]
PNG = b"\x89PNG"


@contextmanager
def own_environment():
    """Restore the flags that commands set for their process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "environ", os.environ.copy())
        yield


def main(*words):
    """Exit code of a command, run in this process."""
    with own_environment():
        try:
            return cli.main([str(word) for word in words])
        except SystemExit as end:
            return end.code
        except SystemError as error:  # CPython 3.11 where two threads parse, gh-106905: once more
            if "AST constructor" not in str(error):
                raise
            return cli.main([str(word) for word in words])


@pytest.fixture(scope="module", autouse=True)
def few_digits():
    """Epochs of three steps."""
    with tiny.few_digits():
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    run = tmp_path_factory.mktemp("trained") / "run"
    assert main(*TRAIN, "--out", run, "--quiet") == 0
    return run


def idx(path, array):
    """Write an array of bytes as an idx file."""
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(header + array.tobytes())


def mnist(folder, rows=60):
    """MNIST's four files, of blank digits."""
    folder.mkdir()
    for part in ("train", "t10k"):
        idx(folder / f"{part}-images-idx3-ubyte", np.full((rows, 28, 28), 9, np.uint8))
        idx(folder / f"{part}-labels-idx1-ubyte", np.zeros(rows, np.uint8))


@pytest.fixture
def place(trained, tmp_path, monkeypatch):
    """The working folder, with a valid run and with everything that tests need to go wrong."""
    monkeypatch.chdir(tmp_path)
    for name in ("run", "bare", "newer", "cut"):
        shutil.copytree(trained, name)
    shutil.rmtree("bare/checkpoints")
    kept = json.loads((tmp_path / "newer" / "config.json").read_text())
    kept["config"]["color"] = "blue"
    (tmp_path / "newer" / "config.json").write_text(json.dumps(kept))
    (tmp_path / "cut" / "config.json").write_text("{")
    for name in ("empty", "notes"):
        (tmp_path / name).mkdir()
    (tmp_path / "notes" / "thesis.txt").write_text("all of it")
    (tmp_path / "text.png").write_text("no picture")
    Image.new("L", (20, 60)).save("small.png")
    for name in ("truncated", "magic", "counts"):
        mnist(tmp_path / name)
    images = tmp_path / "truncated" / "train-images-idx3-ubyte"
    images.write_bytes(images.read_bytes()[:-1])
    (tmp_path / "magic" / "train-images-idx3-ubyte").write_bytes(b"GIF89a" * 9)
    idx(tmp_path / "counts" / "train-labels-idx1-ubyte", np.zeros(59, np.uint8))
    return tmp_path


def parse_aligned(text):
    """The tables of aligned columns in a text: lists of rows {heading: cell}."""
    lines, found = text.split("\n"), []
    for i, line in enumerate(lines):
        if i and line and set(line) == {"-", " "}:
            spans = [match.span() for match in re.finditer("-+", line)]
            end = next((j for j in range(i, len(lines)) if not lines[j]), len(lines))
            found.append(
                [
                    {lines[i - 1][a:b].strip(): row[a:b].strip() for a, b in spans}
                    for row in lines[i + 1 : end]
                ]
            )
    return found


def files(folder):
    """Every path below a folder, and the bytes of the files."""
    return {str(p): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


REFUSED = {
    "no command": (["foo"], "no command 'foo'; "),
    "no such command": (["trian", "digits"], "no command 'trian' .did you mean train[?].; "),
    "no command of data": (["data", "inspct", "detect"], "no command 'data inspct'; usage: "),
    "no command of verify": (["verify", "par", "run"], "no command 'verify par'; usage: "),
    "no system": (["train", "digit"], "'digit'.*digits"),
    "no system to preview": (["data", "preview", "digit"], "'digit'.*digits"),
    "data folder missing": (
        [*TRAIN, "--source", "mnist", "--root", "gone"],
        "gone: no such folder",
    ),
    "data folder not given": ([*TRAIN, "--source", "mnist"], "root"),
    "data folder empty": ([*TRAIN, "--source", "mnist", "--root", "empty"], "the folder is empty"),
    "data unknown": (
        [*TRAIN, "--source", "svhn"],
        "--source must be embedded.*mnist.*tfds.*'svhn'",
    ),
    "idx truncated": (
        [*TRAIN, "--source", "mnist", "--root", "truncated"],
        "images.*: is truncated; its header announces 47056 bytes, got 47055",
    ),
    "idx magic": (
        [*TRAIN, "--source", "mnist", "--root", "magic"],
        "must begin with 00 00.*got 47 49 46",
    ),
    "idx counts": (
        [*TRAIN, "--source", "mnist", "--root", "counts"],
        r"labels must be \[60\].*got \[59\]",
    ),
    "canvas": ([*TRAIN, "--canvas", "30"], "30 x 30 pixels is smaller than the 34 x 34 window"),
    "canvas for a digit": ([*TRAIN, "--canvas", "40"], "canvas must be at least 52 pixels, got 40"),
    "window": ([*TRAIN, "--window", "5"], "window must be larger, got 5 pixels"),
    "stages": ([*TRAIN, "--layout", "c6s4,q2"], "--layout: layers must be .*'q2'"),
    "widths": (
        [*TRAIN, "--channels", "8", "8"],
        "--channels must be one value for each of 1 convolutions, got",
    ),
    "no width": ([*TRAIN, "--channels", "0"], "each value of --channels must be at least 1, got 0"),
    "batch": (
        [*TRAIN, "--devices", "4", "--batch", "63"],
        "--batch must be a positive multiple of 4.*got 63",
    ),
    "eval batch": (
        [*TRAIN, "--devices", "4", "--eval-batch", "99"],
        "--eval-batch must be a positive multiple of 4.*got 99",
    ),
    "many devices": (
        [*TRAIN, "--devices", "64"],
        "--devices must be from 0 .all. to 4, the number.*got 64",
    ),
    "epochs": ([*TRAIN, "--epochs", "0"], "--epochs must be at least 1, got 0"),
    "epochs unevaluated": (
        [*TRAIN, "--epochs", "0", "--no-eval-first"],
        "--epochs must be at least 1, got 0",
    ),
    "accumulate": ([*TRAIN, "--accumulate", "0"], "--accumulate must be at least 1, got 0"),
    "ema": ([*TRAIN, "--ema", "1"], "--ema must be below 1.*got 1"),
    **{
        f"negative {name}": ([*TRAIN, f"--{name}", "-1"], f"--{name} must be at least .*got -1")
        for name in (
            *("epochs", "batch", "eval-batch", "devices", "lr", "warmup", "lr-decay", "momentum"),
            *("weight-decay", "clip", "accumulate", "ema", "seed", "patience", "save-minutes"),
        )
    },
    "run exists": ([*TRAIN, "--out", "run"], "run exists; .*--resume.*--overwrite"),
    "no run to overwrite": ([*TRAIN, "--out", "notes", "--overwrite"], "notes is not a run"),
    "no run to resume": ([*TRAIN, "--out", "notes", "--resume"], "notes is not a run"),
    "overwrite with a bad batch": (
        [*TRAIN, "--out", "run", "--overwrite", "--devices", "4", "--batch", "63"],
        "--batch must be .*got 63",
    ),
    "overwrite with a bad canvas": (
        [*TRAIN, "--out", "run", "--overwrite", "--canvas", "40"],
        "canvas must be at least 52 pixels, got 40",
    ),
    "resume with another flag": (
        ["train", "digits", "--out", "run", "--resume", "--lr", "9"],
        "--lr",
    ),
    "resume of another version": (["train", "digits", "--out", "newer", "--resume"], "color"),
    "eval without checkpoints": (["eval", "bare"], "bare has no checkpoints; train it"),
    "predict without checkpoints": (["predict", "bare"], "bare has no checkpoints; train it"),
    "eval of no run": (["eval", "notes"], "notes is not a run"),
    "eval of nothing": (["eval", "gone"], "gone is not a run"),
    "predict of no run": (["predict", "notes"], "notes is not a run"),
    "eval of another version": (["eval", "newer"], "newer/config.json.*color.*version"),
    "predict of another version": (["predict", "newer"], "newer/config.json.*color.*version"),
    "eval of a cut configuration": (["eval", "cut"], "cut/config.json"),
    "step": (["eval", "run", "--checkpoint", "7"], r"--checkpoint must be .*\d.*got 7"),
    "step of predict": (
        ["predict", "run", "--checkpoint", "first"],
        r"--checkpoint must be .*\d.*got first",
    ),
    "split": (
        ["eval", "run", "--split", "tset"],
        "--split must be one of train, val, test.*got tset",
    ),
    "no image": (["predict", "run", "gone.png"], "gone.png: no such image"),
    "unreadable image": (["predict", "run", "text.png"], "text.png: not a readable image"),
    "small image": (["predict", "run", "small.png"], "60 x 20"),
    "small canvas": (["predict", "run", "--canvas", "30"], "30 x 30"),
    "negative canvas": (["predict", "run", "--canvas", "-5"], "-5"),
    "no samples": (
        ["predict", "run", "--count", "0", "--figure", "new.png"],
        "--count must be at least 1, got 0",
    ),
    "picture": (
        ["predict", "run", "--count", "1", "--figure", "new.xyz"],
        "must end in .*got new.xyz",
    ),
    "data of an embedded source": (["eval", "run", "--root", "empty"], "empty"),
    "no preview": (
        ["data", "preview", "digits", "--count", "-1"],
        "--count must be at least 1, got -1",
    ),
}


@pytest.mark.timeout(60, func_only=True)
@pytest.mark.parametrize("words, says", REFUSED.values(), ids=REFUSED)
def test_invalid_input_is_one_line_and_changes_nothing(place, capfd, words, says):
    before = files(place)
    assert main(*words) == 2
    out, err = capfd.readouterr()
    assert re.fullmatch(f"jaxdet: error: .*{says}.*\n", err), err
    assert out == ""
    assert files(place) == before


@pytest.mark.parametrize(
    "words, says",
    [
        ([*TRAIN, "--epochz", "3"], "--epochs"),
        ([*TRAIN, "--best", "nope"], "accuracy"),
        ([*TRAIN, "--epochs", "many"], "--epochs"),
        ([*TRAIN, "--quiet", "False"], "False"),
        (["eval", "run", "--chekpoint", "last"], "--checkpoint"),
        (["eval"], "run"),
        (["predict"], "run"),
    ],
    ids=lambda words: " ".join(words[-2:]) if isinstance(words, list) else "",
)
def test_unknown_options_and_values_are_refused_with_the_valid_ones(place, capsys, words, says):
    before = files(place)
    assert main(*words) == 2
    assert says in capsys.readouterr().err
    assert files(place) == before


names = st.sampled_from(["--on", "--no-on", "--two-words", "--no-two-words", "--two_words"])
values = st.sampled_from(["true", "false", "3", "-1", "on", "", "--other", "--no-other"])
BOOLEANS = {"on", "two-words"}


@given(st.lists(names | values))
def test_expanding_booleans_twice_is_expanding_them_once(words):
    once = flags.expand_booleans(words, BOOLEANS)
    assert flags.expand_booleans(once, BOOLEANS) == once


@given(st.lists(values))
def test_words_without_a_boolean_are_unchanged(words):
    assert flags.expand_booleans(words, BOOLEANS) == words


@given(st.lists(names | values), names, st.lists(names | values))
def test_expansion_of_a_boolean_does_not_depend_on_its_position(before, name, after):
    whole = flags.expand_booleans([*before, name, "--other", *after], BOOLEANS)
    expected = flags.expand_booleans([name], BOOLEANS)
    at = len(flags.expand_booleans([*before, "--other"], BOOLEANS)) - 1
    assert whole[at : at + 2] == expected


@pytest.mark.parametrize(
    "words, meant",
    [
        ([], []),
        (["--on"], ["--on", "true"]),
        (["--no-on"], ["--on", "false"]),
        (["--on", "false"], ["--on", "false"]),
        (["--on", "--two-words"], ["--on", "true", "--two-words", "true"]),
        (["--no-two-words", "a"], ["--two-words", "false", "a"]),
        (["a", "--on", "b"], ["a", "--on", "true", "b"]),
    ],
)
def test_expanded_booleans(words, meant):
    assert flags.expand_booleans(words, BOOLEANS) == meant


def test_hiding_options_leaves_the_original_as_it_was():
    before = {field.name: field.type for field in fields(options.Predict)}
    flags.hide(options.Predict, ["align_faces"])
    assert {field.name: field.type for field in fields(options.Predict)} == before
    assert "align-faces" in flags.boolean_options(options.Predict)


@pytest.mark.parametrize(
    "words, value",
    [
        ([], False),
        (["--bfloat16"], True),
        (["--bfloat16", "true"], True),
        (["--bfloat16=true"], True),
        (["--bfloat16", "false"], False),
        (["--no-bfloat16"], False),
        (["--bfloat16", "--no-bfloat16"], False),
    ],
    ids=str,
)
def test_a_boolean_is_true_false_or_a_flag(words, value):
    defaults = (options.Train(), configs.config("digits")())
    assert flags.parse_with_config("train digits", words, defaults)[1].bfloat16 is value


def test_lists_are_separated_by_spaces():
    defaults = (options.Train(), configs.config("digits")())
    _, config = flags.parse_with_config(
        "train digits", ["--channels", "4", "5", "--lr", "1"], defaults
    )
    assert (config.channels, config.lr) == ((4, 5), 1.0)


HELP = [
    *([], ["--help"], ["eval", "--help"], ["predict", "--help"], ["verify", "dev", "--help"]),
    *(["train", system, "--help"] for system in configs.SYSTEMS),  # jax reads its flags once
]


def test_help_does_not_import_jax():
    code = (
        "import json, sys\n"
        "from jaxdet.cli import main as cli\n"
        "for words in json.loads(sys.argv[1]):\n"
        "    print('help:', *words)\n"
        "    try: cli.main(words)\n"
        "    except SystemExit as end: assert not end.code, words\n"
        "    found = {'jax', 'jaxlib', 'numpy', 'matplotlib'} & set(sys.modules)\n"
        "    assert not found, (words, found)\n"
    )
    command = [sys.executable, "-c", code, json.dumps(HELP)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    _, *shown = done.stdout.split("help:")
    assert len(shown) == len(HELP) and all("jaxdet" in text for text in shown)


@pytest.mark.parametrize("words", [["--help"], ["train", "digits", "--help"]], ids=" ".join)
def test_help_takes_less_than_half_a_second(words):
    """In calls of functions, which unlike seconds do not depend on what else the machine does.

    On two quiet cores 320,000 calls took 0.43 s; `benchmarks.startup` measures seconds.
    """
    code = (
        "import cProfile, pstats, sys\n"
        "def show_help():\n"
        "    from jaxdet.cli import main as cli\n"
        "    return cli.main(sys.argv[1:])\n"
        "profile = cProfile.Profile()\n"
        "try: profile.runcall(show_help)\n"
        "except SystemExit as end: assert not end.code\n"
        "print(pstats.Stats(profile).total_calls)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert int(done.stdout.splitlines()[-1]) < 320_000 / 0.43 * 0.5, done.stderr


def test_help_names_every_option_of_a_system(capsys):
    assert main("train", "digits", "--help") == 0
    printed = capsys.readouterr().out
    for field in fields(configs.config("digits")):
        assert f"--{field.name.replace('_', '-')} " in printed


@pytest.mark.parametrize("system", configs.SYSTEMS)
def test_help_lists_the_scores_that_select_the_best_checkpoint(system):
    kind = configs.config(system)
    scores = get_args(get_type_hints(kind)["best"])
    assert kind().best in scores and "loss" not in scores


@pytest.mark.parametrize("command", ["train", "sweep", "data", "verify"])
@pytest.mark.parametrize("word", ["--help", "-h"])
def test_commands_without_a_second_word_have_help(capsys, command, word):
    assert main(command, word) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"usage: jaxdet {command} ") and not err
    assert (", ".join(configs.SYSTEMS) in out) == (command != "verify")


RENAMED = {
    "--cut-val is now --val-fraction": ["data", "split", "objects", "--cut-val", ".2"],
    "--on-bad-row is now --on-invalid": ["data", "inspect", "objects", "--on-bad-row", "skip"],
    "--score is now --score-threshold": ["eval", "run", "--score", ".1"],
    "--nms-kind is now --nms-type": ["predict", "run", "--nms-kind", "wbf"],
    "--score is now --window-selection": ["train", "digits", "--score", "product"],
    "--most is now --max-detections": ["train", "detect", "--most=9"],
    "--fixed-norm is now --freeze-bn": ["data", "preview", "faces", "--fixed-norm"],
    "--no-fixed-norm is now --freeze-bn": ["train", "faces", "--no-fixed-norm"],
    "--together is now --vmap": ["sweep", "digits", "--lr", "1", "2", "--together", "yes"],
    "--strangers is now --unknown-identities": ["data", "verification", "--strangers", "3"],
}


@pytest.mark.parametrize("says, words", RENAMED.items(), ids=RENAMED)
def test_former_options_are_refused_with_their_present_names(place, capfd, says, words):
    before = files(place)
    assert main(*words) == 2
    assert capfd.readouterr() == ("", f"jaxdet: error: {says}\n")
    assert files(place) == before


OTHER_TOOLS = {
    "--imgsz is --size here": ["train", "detect", "--imgsz", "640"],
    "--data is --root here": ["train", "detect", "--data=data.yaml"],
    "imgsz is --size here": ["train", "detect", "imgsz=640"],
    "epochs is --epochs here": ["train", "cifar10", "epochs=3"],
    "--batch-size is --batch here": ["train", "cifar10", "--batch-size", "32"],
    "--conf is --score-threshold here": ["predict", "run", "--conf", ".3"],
    "--iou is --nms-iou here": ["eval", "run", "--iou", ".5"],
    "--workers is not needed: .*": ["train", "faces", "--workers", "8"],
    "--num-classes is not needed: the data name the classes": [
        *("train", "detect", "--num-classes", "3")
    ],
}


@pytest.mark.parametrize("says, words", OTHER_TOOLS.items(), ids=OTHER_TOOLS)
def test_options_of_other_tools_are_refused_with_ours(place, capfd, says, words):
    assert main(*words) == 2
    out, err = capfd.readouterr()
    assert not out and re.fullmatch(f"jaxdet: error: {says}\n", err)


def test_values_with_an_equals_sign_are_no_options_of_other_tools():
    defaults = (options.Train(), configs.config("digits")())
    words = ["--comment", "data=7", "--lr=2e-3"]
    _, config = flags.parse_with_config("train digits", words, defaults)
    assert (config.comment, config.lr) == ("data=7", 2e-3)


def test_an_existing_file_is_no_option_of_other_tools(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["run", "data=1.png"]
    with pytest.raises(InputError, match="data is --root"):
        flags.check_other_tools(words, options.Predict)
    Path("data=1.png").touch()
    flags.check_other_tools(words, options.Predict)


def test_help_for_a_run_has_the_options_of_its_system_only(place, capsys):
    for words, own in (([], True), (["run"], False)):
        assert main("predict", *words, "--help") == 0
        printed = capsys.readouterr().out
        assert "--canvas " in printed and "--split " in printed
        assert ("--submit " in printed) == ("--nms-type " in printed) == own


def test_an_option_may_have_the_former_name_of_another(capsys):
    """`--scale` of faces was a factor of the logits, and is the range of a random scale."""
    defaults = (options.Train(), configs.config("faces")())
    _, config = flags.parse_with_config("train faces", ["--scale", "0.5", "2"], defaults)
    assert config.scale == (0.5, 2.0)


def test_version(capsys):
    assert main("--version") == 0
    assert re.fullmatch(r"jaxdet \d\S+\n", capsys.readouterr().out)


@pytest.mark.parametrize("which", ["best", "last", "3"])
def test_eval_has_exactly_the_scores_that_training_logged(trained, capsys, which):
    steps = {"best": checkpoint.best(trained), "last": checkpoint.steps(trained)[-1], "3": 3}
    (logged,) = (
        line["val"] for line in run_dir.read_metrics(trained) if line["step"] == steps[which]
    )
    assert {"accuracy", "iou", "loss"} <= set(logged)
    assert main("eval", trained, "--checkpoint", which, "--split", "val", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    expected = {"step": steps[which], "split": "val", **logged}
    assert list(found)[: len(expected)] == list(expected)
    assert {name: found[name] for name in expected} == expected
    kinds = {"additions", "multiplications", "maxima", "operations"}
    took = kinds | {"error_rate", "seconds", "operations_per_second"}
    assert set(found) == {*expected, *took}
    assert found["error_rate"] == 1 - logged["accuracy"]
    assert found["operations"] > 0 and found["seconds"] > 0
    assert found["operations_per_second"] == found["operations"] / found["seconds"]


def test_eval_prints_rounded_scores_in_aligned_columns(trained, capsys):
    assert main("eval", trained, "--checkpoint", "last", "--split", "val") == 0
    out = capsys.readouterr().out
    last = run_dir.read_metrics(trained)[-1]
    assert out.startswith(f"val split, checkpoint of step {last['step']}:\n\n")
    (rows,) = parse_aligned(out)
    found = {row["score"]: row["value"] for row in rows}
    assert found["accuracy"] == f"{last['val']['accuracy']:.4g}"
    assert list(found)[: len(last["val"])] == list(last["val"])
    assert {"error_rate", "operations", "seconds", "operations_per_second"} <= set(found)
    assert len({len(line) for line in out.splitlines()[2:-1]}) == 1


def test_eval_prints_intervals_of_the_scores_of_resampled_images(trained, capsys):
    words = ["eval", trained, "--split", "val", "--bootstrap", "40"]
    assert main(*words, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert {*found["intervals"]} == {"accuracy", "iou", "iou50", "joint", "right_iou"}
    for name, (low, high) in found["intervals"].items():
        assert low <= found[name] <= high
    assert any(low < high for low, high in found["intervals"].values())
    assert main(*words) == 0
    (rows,) = parse_aligned(capsys.readouterr().out)
    shown = {row["score"]: row["95% interval"] for row in rows}
    assert shown["iou"] == "{:.4g} to {:.4g}".format(*found["intervals"]["iou"])
    assert not shown["loss"]
    assert main("eval", trained, "--bootstrap", "-1") == 2
    assert "--bootstrap must be at least 0, got -1" in capsys.readouterr().err


def test_eval_and_predict_choose_how_windows_are_combined(place, capsys):
    scores, lines = [], []
    for words in ([], ["--window-selection", "class"]):
        assert main("eval", "run", "--split", "val", *words, "--json") == 0
        scores.append(json.loads(capsys.readouterr().out))
        assert main("predict", "run", "--split", "val", "--count", "3", *words, "--json") == 0
        lines.append(capsys.readouterr().out)
    assert lines[0] != lines[1] and scores[0]["loss"] == scores[1]["loss"]
    assert scores[0]["operations"] > scores[1]["operations"]  # a mean over all windows
    for command in ("eval", "predict"):
        assert main(command, "run", "--score-threshold", ".1") == 2
        assert "--score-threshold needs --multiple: run predicts one" in capsys.readouterr().err


def test_every_digit_of_a_larger_canvas_is_predicted_and_drawn(place, capsys):
    """The network is hardly trained, but for the biases of its boxes: it finds something."""
    untrained = jaxdet.load("run")
    params, stats = untrained.variables["params"], untrained.variables["batch_stats"]
    kernel, bias = np.array(params["dense2"]["kernel"]), np.array(params["dense2"]["bias"])
    kernel[..., 0], kernel[..., -4:] = 0, 0
    bias[0], bias[-4:] = 4, (0.2, 0.3, 0.7, 0.8)
    params = params | {"dense2": {"kernel": kernel, "bias": bias}}
    untrained.export("ready")
    state = {"step": np.int32(99), "params": params, "stats": stats, "hparams": {}}
    checkpoint.save("ready", 99, state, score=(2.0, 0.0))
    canvas = np.zeros((70, 90), np.uint8)
    for at, digit in ((5, 20), (40, 60)):
        canvas[at : at + 24, digit : digit + 24] = 200
    Image.fromarray(canvas).save("two.png")
    words = ["predict", "ready", "two.png", "--multiple", "--score-threshold", "0"]
    words += ["--save-json", "coco.json", "--save-dir", "drawn", "--figure", "all.png"]
    assert main(*words, "--json") == 0
    record = json.loads(capsys.readouterr().out)
    run = jaxdet.load("ready", multiple=True, score_threshold=0.0)
    found = run.predict("two.png")
    assert isinstance(found, jaxdet.Detections) and run.finds_many
    assert len(record["objects"]) == len(found.labels) > 0
    assert (
        found.boxes.dtype == np.float32
        and (found.boxes >= 0).all()
        and (found.boxes <= [90, 70, 90, 70]).all()
    )
    for of, box, score, label in zip(record["objects"], *found, strict=True):
        assert of == {
            "label": run.classes[label],
            "score": round(float(score), 4),
            "box": [round(float(x), 2) for x in box],
        }
    assert len(json.loads((place / "coco.json").read_text())) == len(found.labels)
    assert all((place / name).read_bytes().startswith(PNG) for name in ("drawn/two.png", "all.png"))
    assert main("predict", "ready", "--multiple", "--count", "2", "--figure", "samples.png") == 0


def test_eval_reads_the_data_of_root_instead_of_the_run(place, capsys):
    path = place / "run" / "config.json"
    kept = json.loads(path.read_text())
    kept["config"] |= {"source": "mnist", "root": "gone"}
    path.write_text(json.dumps(kept))
    mnist(place / "good")
    assert main("eval", "run") == 2
    assert main("eval", "run", "--root", "good") == 0
    assert "accuracy" in capsys.readouterr().out


def test_eval_and_predict_do_not_change_the_run(place, capsys):
    before = files(place)
    assert main("eval", "run", "--split", "val") == 0
    assert main("predict", "run", "--count", "2") == 0
    assert files(place) == before


def test_eval_warns_of_a_corrupt_checkpoint_in_one_line(place, capfd):
    last = checkpoint.steps(place / "run")[-1]
    (place / "run" / "checkpoints" / str(last) / "manifest.json").unlink()
    assert main("eval", "run", "--checkpoint", "last", "--split", "val") == 0
    err = capfd.readouterr().err
    assert re.fullmatch(f"jaxdet: warning: .*run/checkpoints/{last} is damaged.*\n", err)


def test_predict_draws_samples_of_a_larger_canvas(place, capsys):
    assert main("predict", "run", "--count", "4", "--canvas", "70", "--figure", "a/new.png") == 0
    assert (place / "a" / "new.png").read_bytes().startswith(PNG)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "image label score x0 y0 x1 y1",
        *["test"] * 4,
        "wrote a/new.png",
    ]


def answers(capsys, *words):
    """Lines of `predict --json`."""
    assert main("predict", "run", *words, "--json") == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_image_files_and_samples_have_equal_predictions(place, capsys):
    batch = evaluator.samples(tiny.experiment(), "test", 2)
    names = [f"{i}.png" for i in range(2)]
    for name, image in zip(names, batch["image"], strict=True):
        Image.fromarray(np.rint(255 * image[..., 0]).astype(np.uint8)).save(name)
    samples = answers(capsys, "--count", "2", "--split", "test")
    found = answers(capsys, *names)
    assert [answer["image"] for answer in found] == names
    for file, sample in zip(found, samples, strict=True):
        assert file["label"] == sample["label"]
        np.testing.assert_allclose(file["box"], sample["box"], atol=0.02)
        np.testing.assert_allclose(file["score"], sample["score"], atol=2e-4)


def test_figure_of_image_files_is_written(place, capsys):
    Image.new("L", (60, 60)).save("blank.png")
    assert main("predict", "run", "blank.png", "--figure", "new.png") == 0
    assert (place / "new.png").read_bytes().startswith(PNG)


def test_figure_does_not_disturb_the_json(place, capsys):
    found = answers(capsys, "--count", "2", "--figure", "new.png")
    assert [set(answer) for answer in found] == [{"image", "label", "score", "box"}] * 2


def test_preview_draws_training_inputs(place, capsys):
    words = [*tiny.WORDS[-8:], "--count", "6", "--out", "new.png"]
    assert main("data", "preview", "digits", *words) == 0
    assert (place / "new.png").read_bytes().startswith(PNG)
    assert capsys.readouterr().out == "wrote new.png\n"


def test_overwrite_replaces_a_run(place):
    (place / "run" / "checkpoints" / "99").mkdir()
    assert main(*TRAIN, "--out", "run", "--overwrite", "--quiet") == 0
    assert checkpoint.steps("run")[-1] == 6
    assert [line["step"] for line in run_dir.read_metrics("run")] == [0, 3, 6]


def test_interrupted_training_saves_and_exits_with_130(place, monkeypatch, capsys):
    append, before = run_dir.append_metrics, signal.getsignal(signal.SIGINT)

    def append_and_interrupt(*args):
        append(*args)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(run_dir, "append_metrics", append_and_interrupt)
    assert main(*TRAIN, "--out", "new") == 130
    ended = "stopped at step 0 of 6\nnew is not complete; continue with --resume\n"
    assert capsys.readouterr().out.endswith(ended)
    assert checkpoint.steps("new") == [0]
    assert signal.getsignal(signal.SIGINT) is before


@contextmanager
def disk_filling_up(monkeypatch):
    """From the second checkpoint on no file can grow."""
    limit, save, saved = resource.getrlimit(resource.RLIMIT_FSIZE), checkpoint.save, []

    def filling(*args, **kwargs):
        if saved:
            resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limit[1]))
        try:
            return saved.append(save(*args, **kwargs))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", filling)
        yield


def test_full_disk_is_one_line_and_the_last_good_checkpoint_stays(place, monkeypatch, capfd):
    with disk_filling_up(monkeypatch):
        assert main(*TRAIN, "--out", "new", "--quiet") == 2
    err = capfd.readouterr().err
    assert re.fullmatch("jaxdet: error: .*new/checkpoints/3.*File too large.*\n", err), err
    assert checkpoint.steps("new") == [0]
    assert main("train", "digits", "--out", "new", "--resume", "--quiet") == 0
    assert checkpoint.steps("new")[-1] == 6
