import csv
import io
import json
import re
from dataclasses import asdict

import jax
import pytest

from jaxdet import configs
from jaxdet.profiling import summary
from jaxdet.training import run_dir
from tests import tiny
from tests.cli.test_main import PNG, main
from tests.profiling.test_roofline import hurry


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The folder of a run with nothing but its configuration, in the working folder."""
    monkeypatch.chdir(tmp_path)
    metadata = {"classes": list("0123456789"), "input": [56, 56, 1]}
    run_dir.create("run", "digits", asdict(tiny.CONFIG), metadata).release()
    return tmp_path / "run"


def described(capsys, *words):
    """(layers, notes) of `describe --json`."""
    assert main("describe", *words, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    return found["layers"], found["notes"]


def test_lenet_as_text_is_aligned(capsys):
    assert main("describe", "lenet") == 0
    heading, line, *lines = capsys.readouterr().out.rstrip("\n").split("\n")
    assert re.split("  +", heading)[:4] == ["layer", "type, hyper-parameters", "output", "weights"]
    assert set(line) == {"-", " "}
    starts = [match.start() for match in re.finditer("-+", line)]
    texts, numbers = starts[:4], starts[4:]
    assert all(each[: numbers[0]][start - 1] == " " for each in lines for start in texts[1:])
    assert lines[0][texts[1] :].startswith("Conv, features 6, kernel_size 5x5, padding VALID  ")
    assert lines[-1].split() == [
        *("sum", "62,006", "651,720", "651,720", "11,236", "0", "1,314,676", "100")
    ]
    parameters = [each[numbers[0] : numbers[1]].rstrip() for each in (line, lines[0], lines[-1])]
    assert parameters == ["----------", "       456", "    62,006"]


def test_lenet_in_markdown(capsys):
    assert main("describe", "lenet", "--markdown") == 0
    heading, line, *lines = capsys.readouterr().out.rstrip("\n").split("\n")
    assert heading.startswith("| layer | type, hyper-parameters | output | weights |")
    assert all(each.count(" | ") == heading.count(" | ") for each in (line, *lines))
    assert lines[0].startswith(
        "| conv1 | Conv, features 6, kernel_size 5x5, padding VALID | 1 x 28"
    )
    assert lines[-1].startswith(
        "| sum |  |  |  | 62,006 | 651,720 | 651,720 | 11,236 | 0 | 1,314,676"
    )


@pytest.mark.parametrize("name, parameters", [("tutorial", 62_006), ("doubled", 244_962)])
def test_variants_of_the_tutorial_have_names(capsys, name, parameters):
    (*_, last), _ = described(capsys, name)
    assert last["parameters"] == parameters


def test_json_and_csv_have_equal_counts(capsys):
    layers, notes = described(capsys, "lenet", "--backward")
    assert notes == []
    assert main("describe", "lenet", "--backward", "--csv") == 0
    kept = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    for name in ("parameters", "additions", "maxima", "forward", "backward", "total"):
        assert [int(row[name]) for row in kept] == [row[name] for row in layers]


def test_input_convention_and_padding(capsys):
    (*_, two), _ = described(capsys, "lenet", "--input", "2x32x32x3", "--convention", "mac")
    assert two["total"] == 2 * 651_720
    (*_, full), _ = described(capsys, "resnet18", "--input", "1x32x32x3")
    (*_, valid), _ = described(capsys, "resnet18", "--input", "1x32x32x3", "--padding", "valid")
    assert valid["total"] < full["total"]
    assert valid["parameters"] == full["parameters"] == 11_689_512


@pytest.mark.parametrize(
    "name, giga", [("resnet18", 1.814), ("resnet50", 4.089), ("ng_sliding", 0.0212736)]
)
def test_multiply_adds_of_named_networks(capsys, name, giga):
    (*_, last), _ = described(capsys, name, "--convention", "mac")
    assert last["total"] / 1e9 == pytest.approx(giga, abs=5e-4)


def test_a_run_is_its_own_network(run, capsys):
    layers, _ = described(capsys, "run")
    net, shape = configs.network_of_config("digits", tiny.CONFIG)
    images = jax.ShapeDtypeStruct(shape, "float32")
    assert layers == summary.table_rows(summary.summarize(net, images))
    larger, _ = described(capsys, "run", "--input", "3x70x64x1")
    assert larger[-1]["parameters"] == layers[-1]["parameters"]
    assert larger[-1]["total"] > 3 * layers[-1]["total"]
    assert [path.name for path in run.iterdir()] == ["config.json"]


@pytest.mark.parametrize("form", ["--markdown", "--csv"])
def test_time_measures_and_draws(monkeypatch, tmp_path, capsys, form):
    hurry(monkeypatch)
    path = tmp_path / "a" / "roofline.png"
    words = ["ng_windows", "--time", "--figure", path]
    assert main("describe", *words, form) == 0
    assert path.read_bytes().startswith(PNG)
    out, err = capsys.readouterr()
    notes = out if form == "--markdown" else err  # a table for a spreadsheet stays one
    assert f"wrote {path}" in notes
    assert "measured peaks of" in notes
    assert ("forward s" if form == "--markdown" else "forward_s") in out


REFUSED = {
    "unknown model": (["lenett"], "'lenett' is neither a model nor .*nearest first: lenet, "),
    "folder without a run": (["."], "'.' is neither a model nor a run folder"),
    "too small": (
        ["lenet", "--input", "1x8x8x3"],
        "layer conv2: its output is empty, shape 1x0x0x16 from 1x2x2x6; .*--input",
    ),
    "too small for dense": (
        ["lenet", "--input", "1x15x15x3"],
        "layer dense1: its input is empty, shape 1x0; .*--input",
    ),
    "window": (["ng_sliding", "--input", "1x13x28x3"], "window of 14 x 14 pixels, got 13 x 28"),
    "channels": (["run", "--input", "1x56x56x3"], "layer conv1 cannot process shape 1x56x56x6"),
    "three numbers": (["lenet", "--input", "1x32x32"], "--input must be .*1x32x32x3, got 1x32x32"),
    "a word": (["lenet", "--input", "1x32x32xc"], "--input must be .*got 1x32x32xc"),
    "no pixels": (["lenet", "--input", "1x0x32x3"], "--input must be .*got 1x0x32x3"),
    "negative": (["lenet", "--input", "1x-2x32x3"], "--input must be .*got 1x-2x32x3"),
    "two forms": (["lenet", "--json", "--csv"], "--markdown, --json and --csv exclude each other"),
    "no picture": (
        ["lenet", "--time", "--figure", "plot.txt"],
        "a picture must end in one of .png.*got plot.txt",
    ),
}


@pytest.mark.parametrize("words, said", REFUSED.values(), ids=REFUSED)
def test_invalid_input_is_one_line(run, capsys, words, said):
    assert main("describe", *words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert (err.count("\n"), err.startswith("jaxdet: error: ")) == (1, True)
    assert re.search(said, err), err


@pytest.mark.parametrize(
    "words", [[], ["lenet", "--convention", "ops"], ["lenet", "--color-jitter"]]
)
def test_unknown_options_are_refused(capsys, words):
    assert main("describe", *words) == 2
    assert capsys.readouterr().out == ""


def test_help_names_every_option(capsys):
    assert main("describe", "--help") == 0
    printed = capsys.readouterr().out
    for name in ("input", "backward", "convention", "padding", "time", "figure", "json", "csv"):
        assert f"--{name} " in printed
