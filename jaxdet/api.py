"""Train, load and use models from Python.

    import jaxdet
    from jaxdet.configs import detect

    run = jaxdet.train(detect.Config(root="bccd", epochs=24), "runs/bccd")
    run = jaxdet.load("runs/bccd")
    for found in run.predict(["a.jpg", array]):
        print(found.boxes, [run.classes[label] for label in found.labels])
    print(run.evaluate("test")["map"])

The command line is built on this module.
"""

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, fields, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jax
import numpy as np
from flax import traverse_util

from jaxdet import configs, files, runs
from jaxdet.config import TrainConfig, conform, from_json, option, reuse_data
from jaxdet.data import coco, image_inputs, sources, threads
from jaxdet.data import images as image_files
from jaxdet.data.face_detector import FaceDetector, align_before
from jaxdet.errors import InputError
from jaxdet.export import onnx_graph, onnx_nms, package, program, replay
from jaxdet.export.model import ExportedModel, to_prediction
from jaxdet.kernels import compiler, program_cache
from jaxdet.metrics import average_precision, operating_point
from jaxdet.models import folding, registry
from jaxdet.reports import audit, run_page, thresholds
from jaxdet.reports.audit import Finding
from jaxdet.tasks.detect import PRE_NMS_TOP_K, DetectionTask
from jaxdet.tasks.sliding_window import MultipleObjectsTask
from jaxdet.training import checkpoint as checkpoints
from jaxdet.training import hosts, loop, parallel, run_dir, time_budget, weight_file
from jaxdet.training import state as training_state
from jaxdet.training.auto_batch import GIGABYTE, largest_batch
from jaxdet.training.evaluator import Evaluator, bootstrap, details
from jaxdet.training.experiment import Experiment
from jaxdet.training.progress import Callback, Counting, Progress, uncounted
from jaxdet.types import (
    Array,
    Candidates,
    Classification,
    Detections,
    EmbeddingTask,
    Localization,
    Prediction,
    PreparedImage,
    Tree,
)

if TYPE_CHECKING:
    from flax import linen as nn

LOG = logging.getLogger(__name__)
PUBLISHED_NMS_IOU = 0.65  # NMS IoU threshold of the published scores of YOLOX
ExportFormat = Literal["checkpoint", "stablehlo", "onnx", "safetensors"]
EXPORT_SUFFIXES = {"stablehlo": package.SUFFIX, "onnx": ".onnx", "safetensors": ".safetensors"}
PREDICT_BATCH = 8  # images per step of `Run.predict`; the last batch is padded


def train(
    config: TrainConfig | Experiment,
    folder: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    show: Progress | None = None,
    callbacks: Sequence[Callback] = (),
    stop: Callable[[], bool] = lambda: False,
    spent: float = 0.0,
    auto_batch: bool = False,
    memory: float = 0.0,
    weights: str | Path = "",
) -> "Run":
    """Train into a run folder, as `jaxdet train` does; returns the run at its best checkpoint.

    Args:
        config: options of a system, such as `jaxdet.configs.detect.Config`; or an `Experiment` with
            a task, network or data of your own, which `load` then needs too.
        folder: run folder; it must be empty or absent, unless the run in it is resumed or replaced.
        resume: continue the run in the folder, if there is one; on the same devices, with the same
            versions, the result is bit-identical to an uninterrupted run.
        overwrite: replace the run in the folder.
        show: where progress is shown; None shows nothing.
        callbacks: called after calls of the compiled program, evaluations and checkpoints.
        stop: called between calls of the compiled program, and between the batches of an
            evaluation; when it returns True, the run saves a checkpoint and ends.
        spent: seconds before the call that count towards the time of the run, such as the seconds
            that the program took to start.
        auto_batch: for a new run, replace the option `batch` by the largest batch that fits into
            memory.
        memory: for `auto_batch`, gigabytes that a step may need on each device; 0: 90% of the
            memory of the device.
        weights: replaces the option `weights` of the configuration: "run:DIR" or a file.

    Raises InputError for invalid options or data, and `DivergedError` when the loss is not finite.
    """
    folder, show = Path(folder), show or Progress(quiet=True)
    if weights:
        if isinstance(config, Experiment):
            raise InputError("weights needs a configuration of a system, got an Experiment")
        config = change_options(config, {"weights": str(weights)})
    experiment = run_training(
        config,
        folder,
        resume=resume,
        overwrite=overwrite,
        show=show,
        callbacks=callbacks,
        stop=stop,
        spent=spent,
        auto_batch=auto_batch,
        memory=memory,
    )
    return _restore(folder, "best", experiment, show.line)


