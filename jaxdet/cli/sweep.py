"""`jaxdet sweep SYSTEM`: runs that differ in a few options, those in numbers in one program."""

import json
import signal
import time
from dataclasses import asdict, fields, replace
from itertools import groupby, product

from jaxdet import configs
from jaxdet.cli import common, flags, swept
from jaxdet.config import largest_subset, reuse_data, traceable_fields
from jaxdet.errors import InputError
from jaxdet.training import checkpoint, progress, run_dir, sweep, time_budget
from jaxdet.training import loop as training_loop
from jaxdet.training import state as training

SEED = "--seed"
ABLATION = "ablation"  # the grid that --one-at-a-time is made for


def run(name, options, words, axes):
    """Train every combination of the values of `axes` {option: [word]}, and print one table."""
    kind = configs.config(name)
    words, axes, listed = _with_grid(name, kind, options, words, axes)
    _check(options, axes, listed)
    titles = _titles(name, options, words, axes, listed)
    show, shape, costs = progress.Progress(quiet=options.quiet), _shape(kind), {}
    trained = _trained(kind, list(titles))
    first = sorted(dict.fromkeys(trained.values()), key=shape)
    groups = [list(alike) for _, alike in groupby(first, shape)]
    programs, failed, start = None, {}, progress.since_start() or 0.0
    with common.caught_signals() as caught, reuse_data():
        for number, group in enumerate(groups, 1):
            show.line(f"program {number} of {len(groups)}: {len(group)} runs")
            began = time.monotonic() - start  # as if these were the first
            how = (options, show, lambda: bool(caught), programs, began)
            lanes = _lanes(name, group, titles, *how)
            if not lanes.run(together=_together(lanes, options, show)):
                show.line("stopped; the same words with --resume go on")
                return 130 if signal.SIGINT in caught else 0
            costs[shape(group[0])], programs = lanes.cost(), lanes.programs
            failed |= lanes.failed
        for config, by in trained.items():
            own, other = (options.out / titles[one] for one in (config, by))
            if config != by and checkpoint.steps(other):
                costs[shape(config)] = _judged(name, config, own, other, options, show)
            costs.setdefault(shape(config), costs[shape(by)])
    told = list(dict.fromkeys(option for own in (*listed, axes) for option in _options(own)))
    costs = {config: costs[shape(config)] for config in titles}
    swept.tell(name, options, titles, told, costs, failed)
    if SEED in axes:
        show.line(f"test scores with mean and spread: jaxdet compare {options.out}/*/")
    return 0


def _with_grid(name, kind, options, words, axes):
    """(words, axes, lists of words of a run each), with those of the grid that the options name.

    The user's come last, and so win.  Without several values of anything, one at a time is the grid
    `ablation`.
    """
    ablation = options.one_at_a_time and not axes and ABLATION in kind.GRIDS
    chosen = options.grid or (ABLATION if ablation else "")
    if not chosen:
        return words, axes, [[]]
    if chosen not in kind.GRIDS:
        raise InputError(f"--grid {chosen}: {name} has {', '.join(kind.GRIDS) or 'no grids'}")
    grid = kind.GRIDS[chosen]
    if isinstance(grid, tuple):
        return words, axes, [one.split() for one in grid]
    more, of_grid = flags.several(grid.split(), kind)
    return [*more, *words], of_grid | axes, [[]]


def _titles(name, options, words, axes, listed):
    """{configuration of a run: the name of its folder}, which is what is its own.

    One at a time, that is what differs from the first values, or `nothing`.
    """
    found = {}
    for number, own in enumerate(listed, 1):
        for values in _combined(axes, options.one_at_a_time):
            config = _config(name, options, [*own, *words], axes, values)
            shown = axes
            if options.one_at_a_time:
                shown = _changed(axes, values) + [axis for axis in axes if axis == SEED]
            parts = [f"{axis.strip('-')}={_text(swept.value(config, axis))}" for axis in shown]
            parts = [f"{options.grid}{number:02d}", *parts] if own else parts
            found[config] = ",".join(parts or ["nothing"]).replace("/", "_")
    return found


def _options(words):
    return [word for word in words if word.startswith("--") and word != SEED]


def _text(value):
    """A value as part of the name of a folder."""
    return "-".join(f"{each:g}" for each in value) if isinstance(value, tuple) else value


