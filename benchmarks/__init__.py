"""Benchmarks: `python -m benchmarks.NAME`, from the root of the repository, prints Markdown tables.

`--json FILE` keeps the rows with versions, processor, devices and flags.  Nothing here sets a flag
of XLA or turns the compilation cache on: what is timed is what the environment asks for, and the
record says what that was.  `harness` is the one home of timing, memory, tables and records.
"""
