"""`python scripts/collect_feedback.py --help` explains it; the code is `agents.cli.collect_feedback`."""

import sys

from agents.cli.start import start

if __name__ == "__main__":
    sys.exit(start("collect_feedback"))
