"""Door to `jaxdet predict`; the same words follow."""

import sys

from jaxdet.cli.main import enter

sys.exit(enter(["predict", *sys.argv[1:]]))
