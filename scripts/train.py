"""`jaxdet train` as a script, with the same arguments."""

import sys

from jaxdet.cli.main import enter

sys.exit(enter(["train", *sys.argv[1:]]))
