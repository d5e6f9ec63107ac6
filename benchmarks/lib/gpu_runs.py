"""The rows of `benchmarks.gpu` that are not benchmarks: trainings, tests, an exported program.

    python -m benchmarks.lib.gpu_runs NAME RECORD FOLDER [--dry]

runs the function NAME of this module and writes a record, `{"rows": [...]}`, as benchmarks do.
FOLDER is for the files of this row, such as run folders.
"""

import importlib.metadata
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]

Record = dict[str, Any]


class Place(NamedTuple):
    """Folder and mode in which a row of this module runs."""

    folder: Path  # folder for its files
    dry: bool  # whether it runs at a tiny size, as a test


def data_folder(name: str) -> Path:
    """The folder `name` in $JAXDET_DATA; a path that does not exist if the variable is not set."""
    return Path(os.environ.get("JAXDET_DATA", "/nonexistent")) / name


def machine(place: Place) -> Record:
    """Versions, devices, and the output of `nvidia-smi`."""
    import jax

    names = "jax jaxlib flax optax orbax-checkpoint chex numpy torch torchvision timm"
    versions = {"python": platform.python_version()}
    for name in names.split():
        if find_spec(name.replace("orbax-checkpoint", "orbax")):
            versions[name] = importlib.metadata.version(name)
    smi = ""
    if shutil.which("nvidia-smi"):
        query = "--query-gpu=name,driver_version,memory.total,clocks.max.sm,power.limit"
        smi = _run("nvidia-smi", query, "--format=csv,noheader")
    found = {
        "versions": versions,
        "devices": [device.device_kind for device in jax.devices()],
        "nvidia_smi": smi.strip(),
        "cores": len(os.sched_getaffinity(0)),
    }
    return {"rows": [found]}


PARITY = "nms assign boxes windows embeddings anchors"


def parity(place: Place) -> Record:
    """Tests of the operations against slow references, on the default device in full float32.

    Raises RuntimeError, with the last line of the output, if no test has run.
    """
    import jax

    names = ("nms", "assign") if place.dry else PARITY.split()
    paths = [f"tests/ops/test_{name}.py" for name in names]
    options = ["-q", "-n", "0", "-p", "no:cacheprovider", "-o", "addopts="]
    options += ["-k", "reference or greedy"] if place.dry else []
    environment = {
        "JAX_PLATFORMS": ",".join(
            dict.fromkeys((jax.default_backend().replace("gpu", "cuda"), "cpu"))
        ),
        "JAX_DEFAULT_MATMUL_PRECISION": "highest",
    }
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *paths],
        env=os.environ | environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    counts = {word: int(n) for n, word in re.findall(r"(\d+) (passed|failed|error)", done.stdout)}
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.M)
    if not counts:
        raise RuntimeError((done.stdout + done.stderr).strip().splitlines()[-1])
    return {"rows": [{"tests": paths, "counts": counts, "failed": failed}]}


TINY = "--layout c6s4,p2 --channels 8 --fc-widths 16 --window 40 --canvas 56 --devices 1"
MNIST = "--channels 24 48 64 64 64 --fc-widths 192 192 --epochs 15 --batch 64 --warmup 300"
MNIST += " --ema 0.999 --box-loss mse --box-weight 250 --box-weight-start 2"
MNIST += " --box-weight-ramp 0.03 0.6"


def digits_mnist(place: Place) -> Record:
    """Train the digit locator on MNIST, with the options in `jaxdet/configs/digits.py`."""
    if place.dry:
        options = f"{TINY} --epochs 1 --batch 64 --eval-batch 100 --eval-first false"
        return _train_and_evaluate(place, "digits", options, "last", "test")
    source = f"--source mnist --root {shlex.quote(str(data_folder('mnist')))} --eval-batch 500"
    return _train_and_evaluate(place, "digits", f"{source} {MNIST}", "last", "heldout")


def detect_bccd(place: Place) -> Record:
    """Train the detector on blood cells, with the options in `jaxdet/configs/detect.py`."""
    root = shlex.quote(str(data_folder("bccd")))
    options = "--weights package:lite0 --freeze-stages 3 --freeze-bn --backbone-lr .25 --vflip"
    if place.dry:
        root = shlex.quote(str(_few_cells(place.folder / "cells")))
        options = "--model resnet18 --size 64 64 --neck-channels 8 --epochs 1 --batch 2"
        options += " --eval-batch 2 --eval-first false --devices 1"
    return _train_and_evaluate(place, "detect", f"--root {root} {options}", "best", "test")