def run_training(
    config: TrainConfig | Experiment,
    folder: Path,
    *,
    resume: bool,
    overwrite: bool,
    show: Progress,
    callbacks: Sequence[Callback] = (),
    stop: Callable[[], bool] = lambda: False,
    spent: float = 0.0,
    auto_batch: bool = False,
    memory: float = 0.0,
) -> Experiment:
    """`train` without restoring the best checkpoint; returns the experiment that was trained."""
    own = config if isinstance(config, Experiment) else None
    system = "" if own else runs.system_of(config)
    config = runs.absolute_paths(own.config if own else conform(config))
    hosts.check_same("options", asdict(config))
    continuing = hosts.from_main(lambda: resume and run_dir.is_occupied(folder))
    if not continuing:
        run_dir.check_vacant(folder, overwrite=overwrite)
    elif not own:
        kept = runs.read_config(folder, system)
        runs.check_same(folder, runs.absolute_paths(kept), config)
        config = replace(kept, **runs.changeable(config))
    before = run_dir.read_seconds(folder) if continuing else 0.0
    clock = time_budget.Clock(folder, config, before + spent)
    if not (own or continuing):
        runs.check_config(system, config)
    experiment = own or configs.build(system, config)
    if continuing:
        experiment = runs.with_kept_streams(folder, experiment)
    if auto_batch and not continuing:
        limit = memory * GIGABYTE
        batch = hosts.from_main(lambda: largest_batch(experiment, limit, show.line))
        config = replace(experiment.config, batch=batch)
        experiment = replace(experiment, config=config)
    hosts.check_same("images", {name: len(source) for name, source in experiment.splits.items()})
    devices, compiled, lock = experiment.devices, None, nullcontext()
    if continuing and hosts.is_main():
        lock = run_dir.Lock(folder)
    if not continuing:
        training_state.validate_weights(experiment, show.line)
        runs.check_to_train(experiment, show.line)
        runs.report_notes(experiment.notes, show.line)
        runs.report_uneven_batches(experiment, show.line)
        if line := runs.cost_of_tiles(experiment):
            show.line(line)
        if config.time_budget:
            compiled = loop.CompiledSteps(experiment)
            experiment = time_budget.plan_epochs(compiled, experiment, clock.used())
            epochs = experiment.config.epochs
            show.line(f"{epochs} epochs fit into {config.time_budget:g} s")
        if hosts.is_main():
            lock = runs.create(folder, experiment, overwrite=overwrite)
    with lock:
        if continuing and (changes := run_dir.environment_changes(folder, devices)):
            show.line(
                f"warning: {'; '.join(changes)}; the resumed run may not be bit-identical to an "
                f"uninterrupted one"
            )
        if hosts.is_main():
            run_dir.write_environment(folder, devices)
        try:
            complete = loop.train(
                experiment,
                folder,
                show=show,
                stop=lambda: stop() or clock.is_over(),
                callbacks=callbacks,
                compiled=compiled,
                plan_epochs=clock.plan_epochs,
            )
        finally:
            clock.keep()
        hosts.barrier()  # the last checkpoint is complete
        show.line(_end(folder, experiment.config, complete, clock))
    return experiment


def load(
    folder: str | Path,
    checkpoint: str | int = "best",
    *,
    experiment: Experiment | None = None,
    warn: Callable[[str], None] = LOG.warning,
    **options: Any,
) -> "Run":
    """Load the run in a folder, or in a file that `Run.export` has written.

    Its data are not read, except for runs of early versions without `record` in `config.json`.

    Args:
        folder: a run folder, of this version or an earlier one, or a .safetensors or .jaxdet file.
        checkpoint: "best", "last" or a step.
        experiment: the experiment of a run with a task, network or data of your own.
        warn: called with one line for each corrupt checkpoint that is skipped.
        options: fields of the configuration to change, such as `score_threshold=0.5`.

    Raises InputError if the folder is not a run or has no such checkpoint, or if an option is
    unknown or invalid.
    """
    path = Path(folder)
    if path.suffix in (package.SUFFIX, EXPORT_SUFFIXES["safetensors"]) and path.is_file():
        return _load_file(path, options)
    identity = None
    if experiment is None:
        config = change_options(runs.read_config(folder), options)
        experiment = runs.without_data(folder, config)
        metadata = [experiment.metadata, run_dir.read_metadata(folder)]
        identity = [experiment.name, asdict(config), metadata]
    return _restore(Path(folder), checkpoint, experiment, warn, identity)


def report(
    folders: Sequence[str | Path],
    out: str | Path,
    *,
    split: str = "test",
    checkpoint: str | int = "best",
    bootstrap: int = 1000,
    overwrite: bool = False,
    warn: Callable[[str], None] = LOG.warning,
    progress: Counting = uncounted,
    **options: Any,
) -> Path:
    """Write an HTML page on one run, or on several side by side, as `jaxdet report` does.

    The page has options, scores, curves, confusion, worst and best images, and operations; it needs
    no server and no network.

    Args:
        folders: run folders.
        out: .html file to write.
        split: split that is evaluated; "val" replaces a missing "test".
        checkpoint: "best", "last" or a step.
        bootstrap: number of resamples of the images, for 95% intervals of the scores; 0: none.
        overwrite: replace the file.
        warn: called with one line for each remark.
        progress: shows the number of evaluated images.
        options: as in `load`.

    Returns the path of the page.  Raises InputError as `load` does, if `out` exists without
    `overwrite`, and if there is no such split.
    """
    names = runs.unique_names(map(Path, folders))
    if not names:
        raise InputError("report must be given at least one run folder, got none")
    loaded = (
        (name, load(folder, checkpoint, warn=warn, **options)) for name, folder in names.items()
    )
    return _write_report(
        loaded,
        Path(out),
        split=split,
        bootstrap=bootstrap,
        overwrite=overwrite,
        warn=warn,
        progress=progress,
    )


