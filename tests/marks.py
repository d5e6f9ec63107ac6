"""Marks of tests."""

import pytest


def long_for(names, long):
    """Names as values of a parameter of tests; the tests of the names in `long` are `long`."""
    return [pytest.param(name, marks=[pytest.mark.long] * (name in long)) for name in names]
