"""`python scripts/write_reviews.py --help` explains it; the code is `agents.cli.write_reviews`."""

import sys

from agents.cli.start import start

if __name__ == "__main__":
    sys.exit(start("write_reviews"))
