"""GPU benchmarks and checks, the most important first, within a time limit.

    bash scripts/gpu.sh OUT                     # 8 minutes
    bash scripts/gpu.sh --minutes 30 OUT        # continues with the rows missing in OUT
    bash scripts/gpu.sh --dry OUT               # all rows, tiny, on a CPU

Each row of `benchmarks.lib.gpu_rows` runs in its own process with a time limit. Its outcome is
written to OUT/NAME.json when it ends, and OUT/table.md after every row, so that a kill loses one
row only. Rows that were measured before are skipped; `--fresh` measures them again. A row that
fails, is not started or lacks a package does not end the others: the exit code is 0, or 1 if a row
of a dry run failed.

The script needs only the packages of the rows: no network, no Slurm, and no tyro for its own
options.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import invalidate_caches
from pathlib import Path
from typing import Any

from benchmarks.lib.gpu_rows import ROWS, Row
from benchmarks.lib.gpu_runs import ROOT
from jaxdet import files, tables

MEASURED, FAILED, LATE = "measured", "failed", "not measured: it does not fit"
SIGNALS = signal.SIGTERM, signal.SIGINT, signal.SIGHUP
KILL_SECONDS = 5.0  # time between SIGTERM and SIGKILL
DRY_WORKERS, DRY_LIMIT = 2, 300
DRY_ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "true",
    "NPROC": "16",
}
ROW_ENVIRONMENT = {
    "JAX_PLATFORMS": "cuda,cpu",  # without CUDA the rows fail instead of measuring a CPU
    "JAX_TRACEBACK_FILTERING": "off",
    "OMP_WAIT_POLICY": "passive",
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
}
HEADING = {"title": "what", "result": "result", "goal": "goal", "seconds": "s"}


@dataclass
class Session:
    """One call of the script: output folder, deadline, and running processes."""

    out: Path
    dry: bool
    deadline: float  # on the clock of time.monotonic
    running: set[subprocess.Popen] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)
    stopped: bool = False

    def outcome_path(self, row: Row) -> Path:
        return self.out / f"{row.name}.json"

    def outcomes(self) -> dict[str, dict[str, Any]]:
        paths = {row.name: self.outcome_path(row) for row in ROWS}
        return {name: json.loads(p.read_text()) for name, p in paths.items() if p.is_file()}

    def left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.monotonic()


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(argv)
    names = options.rows or [row.name for row in ROWS]
    unknown = sorted({*names} - {row.name for row in ROWS})
    if unknown:
        known = ", ".join(row.name for row in ROWS)
        print(f"gpu.sh: error: --rows must be among {known}, got {unknown[0]}", file=sys.stderr)
        return 2
    if not options.minutes > 0:
        print(f"gpu.sh: error: --minutes must be above 0, got {options.minutes}", file=sys.stderr)
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    session = Session(options.out, options.dry, time.monotonic() + 60 * options.minutes)
    use_packages(options.wheels, options.out / "packages")
    for number in SIGNALS:
        signal.signal(number, lambda number, frame: stop(session, 128 + number))
    kept = {} if options.fresh else session.outcomes()
    chosen = [row for row in ROWS if row.name in names]
    waiting = [row for row in chosen if not is_final(kept.get(row.name), session)]
    for row in waiting:  # a kill leaves a complete table
        record_outcome(session, row, {"status": "not measured"})
    with ThreadPoolExecutor(DRY_WORKERS if options.dry else 1) as pool:
        list(pool.map(lambda row: run_row(session, row), waiting))
    print(f"wrote {options.out / 'table.md'}")
    failed = [row for row in chosen if session.outcomes()[row.name]["status"] == FAILED]
    return 1 if failed and options.dry else 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the options, with argparse: tyro, which `harness.run_command` needs, may be missing."""
    parser = argparse.ArgumentParser(
        "scripts/gpu.sh",
        description="Run the GPU benchmarks and checks, the most important first.",
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="folder of the results")
    parser.add_argument(
        "--minutes", type=float, default=8.0, help="time limit in minutes; by default 8"
    )
    parser.add_argument(
        "--dry", action="store_true", help="run all rows at tiny sizes on a CPU, to test them"
    )
    parser.add_argument(
        "--rows", nargs="+", metavar="NAME", help="names of the rows to run; by default all"
    )
    parser.add_argument(
        "--fresh", action="store_true", help="measure rows again that OUT already has"
    )
    parser.add_argument(
        "--wheels", type=Path, help="folder of wheels to import, see scripts/wheels.sh"
    )
    return parser.parse_args(argv)


def use_packages(wheels: Path | None, folder: Path) -> None:
    """Let this process and its rows import this checkout and the packages of `wheels`.

    The wheels are unpacked into `folder`: some hold libraries, which cannot be imported from a zip
    file.
    """
    added = [str(ROOT)]
    for wheel in sorted(wheels.glob("*.whl")) if wheels else []:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
    if folder.is_dir():
        added.append(str(folder))
    given = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = os.pathsep.join([*added, *([given] if given else [])])
    sys.path += [path for path in added if path not in sys.path]
    invalidate_caches()


def is_final(outcome: dict[str, Any] | None, session: Session) -> bool:
    """Whether a row has been measured before in the same mode, dry or not."""
    return bool(outcome) and outcome["status"] == MEASURED and outcome["dry"] == session.dry


