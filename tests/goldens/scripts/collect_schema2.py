"""Make the golden runs of schema 2 of what make_schema2.sh left in OUT, and record their scores.

    python -m tests.goldens.scripts.collect_schema2 OUT
    python -m tests.goldens.scripts.collect_schema2       # records the scores anew

From the top of the repository, with the settings of tests/conftest.py.
"""

import json
import shutil
import sys
from pathlib import Path

import tests.conftest  # noqa: F401  (its settings, before jax starts)
from jaxdet import configs
from jaxdet.training import checkpoint
from tests.test_golden_runs import GOLDENS, RECORDED, SCHEMA2, environment, evaluated

KEPT = {"digits": 2}  # checkpoints of a run, the newest; of the others one


def collect(out: Path) -> None:
    """Copy the runs without pictures, older checkpoints and paths of this machine."""
    shutil.rmtree(SCHEMA2, ignore_errors=True)
    for system in configs.SYSTEMS:
        run = SCHEMA2 / system
        shutil.copytree(out / "runs" / system, run, ignore=shutil.ignore_patterns("plots"))
        for step in checkpoint.steps(run)[: -KEPT.get(system, 1)]:
            shutil.rmtree(run / "checkpoints" / str(step))
        content = json.loads((run / "config.json").read_text())
        if content["config"]["root"]:
            content["config"]["root"] = f"tests/goldens/data/{system}"
        if content["config"].get("weights"):
            content["config"]["weights"] = "weights.safetensors"
        (run / "config.json").write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        collect(Path(sys.argv[1]))
    scores = {system: evaluated(system) for system in configs.SYSTEMS}
    content = {"environment": environment(), "scores": scores}
    (GOLDENS / RECORDED).write_text(json.dumps(content, indent=2) + "\n")
