import time

from jaxdet.training import progress


def test_lines_go_to_stdout_and_no_bar_to_a_file(capsys):
    show = progress.Progress()
    show.begin(0, 100)
    show.advance(10)
    show.terms(1, 3, {"loss": 1.0})
    show.line("one line")
    show.close()
    captured = capsys.readouterr()
    assert captured.out == "one line\n"
    assert captured.err == ""


def test_quiet_says_nothing(capsys):
    show = progress.Progress(quiet=True)
    show.begin(0, 100)
    show.line("one line")
    show.close()
    assert capsys.readouterr() == ("", "")


def test_the_loss_is_read_now_and_then(monkeypatch):
    show = progress.Progress()
    show.begin(0, 100)
    assert not show.due()
    monkeypatch.setattr(time, "monotonic", lambda: show.looked + 11)
    assert show.due()


def test_close_before_begin_is_harmless():
    progress.Progress().close()


def test_time_since_the_start_of_the_program_moves_with_the_clock():
    before = progress.since_start()
    time.sleep(0.05)
    assert 0.03 < progress.since_start() - before < 5
