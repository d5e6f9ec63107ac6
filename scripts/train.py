"""Door to `jaxdet train`; the same words follow."""

import sys

from jaxdet.cli import main

sys.exit(main(["train", *sys.argv[1:]]))
