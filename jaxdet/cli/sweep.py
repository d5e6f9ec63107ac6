"""`jaxdet sweep SYSTEM`: train every combination of options with several values.

Runs that differ only in numbers that can be traced may be trained in one vmapped program.
"""

import json
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from itertools import groupby, product
from pathlib import Path
from typing import Any, NamedTuple

from jaxdet import configs, runs
from jaxdet.cli import flags, sweep_table
from jaxdet.cli.options import Sweep
from jaxdet.config import TrainConfig, largest_subset, reuse_data, traceable_fields
from jaxdet.errors import InputError
from jaxdet.training import (
    checkpoint,
    experiment,
    hosts,
    loop,
    memory,
    progress,
    run_dir,
    sweep,
    time_budget,
    tracking,
)
from jaxdet.training import state as training_state

SEED = "--seed"
ABLATION = "ablation"  # default grid of --one-at-a-time

Axes = dict[str, list[str]]  # option -> its values, as on the command line


class Grid(NamedTuple):
    """The runs of a sweep: every row combined with every combination of values of the axes."""

    words: list[str]  # options of all runs
    axes: Axes
    rows: list[list[str]]  # further options of each row; one empty row where there are none

    def columns(self) -> list[str]:
        """Options that are columns of the table: the options of rows and axes, except the seed."""
        given = [word for words in (*self.rows, self.axes) for word in words]
        return list(dict.fromkeys(w for w in given if w.startswith("--") and w != SEED))


def run(
    name: str, options: Sweep, words: Sequence[str], axes: Axes, received: Sequence[int]
) -> int:
    """Train every combination of the values in `axes`, and print one table; returns the exit code.

    `words` are options that all runs share.  A signal in `received` ends the training.
    """
    hosts.check_single("a sweep")
    grid = resolve_grid(name, options, words, axes)
    _check(options, grid)
    titles = run_titles(name, options, grid)
    show = progress.Progress(quiet=options.quiet)
    with reuse_data(), ExitStack() as locks:
        runner = SweepRunner(name, options, titles, show, lambda: bool(received), locks)
        if not runner.train():
            show.line("stopped; run the same command with --resume to continue")
            return 130 if signal.SIGINT in received else 0
        costs = runner.costs()
    sweep_table.report(name, options, titles, grid.columns(), costs, runner.failed)
    if SEED in grid.axes:
        show.line(f"for mean and spread of test scores, run: jaxdet compare {options.out}/*/")
    return 0


def resolve_grid(name: str, options: Sweep, words: Sequence[str], axes: Axes) -> Grid:
    """The grid of a sweep: values given on the command line replace the values of `--grid`.

    `--one-at-a-time` without several values of any option uses the grid `ablation`, if the system
    has one.  Raises InputError if the system has no grid of the name that `--grid` gives.
    """
    grids = configs.config(name).GRIDS
    chosen = options.grid
    if not chosen and options.one_at_a_time and not axes and ABLATION in grids:
        chosen = ABLATION
    if not chosen:
        return Grid(list(words), axes, [[]])
    if chosen not in grids:
        if not grids:
            raise InputError(f"{name} has no grids; leave out --grid {chosen}")
        raise InputError(f"--grid must be one of {', '.join(grids)}, got {chosen}")
    grid = grids[chosen]
    if not isinstance(grid, str):
        return Grid(list(words), axes, [row.split() for row in grid])
    shared, of_grid = flags.split_axes(grid.split(), configs.config(name))
    return Grid([*shared, *words], of_grid | axes, [[]])


def run_titles(name: str, options: Sweep, grid: Grid) -> dict[TrainConfig, str]:
    """Name the folder of each run by the values of all axes; return {configuration: name}.

    With `--one-at-a-time`, the names have only the values that differ from the first run,
    and the seed; the first run is `baseline`.
    """
    titles = {}
    for number, row in enumerate(grid.rows, 1):
        for values in combinations(grid.axes, options.one_at_a_time):
            config = _config(name, options, [*row, *grid.words], grid.axes, values)
            shown = list(grid.axes)
            if options.one_at_a_time:
                shown = _changed(grid.axes, values) + [SEED] * (SEED in grid.axes)
            parts = [
                f"{axis.strip('-')}={_word(sweep_table.option_value(config, axis))}"
                for axis in shown
            ]
            parts = [f"{options.grid}{number:02d}", *parts] if row else parts
            titles[config] = ",".join(parts or [sweep_table.BASELINE]).replace("/", "_")
    return titles


def combinations(axes: Axes, one_at_a_time: bool) -> Iterator[tuple[str, ...]]:
    """Every combination of values.

    If `one_at_a_time`, yields only combinations in which at most one option, besides the seed,
    differs from its first value.
    """
    for values in product(*axes.values()):
        if not one_at_a_time or len(_changed(axes, values)) < 2:
            yield values


