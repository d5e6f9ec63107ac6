"""Too many parameters are refused, and a run has as many epochs as its time budget allows."""

import itertools
import re
import signal
from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from jaxdet import configs
from jaxdet.configs.cifar10 import Config
from jaxdet.errors import InputError
from jaxdet.training import checkpoint, progress, run_dir, time_budget
from jaxdet.training import loop as training_loop
from jaxdet.training import state as training_state
from tests import datasets, tiny
from tests.cli.test_main import main
from tests.training.test_sweep import CONFIG, line_experiment

STEPS = 5  # per epoch of the line


def sizes(config):
    """({layer: parameters} of a network, their sum)."""
    net, shape = configs.network("cifar10", config)
    params = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros(shape))["params"]
    counts = {name: sum(x.size for x in jax.tree.leaves(tree)) for name, tree in params.items()}
    return counts, sum(counts.values())


@pytest.mark.parametrize("model", ["tutorial", "doubled"])
def test_too_many_parameters_are_refused_with_a_table_of_layers(model):
    per_layer, total = sizes(Config(model=model))
    net = configs.network("cifar10", Config(model=model))
    with pytest.raises(InputError) as caught:
        time_budget.check_parameters(*net, total - 1)
    (note,) = caught.value.__notes__
    heading, _, *rows = note.splitlines()
    said = f"must be at least {total}, the number of parameters, got {total - 1}; "
    assert said in str(caught.value)
    assert heading == "| layer | parameters |"
    cells = [re.fullmatch(r"\| (\w+) \| ([\d,]+) \|", row).groups() for row in rows]
    assert {name: int(count.replace(",", "")) for name, count in cells} == per_layer
    for limit in (total, 0):
        time_budget.check_parameters(*net, limit)


def test_running_statistics_are_not_trainable_parameters():
    net, shape = configs.network("cifar10", Config(norm=True))
    variables = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros(shape))
    assert variables["batch_stats"]
    assert time_budget.count_parameters(variables) == sizes(Config(norm=True))[1]


