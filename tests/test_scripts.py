import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxdet.data import verification_protocol
from jaxdet.training import checkpoint, run_dir
from tests.cli.test_main import main, parse_aligned
from tests.training.test_resume import OPTIONS

NAMED = ["0.png", "1.png", "2.png"]
FACES = [
    "--model",
    "bottleneck",
    "--channels",
    "4",
    "--strides",
    "1",
    "--embedding-dim",
    "4",
    "--size",
    "32",
]
FACES += ["--batch", "4", "--eval-batch", "4", "--devices", "1"]
ROOT = Path(__file__).parents[1]
PNG = b"\x89PNG"


# The command `jaxdet`: a process of its own, or, with SERVED, run by the test that called the
# script, which has loaded jax already. Its words go out in a file, and its output comes back.
JAXDET = f"""
[ -n "${{SERVED:-}}" ] || exec "{sys.executable}" -m jaxdet "$@"
printf '%s\\0' "$PWD" "$@" >"$SERVED/new" && mv "$SERVED/new" "$SERVED/words"
while [ ! -e "$SERVED/code" ]; do sleep 0.02; done
cat "$SERVED/out" && cat "$SERVED/err" >&2
read -r code <"$SERVED/code" && rm "$SERVED/code" && exit "$code"
"""


def program(path, text):
    """A small shell script that can be called."""
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def serve(folder):
    """Run the command whose words a script has left in a folder, and answer with its output."""
    where, *words = (folder / "words").read_text().removesuffix("\0").split("\0")
    (folder / "words").unlink()
    out, err = io.StringIO(), io.StringIO()
    with chdir(where), redirect_stdout(out), redirect_stderr(err):
        code = main(*words)
    (folder / "out").write_text(out.getvalue())
    (folder / "err").write_text(err.getvalue())
    (folder / "new").write_text(f"{code}\n")
    (folder / "new").rename(folder / "code")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of this tree whose .venv is the Python of these tests: nothing is left to install."""
    copy = tmp_path_factory.mktemp("a checkout")
    listed = ["git", "ls-files", "-co", "--exclude-standard", "-z"]
    names = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in names.split("\0"):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
    venv = copy / ".venv"
    (venv / "bin").mkdir(parents=True)
    program(venv / "bin" / "python", f'[ "$2" != pip ] && exec "{sys.executable}" "$@"')
    program(venv / "bin" / "jaxdet", JAXDET)
    for stamp in ("installed", "installed-test"):
        shutil.copy(copy / "setup.cfg", venv / stamp)
    return copy


@pytest.fixture
def start(checkout, tmp_path):
    """Start a program in another folder than the checkout; whatever still runs is killed."""
    started = []

    def start(*words, **variables):
        environment = {**os.environ, "PYTHONPATH": str(checkout), **variables}
        process = subprocess.Popen(
            [str(word) for word in words],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.fixture
def served(tmp_path):
    """A folder by which commands of scripts reach this process."""
    folder = tmp_path / "served"
    folder.mkdir()
    return folder


def ended(process, code=0, timeout=200, served=None):
    """Output of a process, once it has ended with the expected code; its commands are run."""
    deadline = time.monotonic() + timeout
    while served and process.poll() is None and time.monotonic() < deadline:
        if (served / "words").exists():
            serve(served)
        time.sleep(0.01)
    out, err = process.communicate(timeout=max(1, deadline - time.monotonic()))
    assert process.returncode == code, err
    return out


SCRIPTS = sorted(p for p in (ROOT / "scripts").iterdir() if p.suffix in (".sh", ".sbatch"))


@pytest.mark.parametrize("path", [*SCRIPTS, ROOT / ".ci" / "run"], ids=lambda path: path.name)
def test_shell_scripts_can_be_parsed_and_stop_at_the_first_error(path):
    subprocess.run(["bash", "-n", path], check=True)
    assert "set -euo pipefail" in path.read_text() or "/setup.sh" in path.read_text()


@pytest.mark.parametrize(
    "words", [["train.py", "digits"], ["eval.py"], ["predict.py"]], ids=" ".join
)
def test_python_scripts_have_help(checkout, start, words):
    script, *rest = words
    out = ended(start(sys.executable, checkout / "scripts" / script, *rest, "--help"))
    assert f"usage: jaxdet {script.removesuffix('.py')}" in out


@pytest.mark.long  # the suite itself is started by this command
def test_the_test_command_runs_pytest_on_the_checkout(checkout, start):
    words = ["--collect-only", "-p", "no:cacheprovider", "tests/test_rng.py"]
    out = ended(start("bash", checkout / "scripts" / "test.sh", *words))
    assert "tests/test_rng.py" in out


def test_wheels_script_has_help_and_a_dry_run(start, tmp_path):
    script = ROOT / "scripts" / "wheels.sh"
    assert "scripts/wheels.sh [--dry-run] DIR" in ended(start("bash", script, "--help"))
    out = ended(start("bash", script, "--dry-run", tmp_path, "3.12", "grain"))
    assert out.count("--only-binary=:all: --python-version 3.12") == 2
    requirements = {name: f"{name}>=" for name in ("tyro", "dm-pix", "faster-coco-eval", "tqdm")}
    assert not [name for name, text in requirements.items() if text not in out]
    assert " grain\n" in out and "export PYTHONPATH=CHECKOUT:WHEELS/site" in out
    assert not [*tmp_path.iterdir()]
    ended(start("bash", script), code=2)
    ended(start("bash", script, tmp_path, "python3"), code=2)


@pytest.mark.long
def test_gpu_script_runs_rows_from_any_directory(checkout, start, tmp_path):
    words = ["--dry", tmp_path / "out", "--rows", "machine", "suppression", "step_detect"]
    process = start("bash", checkout / "scripts" / "gpu.sh", *words, PYTHON=sys.executable)
    assert "machine: " in ended(process)
    outcomes = {
        name: json.loads((tmp_path / "out" / f"{name}.json").read_text())
        for name in ("machine", "suppression", "step_detect")
    }
    assert [each["status"] for each in outcomes.values()] == [
        "measured",
        "measured",
        "not run: covered by step_others in a dry run",
    ]
    rows = outcomes["suppression"]["record"]["rows"]
    assert {row["boxes"] for row in rows} == {50}
    assert "| NMS of 10,000 boxes" in (tmp_path / "out" / "table.md").read_text()


def read_test_scores(out):
    """{score: value} of the table that `eval` prints for the test split."""
    (text,) = re.findall(r"^test split, checkpoint of step \d+:\n\n.*?\n\n", out, re.M | re.S)
    (rows,) = parse_aligned(text)
    return {row["score"]: row["value"] for row in rows}


@pytest.mark.long
def test_run_script_trains_evaluates_and_draws(checkout, start):
    run = checkout / "runs" / "digits"
    out = ended(start("bash", checkout / "scripts" / "run.sh", *OPTIONS, "--epochs", "1"))
    assert [line["step"] for line in run_dir.read_metrics(run)] == [0, 21]
    assert {"accuracy", "iou", "loss"} <= read_test_scores(out).keys()
    for path in re.findall(r": (/.+\.png)", out):
        assert Path(path).read_bytes().startswith(PNG)
    assert {path.name for path in (run / "plots").iterdir()} == {"convergence.png", "test.png"}


@pytest.fixture
def face_folders(tmp_path):
    """Folders of faces as in assignment 4, test images without folders; identities are colors."""
    random = np.random.default_rng(0)
    for number in range(7):
        (tmp_path / "identities" / f"n{number}").mkdir(parents=True)
        for i in range(5):
            pixels = random.normal(random.permutation(3) * 9 + 30 * number, 9, (20, 16, 3)).clip(
                0, 255
            )
            Image.fromarray(np.uint8(pixels)).save(
                tmp_path / "identities" / f"n{number}" / f"{i}.png"
            )
    root, words = tmp_path / "data", ["--known", "2", "--unknown-identities", "2"]
    words = ["data", "verification", "--root", tmp_path / "identities", *words, "--out", root]
    assert main(*words) == 0
    (root / "classification").rename(root / "train")
    (root / "classification" / "test").mkdir(parents=True)
    (root / "train").rename(root / "classification" / "train")
    for i, identity in enumerate(sorted((root / "classification" / "train").iterdir())):
        (identity / "0.png").rename(root / "classification" / "test" / f"{i}.png")
    text = "id,label\n0.png,0\n1.png,0\n2.png,0\n"
    (root / "classification_sample_submission.csv").write_text(text)
    return root


@pytest.mark.long
def test_faces_script_writes_tables_and_a_report(checkout, start, served, face_folders, tmp_path):
    run = tmp_path / "run"
    words = [*FACES, "--epochs", "1", "--val-fraction", "0", "--quiet"]
    script = checkout / "scripts" / "faces.sh"
    variables = {"RUN": str(run), "SERVED": str(served)}
    out = ended(start("bash", script, face_folders, *words, **variables), served=served)
    assert [line["epoch"] for line in run_dir.read_metrics(run)] == [0, 1]
    for said in ("test split", "classification/test", "unknown_dev", "unknown_test", "cut-offs"):
        assert re.search(f"{said}.*:\n", out), said
    heading, *rows = (run / "classification.csv").read_text().splitlines()
    assert heading == "id,label" and [row.split(",")[0] for row in rows] == NAMED
    assert all(row.split(",")[1] in "012" for row in rows)
    known = {path.name for path in (face_folders / "known").iterdir()} | {
        verification_protocol.UNKNOWN_LABEL
    }
    table = verification_protocol.read_table(run / "verification.csv")
    probes = verification_protocol.list_probes(face_folders / "unknown_test")
    assert verification_protocol.match_rows(table, probes) == [*range(len(probes))]
    assert {row.label for row in table.rows} <= known
    report = (run / "report.md").read_text()
    assert "## Cut-offs" in report and "verification, test level" in report
    for name in ("sweep.png", "roc.png"):
        assert (run / "plots" / "verify" / name).read_bytes().startswith(PNG)


@pytest.mark.parametrize("kind", ["run", "sweep"])
def test_job_ends_with_the_scores_of_its_run_or_sweep(tmp_path, kind):
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    program(tmp_path / ".venv" / "bin" / "jaxdet", 'echo "$@"')
    for seed in (0, 1):
        (tmp_path / "out" / f"seed={seed}").mkdir(parents=True)
    (tmp_path / "out" / ("config.json" if kind == "run" else "sweep.md")).touch()
    words = ["bash", ROOT / "scripts" / "train.sbatch", "digits", "--seeds", "2", "--out", "out"]
    variables = {**os.environ, "SLURM_SUBMIT_DIR": str(tmp_path)}
    done = subprocess.run(words, env=variables, check=True, capture_output=True, text=True)
    first, last = done.stdout.splitlines()
    assert first == "train digits --out out --resume --seeds 2 --out out"
    ends = {"run": "eval out --checkpoint best --split test"}
    assert last == ends.get(kind, "compare out/seed=0/ out/seed=1/")


def test_job_on_several_nodes_starts_a_process_on_each(tmp_path):
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    program(tmp_path / ".venv" / "bin" / "jaxdet", 'echo "$@"')
    program(tmp_path / "srun", 'echo "srun $1 $2 $SRUN_CPUS_PER_TASK"; shift 2; "$@"')
    variables = {
        "SLURM_SUBMIT_DIR": str(tmp_path),
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_CPUS_PER_TASK": "8",
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
    }
    words = ["bash", ROOT / "scripts" / "train.sbatch", "digits", "--out", "out"]
    done = subprocess.run(
        words, env={**os.environ, **variables}, check=True, capture_output=True, text=True
    )
    first, second, _ = done.stdout.splitlines()
    assert first == "srun --ntasks-per-node=1 --kill-on-bad-exit=1 8"
    assert second == "train digits --out out --resume --out out"


def untimed(scores):
    """The scores that do not depend on the speed of the machine."""
    return {name: value for name, value in scores.items() if "second" not in name}


@pytest.fixture
def job(checkout, start, tmp_path):
    """Run the Slurm job as a plain script; `scontrol` notes what it is asked in a file."""
    program(tmp_path / "scontrol", f'echo "$@" >>"{tmp_path}/asked"')
    variables = {
        "SLURM_SUBMIT_DIR": str(checkout),
        "SLURM_JOB_ID": "77",
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
    }

    def job(out, **others):
        script = checkout / "scripts" / "train.sbatch"
        return start("bash", script, "digits", *OPTIONS, "--out", out, **variables | others)

    return job


def asked(folder):
    """Arguments of the calls of `scontrol`."""
    return (folder / "asked").read_text().splitlines() if (folder / "asked").exists() else []


@pytest.fixture
def stopped(job, checkout, tmp_path):
    """A run that a job began and that was signalled."""
    run = checkout / "runs" / "digits"
    shutil.rmtree(run, ignore_errors=True)  # what another test trained
    process = job(run)
    while len(run_dir.read_metrics(run)) < 2:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGUSR1)
    out = ended(process)
    (step,) = re.findall(r"stopped at step (\d+) of 84", out)
    assert checkpoint.steps(run)[-1] == int(step)
    assert "accuracy 0." not in out.split("stopped")[1]
    assert asked(tmp_path) == ["requeue 77"]
    return run


@pytest.mark.long
def test_signalled_job_is_requeued_and_resumes_to_its_scores(
    job, checkout, start, served, tmp_path, stopped
):
    out = ended(job(stopped, SERVED=str(served)), served=served)
    assert [line["step"] for line in run_dir.read_metrics(stopped)] == list(range(0, 85, 21))
    assert re.search(r"complete.*\ntest split, ", out)
    scores = read_test_scores(out)
    assert {"accuracy", "iou", "loss"} <= scores.keys()
    assert asked(tmp_path) == ["requeue 77"]

    before = (stopped / "metrics.jsonl").read_bytes()
    script = checkout / "scripts" / "run.sh"
    second = ended(start("bash", script, *OPTIONS, SERVED=str(served)), served=served)
    assert (stopped / "metrics.jsonl").read_bytes() == before
    assert "epoch" not in second
    assert untimed(read_test_scores(second)) == untimed(scores)
    for path in re.findall(r": (/.+\.png)", second):
        assert Path(path).read_bytes().startswith(PNG)
    assert {path.name for path in (stopped / "plots").iterdir()} == {"convergence.png", "test.png"}


def test_job_that_is_signalled_before_training_is_requeued(job, tmp_path):
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    program(tmp_path / ".venv" / "bin" / "jaxdet", f'touch "{tmp_path}/begun"; exec sleep 60')
    process = job(tmp_path / "run", SLURM_SUBMIT_DIR=str(tmp_path))
    while not (tmp_path / "begun").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    time.sleep(0.2)
    process.send_signal(signal.SIGUSR1)
    ended(process)
    assert asked(tmp_path) == ["requeue 77"]


def test_failed_job_is_not_requeued(job, tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.txt").write_text("all of it")
    ended(job(tmp_path / "notes"), code=2)
    assert asked(tmp_path) == []
