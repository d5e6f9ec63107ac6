"""Mean and spread of runs that differ in their seed only, as rows beside those of `compare`."""

from dataclasses import replace

from jaxdet import tables
from jaxdet.cli import swept

NAMED = {"run": "runs", "runs": "seeds", "model": "model", "split": "split"}


def rows(found):
    """A row for all `compare.Judged` that are alike but for seed, comment and planned epochs.

    The means of their scores, and under `NAME +-` the standard deviations of the sample.  Of
    several runs of one seed the first counts.
    """
    alike = {}
    for one in found:
        planned = {"epochs": 0} if one.config.time_budget else {}
        same = replace(one.config, seed=0, comment="", **planned)
        alike.setdefault((one.row["system"], same), {}).setdefault(one.config.seed, one.row)
    return [_row(list(of.values())) for of in alike.values() if len(of) > 1]


def _row(seeds):
    """The row of the rows of several seeds."""
    shared = {name: seeds[0][name] for name in ("model", "split")}
    return swept.averaged({"run": ", ".join(row["run"] for row in seeds), **shared}, seeds)


def table(found, columns):
    """Markdown of `rows`, in a list; [] where there are none.  columns: {score: heading}."""
    told = rows(found)
    known = {k: name for k, name in columns.items() if any(f"{k} +-" in row for row in told)}
    both = {f"{key}{more}": f"{name}{more}" for key, name in known.items() for more in ("", " +-")}
    if not told:
        return []
    return ["Mean and spread (+-) over seeds:", tables.to_markdown(told, NAMED | both)]
