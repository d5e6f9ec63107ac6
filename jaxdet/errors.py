"""Errors with a message for the user; importing this module does not import jax."""

from collections.abc import Sequence


class InputError(ValueError):
    """Bad input from the user: a one-line message with the cause, the place and the remedy."""


class DeviceMemoryError(RuntimeError):
    """The memory of a device is too small; the message names the program and an option to lower."""


class ReplayError(RuntimeError):
    """A written file does not give the predictions of the run that it was written from."""


def printable(text: str, keep: str = "") -> str:
    """Text in which control and invisible characters, except those in `keep`, are escaped.

    File names may contain newlines, escape codes, and bytes that are not characters.
    """
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text
    )


def first_problem(notes: Sequence[str]) -> str:
    """The words "; first problem: NOTE", to end a message; "" if there are no `notes`."""
    return f"; first problem: {notes[0]}" if notes else ""
