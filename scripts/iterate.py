"""`python scripts/iterate.py --help` explains it; the code is `agents.cli.iterate`."""

import sys

from agents.cli.start import start

if __name__ == "__main__":
    sys.exit(start("iterate"))