def shared_training(
    kind: type[TrainConfig], chosen: Sequence[TrainConfig]
) -> dict[TrainConfig, TrainConfig]:
    """Map each configuration to the first one that is equal, or differs in `EVAL_ONLY` fields only.

    A configuration that is mapped to another one needs no training of its own.
    """
    values = {name: getattr(chosen[0], name) for name in kind.EVAL_ONLY}
    first: dict[TrainConfig, TrainConfig] = {}
    return {config: first.setdefault(replace(config, **values), config) for config in chosen}


class SweepRunner:
    """Trains the runs of a sweep; runs that can share a compiled program are grouped.

    Args:
        name: name of the system.
        options: options of the command.
        titles: {configuration: name of its folder in `options.out`}.
        show: where progress is shown.
        stop: called between calls of the compiled program; when it returns True, the runs save a
            checkpoint and end.
        locks: stack that will hold the locks of the run folders, and their trackers.
    """

    def __init__(
        self,
        name: str,
        options: Sweep,
        titles: Mapping[TrainConfig, str],
        show: progress.Progress,
        stop: Callable[[], bool],
        locks: ExitStack,
    ):
        self.name, self.options, self.show, self.stop = name, options, show, stop
        self.locks = locks
        self.folders = {config: options.out / title for config, title in titles.items()}
        self.trained_as = shared_training(configs.config(name), list(titles))
        self.failed: dict[Path, str] = {}  # folder of a run that diverged or ran out of time -> why
        self.program_costs: dict[str, dict[str, int]] = {}
        self.compiled: loop.CompiledSteps | None = None  # compiled steps of the previous program
        self.startup = progress.since_start() or 0.0  # seconds, counted for every program

    def train(self) -> bool:
        """Train all runs, one program after the other; return False if stopped before the end."""
        first = sorted(dict.fromkeys(self.trained_as.values()), key=_program)
        groups = [list(group) for _, group in groupby(first, _program)]
        for number, group in enumerate(groups, 1):
            self.show.line(f"program {number} of {len(groups)}: {len(group)} runs")
            with memory.explained(group[0], "batch"):
                together = self._prepare(group)
                if not together.run(together=self._is_faster_together(together)):
                    return False
            self.compiled = together.compiled
            self.program_costs[_program(group[0])] = together.cost()
            self.failed |= together.failed
        return True

    def costs(self) -> dict[TrainConfig, dict[str, int]]:
        """Evaluate the runs that need no training; return operations and parameters of each run."""
        for config, trained in self.trained_as.items():
            if config != trained and checkpoint.steps(self.folders[trained]):
                self.program_costs[_program(config)] = self._evaluate(config, trained)
            self.program_costs.setdefault(_program(config), self.program_costs[_program(trained)])
        return {config: self.program_costs[_program(config)] for config in self.folders}

    def _prepare(self, group: Sequence[TrainConfig]) -> sweep.VmappedRuns:
        """Prepare the runs of a group, each at its last checkpoint or in a new folder."""
        begun = time.monotonic() - self.startup
        devices = experiment.select_devices(group[0])
        runs.check_config(self.name, group[0])
        if self.options.vmap == "yes" and len(devices) > 1:
            raise InputError(f"--vmap yes needs --devices 1, got {len(devices)} devices")
        whole = replace(configs.build(self.name, largest_subset(group)), config=group[0])
        if self.options.vmap == "yes" and not (
            whole.splits["train"].arrays and len(whole.scales) == 1
        ):
            raise InputError(
                "--vmap yes needs data in memory and images of one size; leave out --stream and "
                "--multiscale"
            )
        training_state.validate_weights(whole, self.show.line)
        for config in group:
            runs.check_to_train(sweep.with_config(whole, config), self.show.line)
        runs.report_notes(whole.notes, self.show.line)
        runs.report_uneven_batches(whole, self.show.line)
        folders = [self.folders[config] for config in group]
        resumed = [path for path in folders if self._is_resumed(path)]
        if resumed:
            whole = runs.with_kept_streams(resumed[0], whole)
        compiled = loop.CompiledSteps(whole, self.compiled)
        if group[0].time_budget:
            epochs = self._planned_epochs(whole, compiled, resumed, begun)
            group = [replace(config, epochs=epochs) for config in group]
        boards = [self._tracked(folder) for folder in folders]
        for folder, config in zip(folders, group, strict=True):
            self._open(folder, sweep.with_config(whole, config))
        spent = time.monotonic() - begun
        return sweep.VmappedRuns(
            whole, group, folders, self.show, self.stop, compiled, spent, boards
        )

    def _tracked(self, folder: Path) -> list[tracking.TensorBoard]:
        """The callbacks that `--track` asks for, which are closed with the locks."""
        if self.options.track == "none":
            return []
        board = tracking.TensorBoard(folder)
        self.locks.callback(board.close)
        return [board]

    def _planned_epochs(
        self,
        whole: experiment.Experiment,
        compiled: loop.CompiledSteps,
        resumed: Sequence[Path],
        begun: float,
    ) -> int:
        """The number of epochs that fit into the time budget; resumed runs keep their number."""
        if resumed:
            return runs.read_config(resumed[0], self.name).epochs
        planned = time_budget.plan_epochs(compiled, whole, time.monotonic() - begun)
        epochs, budget = planned.config.epochs, planned.config.time_budget
        self.show.line(f"{epochs} epochs fit into {budget:g} s per run")
        return epochs

    def _open(self, folder: Path, own: experiment.Experiment) -> None:
        """Create the folder of a run, or check that the run in it has the same options."""
        if self._is_resumed(folder):
            runs.check_same(folder, runs.read_config(folder, self.name), own.config)
            self.locks.enter_context(run_dir.Lock(folder))
            return
        run_dir.check_vacant(folder, overwrite=self.options.overwrite)
        self.locks.enter_context(runs.create(folder, own, overwrite=self.options.overwrite))
        run_dir.write_environment(folder, own.devices)

    def _is_resumed(self, folder: Path) -> bool:
        return run_dir.is_run(folder) and not self.options.overwrite

    def _is_faster_together(self, together: sweep.VmappedRuns) -> bool:
        """Whether to train the runs in one program, by `--vmap` or a measurement."""
        count = len(together.loops)
        if self.options.vmap != "auto" or count == 1 or len(together.compiled.devices) > 1:
            return self.options.vmap == "yes"
        if not together.can_train_together():
            return False
        times = together.measure_steps()
        faster = times.together < times.in_turn
        self.show.line(
            f"a step of {count} runs takes {times.together:.3g} s in one program and "
            f"{times.in_turn:.3g} s one after the other; they are trained "
            f"{'together' if faster else 'in turn'}"
        )
        return faster

    def _evaluate(self, config: TrainConfig, trained: TrainConfig) -> dict[str, int]:
        """Evaluate the run `trained` with the `EVAL_ONLY` options of `config`; returns costs."""
        folder, source = self.folders[config], self.folders[trained]
        config = replace(config, epochs=runs.read_config(source, self.name).epochs)
        whole = configs.build(self.name, config)
        self._open(folder, sweep.with_config(whole, config))
        self.show.line(
            f"{folder.name}: not trained; evaluates the network of {source.name} with other options"
        )
        cost = sweep.evaluate_trained(whole, folder, source, self.show)
        for board in self._tracked(folder):
            for line in run_dir.read_metrics(folder):
                board.on_evaluation(progress.EvaluationEvent(line, False, ""))
        return cost


