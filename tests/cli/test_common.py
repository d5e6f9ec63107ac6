"""Helpers of several commands."""

import sys

from jaxdet.cli import common


def test_images_are_counted_on_a_terminal_only_and_lines_stay_whole(monkeypatch, capsys):
    for terminal in (False, True):
        monkeypatch.setattr(sys.stderr, "isatty", lambda terminal=terminal: terminal)
        with common.counting(5) as advance:
            advance(2)
            common.write_line("a line")
        out, err = capsys.readouterr()
        assert out == "a line\n" and ("2/5" in err or "0/5" in err) == terminal
