"""Benchmarks: `python -m benchmarks.NAME`, from the root of the repository, prints Markdown tables.

`--json FILE` keeps the rows with versions, processor, devices and flags; `python -m benchmarks.all`
runs them all and writes RESULTS.md.  XLA's flags are those of XLA_FLAGS; where that is not set, the
one that jaxdet's command line sets (`harness.quicken`): an empty XLA_FLAGS times without it.
Nothing turns the compilation cache on, and the record says what was in force.  `harness` is the one
home of memory, flags, tables and records.
"""
