"""`jaxdet report RUN...`: one self-contained HTML page on one run, or on several side by side."""

from jaxdet import api
from jaxdet.cli import common
from jaxdet.cli.options import Report


def run(options: Report) -> int:
    """Evaluate the runs and write the page; returns the exit code."""
    written = api.report(
        options.runs,
        options.out,
        split=options.split,
        checkpoint=options.checkpoint,
        bootstrap=options.bootstrap,
        overwrite=options.overwrite,
        warn=common.warn,
        progress=common.counting,
        **common.given_changes(options),
    )
    print(f"wrote {written}")
    return 0