def _few_cells(folder: Path) -> Path:
    """Copy the first images of every split of BCCD."""
    source = data_folder("bccd") / "BCCD"
    shutil.rmtree(folder, ignore_errors=True)
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    for path in (source / "ImageSets" / "Main").iterdir():
        names = path.read_text().split()[:4]
        (folder / "ImageSets" / "Main" / path.name).write_text("\n".join(names) + "\n")
        for name in names:
            for kind, end in (("Annotations", "xml"), ("JPEGImages", "jpg")):
                shutil.copyfile(source / kind / f"{name}.{end}", folder / kind / f"{name}.{end}")
    return folder


CIFAR10 = "--model tiny --batch 128 --optimizer adamw --lr 4e-3 --schedule cosine --warmup 200"
CIFAR10 += " --weight-decay .05 --ema .998 --label-smoothing .1 --flip --crop-padding 4"
SEEDS, CIFAR10_SECONDS = 5, 140.0


def cifar10_seeds(place: Place) -> Record:
    """Train five seeds of `tiny` on CIFAR-10 in one program, within one time budget."""
    root, seeds = data_folder("cifar10"), SEEDS
    root = next(iter(sorted(root.glob("*.tar.gz"))), root)
    limit = f"--time-budget {CIFAR10_SECONDS / SEEDS:g}"
    options = f"{CIFAR10} {limit} --eval-batch 500"
    if place.dry:
        from benchmarks.lib import synthetic

        root, seeds = place.folder / "images", 2
        synthetic.write_image_folders(root)
        options = "--model tutorial --epochs 1 --batch 4 --eval-batch 4 --eval-first false"
    folder = place.folder / "runs"
    shutil.rmtree(folder, ignore_errors=True)
    begun = time.monotonic()
    words = ["train", "cifar10", "--root", str(root), *shlex.split(options)]
    _jaxdet(*words, "--seeds", str(seeds), "--out", str(folder), "--devices", "1", "--quiet")
    seconds = time.monotonic() - begun
    runs = sorted(str(path.parent) for path in folder.glob("*/config.json"))
    out = _jaxdet("compare", *runs, "--split", "test", "--json")
    rows = [json.loads(line) for line in out.strip().splitlines()]
    return {"rows": rows[: len(runs)], "seconds": seconds, "options": options}


def same_bits_plain(place: Place) -> Record:
    """Compare two runs with the same options, each in a process that compiles its own programs."""
    return _same_bits(place, "")


def same_bits_deterministic(place: Place) -> Record:
    """Compare two runs as in `same_bits_plain`, but with `--deterministic`."""
    return _same_bits(place, "--deterministic")


def _same_bits(place: Place, options: str) -> Record:
    folders = [place.folder / name for name in ("one", "two")]
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
        _jaxdet(*_small_run(place), *options.split(), "--out", str(folder))
    return {"rows": [_difference(*folders)]}


def same_bits_resumed(place: Place) -> Record:
    """Compare an uninterrupted run with one that is killed and resumed, with `--deterministic`."""
    from jaxdet.training import run_dir

    whole, killed = (place.folder / name for name in ("whole", "killed"))
    for folder in (whole, killed):
        shutil.rmtree(folder, ignore_errors=True)
    words = [*_small_run(place), "--deterministic"]
    _jaxdet(*words, "--out", str(whole))
    process = subprocess.Popen(
        [sys.executable, "-m", "jaxdet", *words, "--out", str(killed)], cwd=ROOT
    )
    steps = 0
    while process.poll() is None and not steps:
        time.sleep(0.005)
        metrics = run_dir.read_metrics(killed)
        steps = metrics[-1]["step"] if metrics else 0
    interrupted = process.poll() is None
    process.kill()
    process.wait()
    _jaxdet(*words, "--out", str(killed), "--resume")
    return {"rows": [_difference(whole, killed) | {"interrupted": interrupted, "at_step": steps}]}


