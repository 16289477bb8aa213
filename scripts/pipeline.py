"""`python scripts/pipeline.py --help` explains it; the code is `agents.cli.pipeline`."""

import sys

from agents.cli.pipeline import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
