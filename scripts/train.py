"""`python scripts/train.py --help` explains it; the code is `agents.cli.train`."""

import sys

from agents.cli.train import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
