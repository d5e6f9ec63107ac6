import pytest
from PIL import Image

from jaxdet.cli.main import main
from jaxdet.errors import first_problem, printable
from tests.test_golden_runs import SCHEMA2

NAMES = {
    "a\nb": r"a\nb",
    "\x1b[31mred": r"\x1b[31mred",
    "a\rb\tc": r"a\rb\tc",
    "\u202efdp.exe": r"\u202efdp.exe",  # turns the direction of the text
    "\udcff.png": r"\udcff.png",  # a byte that is no UTF-8
    "Zürich 画像.png": "Zürich 画像.png",
}


@pytest.mark.parametrize("name, shown", NAMES.items())
def test_printable_escapes_what_a_terminal_would_obey(name, shown):
    assert printable(name) == shown


def test_printable_keeps_what_it_is_told_to_keep():
    assert printable("a\nb\x1b", keep="\n") == "a\nb\\x1b"


def test_a_message_ends_with_the_first_of_several_problems():
    assert first_problem(["a.png: empty", "b.png: empty"]) == "; first problem: a.png: empty"
    assert first_problem([]) == ""


@pytest.mark.parametrize("command", ["describe", "eval", "predict", "compare", "export"])
@pytest.mark.parametrize("name", ["gone\n\x1b[31mred", "\udcff"])
def test_an_error_with_any_name_is_one_line(command, name, capsys):
    assert main([command, name, *(["out"] if command == "export" else [])]) == 2
    error = capsys.readouterr().err
    assert printable(name) in error
    assert error.count("\n") == 1 and "\x1b" not in error


def test_predictions_for_a_file_with_any_name_are_one_line(tmp_path, capsys):
    path = tmp_path / "a\n\x1b[31m.png"
    Image.new("L", (56, 56)).save(path)
    assert main(["predict", str(SCHEMA2 / "digits"), str(path)]) == 0
    out = capsys.readouterr().out
    assert printable(path.name) in out and out.count("\n") == 2 and "\x1b" not in out  # a header