class FakeClock:
    """A clock that advances when steps are taken and evaluations are made."""

    def __init__(self, monkeypatch, step=0.0, evaluation=0.0, start=0.0):
        self.now, self.step, self.evaluation, self.start = 100.0, step, evaluation, start
        self.steps_taken = 0
        monkeypatch.setattr(time_budget, "time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(time_budget.timing, "timed", self.clock)

    def advance(self, seconds, result):
        self.now += seconds
        return result

    def clock(self, call):
        before = self.now
        return call(), self.now - before

    def compiled(self, experiment):
        """Compiled steps of which the first one is slow."""
        compiled = training_loop.CompiledSteps(experiment)

        def step(state, data, rows):
            self.steps_taken += 1
            return self.advance(self.start if self.steps_taken == 1 else self.step, state)

        def evaluate(variables, epoch):
            return self.advance(self.evaluation, {})

        evaluate.compile = lambda variables: self.advance(self.start, None)
        compiled.steps, compiled.evaluators = [step], {"val": evaluate}
        return compiled

    def plan(self, spent=0.0, **changes):
        """The configuration that is planned for the line."""
        experiment = replace(line_experiment(), config=replace(CONFIG, devices=1, **changes))
        return time_budget.plan_epochs(self.compiled(experiment), experiment, spent).config


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("step, evaluation", [(2.0, 1.0), (0.5, 4.0), (0.0, 3.0)])
@pytest.mark.parametrize("spent", [0.0, 200.0])
def test_planned_epochs_fill_the_time_budget(monkeypatch, first, step, evaluation, spent):
    clock = FakeClock(monkeypatch, step, evaluation, start=7.0)
    config = clock.plan(spent, time_budget=1000.0, eval_first=first)
    used = spent + clock.now - 100.0  # planning takes time too
    epochs = 0
    used += evaluation if first else 0.0
    while used + STEPS * step + evaluation <= 1000 * (1 - time_budget.RESERVE):
        used += STEPS * step + evaluation
        epochs += 1
    assert config.epochs == epochs > 10
    assert config == replace(CONFIG, devices=1, time_budget=1000.0, eval_first=first, epochs=epochs)


def test_steps_are_measured_for_a_fraction_of_the_budget_at_most(monkeypatch):
    clock = FakeClock(monkeypatch, step=20.0, evaluation=1.0)
    clock.plan(time_budget=1000.0)
    assert clock.steps_taken == 4  # the first one compiles, and at least three are averaged


@pytest.mark.parametrize("seconds, spent", [(1.0, 0.0), (30.0, 0.0), (1000.0, 990.0)])
def test_a_budget_for_less_than_an_epoch_is_refused_in_one_line(monkeypatch, seconds, spent):
    clock = FakeClock(monkeypatch, step=5.0, evaluation=5.0)
    with pytest.raises(InputError, match=f"{seconds:g} is too short.* 30 s.*raise --time-budget$"):
        clock.plan(spent, time_budget=seconds)


@pytest.fixture
def data(tmp_path_factory):
    return datasets.write_image_folder(tmp_path_factory.mktemp("images") / "data")


SMALL = ["--channels", "2", "2", "--fc-widths", "4", "4", "--batch", "9", "--eval-batch", "9"]
SMALL += ["--devices", "1"]


def start_process(monkeypatch, tick, terminated_at=0):
    """A process that ages by `tick` s whenever its age is read, and gets SIGTERM at one reading."""
    readings = itertools.count(1)

    def since_start():
        number = next(readings)
        if number == terminated_at:
            signal.raise_signal(signal.SIGTERM)
        return float(number * tick)

    monkeypatch.setattr(progress, "since_start", since_start)


@pytest.fixture
def options(data, tmp_path, monkeypatch):
    """A training command in the folder `run`, for which three epochs of 4 steps are planned."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        time_budget,
        "plan_epochs",
        lambda compiled, experiment, spent: replace(
            experiment, config=replace(experiment.config, epochs=3)
        ),
    )
    monkeypatch.setattr(time_budget.Clock, "plan_epochs", lambda _, done, planned: planned)
    return ["train", "cifar10", "--root", data, *SMALL, "--out", "run", "--time-budget", "60"]


def test_a_resumed_run_keeps_its_planned_length(options, monkeypatch):
    start_process(monkeypatch, 1, terminated_at=9)
    assert main(*options) == 0
    kept = run_dir.read_config("run").config
    assert (kept["epochs"], kept["time_budget"]) == (3, 60.0)
    before = run_dir.read_metrics("run")
    assert before[-1]["epoch"] < 3 and checkpoint.steps("run")[-1] > before[-1]["step"]
    start_process(monkeypatch, 1)
    monkeypatch.setattr(time_budget, "plan_epochs", lambda *_: 1 / 0)
    assert main(*options, "--epochs", "9", "--resume") == 0
    after = run_dir.read_metrics("run")
    assert after[-1]["epoch"] == 3 and after[: len(before)] == before


def test_a_budget_holds_for_all_processes_of_a_run(options, monkeypatch, capsys):
    """Two processes with nine readings of 4 s each, and one that finds nothing left."""
    ended = []
    for terminated_at in (9, 0, 0):
        start_process(monkeypatch, 4, terminated_at)
        assert main(*options, "--resume") == 0
        (end,) = (x for x in capsys.readouterr().out.splitlines() if x.startswith("run "))
        ended.append((checkpoint.steps("run")[-1], run_dir.read_seconds("run"), end))
    (first, used, end), *late = ended
    assert 0 < first < 8 and 36 <= used <= 44 and "continue with --resume" in end
    assert first < late[0][0] <= first + 5 and late[1][0] == late[0][0]
    for _, used, end in late:
        assert used > 60 and end == "run has used its --time-budget of 60 s; see jaxdet eval run"
    assert late[0][1] <= 60 + 3 * 4  # the reading that exceeds the budget, and two more


def clock(folder, age, monkeypatch, budget=60.0):
    """The clock of a run, created `age` seconds ago, in a process of that age."""
    monkeypatch.setattr(progress, "since_start", lambda: 0.0)
    config = Config(time_budget=budget)
    created = time_budget.Clock(folder, config, run_dir.read_seconds(folder))
    monkeypatch.setattr(progress, "since_start", lambda: age)
    return created


def test_a_killed_process_loses_few_of_its_seconds(tmp_path, monkeypatch):
    first = clock(tmp_path, 0.0, monkeypatch, budget=500.0)
    for age in range(100):
        monkeypatch.setattr(progress, "since_start", lambda age=age: float(age))
        assert not first.is_over()
        assert 0 <= age - run_dir.read_seconds(tmp_path) < time_budget.KEEP_SECONDS


def test_the_last_seconds_are_left_for_closing_the_run(tmp_path, monkeypatch):
    fraction = 1 - time_budget.CLOSING
    assert not clock(tmp_path, 500 * fraction - 0.1, monkeypatch, budget=500.0).is_over()
    assert clock(tmp_path, 500 * fraction + 0.1, monkeypatch, budget=500.0).is_over()


def test_a_run_without_recorded_seconds_counts_those_of_its_metrics(tmp_path, monkeypatch):
    for step in (0, 5):
        times = {"train": 4.0 * step, "eval": 15.0}
        line = {"step": step, "epoch": step // 5, "train": None, "val": {"loss": 1.0}}
        run_dir.append_metrics(tmp_path, line | {"time": times})
    assert not clock(tmp_path, 9.0, monkeypatch).is_over()
    assert clock(tmp_path, 11.0, monkeypatch).is_over()


def test_a_run_without_a_budget_is_never_over_and_keeps_its_seconds(tmp_path, monkeypatch):
    unlimited = clock(tmp_path, 1e9, monkeypatch, budget=0.0)
    assert not unlimited.is_over()
    assert unlimited.plan_epochs(3, 7) == unlimited.plan_epochs(4, 7) == 7
    unlimited.keep()
    assert run_dir.read_seconds(tmp_path) == 1e9
    assert clock(tmp_path, 5.0, monkeypatch, budget=0.0).used() == 1e9 + 5.0


def test_epochs_are_planned_anew_by_the_median_time_of_a_whole_epoch(tmp_path, monkeypatch):
    limit = 1000.0
    replanned = clock(tmp_path, 0.0, monkeypatch, budget=limit)
    ends = [20, 80, 140, 240, 300]  # of evaluations; one epoch takes longer
    planned = []
    for done, now in enumerate(ends):
        monkeypatch.setattr(progress, "since_start", lambda now=now: float(now))
        planned.append(replanned.plan_epochs(done, 4))
    left = limit * (1 - time_budget.REPLAN_RESERVE)
    expected = [done + int((left - now) / 60) for done, now in enumerate(ends)]
    assert planned == [4, *expected[1:]]
    monkeypatch.setattr(progress, "since_start", lambda: limit)
    assert replanned.plan_epochs(9, 20) == 9  # and the run is complete


def test_every_phase_of_the_schedule_comes_when_epochs_turn_out_longer(tmp_path):
    """Planned for 8 epochs, the run has time for 4: the rate is lowered after half of these."""
    config = replace(CONFIG, devices=1, epochs=8, schedule="piecewise", decay_at=(0.5,))
    show = progress.Progress(quiet=True)
    lengths = []

    def plan_epochs(done, planned):
        lengths.append(planned)
        return 4 if done else planned

    experiment = replace(line_experiment(), config=config)
    assert training_loop.train(experiment, tmp_path, show=show, plan_epochs=plan_epochs)
    lines = run_dir.read_metrics(tmp_path)
    assert [line["epoch"] for line in lines] == [0, 1, 2, 3, 4]
    rates = [line["lr"] / config.lr for line in lines]
    assert rates[-2:] == pytest.approx([0.1, 0.1]) and rates[1] == pytest.approx(1)
    assert lengths == [8, 8, 4, 4, 4]
    like = jax.eval_shape(training_state.init_fn(experiment))
    assert checkpoint.restore(tmp_path, like)[1].hparams["steps"] == 4 * STEPS


def test_max_params_applies_to_other_systems_too():
    configs.build("digits", replace(tiny.CONFIG, max_params=0))
    with pytest.raises(InputError, match="--max-params"):
        configs.build("digits", replace(tiny.CONFIG, max_params=100))
