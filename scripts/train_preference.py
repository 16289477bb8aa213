"""`python scripts/train_preference.py --help` explains it; the code is `agents.cli.train_preference`."""

import sys

from agents.cli.train_preference import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