def load_exported(file: str | Path) -> ExportedModel:
    """Load the program in a `.jaxdet` file, which predicts without the code of its network.

    Raises InputError if the file is damaged, or if this version of JAX cannot read its program.
    """
    return ExportedModel(file)


def load_pretrained(
    model: str, weights: str | Path, *, classes: Sequence[str] = (), **options: Any
) -> "Run":
    """Load a published detector: a `Run` that predicts and evaluates without training.

    Args:
        model: "yolox_s" or another published detector, see `models.registry`.
        weights: its weights: a .pth or .safetensors file, or "hf:OWNER/REPO:FILE".
        classes: names of the classes; by default COCO's or, if the weights have another number of
            classes, `class 0`, `class 1` and so on.
        options: fields of `configs.detect.Config` to change, such as `score_threshold=0.3` or
            `size=(416, 416)`; by default the size of the published evaluation.

    Raises InputError if the model is not a published detector, if the weights do not fit it, or if
    an option is unknown or invalid.
    """
    from jaxdet.configs import detect

    variables, found = registry.load_detector(model, weights)
    if classes and len(classes) != len(found):
        raise InputError(
            f"classes must be {len(found)} names, one for each class of {weights}, got "
            f"{len(classes)}"
        )
    side = registry.get(model).image_size
    config = detect.Config(model=model, size=(side, side), nms_iou=PUBLISHED_NMS_IOU)
    config = change_options(config, options)
    names = tuple(classes) or found
    experiment = configs.checked_module("detect", config).from_splits(config, names, {})
    if names == coco.CLASSES:
        metadata = {**experiment.metadata, "category_ids": list(coco.CLASS_IDS)}
        experiment = replace(experiment, metadata=metadata)
    return Run(Path(weights), experiment, 0, variables, 0)


def change_options(config: TrainConfig, options: dict[str, Any]) -> TrainConfig:
    """A copy of a configuration with changed options.

    Raises InputError for an unknown option and for a value of the wrong type.
    """
    known = {field.name for field in fields(config)}
    for name in options:
        if name not in known:
            system = runs.system_of(config)
            raise InputError(f"{option(name)} is not an option of {system}")
    return conform(replace(config, **options))


