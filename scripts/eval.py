"""Door to `jaxdet eval`; the same words follow."""

import sys

from jaxdet.cli.main import enter

sys.exit(enter(["eval", *sys.argv[1:]]))
