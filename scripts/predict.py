"""Door to `jaxdet predict`; the same words follow."""

import sys

from jaxdet.cli import main

sys.exit(main(["predict", *sys.argv[1:]]))
