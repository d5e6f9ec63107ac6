"""Door to `jaxdet eval`; the same words follow."""

import sys

from jaxdet.cli import main

sys.exit(main(["eval", *sys.argv[1:]]))
