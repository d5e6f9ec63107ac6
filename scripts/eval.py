"""`jaxdet eval` as a script, with the same arguments."""

import sys

from jaxdet.cli.main import enter

sys.exit(enter(["eval", *sys.argv[1:]]))
