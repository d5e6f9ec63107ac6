"""Budgets: too many parameters are refused, and a run has the epochs that fit its time."""

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
from tests import datasets, tiny
from tests.cli.test_main import main
from tests.training.test_sweep import CONFIG, line_system

STEPS = 5  # of an epoch of the line


def sizes(config):
    """{layer: parameters} of a network, and their sum."""
    net, shape = configs.network("cifar10", config)
    params = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros(shape))["params"]
    found = {name: sum(leaf.size for leaf in jax.tree.leaves(of)) for name, of in params.items()}
    return found, sum(found.values())


@pytest.mark.parametrize("model", ["tutorial", "doubled"])
def test_too_many_parameters_are_refused_with_a_table_that_sums_to_them(model):
    of_layers, whole = sizes(Config(model=model))
    net = configs.network("cifar10", Config(model=model))
    with pytest.raises(InputError) as caught:
        time_budget.check_parameters(*net, whole - 1)
    first, heading, _, *rows = str(caught.value).splitlines()
    assert f"has {whole} parameters that learn, {whole - 1} (--max-params)" in first
    assert heading == "| layer | parameters |"
    cells = [re.fullmatch(r"\| (\w+) \| ([\d,]+) \|", row).groups() for row in rows]
    assert {name: int(count.replace(",", "")) for name, count in cells} == of_layers
    for most in (whole, 0):
        time_budget.check_parameters(*net, most)


def test_running_statistics_are_no_parameters_that_learn():
    net, shape = configs.network("cifar10", Config(norm=True))
    variables = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros(shape))
    assert variables["batch_stats"]
    assert time_budget.count_parameters(variables) == sizes(Config(norm=True))[1]


