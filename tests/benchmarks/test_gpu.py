import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest

from benchmarks import gpu
from benchmarks.lib import gpu_rows, gpu_runs, harness
from benchmarks.lib.gpu_rows import Result, Row
from jaxdet import configs
from jaxdet.cli import flags, options

SLEEPER = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(child.pid, flush=True)
time.sleep(60)
"""


def listed(record):
    """The figure of a record of these tests."""
    return Result(str(record["rows"][0]["figure"]), "2", record["rows"][0]["figure"] >= 2)


class Script(Row):
    """A row that runs Python code, which finds the path of its record in `sys.argv[1]`."""

    def words(self, record, folder, *, dry):
        return ["-c", self.options, str(record)]


def script(name, code, **fields):
    """A row that runs `code`."""
    shared = {"seconds": 5, "limit": 20, "result": listed, "needs": (), "options": code}
    return Script(**{"name": name, "title": f"title of {name}", **shared, **fields})


def measuring(name, figure, **fields):
    """A row that writes a record at once."""
    code = f"import sys; open(sys.argv[1], 'w').write('{{\"rows\": [{{\"figure\": {figure}}}]}}')"
    return script(name, code, **fields)


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Run the command with these rows: its exit code, and the outcomes by name."""
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    monkeypatch.setattr(sys, "path", list(sys.path))
    kept = {number: signal.getsignal(number) for number in gpu.SIGNALS}

    def run(rows, *words):
        monkeypatch.setattr(gpu, "ROWS", tuple(rows))
        code = gpu.main([*words, str(tmp_path)])
        found = {row.name: json.loads((tmp_path / f"{row.name}.json").read_text()) for row in rows}
        return code, found

    yield run
    for number, handler in kept.items():
        signal.signal(number, handler)


def test_rows_are_measured_and_failures_end_nothing(run, tmp_path):
    rows = [
        measuring("good", 3),
        measuring("low", 1),
        script("bad", "raise SystemExit('no | room')"),
        measuring("last", 2, needs=("json", "no_such_package")),
        measuring("data", 2, data="no-such-set"),
    ]
    code, found = run(rows, "--minutes", "1")
    assert code == 0
    assert (found["good"]["status"], found["good"]["result"]) == ("measured", "3")
    assert found["good"]["record"] == {"rows": [{"figure": 3}]}
    assert found["bad"]["status"] == "failed" and found["bad"]["error"] == "no | room"
    assert found["last"]["status"] == "needs no-such-package"
    assert found["data"]["status"] == "no data: needs the folder $JAXDET_DATA/no-such-set"
    _, _, *lines = (tmp_path / "table.md").read_text().splitlines()
    assert lines[0].startswith("| title of good | 3 | reached: 2 |")
    assert lines[1].startswith("| title of low | 1 | missed: 2 |")
    assert lines[2].startswith("| title of bad | failed: no \\| room |")


def test_rows_that_do_not_fit_say_so_and_smaller_ones_run(run):
    rows = [measuring("long", 1, seconds=90), measuring("short", 2)]
    _, found = run(rows, "--minutes", "1")
    assert found["long"]["status"].startswith("not measured: it does not fit into the ")
    assert "takes 90 s" in found["long"]["status"] and found["short"]["status"] == "measured"


def test_second_run_goes_on_with_what_is_missing(run, tmp_path):
    count = "import sys; open('{0}', 'a').write('x'); open(sys.argv[1], 'w').write("
    count = count.format(tmp_path / "calls") + '\'{"rows": [{"figure": 2}]}\')'
    rows = [script("counted", count), script("failing", count + "; raise SystemExit('no')")]
    assert run(rows)[1]["failing"]["result"] == "2; then no"
    run(rows)
    assert (tmp_path / "calls").read_text() == "xxx"  # counted once, failing twice
    run(rows[:1], "--fresh")
    assert (tmp_path / "calls").read_text() == "xxxx"


