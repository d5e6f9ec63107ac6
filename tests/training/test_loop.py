"""Callbacks of the loop, and its contract with a stepper."""

import pytest

from jaxdet.plots import training as training_plots
from jaxdet.training import checkpoint, loop, run_dir
from jaxdet.training.progress import Callback, Progress
from tests.training.test_resume import line_experiment, metrics, outcome

METHODS = ("on_step", "on_evaluation", "on_checkpoint")


@pytest.fixture(scope="module")
def experiment():
    """Two epochs of three steps, evaluated before the first one and after each."""
    return line_experiment()


@pytest.fixture(scope="module")
def compiled(experiment):
    return loop.CompiledSteps(experiment)


@pytest.fixture(scope="module", autouse=True)
def _no_plots():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_plots, "learning_curves", lambda *_: None)
        yield


@pytest.fixture(scope="module")
def train_in(experiment, compiled):
    """`loop.train` in a folder, with callbacks."""

    def train(folder, *callbacks):
        folder.mkdir(exist_ok=True)
        show = Progress(quiet=True)
        return loop.train(experiment, folder, show=show, callbacks=callbacks, compiled=compiled)

    return train


@pytest.fixture(scope="module")
def expected(train_in, experiment, tmp_path_factory):
    """The outcome of an uninterrupted run without callbacks."""
    folder = tmp_path_factory.mktemp("whole")
    assert train_in(folder)
    return outcome(folder, experiment)


@pytest.fixture
def run(tmp_path):
    return tmp_path / "run"


@pytest.fixture
def train(train_in, run):
    """Train in the folder `run`, with callbacks."""
    return lambda *callbacks: train_in(run, *callbacks)


class Recorder(Callback):
    """Records (method, event) of every call; at one call it acts: raises or returns a value."""

    def __init__(self, at=None, action=None):
        self.at, self.action = at, action
        self.events = []

    def _record(self, method, event):
        self.events.append((method, event))
        count = len(self.of(method))
        return self.action() if (method, count) == self.at else None

    def of(self, method):
        """Events of one method."""
        return [event for name, event in self.events if name == method]

    def on_step(self, event):
        return self._record("on_step", event)

    def on_evaluation(self, event):
        return self._record("on_evaluation", event)

    def on_checkpoint(self, event):
        return self._record("on_checkpoint", event)


def fail():
    raise RuntimeError("from a callback")


def test_callbacks_see_every_step_evaluation_and_checkpoint(train, run, experiment):
    recorder = Recorder()
    assert train(recorder)
    steps = recorder.of("on_step")
    assert [(event.step, event.epoch) for event in steps] == [
        *((1, 1), (2, 1), (3, 1)),
        *((4, 2), (5, 2), (6, 2)),
    ]
    assert {(event.epochs, event.images) for event in steps} == {(2, experiment.config.batch)}
    evaluations = recorder.of("on_evaluation")
    assert [event.metrics for event in evaluations] == run_dir.read_metrics(run)
    assert [event.metrics["step"] for event in evaluations if event.best][-1] == checkpoint.best(
        run
    )
    assert [event.text.split(" | ")[0] for event in evaluations] == [
        f"epoch {epoch}/2" for epoch in (0, 1, 2)
    ]
    checkpoints = recorder.of("on_checkpoint")
    assert [event.step for event in checkpoints] == [0, 3, 6]
    assert checkpoints[-1].path == run / "checkpoints" / "6"


def test_a_checkpoint_is_complete_when_it_is_announced(train, run):
    found = []

    class Check(Callback):
        def on_checkpoint(self, event):
            found.append(((event.path / "manifest.json").is_file(), event.step))
            assert checkpoint.steps(run)[-1] == event.step

    assert train(Check())
    assert found == [(True, 0), (True, 3), (True, 6)]


def test_an_event_reads_the_means_of_the_loss_terms(train, run):
    terms = {}

    class Read(Callback):
        def on_step(self, event):
            terms[event.step] = event.read_terms()

    assert train(Read())
    lines = run_dir.read_metrics(run)
    assert {line["step"]: line["train"] for line in lines[1:]} == {3: terms[3], 6: terms[6]}


@pytest.mark.parametrize("method, count, step", [
    ("on_step", 2, 2),
    ("on_step", 3, 3),
    ("on_evaluation", 1, 0),
    ("on_evaluation", 2, 3),
    ("on_checkpoint", 2, 3),
])  # fmt: skip
def test_a_callback_that_returns_true_stops_the_run_with_a_checkpoint(
    train, run, experiment, expected, method, count, step
):
    assert not train(Recorder((method, count), lambda: True))
    assert checkpoint.steps(run)[-1] == step
    assert train()
    assert outcome(run, experiment) == expected


def test_a_callback_that_returns_false_does_not_stop_the_run(train):
    assert train(Recorder(("on_step", 2), lambda: False))


@pytest.mark.parametrize("method, count", [(m, n) for m in METHODS for n in (1, 2, 3)])
def test_a_run_whose_callback_raises_resumes_to_the_same_bits(
    train, run, experiment, expected, method, count
):
    with pytest.raises(RuntimeError, match="from a callback"):
        train(Recorder((method, count), fail))
    for step in checkpoint.steps(run):
        assert (run / "checkpoints" / str(step) / "manifest.json").is_file()
    assert train()
    assert outcome(run, experiment) == expected


def test_a_complete_run_calls_no_callback_when_resumed(train, run):
    assert train()
    before = metrics(run)
    recorder = Recorder()
    assert train(recorder)
    assert not recorder.events and metrics(run) == before


def test_callbacks_do_not_change_the_bits(train, run, experiment, expected):
    assert train(Recorder(), Recorder())
    assert outcome(run, experiment) == expected


class FakeStepper:
    """Records its calls; a step on `bad` rows raises."""

    def __init__(self, bad=None):
        self.calls, self.bad = [], bad

    def step(self, rows):
        """Record the rows."""
        self.calls.append(rows)
        if rows == self.bad:
            fail()

    def sync(self):
        """Record the call."""
        self.calls.append("sync")


def raise_at(calls, count):
    """A function without arguments that raises at one call."""
    calls.append(None)
    if len(calls) == count:
        fail()


def test_take_steps_pauses_steps_and_reports_in_order():
    stepper = FakeStepper()
    loop.take_steps(
        [1, 2],
        stepper,
        pause=lambda: stepper.calls.append("pause"),
        after=lambda rows: stepper.calls.append(f"after {rows}"),
    )
    assert stepper.calls == ["pause", 1, "after 1", "pause", 2, "after 2", "sync"]


@pytest.mark.parametrize("where, taken", [("pause", [1]), ("step", [1, 2]), ("after", [1, 2])])
def test_take_steps_syncs_once_when_anything_raises(where, taken):
    stepper, pauses, reports = FakeStepper(bad=2 if where == "step" else None), [], []
    with pytest.raises(RuntimeError, match="from a callback"):
        loop.take_steps(
            [1, 2, 3],
            stepper,
            pause=lambda: raise_at(pauses, 2 if where == "pause" else 0),
            after=lambda rows: raise_at(reports, 2 if where == "after" else 0),
        )
    assert stepper.calls == [*taken, "sync"]


def test_take_steps_syncs_when_reading_a_batch_raises():
    def batches():
        yield 1
        fail()

    stepper = FakeStepper()
    with pytest.raises(RuntimeError, match="from a callback"):
        loop.take_steps(batches(), stepper, pause=lambda: None, after=lambda rows: None)
    assert stepper.calls == [1, "sync"]
