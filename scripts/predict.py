"""`jaxdet predict` as a script, with the same arguments."""

import sys

from jaxdet.cli.main import enter

sys.exit(enter(["predict", *sys.argv[1:]]))