def ends(pid, seconds=20):
    """Whether a process ends, at the latest after some seconds; a zombie has ended."""
    stat, until = Path(f"/proc/{pid}/stat"), time.monotonic() + seconds
    while time.monotonic() < until:
        if not stat.is_file() or stat.read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.02)
    return False


def test_a_row_ends_with_its_children_at_its_limit(run, tmp_path):
    _, found = run([script("slow", SLEEPER, limit=1)])
    assert found["slow"]["error"] == "ended after its limit of 1 s"
    child = int((tmp_path / "files" / "slow" / "log.txt").read_text())
    assert ends(child)


KILLED = """
import sys
from pathlib import Path
from benchmarks import gpu
from tests.benchmarks.test_gpu import SLEEPER, measuring, script
gpu.ROWS = measuring("first", 2), script("slow", SLEEPER), measuring("last", 2)
sys.exit(gpu.main([sys.argv[1]]))
"""


def test_a_kill_leaves_what_was_measured(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], cwd=gpu.ROOT)
    log = tmp_path / "files" / "slow" / "log.txt"
    while not (log.is_file() and log.read_text().endswith("\n")):
        assert process.poll() is None
        time.sleep(0.02)
    process.terminate()
    assert process.wait(20) == 128 + signal.SIGTERM
    assert ends(int(log.read_text()))
    statuses = [
        json.loads((tmp_path / f"{name}.json").read_text())["status"]
        for name in ("first", "slow", "last")
    ]
    assert statuses == ["measured", "not measured", "not measured"]
    assert "| title of last | not measured |" in (tmp_path / "table.md").read_text()


def test_dry_run_fails_if_a_row_does_and_states_no_goals(run, tmp_path):
    rows = [measuring("good", 1), measuring("other", 1, dry_as="good")]
    code, found = run(rows, "--dry")
    assert code == 0 and found["good"]["dry"]
    assert found["other"]["status"] == "not run: covered by good in a dry run"
    table = (tmp_path / "table.md").read_text()
    assert table.startswith("A dry run on a CPU") and "missed" not in table
    assert run([script("bad", "raise SystemExit('no')")], "--dry")[0] == 1


@pytest.mark.parametrize(
    "words, error",
    [
        (["--rows", "step"], "--rows must be among machine, parity, "),
        (["--minutes", "0"], "--minutes must be above 0, got 0.0"),
        (["--minutes", "nan"], "--minutes must be above 0, got nan"),
    ],
)
def test_wrong_options_are_one_line(words, error, tmp_path, capsys):
    assert gpu.main([str(tmp_path / "out"), *words]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"gpu.sh: error: {error}") and err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_wheels_are_unpacked_after_the_checkout(run, tmp_path):
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    with zipfile.ZipFile(wheels / "spam-1-py3-none-any.whl", "w") as archive:
        archive.writestr("only_in_a_wheel.py", "")
    code = "import sys, only_in_a_wheel, jaxdet; open(sys.argv[1], 'w').write("
    row = script("uses", code + '\'{"rows": [{"figure": 2}]}\')', needs=("only_in_a_wheel",))
    _, found = run([row], "--wheels", str(wheels))
    assert found["uses"]["status"] == "measured"


@pytest.mark.parametrize("row", gpu_rows.ROWS, ids=lambda row: row.name)
def test_commands_of_rows_can_be_parsed(row):
    names = [each.name for each in gpu_rows.ROWS]
    assert names.count(row.name) == 1 and row.seconds <= row.limit
    assert not row.dry_as or row.dry_as in names
    if not row.benchmark:
        assert callable(vars(gpu_runs)[row.name])
        return
    for dry in {False, not row.dry_as}:
        _, module, *words = row.words(Path("a.json"), Path("files"), dry=dry)
        kind = import_module(module).Options
        assert harness.run_command("x", kind, words, lambda options: None) == 0


TRAININGS = "digits_mnist", "detect_bccd", "cifar10_seeds", "same_bits_plain", "same_bits_resumed"