def _small_run(place: Place) -> list[str]:
    """Words of a command that trains a small digit locator with a max pool; MNIST unless dry."""
    options = f"{TINY} --batch 64 --eval-batch 100 --epochs 3 --eval-first false"
    if not place.dry:
        options = options.replace("--channels 8", "--channels 64") + " --cache false"
        options += f" --source mnist --root {shlex.quote(str(data_folder('mnist')))}"
    return ["train", "digits", *shlex.split(options), "--quiet"]


def _difference(one: Path, two: Path) -> Record:
    """Compare the last checkpoints of two runs: number of equal arrays, largest difference."""
    import jax
    import numpy as np

    from jaxdet import api

    runs = [api.load(folder, "last") for folder in (one, two)]
    pairs = list(zip(*(jax.tree.leaves(run.variables) for run in runs), strict=True))
    equal = [np.array_equal(a, b) for a, b in pairs]
    largest = max(float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in pairs)
    steps = [run.step for run in runs]
    return {"steps": steps, "arrays": len(equal), "equal": sum(equal), "largest": largest}


def export_on_cpu(place: Place) -> Record:
    """Export a network in a CPU-only process, run it on the default device, and compare logits."""
    import jax
    import numpy as np
    from jax import export

    from benchmarks.lib import turns

    side = 32 if place.dry else 224
    path = place.folder / "resnet18.export"
    place.folder.mkdir(parents=True, exist_ok=True)
    cpu = turns.Worker("cpu")
    try:
        variables, images, expected = cpu.run(make_export, path, side)
    finally:
        cpu.close()
    exported = export.deserialize(bytearray(path.read_bytes()))
    call = jax.jit(exported.call)
    found = np.asarray(call(variables, images))
    row = {
        "platforms": list(exported.platforms),
        "device": jax.devices()[0].device_kind,
        "bytes": path.stat().st_size,
        "difference": float(np.abs(found - expected).max() / np.abs(expected).max()),
    }
    return {"rows": [row]}


def make_export(path: Path, side: int) -> tuple[Any, Any, Any]:
    """Export ResNet18 for CPU and CUDA; returns (variables, images, logits in this process)."""
    import jax
    import numpy as np
    from jax import export

    from jaxdet.models import registry
    from jaxdet.training import host_init

    net = registry.get("resnet18").build(classes=10)
    images = np.random.default_rng(0).normal(size=(2, side, side, 3)).astype(np.float32)
    variables = host_init.initialize(net.init, jax.random.key(0), images)
    with jax.default_matmul_precision("highest"):
        exported = export.export(jax.jit(net.apply), platforms=["cpu", "cuda"])(variables, images)
    path.write_bytes(exported.serialize())
    logits = np.asarray(jax.jit(exported.call)(variables, images))
    return variables, images, logits


def _train_and_evaluate(
    place: Place, system: str, options: str, checkpoint: str, split: str
) -> Record:
    """Train and evaluate a run; the row has seconds of steps and of the command, and scores."""
    from jaxdet.training import run_dir

    folder = place.folder / "run"
    shutil.rmtree(folder, ignore_errors=True)
    begun = time.monotonic()
    _jaxdet("train", system, *shlex.split(options), "--out", str(folder), "--quiet")
    wall_s = time.monotonic() - begun
    out = _jaxdet("eval", str(folder), "--checkpoint", checkpoint, "--split", split, "--json")
    metrics = run_dir.read_metrics(folder)
    row = {
        "options": options,
        "scores": json.loads(out.strip().splitlines()[-1]),
        "train_s": sum(line["time"].get("train", 0.0) for line in metrics),
        "wall_s": wall_s,
        "epochs": metrics[-1]["epoch"],
        "steps": metrics[-1]["step"],
    }
    return {"rows": [row]}


def _jaxdet(*words: str) -> str:
    """Output of a jaxdet command; RuntimeError with the last line of its error if it fails."""
    return _run(sys.executable, "-m", "jaxdet", *words)


def _run(*words: str) -> str:
    print(shlex.join(words), file=sys.stderr, flush=True)
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:]
        reason = " ".join(last) or f"exit code {done.returncode}"
        raise RuntimeError(f"{shlex.join(words[:4])} failed: {reason}")
    return done.stdout


def main(argv: Sequence[str] | None = None) -> int:
    name, record, folder, *dry = sys.argv[1:] if argv is None else argv
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # a row starts processes
    try:
        found = globals()[name](Place(Path(folder), bool(dry)))
    except (RuntimeError, ImportError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    Path(record).write_text(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
