"""Flax modules, one architecture per file; `registry` lists them by name."""