def run_row(session: Session, row: Row) -> None:
    """Run a row, if possible; write its outcome and the table."""
    missing, left = row.missing(dry=session.dry), session.left()
    if session.stopped:
        return
    if missing:
        outcome: dict[str, Any] = {"status": missing}
    elif not session.dry and left < row.seconds:
        outcome = {
            "status": f"{LATE} into the {max(left, 0):.0f} s left, since it takes {row.seconds} s"
        }
    else:
        outcome = measure(session, row, DRY_LIMIT if session.dry else min(row.limit, left))
    if not session.stopped:
        record_outcome(session, row, outcome)
        seconds = f"{outcome['seconds']:.0f} s, " if "seconds" in outcome else ""
        said = outcome.get("result") or outcome.get("error") or outcome["status"]
        print(f"{row.name}: {seconds}{said}", flush=True)


def measure(session: Session, row: Row, limit: float) -> dict[str, Any]:
    """Run a row for at most `limit` seconds, and return its outcome."""
    folder = session.out / "files" / row.name
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "record.json"
    path.unlink(missing_ok=True)
    words = row.words(path.absolute(), folder.absolute(), dry=session.dry)
    begun = time.monotonic()
    code, error = call(session, words, folder / "log.txt", limit)
    outcome: dict[str, Any] = {"words": words, "seconds": time.monotonic() - begun}
    if code:
        outcome |= {"status": FAILED, "error": error}
    try:
        outcome["record"] = json.loads(path.read_text())
        outcome |= row.result(outcome["record"])._asdict()
    except (OSError, ValueError, LookupError, TypeError) as reason:
        missing = "no record" if isinstance(reason, OSError) else f"record: {reason!r}"
        return outcome | {"status": FAILED, "error": error or missing}
    if code:  # a part of it was measured
        return outcome | {"reached": None, "result": f"{outcome.pop('text')}; then {error}"}
    return outcome | {"status": MEASURED, "result": outcome.pop("text")}


def call(session: Session, words: list[str], log: Path, limit: float) -> tuple[int, str]:
    """Run Python with these words; returns (exit code, last line of its output).

    The output goes to the file `log`.  After `limit` seconds, the process and its children are
    ended, and the exit code is 124.
    """
    cache = {} if session.dry else {"JAXDET_CACHE": str((session.out / "cache").absolute())}
    own = {**ROW_ENVIRONMENT, **cache, **os.environ}
    environment = own | (DRY_ENVIRONMENT if session.dry else {})
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, *words],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
        with session.lock:
            session.running.add(process)
        try:
            code = process.wait(limit)
            error = f"exit code {code}"
        except subprocess.TimeoutExpired:
            code, error = 124, f"ended after its limit of {limit:.0f} s"
            end(process)
        finally:
            end_group(process, signal.SIGKILL)  # children that outlived it
            with session.lock:
                session.running.discard(process)
    lines = log.read_text(errors="replace").strip().splitlines()
    return code, error if code == 124 or not lines else lines[-1]


def end(process: subprocess.Popen) -> None:
    """End a process and its children: by SIGTERM first, then by SIGKILL."""
    end_group(process, signal.SIGTERM)
    try:
        process.wait(KILL_SECONDS)
    except subprocess.TimeoutExpired:
        end_group(process, signal.SIGKILL)
        process.wait()


def end_group(process: subprocess.Popen, number: signal.Signals) -> None:
    """Send a signal to the processes of a group, if there are any."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def stop(session: Session, code: int) -> None:
    """End all rows and this process; the outcomes of finished rows are on disk."""
    session.stopped = True
    for process in list(session.running):
        end_group(process, signal.SIGKILL)
    os._exit(code)


def record_outcome(session: Session, row: Row, outcome: dict[str, Any]) -> None:
    """Write the outcome of a row to its file, and the table of all rows to table.md."""
    shared = {
        "row": row.name,
        "title": row.title,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "dry": session.dry,
    }
    with session.lock:
        files.write_json(session.outcome_path(row), {**shared, **outcome})
        files.write_text(session.out / "table.md", f"{table(session.outcomes())}\n")


def table(outcomes: dict[str, dict[str, Any]]) -> str:
    """Markdown of the outcomes, the most important first."""
    cells = []
    for outcome in outcomes.values():
        result = outcome.get("result") or outcome["status"]
        if outcome["status"] == FAILED and "result" not in outcome:
            result = f"failed: {outcome['error']}"
        goal = outcome.get("goal", "")
        reached = {True: "reached: ", False: "missed: ", None: ""}[outcome.get("reached")]
        if outcome["dry"]:
            goal = reached = ""  # a dry run measures nothing
        seconds = outcome.get("seconds")
        cells.append(
            {
                "title": outcome["title"],
                "result": str(result).replace("|", "\\|"),
                "goal": f"{reached}{goal}" if goal else None,
                "seconds": None if seconds is None else round(seconds),
            }
        )
    note = "A dry run on a CPU: the figures mean nothing.\n\n"
    dry = any(outcome["dry"] for outcome in outcomes.values())
    return (note if dry else "") + tables.to_markdown(cells, HEADING)


if __name__ == "__main__":
    sys.exit(main())
