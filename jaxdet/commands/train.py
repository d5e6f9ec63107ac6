"""`jaxdet train SYSTEM`: a new run, or the rest of one."""

import signal
from contextlib import contextmanager
from dataclasses import asdict, fields

from jaxdet import configs, fit, flags, runs
from jaxdet import train as training
from jaxdet.commands import common
from jaxdet.progress import Progress
from jaxdet.types import InputError

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


def run(name, options, config, words):
    """`jaxdet train SYSTEM`: a new run, or the rest of one."""
    folder, show = options.out, Progress(quiet=options.quiet)
    going_on = options.resume and runs.holds_something(folder)
    config = common.absolute(config)
    if going_on:
        config = _same_config(folder, name, options, words)
    else:
        runs.vacant(folder, overwrite=options.overwrite)
    among = training.devices(config)
    system = configs.build(name, config)
    if not going_on:
        _tell_skipped(system.notes, show.line)
        runs.start(folder)
        for path, text in system.files:
            runs.keep(folder, path, text)
        runs.write_config(folder, name, asdict(config), system.about)
    runs.write_environment(folder, among)
    with _signals() as caught:
        complete = fit.fit(system, config, folder, show=show, stop=lambda: bool(caught))
    if complete:
        show.line(f"{folder} is complete; see jaxdet eval {folder}, jaxdet predict {folder}")
    return 130 if signal.SIGINT in caught else 0


def _same_config(folder, name, options, words):
    """The configuration of the run; a flag that says otherwise is an error."""
    kept = common.kept_config(folder, name)
    _, asked = flags.with_config(f"train {name}", words, (options, kept))
    for field in fields(kept):
        was, now = getattr(kept, field.name), getattr(common.absolute(asked), field.name)
        if was != now:
            raise InputError(
                f"--{field.name.replace('_', '-')} {now} differs from {was} of {folder}: "
                f"leave it out to resume, or start anew with another --out"
            )
    return kept


def _tell_skipped(notes, line, most=5):
    """What of the data is left out, and why: the first few in full."""
    if notes:
        line(f"{len(notes)} photos or rows cannot be used and are left out:")
    for note in notes[:most]:
        line(f"  {note}")


@contextmanager
def _signals():
    """A list that collects the signals that ask for an end; a second SIGINT ends at once."""
    caught = []

    def note(number, frame):
        if number == signal.SIGINT and number in caught:
            raise KeyboardInterrupt
        caught.append(number)

    before = {number: signal.signal(number, note) for number in SIGNALS}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
