"""Benchmarks: `python -m benchmarks.NAME`, run from the root of the repository.

Each benchmark prints Markdown tables; `--json FILE` writes the record of the tables, with versions,
processors, devices and flags. `python -m benchmarks.all` runs all but `gpu`, which needs a GPU, and
`experiments`, whose trainings take hours, and writes RESULTS.md. Common code is in `lib`, the
PyTorch counterparts are in `torch_refs`, and stored records in `results`; see `docs/benchmarks.md`.
"""
