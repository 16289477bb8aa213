"""`python scripts/ab.py --help` explains it; the code is `agents.cli.ab`."""

import sys

from agents.cli.start import start

if __name__ == "__main__":
    sys.exit(start("ab"))
