"""`python scripts/evaluate_actor.py --help` explains it; the code is `agents.cli.evaluate_actor`."""

import sys

from agents.cli.evaluate_actor import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
