"""`jaxdet sweep SYSTEM`: runs that differ in a few options, those in numbers in one program."""

import json
import signal
from dataclasses import asdict, fields, replace
from itertools import chain, groupby, product

import numpy as np

from jaxdet import budget, checkpoint, configs, fit, flags, runs, sweep, tables
from jaxdet import train as training
from jaxdet.commands import common
from jaxdet.configs import base
from jaxdet.errors import InputError
from jaxdet.progress import Progress

HEADINGS = {
    "error_rate": "error rate",
    "error_rate +-": "error rate +-",
    "epoch_seconds": "s of an epoch",
    "epoch_seconds +-": "s of an epoch +-",
    "total_seconds": "s in all",
    "total_seconds +-": "s in all +-",
    "operations": "operations of an image",
}
CURVES, PICTURE = "sweep.png", "Validation scores against the epoch and against seconds"


def run(name, options, words, axes):
    """Train every combination of the values of `axes` {option: [word]}, and print one table."""
    kind = configs.config(name)
    words, axes = _with_grid(name, kind, options, words, axes)
    _check(options, axes)
    combined = _combined(axes, options.one_at_a_time)
    chosen = [_config(name, options, words, axes, values) for values in combined]
    show, shape, costs = Progress(quiet=options.quiet), _shape(kind), {}
    trained = _trained(kind, chosen)
    first = sorted(dict.fromkeys(trained.values()), key=shape)
    groups = [list(alike) for _, alike in groupby(first, shape)]
    programs, failed = None, {}
    with common.caught_signals() as caught, base.reading_once():
        for number, group in enumerate(groups, 1):
            show.line(f"program {number} of {len(groups)}: {len(group)} runs")
            lanes = _lanes(name, group, axes, options, show, lambda: bool(caught), programs)
            if not lanes.run(together=_together(lanes, options, show)):
                show.line("stopped; the same words with --resume go on")
                return 130 if signal.SIGINT in caught else 0
            costs[shape(group[0])], programs = lanes.cost(), lanes.programs
            failed |= lanes.failed
        for config, by in trained.items():
            own, other = (options.out / _title(one, axes) for one in (config, by))
            if config != by and checkpoint.steps(other):
                costs[shape(config)] = _judged(name, config, own, other, options, show)
            costs.setdefault(shape(config), costs[shape(by)])
    rows = _rows(chosen, axes, options.out, lambda config: costs[shape(config)], failed)
    left_out = ()
    if options.one_at_a_time:
        rows, left_out = _gains(rows, axes, chosen[0].best), [axis.strip("-") for axis in axes]
    names = [key for key in _columns(rows) if key not in left_out]
    text = tables.markdown(rows, {key: HEADINGS.get(key, key) for key in names})
    _keep(rows, text, [_title(config, axes) for config in chosen], options.out)
    print(json.dumps(rows) if options.json else text)
    return 0


def _columns(rows):
    """What any row has, in the order of the row that has most."""
    return dict.fromkeys(chain(max(rows, key=len), *rows))


def _keep(rows, text, titles, out):
    """The table in two forms, and the curves of all runs beside it."""
    from jaxdet import plots  # half a second of matplotlib that the first step need not wait for

    plots.curves({title: runs.read_metrics(out / title) for title in titles}, out / CURVES)
    runs.write_text(out / "sweep.md", f"{text}\n\n![{PICTURE}]({CURVES})\n")
    runs.write_json(out / "sweep.json", rows)


def _with_grid(name, kind, options, words, axes):
    """The words and axes, with those of the grid that the options name; its own come second."""
    if not options.grid:
        return words, axes
    if options.grid not in kind.GRIDS:
        raise InputError(f"--grid {options.grid}: {name} has {', '.join(kind.GRIDS) or 'no grids'}")
    more, of_grid = flags.several(kind.GRIDS[options.grid].split(), kind)
    return [*more, *words], of_grid | axes


def _check(options, axes):
    """Refuse words that make no sweep, and a folder that may not be replaced."""
    single = [axis for axis in axes if hasattr(options, axis.strip("-").replace("-", "_"))]
    if single:
        raise InputError(f"{single[0]} {' '.join(axes[single[0]])}: one value is wanted")
    if not axes or not all(axes.values()):
        raise InputError("give an option several values, such as --lr 1e-3 3e-3, or --seeds 3")
    if runs.holds_something(options.out) and not (options.resume or options.overwrite):
        raise InputError(
            f"{options.out} exists; continue it with --resume, replace its runs with --overwrite, "
            f"or give another --out"
        )


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


def _trained(kind, chosen):
    """{configuration: the first whose training is the same}: they differ in `kind.JUDGED` alone."""
    judged, first = {name: getattr(chosen[0], name) for name in kind.JUDGED}, {}
    return {config: first.setdefault(replace(config, **judged), config) for config in chosen}


