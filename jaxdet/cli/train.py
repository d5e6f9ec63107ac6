"""`jaxdet train SYSTEM`: train a run, or resume one."""

import os
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import jax

from jaxdet import api, runs, tables
from jaxdet.cli import flags, signals
from jaxdet.cli.options import Train
from jaxdet.config import TrainConfig
from jaxdet.errors import DeviceMemoryError, InputError, printable
from jaxdet.training import hosts, progress, run_dir, tracking
from jaxdet.training.loop import DivergedError
from jaxdet.training.progress import Callback, Progress

EXPECTED = (  # errors whose one line is enough
    *(InputError, DivergedError, DeviceMemoryError, MemoryError, OSError),
    *(hosts.PeerError, jax.errors.JaxRuntimeError, KeyboardInterrupt),
)


def run(
    system: str,
    options: Train,
    config: TrainConfig,
    words: Sequence[str],
    received: Sequence[int],
) -> int:
    """Train into `options.out` until the end or a received signal; returns the exit code.

    An error in one of several processes ends the others.
    """
    if options.memory < 0:
        raise InputError(f"--memory must be at least 0, got {options.memory:g}")
    if options.memory and not options.auto_batch:
        raise InputError("--memory limits --auto-batch; add --auto-batch or leave it out")
    if options.distributed == "auto":
        hosts.initialize(
            options.coordinator,
            options.num_processes,
            options.process_id,
            timeout=options.peer_timeout,
            lost=_end_process,
        )
    elif options.coordinator:
        raise InputError("--coordinator must be left out with --distributed off")
    try:
        return _train(system, options, config, words, received)
    except BaseException as error:
        if hosts.count() == 1:
            raise
        _end_all(error, options)


def _train(
    system: str,
    options: Train,
    config: TrainConfig,
    words: Sequence[str],
    received: Sequence[int],
) -> int:
    folder, show = options.out, Progress(quiet=options.quiet or not hosts.is_main())
    if options.resume and run_dir.is_occupied(folder):  # the run's options are the defaults
        kept = runs.read_config(folder, system)
        _, config = flags.parse_with_config(f"train {system}", words, (options, kept))
    if hosts.agree(len(received)):
        show.line("stopped before the training began: there is nothing to save")
    else:
        with _callbacks(options) as callbacks:
            experiment = api.run_training(
                config,
                folder,
                resume=options.resume,
                overwrite=options.overwrite,
                show=show,
                callbacks=callbacks,
                stop=lambda: bool(received),
                spent=progress.since_start() or 0.0,
                auto_batch=options.auto_batch,
                memory=options.memory,
            )
        if not received and hosts.is_main():
            _show_labels(folder, experiment.config, show)
    return 130 if signal.SIGINT in received else 0


@contextmanager
def _callbacks(options: Train) -> Iterator[list[Callback]]:
    """A context with the callbacks that the options ask for; closes them at the end."""
    if options.profile < 0:
        raise InputError(f"--profile must be at least 0, got {options.profile}")
    found: list[tracking.TensorBoard | tracking.Profile] = []
    if options.track == "tensorboard" and hosts.is_main():
        found.append(tracking.TensorBoard(options.out))
    if options.profile and hosts.is_main():
        found.append(tracking.Profile(options.out, options.profile))
    try:
        yield [*found]
    finally:
        for callback in found:
            callback.close()


def _end_all(error: BaseException, options: Train) -> NoReturn:
    """Tell the other processes about an error in this process, and end this process."""
    if options.debug or not isinstance(error, EXPECTED):
        traceback.print_exception(error)
    line = hosts.report(error)
    code = 2 if isinstance(error, InputError | OSError) else 1
    _end_process(line, 130 if isinstance(error, KeyboardInterrupt) else code)


def _end_process(line: str, code: int = 1) -> NoReturn:
    """End this process at once; JAX would first wait for processes that do not answer."""
    if line:
        print(f"jaxdet: error: {printable(line)}", file=sys.stderr)
    signals.flush_outputs()
    os._exit(code)


def _show_labels(folder: Path, config: TrainConfig, show: Progress) -> None:
    """Show the scores of each label in the best evaluation, if it has any."""
    best = run_dir.best_line(run_dir.read_metrics(folder), config.best)
    which = "best" if best.get("val") else "last"
    for split in run_dir.scored_splits(best):
        if "confusion" in best[split]:
            name = {"val": "validation"}.get(split, split)
            show.line(f"{name} scores of the {which} checkpoint, step {best['step']}:")
            show.line(tables.aligned(*tables.label_table(best[split])))
