"""`python scripts/train_preference.py --help` explains it; the code is `agents.cli.train_preference`."""

import sys

from agents.cli.start import start

if __name__ == "__main__":
    sys.exit(start("train_preference"))
