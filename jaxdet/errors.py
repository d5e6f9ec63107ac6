"""Errors raised for bad input; imports nothing, so that options can be read before jax loads."""


class InputError(ValueError):
    """Bad input from the user: a one-line message with the cause, the place and the remedy."""
