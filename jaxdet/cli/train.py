"""`jaxdet train SYSTEM`: a new run, or the rest of one."""

import signal
from dataclasses import fields, replace

from jaxdet import configs
from jaxdet.cli import common, flags, run_table
from jaxdet.errors import InputError
from jaxdet.training import loop as training_loop
from jaxdet.training import progress, run_dir, time_budget
from jaxdet.training import state as training


def run(name, options, config, words):
    """`jaxdet train SYSTEM`: a new run, or the rest of one."""
    folder, show = options.out, progress.Progress(quiet=options.quiet)
    going_on = options.resume and run_dir.is_occupied(folder)
    config = common.absolute(config)
    if going_on:
        config = _same_config(folder, name, options, words)
    else:
        run_dir.check_vacant(folder, overwrite=options.overwrite)
    among = training.devices(config)
    system = configs.build(name, config)
    programs = None
    if not going_on:
        training.validate_weights(system, config)
        common.tell_skipped(system.notes, show.line)
        common.tell_uneven(system, config, show.line)
        if config.time_budget:
            programs = training_loop.CompiledSteps(system, config)
            config = time_budget.plan_epochs(
                programs, system, config, progress.since_start() or 0.0
            )
            show.line(f"{config.epochs} epochs fit into {config.time_budget:g} s")
        common.begin(folder, name, config, system)
    run_dir.write_environment(folder, among)
    clock = time_budget.Clock(folder, config)
    with common.caught_signals() as caught:

        def stop():
            return bool(caught) or clock.late()

        try:
            complete = training_loop.train(
                system, config, folder, show=show, stop=stop, programs=programs
            )
        finally:
            clock.keep()
    if complete or clock.late():
        _by_label(folder, config, show)
    show.line(_end(folder, config, complete, clock))
    return 130 if signal.SIGINT in caught else 0


def _by_label(folder, config, show):
    """The scores of each label in the best evaluation, where its metrics have them."""
    best = run_table.best(run_dir.read_metrics(folder), config.best)
    if best.get("val", {}).get("confusion"):
        show.line(f"validation of the best checkpoint, step {best['step']}:")
        show.line(common.by_label(best["val"]))


def _end(folder, config, complete, clock):
    """How a run stands, in a line."""
    if complete:
        return f"{folder} is complete; see jaxdet eval {folder}, jaxdet predict {folder}"
    if clock.late():
        used = f"has used its --time-budget of {config.time_budget:g} s"
        return f"{folder} {used}; see jaxdet eval {folder}"
    return f"{folder} is not complete; continue with --resume"


def _same_config(folder, name, options, words):
    """The configuration of the run; a flag that says otherwise is an error.

    But for --epochs where they were planned, which words that begin a run may have as well.
    """
    kept = common.kept_config(folder, name)
    _, asked = flags.parse_with_config(f"train {name}", words, (options, kept))
    asked = replace(asked, epochs=kept.epochs) if kept.time_budget else asked
    for field in fields(kept):
        was, now = getattr(kept, field.name), getattr(common.absolute(asked), field.name)
        if was != now:
            raise InputError(
                f"--{field.name.replace('_', '-')} {now} differs from {was} of {folder}: "
                f"leave it out to resume, or start anew with another --out"
            )
    return kept
