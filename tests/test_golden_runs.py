"""Run folders that earlier versions wrote stay readable and give the same scores.

`tests/goldens/schema1` was written before options and modules got their present names, `schema2`
after; see `tests/goldens/RUNS.md` for how the runs and their scores were made.
"""

import json
import re
import shutil
from pathlib import Path

import jax
import jaxlib
import numpy as np
import pytest

import jaxdet
from jaxdet import configs, migrations, runs
from jaxdet.models import folding
from jaxdet.training import run_dir

GOLDENS = Path(__file__).parent / "goldens"
SCHEMA2, RECORDED = GOLDENS / "schema2", "runs_schema2.json"
SCORES = json.loads((GOLDENS / "runs.json").read_text())
COSTS = {"step", "operations"}  # not scores
RENAMED = {"pull": "embedding"}  # terms of the loss
LATER = {"ece", "precision", "recall", "f1"}  # scores of detectors since the recording
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
    with pytest.raises(
        jaxdet.InputError, match="earlier version.* resumed: evaluate.*--weights run:DIR"
    ):
        jaxdet.train(config, folder, resume=True)
    after = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    changed = {path.name for path in before if before[path] != after[path]}
    assert changed <= {"environment.json"}


def environment():
    """What the last bits of scores depend on."""
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    versions = {"jax": jax.__version__, "jaxlib": jaxlib.__version__, "numpy": np.__version__}
    return versions | {"cpu": cpu[1] if cpu else "unknown"}


def evaluated(system, **options):
    """What the last checkpoint of a golden run of schema 2 gives now, as JSON has it."""
    run = jaxdet.load(SCHEMA2 / system, "last", **options)
    images = [GOLDENS / row["image"] for row in SCORES[system]["predict_files"]]
    found = run.predict(images)
    scores = scores_of(run.evaluate("test", root=data_root(system)))
    told = {
        "step": run.step,
        "test": {path: v for path, v in scores.items() if path.rpartition("/")[2] not in LATER},
        "predictions": [{k: np.asarray(v).tolist() for k, v in p._asdict().items()} for p in found],
    }
    return json.loads(json.dumps(told))


@pytest.fixture(scope="module", params=configs.SYSTEMS)
def golden2(request):
    """(system, what its golden run of schema 2 gave when it was recorded)."""
    recorded = json.loads((GOLDENS / RECORDED).read_text())
    same = recorded["environment"] == environment()
    return request.param, recorded["scores"][request.param], same


def test_a_run_of_schema_2_gives_the_recorded_scores_to_the_bit(golden2, monkeypatch):
    """On other versions, or another processor, to a hundred-thousandth.

    The bits are of batch norms that are not folded into convolutions.
    """
    monkeypatch.setattr(folding, "fold_batch_norm", lambda variables, norms: variables)
    system, expected, same = golden2
    found = evaluated(system)
    if same:
        assert found == expected
    assert_close(found, expected, rtol=1e-5)


def assert_close(found, expected, rtol, atol=1e-6):
    """Equal structures with numbers that are close."""
    leaves, structure = jax.tree.flatten(expected)
    assert jax.tree.structure(found) == structure
    np.testing.assert_allclose(jax.tree.leaves(found), leaves, rtol=rtol, atol=atol)


def test_a_checkpoint_of_four_devices_is_evaluated_on_any_number(monkeypatch):
    """The golden run of objects was trained on four devices, with 8 images per evaluation step."""
    system, scores = "objects", []
    kept = json.loads((SCHEMA2 / system / "config.json").read_text())["config"]
    assert (kept["devices"], kept["eval_batch"]) == (4, 8)
    devices = jax.local_devices()
    for count in (1, 3, 4):
        monkeypatch.setattr(jax, "local_devices", lambda count=count: devices[:count])
        scores.append(evaluated(system))
    for found in scores[1:]:
        assert_close(found, scores[0], rtol=1e-5)


@pytest.mark.parametrize("system", ["digits", "faces"])
def test_a_checkpoint_is_evaluated_with_another_type_of_numbers(system):
    run = jaxdet.load(SCHEMA2 / system, "last", bfloat16=True)
    found = scores_of(run.evaluate("test", root=data_root(system)))
    recorded = json.loads((GOLDENS / RECORDED).read_text())["scores"][system]["test"]
    assert abs(found["/loss"] - recorded["/loss"]) < 0.1 * abs(recorded["/loss"])
    assert found["/loss"] != recorded["/loss"]


@pytest.mark.parametrize("schema", [0, 3, 99])
def test_a_schema_that_this_version_does_not_know_is_refused_by_number(schema, tmp_path):
    kept = {"schema": schema, "system": "digits", "config": {}, "metadata": {}}
    (tmp_path / "config.json").write_text(json.dumps(kept))
    with pytest.raises(jaxdet.InputError, match=f"schema {schema}; jaxdet .* reads schemas 1 to 2"):
        run_dir.read_config(tmp_path)
    (tmp_path / "environment.json").write_text('{"packages": {"jaxdet": "9.8"}}')
    with pytest.raises(jaxdet.InputError, match=f"schema {schema} of jaxdet 9.8; jaxdet .* reads"):
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
