"""`python scripts/evaluate_actor.py --help` explains it; the code is `agents.cli.evaluate_actor`."""

import sys

from agents.cli.start import start

if __name__ == "__main__":
    sys.exit(start("evaluate_actor"))
