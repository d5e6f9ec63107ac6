import json
import shutil

import pytest

import jaxdet
from jaxdet.cli.main import main
from tests.test_golden_runs import SCHEMA2


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(a golden run, what is exported of its last checkpoint, what the command said)."""
    out = tmp_path_factory.mktemp("exported") / "run"
    run = SCHEMA2 / "digits"
    jaxdet.load(run, "last").export(out)
    return run, out


def call(capsys, *words):
    """(exit code, standard output, standard error) of a command."""
    code = main([str(word) for word in words])
    return code, *capsys.readouterr()


def test_an_exported_run_gives_the_same_numbers(exported, capsys):
    run, out = exported
    words = ("--checkpoint", "last", "--split", "val", "--json")
    found = [json.loads(call(capsys, "eval", folder, *words)[1]) for folder in (run, out)]
    times = ("seconds", "operations_per_second")
    before, after = ({k: v for k, v in one.items() if k not in times} for one in found)
    assert before == after


def test_an_exported_run_has_one_checkpoint_without_the_optimizer_and_all_records(exported):
    run, out = exported
    (step,) = (path.name for path in (out / "checkpoints").iterdir())
    manifest = json.loads((out / "checkpoints" / step / "manifest.json").read_text())
    kinds = {name.split("/")[0] for name in manifest["arrays"]}
    assert kinds == {"step", "params", "stats", "hparams"}
    size = {folder: total_size(folder / "checkpoints" / step) for folder in (run, out)}
    assert size[out] < size[run]
    assert (out / "metrics.jsonl").read_bytes() == (run / "metrics.jsonl").read_bytes()
    assert [path.name for path in out.parent.iterdir()] == ["run"]


def total_size(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_an_exported_run_is_not_resumed(exported):
    _, out = exported
    config = jaxdet.runs.read_config(out)
    with pytest.raises(jaxdet.InputError, match="exported for evaluation.* cannot be resumed"):
        jaxdet.train(config, out, resume=True)


def test_an_exported_run_can_be_exported_again(exported, tmp_path, capsys):
    _, out = exported
    code, told, _ = call(capsys, "export", out, tmp_path / "again")
    assert code == 0 and "for evaluation only" in told and "cannot be resumed" in told


def test_nothing_is_written_over(exported, tmp_path, capsys):
    run, out = exported
    (tmp_path / "thesis.txt").write_text("all of it")
    for target, options, said in (
        (tmp_path, (), "is not a run"),
        (tmp_path, ("--overwrite",), "is not a run"),
        (out, (), "exists"),
        (run, ("--overwrite",), "outside the run"),
        (run / "checkpoints" / "new", (), "outside the run"),
    ):
        code, _, error = call(capsys, "export", run, target, *options)
        assert code == 2 and said in error and error.count("\n") == 1
    assert (tmp_path / "thesis.txt").read_text() == "all of it"


def test_a_damaged_checkpoint_is_not_exported(tmp_path, capsys):
    run = shutil.copytree(SCHEMA2 / "digits", tmp_path / "run")
    for path in run.glob("checkpoints/*/manifest.json"):
        path.write_text("{}")
    code, _, error = call(capsys, "export", run, tmp_path / "out")
    assert code == 2 and "no undamaged checkpoint" in error
    assert not (tmp_path / "out").exists()
