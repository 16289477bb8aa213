"""`python scripts/write_reviews.py --help` explains it; the code is `agents.cli.write_reviews`."""

import sys

from agents.cli.write_reviews import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
