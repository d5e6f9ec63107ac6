"""`jaxdet train SYSTEM`: train a run, or resume one."""

import signal
from collections.abc import Sequence
from pathlib import Path

from jaxdet import api, runs, tables
from jaxdet.cli import common, flags
from jaxdet.cli.options import Train
from jaxdet.config import TrainConfig
from jaxdet.training import progress, run_dir
from jaxdet.training.progress import Progress


def run(
    system: str,
    options: Train,
    config: TrainConfig,
    words: Sequence[str],
    received: Sequence[int],
) -> int:
    """Train into `options.out` until the end or a received signal; returns the exit code."""
    folder, show = options.out, Progress(quiet=options.quiet)
    if options.resume and run_dir.is_occupied(folder):  # its options instead of the defaults
        kept = runs.read_config(folder, system)
        _, config = flags.parse_with_config(f"train {system}", words, (options, kept))
    if received:
        show.line("stopped before the training began: there is nothing to save")
    else:
        experiment = api.run_training(
            config,
            folder,
            resume=options.resume,
            overwrite=options.overwrite,
            show=show,
            stop=lambda: bool(received),
            spent=progress.since_start() or 0.0,
        )
        if not received:
            _show_labels(folder, experiment.config, show)
    return 130 if signal.SIGINT in received else 0


def _show_labels(folder: Path, config: TrainConfig, show: Progress) -> None:
    """Show the scores of each label in the best evaluation, where it has them."""
    best = run_dir.best_line(run_dir.read_metrics(folder), config.best)
    which = "best" if best.get("val") else "last"
    for split in run_dir.scored_splits(best):
        if "confusion" in best[split]:
            name = {"val": "validation"}.get(split, split)
            show.line(f"{name} scores of the {which} checkpoint, step {best['step']}:")
            show.line(tables.aligned(*common.label_table(best[split])))
