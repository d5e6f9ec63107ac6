"""How runs stand against the cut-offs of their seed: a part of what `compare --report` writes."""

from jaxdet import tables
from jaxdet.cli import embedding
from jaxdet.errors import InputError

LEVELS = ("high", "medium", "low")  # as seed 004 calls them
VERIFIED = "verification"  # the cut-offs of the accuracy of `jaxdet verify`


def verified(options):
    """[(file, what it holds)] of the files of `--verified`; InputError for other files."""
    if options.verified and not options.report:
        raise InputError("--verified: its scores are for --report")
    return [(path, embedding.scored(path)) for path in options.verified]


def matched(files, found):
    """{run: scores of verification} of files of `verified`; InputError for one of no such network.

    found: `compare.Judged` of every run.
    """
    made = {embedding.made(one.folder, one.row["step"])["manifest"]: one.row for one in found}
    scores = {}
    for path, kept in files:
        row = made.get(kept["embedder"]["manifest"])
        if row is None:
            of = "checkpoint {step} of run {run!r}".format(**kept["embedder"])
            raise InputError(f"{path}: found with {of}, which is not among those compared")
        scores.setdefault(row["run"], []).append(kept["scores"])
    return scores


def parts(cuts, found, scores):
    """Markdown, in a list: which cut-offs each run reaches; [] where there are none.

    cuts: {score: (high, medium, low)}.  found: as in `matched`, which gave the scores.
    """
    if not cuts:
        return []
    rows = [_row(cuts, one.row, scores.get(one.row["run"], ())) for one in found]
    goals = [f"{name}: {', '.join(_least(least))}" for name, least in cuts.items()]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    return ["## Cut-offs", f"{'; '.join(goals)}.", tables.to_markdown(rows, columns)]


def level(value, least):
    """The name of the highest of `least` (high, medium, low) that a value reaches, or `none`."""
    return next((name for name, cut in zip(LEVELS, least, strict=True) if value >= cut), "none")


def _row(cuts, row, verified):
    """What a run reaches, by its own scores and by those of verification."""
    found = {"run": row["run"]}
    for name, least in cuts.items():
        found |= _reached(name, row[name], least) if name in row else {}
    for scores in verified:
        name = f"{VERIFIED}, {scores['part']}"
        found |= _reached(name, scores["accuracy"], cuts[VERIFIED])
    return found


def _reached(name, value, least):
    return {name: value, f"{name} reaches": level(value, least)}


def _least(least):
    return [f"{name} from {cut:g}" for name, cut in zip(LEVELS, least, strict=True)]