def _check(options, axes, listed):
    """Refuse words that make no sweep, and a folder that may not be replaced."""
    single = [axis for axis in axes if hasattr(options, axis.strip("-").replace("-", "_"))]
    if single:
        raise InputError(f"{single[0]} {' '.join(axes[single[0]])}: one value is wanted")
    if not (axes or listed[0]) or not all(axes.values()):
        raise InputError("give an option several values, such as --lr 1e-3 3e-3, or --seeds 3")
    if run_dir.is_occupied(options.out) and not (options.resume or options.overwrite):
        raise InputError(
            f"{options.out} exists; continue it with --resume, replace its runs with --overwrite, "
            f"or give another --out"
        )


def _combined(axes, one_at_a_time):
    """Values of all axes, every combination; or those in which one at most is not its first."""
    for values in product(*axes.values()):
        if not one_at_a_time or len(_changed(axes, values)) < 2:
            yield values


def _changed(axes, values):
    """The axes, but for the seed, in which values are not the first."""
    pairs = zip(axes.items(), values, strict=True)
    return [axis for (axis, known), value in pairs if value != known[0] and axis != SEED]


def _config(name, options, words, axes, values):
    """The configuration of one combination."""
    spelled = [word for axis, value in zip(axes, values, strict=True) for word in (axis, value)]
    defaults = (options, configs.config(name)())
    _, config = flags.with_config(f"sweep {name}", [*words, *spelled], defaults)
    return common.absolute(config)


def _shape(kind):
    """What of a configuration makes a program of its own, as a text."""
    numbers = traceable_fields(kind)

    def shape(config):
        return json.dumps({k: v for k, v in asdict(config).items() if k not in numbers})

    return shape


def _trained(kind, chosen):
    """{configuration: the first whose training is the same}: they differ in `kind.EVAL_ONLY` alone."""
    judged, first = {name: getattr(chosen[0], name) for name in kind.EVAL_ONLY}, {}
    return {config: first.setdefault(replace(config, **judged), config) for config in chosen}


def _judged(name, config, folder, trained, options, show):
    """The cost of a run that another has trained, in a folder of its own."""
    config = replace(config, epochs=common.kept_config(trained, name).epochs)
    system = configs.build(name, config)
    if run_dir.is_run(folder) and not options.overwrite:
        _same(folder, name, config)
    else:
        run_dir.check_vacant(folder, overwrite=options.overwrite)
        common.begin(folder, name, config, sweep.with_hparams(system, config))
        run_dir.write_environment(folder, training.devices(config))
    show.line(f"{folder.name}: as {trained.name}, judged anew")
    return sweep.evaluate_trained(system, config, folder, trained, show)


def _lanes(name, group, titles, options, show, stop, before, began):
    """Configurations that differ in numbers only, on their way in a folder each.

    before: the `fit.Programs` of those whose turn it was before, or None.  began: the moment from
    which their seconds count, by `time.monotonic`.
    """
    among = training.devices(group[0])
    if options.together == "yes" and len(among) > 1:
        raise InputError(f"--together yes wants one device, not {len(among)}: --devices 1")
    system = configs.build(name, largest_subset(group))
    alike = system.splits["train"].arrays and len(system.scales) == 1
    if options.together == "yes" and not alike:
        raise InputError(
            "--together yes wants data in memory, of one size: no --stream, --multiscale"
        )
    training.validate_weights(system, group[0])
    common.tell_skipped(system.notes, show.line)
    common.tell_uneven(system, group[0], show.line)
    folders = [options.out / titles[config] for config in group]
    going_on = [folder for folder in folders if run_dir.is_run(folder) and not options.overwrite]
    programs = training_loop.CompiledSteps(system, group[0], before)
    group = _planned(name, group, going_on, programs, system, show, began)
    for folder, config in zip(folders, group, strict=True):
        if folder in going_on:
            _same(folder, name, config)
        else:
            run_dir.check_vacant(folder, overwrite=options.overwrite)
            common.begin(folder, name, config, sweep.with_hparams(system, config))
            run_dir.write_environment(folder, among)
    spent = time.monotonic() - began
    return sweep.VmappedRuns(system, group, folders, show, stop, programs, spent)


def _planned(name, group, going_on, programs, system, show, began):
    """The configurations with the epochs that the time of one run allows, planned once for all."""
    if not group[0].time_budget:
        return group
    if going_on:
        epochs = common.kept_config(going_on[0], name).epochs
    else:
        epochs = time_budget.plan_epochs(
            programs, system, group[0], time.monotonic() - began
        ).epochs
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
