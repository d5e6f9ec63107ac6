"""Door to `jaxdet eval`; the same words follow."""

import sys

from jaxdet.cli import enter

sys.exit(enter(["eval", *sys.argv[1:]]))
