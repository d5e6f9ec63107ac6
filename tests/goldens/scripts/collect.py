"""Make golden run folders from the output of make.sh in OUT, and record their scores.

    PYTHONPATH=/path/to/checkout python collect.py OUT

Beside this file: data/ and schema1/SYSTEM/ without pictures, with places in config.json that no
machine has; scores.json, fingerprints.json and, if it was made, baseline_digits.json.
With --scores alone, in place of OUT, it writes scores.json anew from what is there.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from fingerprint import fingerprint

HERE = Path(__file__).absolute().parent
SYSTEMS = ("digits", "objects", "detect", "cifar10", "faces")
ONE_CHECKPOINT = ("detect",)  # whose last checkpoint alone is kept, for its size
TIMES = ("seconds", "operations_per_second")
FILES = {
    "digits": ("objects/images/cup/0.png", "objects/images/key/1.png"),
    "objects": ("objects/images/cup/0.png", "objects/images/key/1.png", "objects/images/pen/2.png"),
    "detect": ("detect/images/test/1.png", "detect/images/test/2.png", "detect/images/test/3.png"),
    "cifar10": ("cifar10/test/cat/00.png", "cifar10/test/dog/01.png", "cifar10/test/owl/02.png"),
    "faces": ("faces/ann/ann_0001.png", "faces/bob/bob_0002.png", "faces/eve/eve_0003.png"),
}


def collect(out):
    """Copy data and runs of `out`, and write the fingerprints of the latter."""
    for name in ("data", "schema1"):
        shutil.rmtree(HERE / name, ignore_errors=True)
    shutil.copytree(out / "data", HERE / "data")
    for system in SYSTEMS:
        run = HERE / "schema1" / system
        shutil.copytree(out / "runs" / system, run, ignore=shutil.ignore_patterns("plots"))
        if system in ONE_CHECKPOINT:
            *others, _ = sorted((run / "checkpoints").iterdir(), key=lambda place: int(place.name))
            for place in others:
                shutil.rmtree(place)
        _replace_places(run / "config.json", system)
    _write("fingerprints.json", {name: fingerprint(HERE / "schema1" / name) for name in SYSTEMS})
    if (baseline := out / "runs" / "baseline_digits").is_dir():
        lines = map(json.loads, (baseline / "metrics.jsonl").read_text().splitlines())
        metrics = [{k: v for k, v in line.items() if k != "time"} for line in lines]
        told = {"fingerprint": fingerprint(baseline), "metrics": metrics}
        _write("baseline_digits.json", told)


def _replace_places(path, system):
    kept = json.loads(path.read_text())
    if kept["config"]["root"]:
        kept["config"]["root"] = f"tests/goldens/data/{system}"
    if kept["config"].get("weights"):
        kept["config"]["weights"] = "weights.safetensors"
    path.write_text(json.dumps(kept, indent=2) + "\n")


def scores(system):
    """Output of commands for a golden run; they run in the folder of this file."""
    run = f"schema1/{system}"
    root = () if system == "digits" else ("--root", f"data/{system}")
    steps = sorted(int(place.name) for place in (HERE / run / "checkpoints").iterdir())
    evals = {}
    for step in steps:
        words = ("eval", run, *root, "--checkpoint", str(step), "--split")
        rows = _said(*words, "all") + (_said(*words, "others") if system == "faces" else [])
        evals[step] = {row.pop("split"): row for row in rows}
    best = _said("eval", run, *root)[0]["step"]
    predict = ("predict", run, "--checkpoint", str(steps[-1]))
    found = {
        "best_step": best,
        "eval": evals,
        "predict_samples": _said(*predict, *root, "--split", "test", "--count", "6"),
        "predict_files": _said(*predict, *(f"data/{file}" for file in FILES[system])),
    }
    if system == "faces":
        two = (f"data/{file}" for file in FILES[system][:2])
        found["verify_pair"] = _said("verify", "pair", run, *two)[0]
    return found


def _said(*words):
    """The JSON lines of a command, without measured times."""
    command = [sys.executable, "-m", "jaxdet.cli", *words, "--json"]
    env = {**os.environ, "NPROC": "16", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, cwd=HERE, env=env, capture_output=True, text=True, timeout=300)
    if done.returncode:
        sys.exit(f"{' '.join(words)}: {done.stderr}")
    rows = map(json.loads, done.stdout.splitlines())
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]


def _write(name, value):
    (HERE / name).write_text(json.dumps(value, indent=2) + "\n")


if __name__ == "__main__":
    if sys.argv[1] != "--scores":
        collect(Path(sys.argv[1]))
    _write("scores.json", {system: scores(system) for system in SYSTEMS})
