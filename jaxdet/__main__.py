"""`python -m jaxdet`: the command line."""

import sys

from jaxdet.cli.main import enter

if __name__ == "__main__":
    sys.exit(enter())