def _judged(name, config, folder, trained, options, show):
    """The cost of a run that another has trained, in a folder of its own."""
    config = replace(config, epochs=common.kept_config(trained, name).epochs)
    system = configs.build(name, config)
    if runs.is_run(folder) and not options.overwrite:
        _same(folder, name, config)
    else:
        runs.vacant(folder, overwrite=options.overwrite)
        common.begin(folder, name, config, sweep.numbered(system, config))
        runs.write_environment(folder, training.devices(config))
    show.line(f"{folder.name}: as {trained.name}, judged anew")
    return sweep.judge(system, config, folder, trained, show)


def _lanes(name, group, axes, options, show, stop, before):
    """Configurations that differ in numbers only, on their way in a folder each.

    before: the `fit.Programs` of those whose turn it was before, or None.
    """
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
    going_on = [folder for folder in folders if runs.is_run(folder) and not options.overwrite]
    programs = fit.Programs(system, group[0], before)
    group = _planned(name, group, going_on, programs, system, show)
    for folder, config in zip(folders, group, strict=True):
        if folder in going_on:
            _same(folder, name, config)
        else:
            runs.vacant(folder, overwrite=options.overwrite)
            common.begin(folder, name, config, sweep.numbered(system, config))
            runs.write_environment(folder, among)
    return sweep.Lanes(system, group, folders, show, stop, programs)


def _planned(name, group, going_on, programs, system, show):
    """The configurations with the epochs that the time of one run allows, planned once for all."""
    if not group[0].time_budget:
        return group
    if going_on:
        epochs = common.kept_config(going_on[0], name).epochs
    else:
        epochs = budget.planned(programs, system, group[0], 0.0).epochs
        show.line(f"{epochs} epochs fit into {group[0].time_budget:g} s of a run")
    return [replace(config, epochs=epochs) for config in group]


def _together(lanes, options, show):
    """Whether the runs train in one program, by the options or because that is quicker."""
    count = len(lanes.loops)
    if options.together != "auto" or count == 1 or len(lanes.programs.among) > 1:
        return options.together == "yes"
    if not lanes.begun():
        return False
    times = lanes.times()
    together = times.together < times.in_turn
    show.line(
        f"a step of {count} runs takes {times.together:.3g} s in one program and "
        f"{times.in_turn:.3g} s one after the other: {'together' if together else 'in turn'}"
    )
    return together


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


def _rows(chosen, axes, out, cost, failed):
    """A row a combination: its options; mean and spread over seeds of the best evaluation; cost.

    failed: folders of runs that did not come to their ends; where there are, rows count them.
    """
    found = {}
    for config in chosen:
        values = tuple((axis, _value(config, axis)) for axis in axes if axis != "--seed")
        found.setdefault(values, []).append((config, out / _title(config, axes)))
    rows = []
    for values, alike in found.items():
        row = _row(dict(values), [_best(*one) for one in alike])
        if failed:
            row["unfinished"] = sum(folder in failed for _, folder in alike)
        rows.append(row | cost(alike[0][0]))
    return rows


def _gains(rows, axes, best):
    """Rows with what was changed of the first, and by how much `best` is higher for it."""
    names = [axis.strip("-") for axis in axes if axis != "--seed"]
    out = []
    for row in rows:
        changed = [f"{name} {row[name]}" for name in names if row[name] != rows[0][name]]
        gain = {"gain": row[best] - rows[0][best]} if best in row and best in rows[0] else {}
        out.append({"changed": ", ".join(changed) or "nothing", **gain, **row})
    return out


def _best(config, folder):
    """Scores of the evaluation that the best checkpoint has, and seconds; {} where was none."""
    metrics = runs.read_metrics(folder)
    scores = [line["val"] for line in metrics]
    best = max(scores, key=lambda one: (one[config.best], -one["loss"]), default={})
    if not best:
        return {}
    wrong = {"error_rate": 1 - best["accuracy"]} if "accuracy" in best else {}
    spent = {
        "epoch_seconds": runs.epoch_seconds(metrics),
        "total_seconds": runs.total_seconds(metrics),
    }
    return {**best, **wrong, **spent}


def _row(values, scores):
    """The options of a row and their scores."""
    row = {**{axis.strip("-"): value for axis, value in values.items()}, "runs": len(scores)}
    for name in dict.fromkeys(chain(*scores)):
        of_all = [score[name] for score in scores if isinstance(score.get(name), float)]
        if not of_all:
            continue
        row[name] = float(np.mean(of_all))
        if len(of_all) > 1:
            row[f"{name} +-"] = float(np.std(of_all, ddof=1))
    return row
