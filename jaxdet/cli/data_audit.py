"""`jaxdet data audit RUN`: likely label errors of the data, as a table and a contact sheet."""

import json

from jaxdet import tables
from jaxdet.cli import common
from jaxdet.cli.options import Audit
from jaxdet.reports import audit

PRINTED = ("kind", "score", "image", "row", "class", "suggested")


def run(options: Audit) -> int:
    """Rank likely label errors, print them, and write the files; returns the exit code."""
    picture = options.picture or options.out.with_suffix(".png")
    common.check_picture(picture)
    run = common.load(options)
    common.report_tiles(run, run.experiment)
    findings = run.audit(
        options.split,
        top=options.top,
        root=options.root,
        warn=common.warn,
        progress=common.counting,
    )
    audit.write(findings, options.out)
    rows = [finding.row for finding in findings]
    if options.json:
        print(json.dumps(rows))
    else:
        print(tables.aligned(rows, PRINTED) if rows else "no box looks like a label error")
        print(f"wrote {options.out}")
    if findings:
        audit.draw(findings, picture)
        if not options.json:
            print(f"wrote {picture}")
    return 0
