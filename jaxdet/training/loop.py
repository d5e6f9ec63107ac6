"""The training loop: trains in a run folder, from the last checkpoint to the end of the run."""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np

from jaxdet import flops, tables
from jaxdet.config import TrainConfig
from jaxdet.data import sampler
from jaxdet.data.sources import UnreadableError
from jaxdet.flops import OpCounts
from jaxdet.training import (
    auto_batch,
    checkpoint,
    evaluator,
    host_init,
    hosts,
    memory,
    parallel,
    progress,
    run_dir,
)
from jaxdet.training import state as training_state
from jaxdet.training.data_wait import DataWait
from jaxdet.training.experiment import Experiment
from jaxdet.training.progress import Callback, CheckpointEvent, EvaluationEvent, StepEvent
from jaxdet.training.saver import Saver
from jaxdet.training.step import completed_epochs, train_step, train_steps
from jaxdet.types import Batch, TrainState, Tree

CALL_SECONDS = 0.05  # duration that a call on a GPU should have, so that its overhead is small
MAX_CALL_STEPS = 64  # largest number of steps per call, for data on the device
SAVE, STOP = 1, 2  # actions between two batches
DRAW_SECONDS = 30  # minimum time between two plots of the curves


class DivergedError(RuntimeError):
    """The loss or its gradient is not finite; the last checkpoint is older and finite."""


class StopRequested(BaseException):
    """Raised between two batches when `stop()` or a callback has asked the run to end."""


def train(
    experiment: Experiment,
    folder: Path,
    *,
    show: progress.Progress,
    stop: Callable[[], bool] = lambda: False,
    callbacks: Sequence[Callback] = (),
    compiled: "CompiledSteps | None" = None,
    plan_epochs: Callable[[int, int], int] = lambda done, planned: planned,
) -> bool:
    """Train in a run folder, from its last checkpoint if any; return whether the run is complete.

    The run saves and ends when `stop()`, or a method of a callback, returns True.
    compiled: the compiled steps of the experiment, if they exist already.
    plan_epochs: called after evaluations; function from the completed and the planned number of
      epochs to the new number of epochs of the run.

    Raises `DivergedError` when the loss or its gradient is not finite, and `UnreadableError`, after
    saving, when an image of a stream cannot be read any more and must not be left out.
    """
    explained = partial(
        memory.explained, experiment.config, "batch", partial(auto_batch.largest_batch, experiment)
    )
    with explained():
        compiled = compiled or CompiledSteps(experiment)
    loop = Loop(compiled, experiment, folder, show, stop, callbacks, plan_epochs)
    batch = experiment.config.batch
    show.begin(loop.step * batch, loop.plan.steps * batch)
    try:
        with explained():
            while not loop.is_complete():
                loop.run_epoch()
    except StopRequested:
        loop.save(None)
        loop.saver.wait()
        show.line(f"stopped at step {loop.step} of {loop.plan.steps}")
        return False
    except UnreadableError as error:
        loop.save(None)
        raise UnreadableError(f"{error}; step {loop.step} is saved in {folder}") from None
    finally:
        loop.saver.wait()
        show.close()
    draw_curves(folder)
    return True


def draw_curves(folder: Path) -> None:
    """Draw the curves of a run, if it has metrics, into `plots/convergence.png`."""
    if not hosts.is_main():
        return
    # Imported here: the first step need not wait half a second for matplotlib.
    from jaxdet.plots import training as training_plots

    if metrics := run_dir.read_metrics(folder):
        training_plots.learning_curves(metrics, Path(folder) / "plots" / "convergence.png")


