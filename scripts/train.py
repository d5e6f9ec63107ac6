"""Door to `jaxdet train`; the same words follow."""

import sys

from jaxdet.cli.main import enter

sys.exit(enter(["train", *sys.argv[1:]]))
