"""`python scripts/pipeline.py --help` explains it; the code is `agents.cli.pipeline`."""

import sys

from agents.cli.start import start

if __name__ == "__main__":
    sys.exit(start("pipeline"))