class Clock:
    """A clock that moves when steps and evaluations are made."""

    def __init__(self, monkeypatch, step=0.0, judge=0.0, start=0.0):
        self.now, self.step, self.judge, self.start = 100.0, step, judge, start
        self.tried = 0
        monkeypatch.setattr(time_budget, "time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(time_budget.timing, "timed", self.clock)

    def moved(self, seconds, result):
        self.now += seconds
        return result

    def clock(self, call):
        before = self.now
        return call(), self.now - before

    def programs(self, config):
        """Programs whose first step is slow."""
        made = training_loop.CompiledSteps(line_system(), config)

        def step(state, data, row):
            self.tried += 1
            return self.moved(self.start if self.tried == 1 else self.step, state)

        def judge(kept, epoch):
            return self.moved(self.judge, {})

        judge.prepare = lambda kept: self.moved(self.start, None)
        made.steps, made.evaluator = [step], judge
        return made

    def planned(self, spent=0.0, **changes):
        config = replace(CONFIG, devices=1, **changes)
        return time_budget.plan_epochs(self.programs(config), line_system(), config, spent)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("step, judge", [(2.0, 1.0), (0.5, 4.0), (0.0, 3.0)])
@pytest.mark.parametrize("spent", [0.0, 200.0])
def test_the_planned_epochs_are_those_that_the_clock_allows(monkeypatch, first, step, judge, spent):
    clock = Clock(monkeypatch, step, judge, start=7.0)
    config = clock.planned(spent, time_budget=1000.0, eval_first=first)
    gone = spent + clock.now - 100.0  # what planning itself took is gone as well
    epochs = 0
    gone += judge if first else 0.0
    while gone + STEPS * step + judge <= 1000 * (1 - time_budget.SPARED):
        gone += STEPS * step + judge
        epochs += 1
    assert config.epochs == epochs > 10
    assert config == replace(CONFIG, devices=1, time_budget=1000.0, eval_first=first, epochs=epochs)


def test_no_more_steps_are_tried_than_a_share_of_the_seconds_allows(monkeypatch):
    clock = Clock(monkeypatch, step=20.0, judge=1.0)
    clock.planned(time_budget=1000.0)
    assert clock.tried == 4  # the first compiles; three are the least that have a mean


@pytest.mark.parametrize("seconds, spent", [(1.0, 0.0), (30.0, 0.0), (1000.0, 990.0)])
def test_a_budget_for_less_than_an_epoch_is_one_line(monkeypatch, seconds, spent):
    clock = Clock(monkeypatch, step=5.0, judge=5.0)
    with pytest.raises(InputError, match="one epoch and its evaluation take 30 s$") as caught:
        clock.planned(spent, time_budget=seconds)
    assert str(caught.value).startswith(f"--time-budget {seconds:g}: ")


@pytest.fixture
def data(tmp_path_factory):
    return datasets.write_image_folder(tmp_path_factory.mktemp("images") / "data")


SMALL = ["--channels", "2", "2", "--fc-widths", "4", "4", "--batch", "9", "--eval-batch", "9"]
SMALL += ["--devices", "1"]


def process(monkeypatch, tick, preempted=0):
    """A process that is `tick` s older at every look at its age; SIGTERM comes at one of them."""
    looks = itertools.count(1)

    def since_start():
        number = next(looks)
        if number == preempted:
            signal.raise_signal(signal.SIGTERM)
        return float(number * tick)

    monkeypatch.setattr(progress, "since_start", since_start)


@pytest.fixture
def words(data, tmp_path, monkeypatch):
    """Those of a training for which three epochs, 12 steps, are planned, in the folder `run`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        time_budget,
        "plan_epochs",
        lambda programs, system, config, spent: replace(config, epochs=3),
    )
    return ["train", "cifar10", "--root", data, *SMALL, "--out", "run", "--time-budget", "60"]


def test_a_run_is_planned_goes_on_and_keeps_its_length(words, monkeypatch):
    process(monkeypatch, 1, preempted=9)
    assert main(*words) == 0
    _, kept = run_dir.read_config("run")
    assert (kept["epochs"], kept["time_budget"]) == (3, 60.0)
    before = run_dir.read_metrics("run")
    assert before[-1]["epoch"] < 3 and checkpoint.steps("run")[-1] > before[-1]["step"]
    process(monkeypatch, 1)
    monkeypatch.setattr(time_budget, "plan_epochs", lambda *_: 1 / 0)
    assert main(*words, "--epochs", "9", "--resume") == 0
    after = run_dir.read_metrics("run")
    assert after[-1]["epoch"] == 3 and after[: len(before)] == before


def test_a_run_has_the_seconds_of_all_its_processes(words, monkeypatch, capsys):
    """Two processes of nine looks at 4 s each, and one that finds nothing left."""
    ended = []
    for preempted in (9, 0, 0):
        process(monkeypatch, 4, preempted)
        assert main(*words, "--resume") == 0
        last = capsys.readouterr().out.splitlines()[-1]
        ended.append((checkpoint.steps("run")[-1], run_dir.read_seconds("run"), last))
    (first, used, said), *late = ended
    assert 0 < first < 8 and 36 <= used <= 44 and "continue with --resume" in said
    assert first < late[0][0] <= first + 5 and late[1][0] == late[0][0]
    for _, used, said in late:
        assert used > 60 and said == "run has used its --time-budget of 60 s; see jaxdet eval run"
    assert late[0][1] <= 60 + 3 * 4  # the look that found it late, and two more


def clock(folder, age, monkeypatch, most=60.0):
    """The clock of a run, in a process of this age."""
    monkeypatch.setattr(progress, "since_start", lambda: age)
    return time_budget.Clock(folder, Config(time_budget=most))


def test_a_process_that_is_killed_loses_few_of_its_seconds(tmp_path, monkeypatch):
    first = clock(tmp_path, 0.0, monkeypatch, most=500.0)
    for age in range(100):
        monkeypatch.setattr(progress, "since_start", lambda age=age: float(age))
        assert not first.late()
        assert 0 <= age - run_dir.read_seconds(tmp_path) < time_budget.KEPT


def test_the_last_seconds_are_left_for_the_closing(tmp_path, monkeypatch):
    share = 1 - time_budget.CLOSING
    assert not clock(tmp_path, 500 * share - 0.1, monkeypatch, most=500.0).late()
    assert clock(tmp_path, 500 * share + 0.1, monkeypatch, most=500.0).late()


def test_a_run_of_an_earlier_version_counts_what_its_metrics_tell(tmp_path, monkeypatch):
    for step in (0, 5):
        run_dir.append_metrics(
            tmp_path, {"step": step, "time": {"train": 4.0 * step, "eval": 15.0}}
        )
    assert not clock(tmp_path, 9.0, monkeypatch).late()
    assert clock(tmp_path, 11.0, monkeypatch).late()


def test_a_run_without_a_budget_keeps_no_seconds_and_is_never_late(tmp_path, monkeypatch):
    free = clock(tmp_path, 1e9, monkeypatch, most=0.0)
    assert not free.late()
    free.keep()
    assert not list(tmp_path.iterdir())


def test_every_system_may_have_a_budget_of_parameters():
    configs.build("digits", replace(tiny.CONFIG, max_params=0))
    with pytest.raises(InputError, match="--max-params"):
        configs.build("digits", replace(tiny.CONFIG, max_params=100))
