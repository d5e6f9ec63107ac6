"""Callbacks that follow a run from outside: scores for TensorBoard, and a profile of some steps."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from jaxdet import packages
from jaxdet.training.progress import Callback, EvaluationEvent, StepEvent

TENSORBOARD, PROFILE = "tensorboard", "profile"  # folders in the run folder


class TensorBoard(Callback):
    """Writes every number of `metrics.jsonl` as a scalar for TensorBoard, at its step.

    The tags are the keys that lead to the number, such as `val/map` and `val/labels/cell/map50`.
    Values are rounded to float32.  After a resume, steps that are repeated replace the earlier
    ones.

    folder: the run folder, in which the folder `tensorboard` is written.

    Raises InputError unless the package tensorboardX is installed.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder, self.writer = Path(folder) / TENSORBOARD, None
        self.package: Any = packages.load("tensorboardX", "--track tensorboard")

    def on_evaluation(self, event: EvaluationEvent) -> None:
        """Write every number in `event.metrics`, at its step, and flush the file."""
        step = event.metrics["step"]
        if self.writer is None:  # a resumed run replaces the steps after its checkpoint
            self.writer = self.package.SummaryWriter(
                str(self.folder),
                purge_step=step if self.folder.exists() else None,
                filename_suffix=f".step{step}",  # files of one second would have one name
            )
        for tag, value in scalars(event.metrics):
            self.writer.add_scalar(tag, value, step)
        self.writer.flush()

    def close(self) -> None:
        """Close the event file."""
        if self.writer is not None:
            self.writer.close()


class Profile(Callback):
    """Writes a trace of some training steps, by `jax.profiler`, after the steps that compile.

    The trace is in `profile`, a folder in the run folder, which TensorBoard's profile plugin, XProf
    and Perfetto read.  It begins after the second call of the compiled program.

    Args:
        folder: the run folder.
        steps: number of steps, or slightly more if a call takes several; fewer if the run ends
            before.
    """

    def __init__(self, folder: str | Path, steps: int) -> None:
        self.folder, self.steps = Path(folder) / PROFILE, steps
        self.calls, self.first = 0, -1  # calls so far; step at which the trace begins
        self.open = False

    def on_step(self, event: StepEvent) -> None:
        """Begin or end the trace, once the devices have finished the earlier steps."""
        self.calls += 1
        if self.calls == 2:
            event.read_terms()
            jax.profiler.start_trace(str(self.folder))
            self.open, self.first = True, event.step
        elif self.open and event.step - self.first >= self.steps:
            event.read_terms()
            self.close()

    def on_evaluation(self, event: EvaluationEvent) -> None:
        """End the trace, which covers no evaluation."""
        self.close()

    def close(self) -> None:
        """End the trace if it has begun."""
        if self.open:
            self.open = False
            jax.profiler.stop_trace()


def scalars(line: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Yield (tag, value) for every number in a line of `metrics.jsonl` but its step.

    Numbers in lists are left out, and so are texts and null.
    """
    for key, value in line.items():
        tag = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from scalars(value, f"{tag}/")
        elif isinstance(value, int | float) and tag != "step":
            yield tag, value