@pytest.mark.parametrize("name", TRAININGS)
def test_training_commands_can_be_parsed(name, monkeypatch, tmp_path):
    """The first command of a row, `jaxdet train`, is one; `--seeds` is a sweep's."""

    def note(*words):
        commands.append(words)
        raise RuntimeError

    commands = []
    monkeypatch.setattr(gpu_runs, "_jaxdet", note)
    with pytest.raises(RuntimeError):
        vars(gpu_runs)[name](gpu_runs.Place(tmp_path, False))
    ((command, system, *words),) = commands
    assert command == "train"
    if "--seeds" in words:
        at = words.index("--seeds")
        assert words[at + 1] == "5"
        del words[at : at + 2]
    defaults = options.Train(), configs.config(system)()
    _, config = flags.parse_with_config(f"train {system}", words, defaults)
    assert config != defaults[1]


def step(model, implementation, precision="bfloat16", **found):
    """A row of `train_step`."""
    return {"model": model, "implementation": implementation, "precision": precision} | found


def test_result_of_steps_states_ratios_and_goals():
    jit = {"batch": 8, "median": 0.01, "of_peak": 0.45}
    rows = [
        step("resnet50_224", "jit", **jit),
        step("resnet50_224", "torch", median=0.016),
        step("resnet50_224", "torch_compiled", note="failed: no compiler"),
    ]
    text, goal, reached = gpu_rows.step_result({"rows": rows})
    assert text == (
        "batch 8, bfloat16: 10 ms, 45% of peak, 1.60 x as fast as PyTorch, "
        "torch.compile: failed: no compiler"
    )
    assert goal == "1.5 x as fast as PyTorch, 40% of peak in bfloat16" and reached
    rows[2] = step("resnet50_224", "torch_compiled", median=0.009)
    assert gpu_rows.step_result({"rows": rows}).reached is False  # slower than torch.compile
    rows[0] = step("resnet50_224", "jit", note="failed: out of memory", batch=8)
    assert gpu_rows.step_result({"rows": rows}) == (
        "batch 8, bfloat16: failed: out of memory",
        "",
        None,
    )


def test_results_of_other_rows():
    record = {
        "rows": [{"convolutions": "auto", "ratio": 0.5}, {"convolutions": "lax", "ratio": 0.2}]
    }
    assert gpu_rows.rates_result(record) == (
        "auto: 2.00 x as fast; lax: 5.00 x as fast",
        "4 x as fast",
        True,
    )
    run = {"scores": {"map": 0.6}, "train_s": 21.0, "wall_s": 30.0, "epochs": 2}
    assert gpu_rows.train_result("map", 0.58)({"rows": [run]}).reached
    assert not gpu_rows.train_result("map", 0.58, 20)({"rows": [run]}).reached
    same = {"arrays": 3, "equal": 3, "steps": [9, 9], "largest": 0.0}
    resumed = same | {"interrupted": True, "at_step": 4}
    assert gpu_rows.same_bits_result({"rows": [resumed]}).reached
    for changed in ({"equal": 2}, {"steps": [9, 8]}, {"interrupted": False}):
        assert not gpu_rows.same_bits_result({"rows": [resumed | changed]}).reached
    assert gpu_rows.plain_bits_result({"rows": [same]}).reached is None


def test_row_that_is_a_function_writes_its_record(tmp_path):
    path = tmp_path / "a.json"
    assert gpu_runs.main(["machine", str(path), str(tmp_path), "--dry"]) == 0
    result = gpu_rows.machine_result(json.loads(path.read_text()))
    assert "jax " in result.text and "cores" in result.text


def test_missing_data_and_packages_of_a_dry_run_differ(monkeypatch, tmp_path):
    row = replace(gpu_rows.ROWS[0], needs=("no_a",), needs_dry=("no_b",), data="x")
    assert row.missing(dry=False) == "needs no-a" and row.missing(dry=True) == "needs no-b"
    monkeypatch.setenv("JAXDET_DATA", str(tmp_path))
    row = replace(row, needs=(), needs_dry=())
    assert row.missing(dry=False).endswith("$JAXDET_DATA/x") and row.missing(dry=True) == ""
    (tmp_path / "x").mkdir()
    assert row.missing(dry=False) == ""
