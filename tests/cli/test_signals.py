"""Signals end a training in order, from its first moment; outputs that fail end none."""

import os
import signal
import subprocess
import sys

import pytest

from jaxdet.cli import main as cli
from jaxdet.cli import process, signals
from jaxdet.training.progress import Progress


@pytest.mark.parametrize("number", signals.END)
def test_a_signal_before_the_training_begins_ends_it_in_one_line(
    number, monkeypatch, tmp_path, capsys
):
    monkeypatch.setattr(process, "prepare", lambda options: signal.raise_signal(number))
    before = signal.getsignal(number)
    code = cli.main(["train", "digits", "--out", str(tmp_path / "run")])
    assert code == (130 if number == signal.SIGINT else 0)
    assert capsys.readouterr() == (
        "stopped before the training began: there is nothing to save\n",
        "",
    )
    assert not (tmp_path / "run").exists() and signal.getsignal(number) is before


@pytest.mark.parametrize("command", ["eval", "sweep"])
def test_an_interrupt_elsewhere_is_one_line(command, monkeypatch, capsys):
    def interrupt(options):
        raise KeyboardInterrupt

    monkeypatch.setattr(process, "prepare", interrupt)
    words = {"eval": ["eval", "run"], "sweep": ["sweep", "digits", "--lr", "1", "2"]}[command]
    assert cli.main(words) == 130
    assert capsys.readouterr().err == "jaxdet: error: interrupted\n"


def test_signals_are_noted_and_a_second_interrupt_raises():
    with pytest.raises(KeyboardInterrupt), signals.caught() as received:
        signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGINT)
        assert received == [signal.SIGHUP, signal.SIGINT]
        signal.raise_signal(signal.SIGINT)


def test_signals_that_the_parent_process_ignores_stay_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with signals.caught() as received:
            signal.raise_signal(signal.SIGHUP)
            assert not received
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_progress_goes_on_when_nobody_reads_it(monkeypatch):
    read, write = os.pipe()
    os.close(read)
    monkeypatch.setattr(sys, "stdout", os.fdopen(write, "w"))
    show = Progress()
    show.begin(0, 10)
    for number in range(3):
        show.line(f"epoch {number}")
    show.close()
    with pytest.raises(BrokenPipeError):
        sys.stdout.flush()
    signals.flush_outputs()
    sys.stdout.close()


def test_a_command_whose_output_is_closed_ends_without_a_traceback():
    code = (
        "import sys\n"
        "from jaxdet.cli import main as cli\n"
        "cli._dispatch = lambda *_: [print('x' * 99) for _ in range(9999)]\n"
        "sys.exit(cli.main([]))"
    )
    command = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert command.stdout is not None and command.stdout.readline()
    command.stdout.close()
    _, err = command.communicate(timeout=60)
    assert (command.returncode, err) == (1, b"")
