"""`jaxdet train SYSTEM`: train a run, or resume one."""

import signal
from collections.abc import Sequence
from pathlib import Path

from jaxdet import api, runs, tables
from jaxdet.cli import common, flags
from jaxdet.cli.options import Train
from jaxdet.config import TrainConfig
from jaxdet.training import run_dir
from jaxdet.training.progress import Progress


def run(system: str, options: Train, config: TrainConfig, words: Sequence[str]) -> int:
    """Train into `options.out`; returns the exit code."""
    folder, show = options.out, Progress(quiet=options.quiet)
    if options.resume and run_dir.is_occupied(folder):  # its options instead of the defaults
        kept = runs.read_config(folder, system)
        _, config = flags.parse_with_config(f"train {system}", words, (options, kept))
    with common.caught_signals() as caught:
        trained = api.train(
            config,
            folder,
            resume=options.resume,
            overwrite=options.overwrite,
            show=show,
            stop=lambda: bool(caught),
        )
    if not caught:
        _show_labels(folder, trained.config, show)
    return 130 if signal.SIGINT in caught else 0


def _show_labels(folder: Path, config: TrainConfig, show: Progress) -> None:
    """Show the scores of each label in the best evaluation, where it has them."""
    best = run_dir.best_line(run_dir.read_metrics(folder), config.best)
    if best and "confusion" in best["val"]:
        show.line(f"validation scores of the best checkpoint, step {best['step']}:")
        show.line(tables.aligned(*common.label_table(best["val"])))