class Run:
    """A trained model: configuration, network and variables, ready to predict and evaluate.

    The `folder` of a published detector is its weight file.
    """

    def __init__(
        self,
        folder: Path,
        experiment: Experiment,
        step: int,
        variables: Tree,
        epoch: int,
        *,
        saved: weight_file.SavedNetwork | None = None,
        norms: folding.Norms | None = None,
        identity: Any = None,
    ):
        self.folder, self.experiment = folder, experiment
        self.step, self.variables, self.epoch = step, variables, epoch
        self.saved = saved  # the content of the file that the run was loaded from
        self._norms = norms  # from `folding.find_norms`; None: not known yet
        self._identity = identity  # for `program_cache`; None: not a run of a system
        self._programs: dict[tuple, Callable] = {}  # by shape of a batch of images, and device

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r}, system={self.system!r}, step={self.step})"

    @property
    def system(self) -> str:
        """Name of the system: digits, objects, detect, cifar10 or faces."""
        return self.experiment.name

    @property
    def config(self) -> TrainConfig:
        """The options of the run."""
        return self.experiment.config

    @property
    def metadata(self) -> dict[str, Any]:
        """Classes, input shape and normalization, as in `config.json`."""
        return self.experiment.metadata

    @property
    def recorded(self) -> dict[str, Any]:
        """The metadata stored with the run; for a published detector, `metadata`."""
        is_run = run_dir.is_run(self.folder)
        return run_dir.read_metadata(self.folder) if is_run else self.metadata

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes; a label is an index into them."""
        return tuple(self.metadata["classes"])

    @property
    def finds_many(self) -> bool:
        """Whether `predict` returns `Detections`, any number of objects per image."""
        return isinstance(self.experiment.task, DetectionTask | MultipleObjectsTask)

    @property
    def network(self) -> "nn.Module":
        """The Flax module of the network."""
        task: Any = self.experiment.task
        return task.net

    def predict_fn(self) -> Callable[[Tree, Array], dict[str, Array]]:
        """The pure function `(variables, images [B, H, W, C]) -> predictions` of the task.

        Images have values in [0, 1] and the size of the network's input; boxes are in pixels of
        these images, and the number of detections is fixed, with a mask `valid`.  The function
        works under `jax.jit`, `jax.vmap` and `jax.export`.
        """
        return self.experiment.task.predict

    def predict(self, images: Any, *, batch_size: int = PREDICT_BATCH) -> Any:
        """The prediction for one image, or a list of predictions for a list of images.

        Args:
            images: a path, the bytes of a file, a PIL image, or an array [H, W], [H, W, 1],
                [H, W, 3] or [H, W, 4], uint8 or float in [0, 1], which is rounded to 8 bits; or a
                list of these, of any sizes; or an array [N, H, W, C].
            batch_size: images per step; the last batch is padded.

        Returns `Detections`, `Localization` or `Classification`; boxes are in pixels of the
        original images.  Raises InputError for an image that cannot be read.
        """
        one, several = image_inputs.as_list(images)
        predictions = []
        for prepared, rows in self.predict_batches(several, batch_size=batch_size):
            predictions += [self.to_original(*pair) for pair in zip(prepared, rows, strict=True)]
        return predictions[0] if one else predictions

    def predict_prepared(
        self, images: Sequence[PreparedImage], batch_size: int = PREDICT_BATCH
    ) -> list[Prediction]:
        """Predictions for images from `prepare`, in their order; see `predict`."""
        rows = self.predict_arrays([one.image for one in images], batch_size)
        return [self.to_original(*pair) for pair in zip(images, rows, strict=True)]

    def embed(self, images: Any, *, batch_size: int = PREDICT_BATCH) -> np.ndarray:
        """Embeddings [N, D] of a list of N images, or [D] of a single image.

        `images` has the same forms as in `predict`.  Embeddings are not normalized; see
        `ops.embeddings` for comparing them.  Raises InputError if the run has no embeddings, if an
        embedding is not finite, and for an empty list.
        """
        if not isinstance(self.experiment.task, EmbeddingTask):
            raise InputError(
                f"{self.folder}: embeddings need a run of faces, got a run of {self.system}"
            )
        one, several = image_inputs.as_list(images)
        if not several:
            raise InputError("embed must be given at least one image, got none")
        rows = [
            row["embedding"]
            for _, batch in self.predict_batches(several, batch_size=batch_size)
            for row in batch
        ]
        found = np.stack(rows)
        finite = np.isfinite(found).all(1)
        if not finite.all():
            bad = several[finite.argmin()]
            name = bad if isinstance(bad, str | Path) else f"image {finite.argmin()}"
            raise InputError(
                f"{name}: embedding is not finite: the network has diverged; use another checkpoint"
            )
        return found[0] if one else found

    def with_aligned_faces(self, detector: FaceDetector | None = None) -> "Run":
        """The run with the largest face of each image aligned, before `predict` and `embed` use it.

        Images without a face are used as they are; a warning names them.  `detector` is by default
        a new `FaceDetector`.  Raises InputError unless the run is one of faces.
        """
        read_image = self.experiment.read_image
        if read_image is None or not isinstance(self.experiment.task, EmbeddingTask):
            raise InputError(
                f"{self.folder}: aligning faces needs a run of faces, got a run of {self.system}"
            )
        side = self.metadata["input"][0]
        read_aligned = align_before(detector or FaceDetector(), read_image, side)
        experiment = replace(self.experiment, read_image=read_aligned)
        return Run(self.folder, experiment, self.step, self.variables, self.epoch, saved=self.saved)

    def evaluate(self, split: str = "test", *, root: str = "", **options: Any) -> dict[str, Any]:
        """Scores of a split, as `jaxdet eval` prints them.

        For `val`, they include the scores that training logged at this step, with equal values
        unless `root` or `options` change the data or the predictions.

        Args:
            split: "train", "val", "test", or another split of the system.
            root: folder of other data with the same classes.
            options: fields of the configuration to change, such as `score_threshold=0.1`.

        Raises InputError if there is no such split or option, or if the classes of other data
        differ.
        """
        experiment = self.with_data(root=root, **options)
        losses, rows = self.measure(experiment, split)
        return {**losses, **details(experiment.task, rows, options.get("score_threshold"))}

    def bootstrap(
        self, split: str = "test", resamples: int = 1000, *, root: str = "", **options: Any
    ) -> dict[str, np.ndarray]:
        """Scores of a split on resampled images, {score: [resamples]}.

        `metrics.bootstrap.interval` gives the 95% interval of a score.  Runs evaluated on the same
        images draw the same resamples: the interval of the difference of their scores shows
        whether two runs differ.  Arguments and errors are as in `evaluate`.
        """
        runs.check_bootstrap(resamples)
        experiment = self.with_data(root=root, **options)
        _, rows = self.measure(experiment, split)
        return bootstrap(experiment.task, rows, resamples)

    def choose_threshold(
        self, rule: str = "f1", *, progress: Counting = uncounted
    ) -> thresholds.Thresholds:
        """Choose score thresholds of a detector on `val`, and store them in the run.

        rule: "f1", the highest F1; "recall=R" or "precision=P", at least this recall or precision.

        Returns the threshold of each class, and of all classes together, as in `thresholds.json`.
        Raises InputError for another rule or system, and if the run has no folder or no `val`.
        """
        operating_point.check_rule(rule)
        self._require_detector("choose_threshold")
        if not run_dir.is_run(self.folder):
            raise InputError(f"{self.folder}: choose_threshold needs a run folder")
        _, rows = self.measure(self.with_data(), "val", progress=progress)
        chosen = thresholds.choose(average_precision.match(rows, len(self.classes)), rule)
        return thresholds.store(self.folder, chosen, rule, self.step, self.classes)

    def chosen_thresholds(self, *, warn: Callable[[str], None] = LOG.warning) -> np.ndarray:
        """The threshold of each class [K] that `choose_threshold` has stored in the run.

        It is infinite for a class without a threshold.  Detections of `predict` that reach it are
        `found.scores >= thresholds[found.labels]`.

        warn: called with a line if the thresholds were chosen for another checkpoint.

        Raises InputError if none have been chosen, or if their file is damaged.
        """
        saved = self.saved.thresholds if self.saved else None
        is_run = run_dir.is_run(self.folder)
        content = run_dir.read_thresholds(self.folder) if is_run else saved
        if content is None:
            raise InputError(
                f"{self.folder} has no chosen thresholds; choose them with jaxdet eval "
                f"{self.folder} --choose-threshold f1"
            )
        path = self.folder / run_dir.THRESHOLDS if is_run else self.folder
        return thresholds.read(content, path, self.step, self.classes, warn=warn)

    def audit(
        self,
        split: str = "test",
        *,
        top: int = 20,
        root: str = "",
        warn: Callable[[str], None] = LOG.warning,
        progress: Counting = uncounted,
    ) -> list[Finding]:
        """Likely label errors: boxes that are missing, misplaced, mislabeled or duplicate.

        Predictions on images that the run was trained on point to few errors.  `reports.audit`
        writes findings as a table, and draws them.

        Args:
            split: split whose boxes are audited, or "all"; "val" replaces a missing "test".
            top: largest number of findings of each kind.
            root: folder of other data with the same classes.
            warn: called with one line for each remark.
            progress: shows the number of evaluated images.

        Returns the findings by kind, highest score first.  Raises InputError for another system,
        and as `evaluate` does.
        """
        if top < 1:
            raise InputError(f"--top must be at least 1, got {top}")
        self._require_detector("audit")
        experiment = self.with_data(root=root)
        chosen = runs.choose_split(split, [*experiment.splits, "all"], warn)
        recording = replace(experiment, task=audit.TaskWithIds(experiment.task))
        findings = []
        for own in experiment.splits if chosen == "all" else (chosen,):
            _, rows = self.measure(recording, own, progress=progress)
            findings += audit.find(experiment, own, rows, self.classes)
        return audit.rank(findings, top)

    def report(
        self,
        out: str | Path,
        *,
        split: str = "test",
        bootstrap: int = 1000,
        overwrite: bool = False,
        warn: Callable[[str], None] = LOG.warning,
    ) -> Path:
        """Write an HTML page on this run; see `jaxdet.report`."""
        named = [(self.folder.resolve().name, self)]
        return _write_report(
            named, Path(out), split=split, bootstrap=bootstrap, overwrite=overwrite, warn=warn
        )

    def _require_detector(self, what: str) -> None:
        if self.system != "detect":
            raise InputError(
                f"{self.folder}: {what} needs a run of detect, got a run of {self.system}"
            )

    def export(
        self,
        out: str | Path,
        format: ExportFormat = "checkpoint",
        *,
        batch: int | None = None,
        nms: bool | None = None,
        overwrite: bool = False,
        show: Callable[[str], None] = LOG.info,
    ) -> Path:
        """Write the model for use elsewhere.

        Args:
            out: the file to write; for a checkpoint, a folder that is empty or absent.
            format: checkpoint: a run folder for evaluation only, this checkpoint without the
                optimizer's state, which `load` and all commands read; it cannot be resumed.
                stablehlo: a `.jaxdet` file with the whole program from pixels to predictions,
                for CPUs and CUDA, which `load_exported` reads.
                onnx: the network with the decoding of its boxes, for images of its input's size;
                boxes are in pixels of that input.
                safetensors: the variables and the metadata to rebuild the run, which `load` and
                the option `weights` read.
            batch: images per call of the program; None: any number.
            nms: whether the program of a detector includes non-maximum suppression; None: it does,
                except in ONNX.  In ONNX it needs `nms_type="hard"` and a run without tiles.
            overwrite: replace the file, or the run in the folder.
            show: called with a line about the comparison described below.

        A program is compared with `predict` on `replay.COUNT` images, in a new process, before
        `out` is replaced.

        Returns the path of the file or of the checkpoint.  Raises InputError if `out` exists
        without `overwrite` or is inside or around this run, and for options that the model does
        not allow; `ReplayError` if the file does not give the same predictions.
        """
        if format == "checkpoint":
            return self._export_checkpoint(out, overwrite=overwrite)
        path = Path(out)
        if path.suffix != EXPORT_SUFFIXES[format]:
            raise InputError(f"OUT must end in {EXPORT_SUFFIXES[format]}, got {out}")
        suppressed = format == "stablehlo" if nms is None else nms
        if format == "onnx":
            self._check_onnx(suppressed)
        if path.is_dir() or (path.exists() and not overwrite):
            raise InputError(f"{out} exists; give another OUT, or --overwrite to replace a file")
        draft = Path(f"{out}.partial{path.suffix}")
        try:
            files.write_bytes(draft, self._exported(format, batch, suppressed))
            if format == "safetensors":
                weight_file.read(draft)
            else:
                show(self._prove(draft, nms=suppressed))
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
        return path

    def _exported(self, format: ExportFormat, batch: int | None, nms: bool) -> bytes:
        """The content of a file in a format other than `checkpoint`."""
        network = self._network()
        if format == "safetensors":
            return weight_file.to_bytes(network)
        if format == "onnx":
            kept = {"jaxdet": json.dumps({"system": self.system, "metadata": network.metadata})}
            shape, finish = self.metadata["input"], None
            if nms:
                config: Any = self.config
                finish = onnx_nms.Suppression(
                    *shape[:2],
                    candidates=PRE_NMS_TOP_K,
                    iou_threshold=config.nms_iou,
                    max_detections=config.max_detections,
                    score_threshold=config.score_threshold,
                )
            return onnx_graph.to_bytes(
                self._unsuppressed, shape, batch=batch, metadata=kept, finish=finish
            )
        exported = program.export_program(self.experiment, self.variables, batch=batch, nms=nms)
        return package.to_bytes(network, exported, program.resizing_of(self.experiment))

    def _check_onnx(self, nms: bool) -> None:
        """Raise InputError for a detector with tiles and, with `nms`, unless `nms_type` is hard."""
        config: Any = self.config
        if nms and not isinstance(self.experiment.task, DetectionTask):
            raise InputError(f"--nms true needs a run of detect, got a run of {self.system}")
        if nms and config.nms_type != "hard":
            raise InputError(
                f"--format onnx --nms true needs --nms-type hard, got {config.nms_type}; choose "
                f"--format stablehlo, or leave out --nms"
            )
        if getattr(config, "tiles", ""):
            raise InputError(
                f"--format onnx needs a run without --tiles, got {config.tiles}; choose --format "
                f"stablehlo"
            )

    def _unsuppressed(self, images: Array) -> dict[str, Array]:
        """The predictions of the task; of a detector, all boxes before suppression."""
        task: Any = self.experiment.task
        if isinstance(task, DetectionTask):
            scores, boxes = task.candidates(self.variables, images)
            return {"boxes": boxes, "scores": scores}
        return task.predict(self.variables, images)

    def _export_checkpoint(self, out: str | Path, *, overwrite: bool) -> Path:
        source, target = self.folder.resolve(), Path(out).resolve()
        if source == target or source in target.parents or target in source.parents:
            raise InputError(f"OUT must be a folder outside the run {self.folder}, got {out}")
        kept = run_dir.read_config(self.folder)

        def fill(draft: Path) -> None:
            run_dir.copy_records(self.folder, draft)
            checkpoints.export(self.folder, self.step, self.variables, draft)

        lock = run_dir.create(
            out,
            kept.system,
            asdict(self.config),
            kept.metadata,
            fill=fill,
            overwrite=overwrite,
        )
        lock.release()
        return Path(out) / "checkpoints" / str(self.step)

    def _network(self) -> weight_file.SavedNetwork:
        """The variables and metadata that rebuild the run; InputError for a custom experiment."""
        if self.system not in configs.SYSTEMS:
            raise InputError(
                f"{self.folder}: export needs a run of {', '.join(configs.SYSTEMS)}, got a custom "
                f"experiment"
            )
        # A run that was not trained with tiles has another input with them.
        metadata = self.metadata | self.recorded | {"input": self.metadata["input"]}
        chosen = None
        if "train" in self.experiment.splits:
            metadata |= {"record": sources.record_spec(self.experiment.splits["train"])}
        if run_dir.is_run(self.folder):
            chosen = run_dir.read_thresholds(self.folder)
        elif self.saved is not None:
            chosen = self.saved.thresholds
        variables = jax.device_get(self.variables)
        config = asdict(self.config)
        return weight_file.SavedNetwork(
            self.system, config, metadata, self.step, self.epoch, variables, chosen
        )

    def _prove(self, path: Path, *, nms: bool) -> str:
        """Replay a written program; returns a line with the largest differences."""
        try:
            given, what = replay.split_images(self._own_data()), "images of the data"
        except InputError:
            given, what = [], "images of noise (the data of the run were not found)"
        height, width, _ = self.metadata["input"]
        size = (height, width) if program.resizing_of(self.experiment) == "none" else None
        images = replay.images_to_replay(given, size)
        # On the CPU: a GPU may round inputs of convolutions to TF32, differently in each program.
        with jax.default_device(jax.local_devices(backend="cpu")[0]):
            if path.suffix == ".onnx":
                images = [self.prepare(image).image for image in images]
                predict = self._unsuppressed
                if nms:
                    predict = partial(self.predict_fn(), self.variables)
                run = compiler.jit(predict)
                expected = [to_prediction(_first(run(image[None]))) for image in images]
            else:
                expected = self.predict(images) if nms else self._candidates(images)
        names = ("score_threshold", "max_detections")
        limits = {name: getattr(self.config, name) for name in names if hasattr(self.config, name)}
        pixels, score = replay.prove(path, images, expected, replay.run_process, **limits)
        count = sum(np.size(getattr(one, "scores", 0)) for one in expected)
        said = f"replayed {len(images)} {what} in a new process:"
        if not count:
            return f"{said} no objects are found in them"
        return f"{said} {count} scores differ by at most {score:.2g}, boxes by {pixels:.2g} pixels"

    def _own_data(self) -> Experiment:
        """The experiment of the run with its data, even if the run was loaded from a file."""
        if run_dir.is_run(self.folder):
            return self.with_data()
        return configs.build(self.system, self.config)

    def _candidates(self, images: Sequence[np.ndarray]) -> list[Candidates]:
        """The boxes of a detector in original pixels, before non-maximum suppression."""
        run, found = compiler.jit(self._unsuppressed), []
        for image in map(self.prepare, images):
            row: dict[str, Any] = _first(run(image.image[None]))
            row |= {"labels": row["scores"], "valid": slice(None)}
            found.append(Candidates(*self.to_original(image, row)[:2]))
        return found

    def with_data(self, *, root: str = "", **options: Any) -> Experiment:
        """The experiment of the run with its data, or with the data in the folder `root`, if given.

        For a run of objects, if `root` does not hold the data of the run, all its images form the
        split `test`, and they may lack boxes.
        """
        config = change_options(self.config, options)
        splits = self.folder / "splits"
        if not (root or run_dir.is_run(self.folder)):
            raise InputError(
                f"--root must name the data: {self.folder} is a weight file, not a run"
            )
        if root:
            config = change_options(config, {"root": runs.absolute(root)})
            experiment = configs.build_external(self.system, config, self.classes, splits)
        else:
            if splits.is_dir():
                config = change_options(config, {"split_files": str(splits.absolute())})
            experiment = configs.build(self.system, config)
        runs.check_classes(self.folder, self.recorded["classes"], experiment)
        return experiment

    def measure(
        self, experiment: Experiment, split: str, *, progress: Counting = uncounted
    ) -> tuple[dict[str, float], dict]:
        """Evaluate a split; return (means of the loss terms, measurements [N, ...] of N images).

        `Task.report` computes scores from the measurements.  `progress` shows the number of images.
        """
        evaluator = self.evaluator(experiment, split)
        return evaluator.measure_counted(self.variables, self.epoch, progress)

    def evaluator(self, experiment: Experiment, split: str) -> Evaluator:
        """The compiled evaluation of a split, on as many of the run's devices as this machine has.

        Raises InputError if there is no such split.
        """
        if split not in experiment.splits:
            known = ", ".join(experiment.splits)
            raise InputError(f"--split must be one of {known}, got {split}")
        devices = parallel.available_devices(experiment.config.devices)
        return Evaluator(experiment, split, devices=devices)

    def prepare(self, image: Any) -> PreparedImage:
        """Prepare an image, in any form that `predict` accepts, as input of the network.

        Raises InputError as `predict` does, and if the experiment has no reader of images.
        """
        if self.experiment.read_image is None:
            raise InputError(f"{self.folder} has no reader of images; set Experiment.read_image")
        prepared, size = self.experiment.read_image(image_inputs.readable(image))
        height, width = prepared.shape[:2]
        if isinstance(self.experiment.task, DetectionTask):
            letterbox = self.experiment.letterbox
            scale, offset = image_files.letterbox_transform(size, height, width, letterbox)
            return PreparedImage(prepared, size, np.tile(1 / scale, 2), np.tile(-offset / scale, 2))
        scale = np.tile(np.asarray(size, np.float32) / (height, width), 2)[[1, 0, 3, 2]]
        return PreparedImage(prepared, size, scale, np.zeros(4, np.float32))

    def predict_batches(
        self, images: Sequence[Any], *, batch_size: int = PREDICT_BATCH
    ) -> Iterator[tuple[list[PreparedImage], list[dict[str, np.ndarray]]]]:
        """Yield (prepared images, predictions) for each batch; boxes are in pixels of the input.

        Images are decoded in threads, a batch ahead.  Images of the same shape share a compiled
        program.  Raises InputError as `prepare` does, and for a `batch_size` below 1.
        """
        if batch_size < 1:
            raise InputError(f"batch_size must be at least 1, got {batch_size}")
        size = 1 if len(images) == 1 else batch_size
        for prepared in threads.map_batches(self.prepare, images, batch_size):
            yield prepared, self.predict_arrays([one.image for one in prepared], size)

    def predict_arrays(
        self, images: Sequence[np.ndarray], batch_size: int
    ) -> list[dict[str, np.ndarray]]:
        """Predictions for prepared images [H, W, C], in the order of the images.

        Images of the same shape are predicted together, in batches padded to `batch_size`.
        """
        found: list[dict[str, np.ndarray]] = [{}] * len(images)
        shapes: dict[tuple[int, ...], list[int]] = {}
        for i, image in enumerate(images):
            shapes.setdefault(image.shape, []).append(i)
        for shape, indices in shapes.items():
            for start in range(0, len(indices), batch_size):
                own = indices[start : start + batch_size]
                batch = np.zeros((batch_size, *shape), np.float32)
                batch[: len(own)] = np.stack([images[i] for i in own])
                rows = jax.device_get(self._compiled(batch)(self.inference_variables, batch))
                for place, i in enumerate(own):
                    found[i] = {name: column[place] for name, column in rows.items()}
        return found

    @cached_property
    def inference_variables(self) -> Tree:
        """`variables` with batch norm folded into convolutions, on the device, for `predict_fn`.

        The predictions are the same up to rounding.
        """
        norms = self._norms
        if norms is None and "input" not in self.metadata:  # of an experiment of one's own
            norms = {}
        elif norms is None:
            image = jax.ShapeDtypeStruct((1, *self.metadata["input"]), np.float32)
            norms = folding.find_norms(self.predict_fn(), self.variables, image)
        return jax.device_put(folding.fold_batch_norm(self.variables, norms))

    def _compiled(self, images: np.ndarray) -> Callable[[Tree, Array], dict[str, Array]]:
        key = images.shape, program_cache.default_device()
        if key not in self._programs:
            arguments = (self.inference_variables, images)
            program = program_cache.compiled(self.predict_fn(), self._identity, *arguments)
            self._programs[key] = program
        return self._programs[key]

    def to_original(self, image: PreparedImage, row: dict[str, np.ndarray]) -> Prediction:
        """Convert `row`, the predictions for a prepared image, to a `Prediction`.

        Its boxes are in pixels of the original image.
        """
        if "valid" in row:
            valid = row["valid"]
            boxes = row["boxes"][valid] * image.scale[None] + image.offset[None]
            height, width = image.size
            boxes = np.clip(np.float32(boxes), 0, np.float32([[width, height, width, height]]))
            return Detections(boxes, row["scores"][valid], row["labels"][valid])
        if "box" in row:
            box = np.float32(row["box"] * image.scale + image.offset)
            return Localization(row["label"], row["score"], box)
        return Classification(row["label"], row["score"], row["probabilities"])


def _first(rows: dict[str, Array]) -> dict[str, np.ndarray]:
    """The predictions of the first image of a batch."""
    return {name: column[0] for name, column in jax.device_get(rows).items()}


def _write_report(
    named: "Iterable[tuple[str, Run]]",
    path: Path,
    *,
    split: str,
    bootstrap: int,
    overwrite: bool,
    warn: Callable[[str], None],
    progress: Counting = uncounted,
) -> Path:
    """Evaluate runs, and write the page on them."""
    runs.check_bootstrap(bootstrap)
    if path.exists() and not overwrite:
        raise InputError(f"{path} exists; choose another --out, or give --overwrite")
    found = []
    with reuse_data():
        for name, run in named:
            experiment = run.with_data()
            chosen = runs.choose_split(split, [*experiment.splits], warn)
            options = {"resamples": bootstrap, "progress": progress}
            found.append(run_page.evaluate(name, run, experiment, chosen, **options))
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(path, run_page.to_html(found))
    return path


def _load_file(path: Path, options: dict[str, Any]) -> Run:
    """Rebuild a run from a `.safetensors` or `.jaxdet` file."""
    is_package = path.suffix == package.SUFFIX
    saved = package.read(path).network if is_package else weight_file.read(path)
    if saved.system not in configs.SYSTEMS:
        raise InputError(
            f"{path}: its system must be one of {', '.join(configs.SYSTEMS)}, got {saved.system!r}"
        )
    try:
        config = from_json(configs.config(saved.system), saved.config)
    except (ValueError, TypeError) as error:
        raise InputError(
            f"{path}: {error}; another version of jaxdet wrote it: install that version"
        ) from None
    config = change_options(config, options)
    if "record" in saved.metadata:
        experiment = configs.without_data(saved.system, config, saved.metadata)
    else:  # a published detector
        module = configs.checked_module(saved.system, config)
        experiment = module.from_splits(config, tuple(saved.metadata["classes"]), {})
    experiment = replace(experiment, metadata=saved.metadata)
    return Run(path, experiment, saved.step, saved.variables, saved.epoch, saved=saved)


def _restore(
    folder: Path,
    checkpoint: str | int,
    experiment: Experiment,
    warn: Callable[[str], None],
    identity: Any = None,
) -> Run:
    """The run in a folder; `identity`, for `program_cache`, names its experiment."""
    like, norms = _network_shapes(experiment, identity)
    step, variables, epoch = checkpoints.restore_variables(folder, like, str(checkpoint), warn)
    return Run(folder, experiment, step, variables, epoch, norms=norms, identity=identity)


def _network_shapes(experiment: Experiment, identity: Any) -> tuple[Tree, folding.Norms]:
    """Shapes of the variables of a network, and the norms that can be folded."""

    def trace() -> list[dict[str, Any]]:
        with folding.recorded_norms() as norms:
            like = training_state.variable_shapes(experiment)
        shapes: dict[str, Any] = traverse_util.flatten_dict(like, sep="/")
        arrays = {name: [str(leaf.dtype), leaf.shape] for name, leaf in shapes.items()}
        return [arrays, {"/".join(path): epsilon for path, epsilon in norms.items()}]

    arrays, norms = program_cache.remembered(identity, trace)
    shapes = {name: jax.ShapeDtypeStruct(shape, dtype) for name, (dtype, shape) in arrays.items()}
    like = traverse_util.unflatten_dict(shapes, sep="/")
    return like, {tuple(name.split("/")): epsilon for name, epsilon in norms.items()}


def _end(folder: Path, config: TrainConfig, complete: bool, clock: time_budget.Clock) -> str:
    """One line that says how a training ended, and which command to use next."""
    if complete:
        return f"{folder} is complete; see jaxdet eval {folder}, jaxdet predict {folder}"
    if clock.is_over():
        used = f"has used its --time-budget of {config.time_budget:g} s"
        return f"{folder} {used}; see jaxdet eval {folder}"
    return f"{folder} is not complete; continue with --resume"
