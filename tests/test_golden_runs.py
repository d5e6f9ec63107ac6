"""Run folders that earlier versions wrote stay readable and give the same scores.

`tests/goldens/schema1` was written before options and modules got their present names; see
`tests/goldens/RUNS.md` for how the runs and `runs.json` were made.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import jaxdet
from jaxdet import configs, migrations, runs
from jaxdet.training import run_dir

GOLDENS = Path(__file__).parent / "goldens"
SCORES = json.loads((GOLDENS / "runs.json").read_text())
COSTS = {"step", "operations"}  # not scores
RENAMED = {"pull": "embedding"}  # terms of the loss
RTOL = 1e-4  # numbers of threads and instruction sets change the last bits


def data_root(system):
    """The folder of the data of a golden run; "" where the package has them."""
    folder = GOLDENS / "data" / system
    return str(folder) if folder.is_dir() else ""


@pytest.fixture(scope="module", params=configs.SYSTEMS)
def golden(request):
    """(system, the run of its last checkpoint)."""
    return request.param, jaxdet.load(GOLDENS / "schema1" / request.param, "last")


def scores_of(tree, prefix=""):
    """{path: number} of the numbers in nested scores."""
    if isinstance(tree, dict):
        items = tree.items()
    elif isinstance(tree, list):
        items = enumerate(tree)
    else:
        return {prefix: tree} if isinstance(tree, int | float) else {}
    found = {}
    for name, value in items:
        found |= scores_of(value, f"{prefix}/{RENAMED.get(name, name)}")
    return found


def test_scores_of_the_test_split_are_those_that_were_recorded(golden):
    system, run = golden
    recorded = SCORES[system]["eval"][str(run.step)]["test"]
    expected = {
        name: value
        for name, value in scores_of(recorded).items()
        if name.split("/")[1] not in COSTS and "error_rate" not in name and "at_least" not in name
    }
    found = scores_of(run.evaluate("test", root=data_root(system)))
    assert expected.keys() <= found.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=RTOL, atol=1e-6, err_msg=name)


def test_predictions_for_image_files_are_those_that_were_recorded(golden):
    system, run = golden
    recorded = SCORES[system]["predict_files"]
    found = run.predict([GOLDENS / row["image"] for row in recorded])
    for row, prediction in zip(recorded, found, strict=True):
        objects = row.get("objects", [row])
        if isinstance(prediction, jaxdet.Detections):
            rows = list(zip(*prediction, strict=True))
        else:
            rows = [(getattr(prediction, "box", None), prediction.score, prediction.label)]
        assert len(rows) == len(objects)
        for (box, score, label), expected in zip(rows, objects, strict=True):
            assert run.classes[label] == expected["label"]
            assert score == pytest.approx(expected["score"], abs=2e-4)
            if "box" in expected:
                np.testing.assert_allclose(box, expected["box"], atol=0.02)


def test_the_best_checkpoint_is_the_same(golden):
    system, run = golden
    assert jaxdet.load(run.folder).step == SCORES[system]["best_step"]


def test_every_option_has_its_value_under_its_present_name(golden):
    system, run = golden
    kept = json.loads((run.folder / "config.json").read_text())
    assert kept["schema"] == 1
    names = migrations.OPTIONS[system]
    for old, value in kept["config"].items():
        new = names.get(old, old)
        value = tuple(value) if isinstance(value, list) else value
        value = migrations.VALUES.get((system, new), {}).get(value, value)
        assert getattr(run.config, new) == value, old


def test_a_run_of_schema_1_is_not_resumed_and_stays_as_it_is(golden, tmp_path):
    system, run = golden
    folder = tmp_path / system
    shutil.copytree(run.folder, folder)
    config = runs.read_config(folder)
    if root := data_root(system):
        config = jaxdet.api.change_options(config, {"root": root})
        kept = json.loads((folder / "config.json").read_text())
        kept["config"]["root"] = root
        (folder / "config.json").write_text(json.dumps(kept))
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(jaxdet.InputError, match="earlier version of jaxdet.* evaluated.* resumed"):
        jaxdet.train(config, folder, resume=True)
    after = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    changed = {path.name for path in before if before[path] != after[path]}
    assert changed <= {"environment.json"}


@pytest.mark.parametrize("schema", [0, 3, 99])
def test_a_schema_that_this_version_does_not_know_is_refused_by_number(schema, tmp_path):
    kept = {"schema": schema, "system": "digits", "config": {}, "metadata": {}}
    (tmp_path / "config.json").write_text(json.dumps(kept))
    with pytest.raises(jaxdet.InputError, match=f"schema {schema}; jaxdet .* reads schemas 1 to 2"):
        run_dir.read_config(tmp_path)


@pytest.mark.parametrize(
    "word, system, new",
    [
        ("--cut-val", "", "--val-fraction"),
        ("--no-fixed-norm", "faces", "--freeze-bn"),
        ("--score", "detect", "--score-threshold"),
        ("--score", "digits", "--window-selection"),
        ("--score", "", None),  # it had two meanings
        ("--epochs", "", None),
        ("cut-val", "", None),
    ],
)
def test_old_options_have_their_new_name(word, system, new):
    assert migrations.renamed_option(word, system) == new


def test_new_names_of_options_are_fields():
    for system, names in migrations.OPTIONS.items():
        known = configs.config(system).__dataclass_fields__
        shared = {"on_invalid", "test_fraction", "train_fraction", "val_fraction"}
        assert {new for new in names.values() if new not in known} <= shared
