"""`jaxdet sweep SYSTEM`: runs that differ in a few options, those in numbers in one program."""

import json
import signal
from dataclasses import asdict, fields
from itertools import groupby, product

import numpy as np

from jaxdet import configs, flags, runs, sweep, tables
from jaxdet import train as training
from jaxdet.commands import common
from jaxdet.configs import base
from jaxdet.errors import InputError
from jaxdet.progress import Progress


def run(name, options, words, axes):
    """Train every combination of the values of `axes` {option: [word]}, and print one table."""
    if not axes:
        raise InputError("give an option several values, such as --lr 1e-3 3e-3, or --seeds 3")
    if runs.holds_something(options.out) and not options.resume:
        raise InputError(f"{options.out} exists; continue it with --resume, or give another --out")
    combined = _combined(axes, options.one_at_a_time)
    chosen = [_config(name, options, words, axes, values) for values in combined]
    show, shape = Progress(quiet=options.quiet), _shape(configs.config(name))
    groups = [list(alike) for _, alike in groupby(sorted(chosen, key=shape), shape)]
    with common.caught_signals() as caught:
        for number, group in enumerate(groups, 1):
            show.line(f"program {number} of {len(groups)}: {len(group)} runs")
            if not _train(name, group, axes, options, show, lambda: bool(caught)):
                show.line("stopped; the same words with --resume go on")
                return 130 if signal.SIGINT in caught else 0
    rows = _rows(chosen, axes, options.out)
    text = tables.markdown(rows, list(rows[0]))
    runs.write_text(options.out / "sweep.md", f"{text}\n")
    runs.write_json(options.out / "sweep.json", rows)
    print(json.dumps(rows) if options.json else text)
    return 0


def _combined(axes, one_at_a_time):
    """Values of all axes, every combination; or those in which one at most is not its first."""
    for values in product(*axes.values()):
        others = [
            axis
            for (axis, known), value in zip(axes.items(), values, strict=True)
            if value != known[0] and axis != "--seed"
        ]
        if not one_at_a_time or len(others) < 2:
            yield values


def _config(name, options, words, axes, values):
    """The configuration of one combination."""
    spelled = [word for axis, value in zip(axes, values, strict=True) for word in (axis, value)]
    defaults = (options, configs.config(name)())
    _, config = flags.with_config(f"sweep {name}", [*words, *spelled], defaults)
    return common.absolute(config)


def _shape(kind):
    """What of a configuration makes a program of its own, as a text."""
    numbers = base.numbers(kind)

    def shape(config):
        return json.dumps({k: v for k, v in asdict(config).items() if k not in numbers})

    return shape


def _train(name, group, axes, options, show, stop):
    """Train configurations that differ in numbers only; False when asked to stop."""
    among = training.devices(group[0])
    if options.together == "yes" and len(among) > 1:
        raise InputError(f"--together yes wants one device, not {len(among)}: --devices 1")
    system = configs.build(name, base.widest(group))
    alike = system.splits["train"].arrays and len(system.scales) == 1
    if options.together == "yes" and not alike:
        raise InputError("--together yes wants data in memory, of one size: no --stream, --sizes")
    training.try_weights(system, group[0])
    common.tell_skipped(system.notes, show.line)
    folders = [options.out / _title(config, axes) for config in group]
    for folder, config in zip(folders, group, strict=True):
        if runs.is_run(folder):
            _same(folder, name, config)
        else:
            common.begin(folder, name, config, sweep.numbered(system, config))
            runs.write_environment(folder, among)
    lanes = sweep.Lanes(system, group, folders, show, stop)
    together = options.together == "yes"
    if len(group) > 1 and len(among) == 1 and options.together == "auto" and lanes.begun():
        times = lanes.times()
        together = times.together < times.in_turn
        show.line(
            f"a step of {len(group)} runs takes {times.together:.3g} s in one program and "
            f"{times.in_turn:.3g} s one after the other: {'together' if together else 'in turn'}"
        )
    return lanes.run(together=together)


def _same(folder, name, config):
    """Refuse to continue a run that was begun with other options."""
    kept = common.kept_config(folder, name)
    other = [field.name for field in fields(kept) if _differs(field.name, kept, config)]
    if other:
        raise InputError(f"{folder} was begun with another --{other[0].replace('_', '-')}")


def _differs(field, one, other):
    return getattr(one, field) != getattr(other, field)


def _title(config, axes):
    """The name of a run's folder: what is its own."""
    words = (f"{axis.strip('-')}={_value(config, axis)}" for axis in axes)
    return ",".join(words).replace("/", "_")


def _value(config, axis):
    return getattr(config, axis.removeprefix("--").replace("-", "_"))


def _rows(chosen, axes, out):
    """A row a combination: its options; mean and spread over seeds of the best evaluation."""
    found = {}
    for config in chosen:
        values = {axis: _value(config, axis) for axis in axes if axis != "--seed"}
        found.setdefault(tuple(values.items()), []).append(
            _best(config, out / _title(config, axes))
        )
    return [_row(dict(values), scores) for values, scores in found.items()]


def _best(config, folder):
    """Scores of the evaluation that the best checkpoint has; {} where there was none."""
    scores = [line["val"] for line in runs.read_metrics(folder)]
    return max(scores, key=lambda one: (one[config.best], -one["loss"]), default={})


def _row(values, scores):
    row = {**{axis.strip("-"): value for axis, value in values.items()}, "runs": len(scores)}
    for name in (name for name, value in scores[0].items() if isinstance(value, float)):
        of_all = [score[name] for score in scores if score]
        row[name] = float(np.mean(of_all))
        if len(of_all) > 1:
            row[f"{name} +-"] = float(np.std(of_all, ddof=1))
    return row