class CompiledSteps:
    """An experiment's data on the devices, its compiled steps, and an evaluator per split.

    Runs that differ only in traced numbers and seeds can share one instance.  Data that `before`
    has copied to the same devices are not copied again.
    """

    def __init__(self, experiment: Experiment, before: "CompiledSteps | None" = None):
        self.devices, self.plan = experiment.devices, experiment.plan
        scored = experiment.scored_splits
        sources = [experiment.splits[split].arrays for split in ("train", *scored)]
        self.placed = [(arrays, self._replicate(arrays, before)) for arrays in sources]
        self.data, *scored_data = (on_devices for _, on_devices in self.placed)
        self.evaluators = {
            split: evaluator.Evaluator(experiment, split, data)
            for split, data in zip(scored, scored_data, strict=True)
        }
        options = {
            "task": experiment.task,
            "optimizer": experiment.optimizer,
            "plan": experiment.plan,
        }
        self.pure, self.pure_steps = partial(train_step, **options), partial(train_steps, **options)
        compiled = partial(parallel.compile_step, devices=self.devices, donate=(0,))
        self.steps = [
            compiled(partial(self.pure, scale=scale), replicated=2) for scale in experiment.scales
        ]
        # On a CPU, whose calls cost little, a call of N steps is N calls of the single step: in a
        # loop the steps would round differently.  The same holds for images of several sizes.
        self.looped = self.devices[0].platform != "cpu" and len(self.steps) == 1
        self.loop = compiled(partial(self.pure_steps, scale=experiment.scales[0]), replicated=3)
        self.steps_per_call = experiment.config.steps_per_call  # 0: decided by `timed`
        self.capacity = max(self.steps_per_call, MAX_CALL_STEPS if self.data else 1)
        if not self.steps_per_call and not (self.looped and self.data):
            self.steps_per_call = 1
        self.timed_calls = 0
        self.scales, self.counts = experiment.scales, {}  # size -> operations of a step

    def by_call(self, batches: Iterable[Any]) -> Iterator[list[Any]]:
        """Yield the batches of each call; the last call of an epoch may have fewer."""
        batches = iter(batches)
        while of_call := list(islice(batches, self.steps_per_call or 1)):
            yield of_call

    def take_steps(
        self, state: TrainState, batches: Sequence[Any], sizes: Sequence[int] = ()
    ) -> TrainState:
        """The state after a step on each of the batches.

        sizes: index of the image size of each batch; by default 0 for all.
        """
        if self.looped:
            return self.loop(state, self.data, *self.stack(batches))
        for rows, size in zip(batches, sizes or [0] * len(batches), strict=True):
            state = self.steps[size](state, self.data, rows)
        return state

    def stack(self, batches: Sequence[Any], axis: int = 1) -> tuple[Any, Any]:
        """Arguments of `loop`: (number of batches, their rows stacked along an axis, padded)."""
        count = len(batches)
        padded = [*batches, *[batches[0]] * (self.capacity - count)]
        return np.int32(count), jax.tree.map(lambda *columns: np.stack(columns, axis), *padded)

    def timed(self, call: Callable[[], Tree]) -> Tree:
        """The state that `call()` returns.

        If the number of steps per call is not decided yet, the time of the second call decides it;
        the first call compiles.
        """
        if self.steps_per_call:
            return call()
        begun = time.monotonic()
        state = jax.block_until_ready(call())
        self.timed_calls += 1
        if self.timed_calls == 2:
            steps = hosts.agree(math.ceil(CALL_SECONDS / (time.monotonic() - begun)))
            self.steps_per_call = min(max(1, steps), MAX_CALL_STEPS)
        return state

    def operations(self, state: TrainState, rows: Any, size: int = 0) -> OpCounts:
        """Operations of a step, update included; `size` is an index into `Experiment.scales`."""
        if size not in self.counts:
            step = partial(self.pure, scale=self.scales[size], axis=None)
            self.counts[size] = flops.count(step, state, self.data, rows).sum()
        return self.counts[size]

    def _replicate(self, arrays: Batch, before: "CompiledSteps | None") -> Batch:
        if before and before.devices == self.devices:
            for host_arrays, device_arrays in before.placed:
                if host_arrays is arrays:
                    return device_arrays
        return parallel.replicate(arrays, self.devices)