def _check(options: Sweep, grid: Grid) -> None:
    for axis, values in grid.axes.items():
        if hasattr(options, axis.strip("-").replace("-", "_")):
            raise InputError(f"{axis} must be one value, got {' '.join(values)}")
    if not (grid.axes or grid.rows[0]) or not all(grid.axes.values()):
        raise InputError("give an option several values, such as --lr 1e-3 3e-3, or --seeds 3")
    if run_dir.is_occupied(options.out) and not (options.resume or options.overwrite):
        raise InputError(
            f"{options.out} exists; continue it with --resume, replace its runs with --overwrite, "
            f"or choose another --out"
        )


def _changed(axes: Axes, values: Iterable[str]) -> list[str]:
    """The options, except the seed, whose value differs from the first value of the option."""
    pairs = zip(axes.items(), values, strict=True)
    return [axis for (axis, known), value in pairs if value != known[0] and axis != SEED]


def _config(
    name: str, options: Sweep, words: Sequence[str], axes: Axes, values: Iterable[str]
) -> TrainConfig:
    chosen = [word for pair in zip(axes, values, strict=True) for word in pair]
    defaults = (options, configs.config(name)())
    _, config = flags.parse_with_config(f"sweep {name}", [*words, *chosen], defaults)
    return runs.absolute_paths(config)


def _program(config: TrainConfig) -> str:
    """A key that is equal for configurations that can share a compiled program."""
    numbers = traceable_fields(type(config))
    return json.dumps({k: v for k, v in asdict(config).items() if k not in numbers})


def _word(value: Any) -> Any:
    return "-".join(f"{each:g}" for each in value) if isinstance(value, tuple) else value
