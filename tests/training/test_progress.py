import time
from types import SimpleNamespace

from jaxdet.training import progress


def step_event(step=1, terms=lambda: {"loss": 1.0}):
    return progress.StepEvent(step, epoch=1, epochs=3, images=10, read_terms=terms)


def test_lines_go_to_stdout_and_no_bar_to_a_file(capsys):
    show = progress.Progress()
    show.begin(0, 100)
    show.on_step(step_event())
    show.show_terms(step_event())
    show.line("one line")
    show.close()
    captured = capsys.readouterr()
    assert captured.out == "one line\n"
    assert captured.err == ""


def test_quiet_shows_nothing(capsys):
    show = progress.Progress(quiet=True)
    show.begin(0, 100)
    show.line("one line")
    show.on_evaluation(progress.EvaluationEvent({}, True, "epoch 1"))
    show.close()
    assert capsys.readouterr() == ("", "")


def test_the_loss_is_read_every_ten_seconds_without_a_terminal(monkeypatch):
    reads = []
    show = progress.Progress()
    show.begin(0, 100)
    event = step_event(terms=lambda: reads.append(1) or {"loss": 1.0})
    show.on_step(event)
    assert not reads
    later = show.last_read + 11
    monkeypatch.setattr(time, "monotonic", lambda: later)
    show.on_step(event)
    show.on_step(event)
    assert len(reads) == 1


def test_the_bar_shows_the_time_that_devices_wait_for_data():
    show, shown = progress.Progress(), []
    show.bar = SimpleNamespace(set_description=lambda *_, **__: None, set_postfix_str=shown.append)
    for fraction in (None, 0.25):
        show.show_terms(step_event()._replace(data_wait=fraction))
    assert shown == ["loss 1", "loss 1 25% waiting for data"]


def test_close_before_begin_is_harmless():
    progress.Progress().close()


def test_a_named_progress_starts_lines_with_the_name_of_the_run(capsys):
    show = progress.Progress()
    named = progress.Named(show, "lr=1")
    named.on_evaluation(progress.EvaluationEvent({}, False, "epoch 1/3"))
    assert capsys.readouterr().out == "lr=1: epoch 1/3\n"


def test_seconds_since_start_advance_with_the_clock():
    before = progress.since_start()
    time.sleep(0.05)
    assert 0.03 < progress.since_start() - before < 5