class Stepper(Protocol):
    """Takes steps of one run, or of several runs that share a program."""

    def step(self, batches: Any) -> None:
        """Take the steps of a call, one on each batch."""

    def sync(self) -> None:
        """Store the new states in their runs."""


def take_steps(
    calls: Iterable[Any],
    stepper: Stepper,
    *,
    pause: Callable[[], None],
    after: Callable[[Any], None],
) -> None:
    """Take the steps of every call; call `pause()` before them and `after(batches)` after them.

    `pause` may raise an exception to stop.  The stepper is synced at the end in any case.
    """
    try:
        for batches in calls:
            pause()
            stepper.step(batches)
            after(batches)
    finally:
        stepper.sync()


class Loop:
    """A run in progress: its compiled steps, its state and its folder."""

    def __init__(
        self,
        compiled: CompiledSteps,
        experiment: Experiment,
        folder: Path,
        show: progress.Progress,
        stop: Callable[[], bool] = lambda: False,
        callbacks: Sequence[Callback] = (),
        plan_epochs: Callable[[int, int], int] = lambda done, planned: planned,
    ):
        self.plan_epochs = plan_epochs
        self.compiled, self.experiment, self.folder = compiled, experiment, Path(folder)
        self.show, self.stop, self.callbacks = show, stop, (show, *callbacks)
        self.config, self.plan = experiment.config, experiment.plan
        self.source = experiment.splits["train"]
        self.order = experiment.batch_order(self.source)
        self.hparams = parallel.replicate(experiment.hparams, compiled.devices)
        self.state = self._initial_state()
        self._plan_steps(int(self.state.hparams["steps"]))
        self.step = self.began_at = int(jax.device_get(self.state.step))
        self.first_step_done, self.stopping = False, False
        self.operations: OpCounts | None = None  # of an evaluation
        self.together = 1  # number of runs in the program of the last epoch
        self.data_wait = None if compiled.data else DataWait()  # of batches that are read
        self.saver = Saver(self.folder, self._announce)
        # Callbacks on checkpoints are called, and may stop the run, at the step of the checkpoint.
        self.saves_at_once = any(
            type(each).on_checkpoint is not Callback.on_checkpoint for each in self.callbacks
        )
        self.saved = self.began = self.drawn = time.monotonic()

    def _initial_state(self) -> TrainState:
        """The state to continue from, on the devices; metrics of later steps are dropped."""
        make = training_state.init_fn(self.experiment)
        if not hosts.is_main():
            state = host_init.initialize(make)  # types and shapes; the values come from process 0
        elif checkpoint.steps(self.folder):
            _, state = checkpoint.restore(self.folder, jax.eval_shape(make), warn=self.show.line)
        else:
            state = host_init.initialize(make)
            if self.experiment.load_pretrained:
                state = training_state.load_pretrained(state, self.experiment.load_pretrained)
        state = hosts.broadcast(state)
        if hosts.is_main():
            self._drop_metrics(int(state.bookkeeping["evaluated"]))
        return parallel.replicate(state, self.compiled.devices)

    def _drop_metrics(self, after: int) -> None:
        """Remove the lines of metrics beyond step `after`; warn if earlier lines are missing."""
        run_dir.drop_metrics(self.folder, after)
        if lost := checkpoint.count_lost_metrics(self.folder):
            path = self.folder / run_dir.METRICS
            self.show.line(f"warning: {path} has lost {lost} lines: curves and tables lack them")

    def is_complete(self) -> bool:
        """Whether the last step (or early stopping) is reached and evaluated."""
        book = jax.device_get(self.state.bookkeeping)
        if book["evaluated"] != self.step:
            return False
        patience = self.config.patience
        return self.step >= self.plan.steps or bool(patience and book["waited"] >= patience)

    def run_epoch(self) -> None:
        """Evaluate if an evaluation is due; otherwise train to the end of the epoch."""
        if self.evaluation_is_due():
            self.evaluate()
        elif self.step < self.plan.steps:
            self.began = time.monotonic()
            rows = hosts.own_rows(self.batch_indices())
            calls = self.compiled.by_call(self.source.batches(rows))
            calls = self.data_wait.counted(calls) if self.data_wait else calls
            take_steps(calls, _SingleRun(self), pause=self._pause, after=self._after_call)
            self.read_terms()

    def evaluation_is_due(self) -> bool:
        """Whether the state is at the end of an epoch and has not been evaluated there.

        With `eval_first`, the start of the run, step 0, counts as the end of an epoch.
        """
        if self.step % self.plan.epoch_steps or not (self.step or self.config.eval_first):
            return False
        return int(self.state.bookkeeping["evaluated"]) != self.step

    def batch_indices(self) -> np.ndarray:
        """Rows [steps, B] of the remaining batches of the epoch."""
        epoch, start = divmod(self.step, self.plan.epoch_steps)
        rows = self.order(self.config.seed, epoch, len(self.source), self.config.batch)
        return rows[start:]

    def evaluate(self) -> None:
        """Score the state, record the scores in `metrics.jsonl`, and save a checkpoint."""
        book = self._checked_bookkeeping()
        trained = time.monotonic() - self.began if book["count"] else 0.0
        variables = training_state.variables_of(self.state)
        if self.operations is None:
            scorers = self.compiled.evaluators.values()
            counts = (of.operations(variables) * of.count for of in scorers)
            self.operations = sum(counts, OpCounts())
        begun = time.monotonic()
        epochs = completed_epochs(self.state)
        scores = {
            split: score(variables, epochs, self._pause, self.hparams)
            for split, score in self.compiled.evaluators.items()
        }
        seconds = {"train": trained, "eval": time.monotonic() - begun}
        if self.data_wait and trained:
            seconds["data"] = self.data_wait.restart()
        score = self._selection_score(scores["val"]) if "val" in scores else None
        means = _means(book) if book["count"] else None
        counted = self._count_operations(book) if self.config.count_operations else None
        resumed = self.began_at > self.step - int(book["count"])
        book = self._after_plateau(_after_evaluation(book, self.step, score), score)
        scale = training_state.plateau_scale(book)
        metrics = {
            "step": self.step,
            "epoch": self.step // self.plan.epoch_steps,
            "lr": float(self.learning_rate(-(-self.step // self.plan.accumulate)) * scale),
            "train": means,
            "val": None,
            **scores,
            "time": seconds,
            **({"operations": counted} if counted else {}),
            **({"together": self.together} if self.together > 1 else {}),
        }
        self.saver.wait()  # a checkpoint counts the lines of metrics
        if hosts.is_main():
            run_dir.append_metrics(self.folder, metrics)
        self.state = self.state.replace(bookkeeping=parallel.replicate(book, self.compiled.devices))
        self._plan_anew()
        self.save(score)
        best = score is not None and int(book["best_step"]) == self.step
        rate = self.operations.total() / seconds["eval"]
        epochs = self.plan.steps // self.plan.epoch_steps
        text = _summary_line(metrics, self.config, epochs, best, rate)
        self._notify("on_evaluation", EvaluationEvent(metrics, best, text))
        if counted:
            known = {"eval": seconds["eval"]} if resumed else seconds
            self.show.line(_operations_table(counted, known))
        self._draw()

    def _count_operations(self, book: dict[str, Any]) -> dict[str, dict[str, int]]:
        """Operations by kind of the steps since the last evaluation, and of the evaluation."""
        counts, sizes = OpCounts(), len(self.compiled.steps)
        taken = range(self.step - int(book["count"]), self.step)
        drawn = Counter(sampler.draw_size(self.config.seed, step, sizes) for step in taken)
        for size, steps in drawn.items():
            (rows,) = self.source.batches(self.batch_indices()[:1])
            counts += self.compiled.operations(self.state, rows, size) * steps
        passes = {"train": counts, "eval": self.operations or OpCounts()}
        return {name: evaluator.operation_kinds(of) for name, of in passes.items() if of.total()}

    def _selection_score(self, scores: dict[str, Any]) -> tuple[float, float]:
        """The validation score and loss by which checkpoints are compared, in float32."""
        return float(np.float32(scores[self.config.best])), float(np.float32(scores["loss"]))

    def _plan_steps(self, steps: int) -> None:
        """Set the length of the run, on which the learning rate depends."""
        self.plan = self.plan._replace(steps=steps)
        self.learning_rate = self.experiment.learning_rate(steps=steps)

    def _plan_anew(self) -> None:
        """Set the length of the run to the number of epochs that `plan_epochs` returns."""
        epoch_steps = self.plan.epoch_steps
        planned = self.plan.steps // epoch_steps
        epochs = hosts.from_main(lambda: self.plan_epochs(self.step // epoch_steps, planned))
        if epochs != planned:
            self._plan_steps(epochs * epoch_steps)
            steps = parallel.replicate(np.int32(self.plan.steps), self.compiled.devices)
            self.state = self.state.replace(hparams=self.state.hparams | {"steps": steps})
            self.show.set_total(self.plan.steps * self.config.batch)

    def save(self, score: tuple[float, float] | None) -> None:
        """Begin to write a checkpoint; without a score, only if this step has no checkpoint yet."""
        self._checked_bookkeeping()
        self.saver.wait()
        absent = hosts.is_main() and self.step not in checkpoint.steps(self.folder)
        if absent or (hosts.is_main() and score is not None):
            self.saver.save(self.step, self.state, score)
            if self.saves_at_once:
                self.saver.wait()
        self.saved = time.monotonic()

    def _announce(self, step: int, path: Path) -> None:
        self._notify("on_checkpoint", CheckpointEvent(step, path))

    def _notify(self, method: str, event: Any) -> None:
        """Call a method of every callback; if one returns True, the run stops at the next batch."""
        for callback in self.callbacks:
            self.stopping |= bool(getattr(callback, method)(event))

    def _pause(self) -> None:
        """Save if a checkpoint is due, or raise StopRequested; all processes at the same step."""
        self.saver.poll()
        saves = time.monotonic() - self.saved > 60 * self.config.save_minutes
        due = STOP if self.stopping or self.stop() else SAVE if saves else 0
        due = hosts.agree_at_step(due)
        if due == STOP:
            raise StopRequested
        if due == SAVE:
            self.save(None)

    def _after_call(self, batches: Sequence[Any]) -> None:
        epoch = (self.step - 1) // self.plan.epoch_steps + 1
        epochs = self.plan.steps // self.plan.epoch_steps
        images = len(batches) * self.config.batch
        waited = None
        if self.data_wait:
            waited = self.data_wait.seconds / (time.monotonic() - self.began)
        event = StepEvent(self.step, epoch, epochs, images, self.read_terms, waited)
        self._notify("on_step", event)

    def read_terms(self) -> dict[str, float]:
        """Means of the loss terms since the last evaluation; `DivergedError` if not finite."""
        return _means(self._checked_bookkeeping())

    def _checked_bookkeeping(self) -> dict[str, Any]:
        """The bookkeeping on the host; `DivergedError` if a loss or gradient was not finite."""
        book = jax.device_get(self.state.bookkeeping)
        if book["bad_step"] < 0:
            return book
        names = [*sorted(book["sums"]), "gradient"]
        self.saver.wait()
        saved = checkpoint.steps(self.folder)
        good = f"checkpoint {saved[-1]} of {self.folder}" if saved else "not saved yet"
        raise DivergedError(
            f"step {book['bad_step']}: {names[int(book['bad_term'])]} is not finite; last good "
            f"state: {good}; try a lower --lr, or --clip 1"
        )

    def _after_plateau(
        self, book: dict[str, Any], score: tuple[float, float] | None
    ) -> dict[str, Any]:
        """The bookkeeping with the learning rate lowered if the score has reached a plateau."""
        if "plateau" not in book or score is None:
            return book
        value = {"loss": score[1], "score": 1 - score[0]}[self.config.plateau_metric]
        _, after = self.experiment.plateau.update(
            training_state.ZERO, book["plateau"], value=np.float32(value)
        )
        return book | {"plateau": jax.device_get(after)}

    def _draw(self) -> None:
        """Redraw the curves, at most twice a minute, and start to time the training again."""
        if time.monotonic() - self.drawn > DRAW_SECONDS:
            draw_curves(self.folder)
            self.drawn = time.monotonic()
        self.began = time.monotonic()


class _SingleRun:
    """The `Stepper` of one run."""

    def __init__(self, loop: Loop):
        self.loop = loop

    def step(self, batches: Sequence[Any]) -> None:
        """Dispatch a call of the compiled program; wait for the first one, to report its time."""
        loop, compiled = self.loop, self.loop.compiled
        sizes = [
            sampler.draw_size(loop.config.seed, loop.step + i, len(compiled.steps))
            for i in range(len(batches))
        ]
        loop.state = compiled.timed(lambda: compiled.take_steps(loop.state, batches, sizes))
        if loop.data_wait:
            loop.data_wait.dispatched(loop.state)
        loop.step += len(batches)
        if not loop.first_step_done:
            jax.block_until_ready(loop.state.step)
            loop.first_step_done, seconds = True, progress.since_start()
            if seconds is not None:
                loop.show.line(f"first step done {seconds:.1f} s after the start of the program")

    def sync(self) -> None:
        """Do nothing: `step` stores the new state in the run."""


def _after_evaluation(
    book: dict[str, Any], step: int, score: tuple[float, float] | None
) -> dict[str, Any]:
    """The bookkeeping after an evaluation; `score` is (score, loss), None without validation."""
    best = (float(book["best_score"]), -float(book["best_loss"]))
    better = score is not None and (score[0], -score[1]) > best
    book = book | {
        "sums": {name: np.float32(0) for name in book["sums"]},
        "count": np.int32(0),
        "evaluated": np.int32(step),
        "waited": np.int32(0 if better or score is None else book["waited"] + 1),
    }
    if better and score is not None:
        book |= {"best_score": np.float32(score[0]), "best_loss": np.float32(score[1])}
        book |= {"best_step": np.int32(step)}
    return book


def _operations_table(counted: dict[str, dict[str, int]], seconds: dict[str, float]) -> str:
    """A table of operations by kind and of rates; a pass without seconds has no rate."""
    names, rows = {"train": "training", "eval": "evaluation"}, []
    for name, counts in counted.items():
        time_of = seconds.get(name)
        rate = counts["operations"] / time_of if time_of else None
        rows.append({"pass": names[name], **counts, "s": time_of, "operations/s": rate})
    return tables.aligned(rows, list(rows[0]))


def _means(book: dict[str, Any]) -> dict[str, float]:
    """Means of the loss terms over the steps since the last evaluation."""
    return {name: float(total) / max(int(book["count"]), 1) for name, total in book["sums"].items()}


def _summary_line(
    metrics: dict[str, Any], config: TrainConfig, epochs: int, best: bool, rate: float
) -> str:
    """An evaluation in one line; `rate` is its operations per second."""
    parts = [f"epoch {metrics['epoch']}/{epochs}"]
    for split in ("val", "test", "train"):
        if metrics.get(split):
            numbers = {k: v for k, v in metrics[split].items() if isinstance(v, float)}
            names = sorted(numbers, key=lambda name: (name != config.best, name != "loss"))[:4]
            parts.append(split + "".join(f" {name} {numbers[name]:.4g}" for name in names))
    if best:
        parts.append("best")
    seconds = metrics["time"]
    parts.append(f"{seconds['train']:.1f} + {seconds['eval']:.1f} s")
    if "data" in seconds:
        parts.append(f"{seconds['data'] / seconds['train']:.0%} waiting for data")
    parts.append(f"{rate / 1e9:.3g} Gop/s")
    return " | ".join(parts)
