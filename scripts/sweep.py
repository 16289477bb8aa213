"""`python scripts/sweep.py --help` explains it; the code is `agents.cli.sweep`."""

import sys

from agents.cli.sweep import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
