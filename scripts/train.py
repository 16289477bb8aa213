"""`python scripts/train.py --help` explains it; the code is `agents.cli.train`."""

import sys

from agents.cli.start import start

if __name__ == "__main__":
    sys.exit(start("train"))
