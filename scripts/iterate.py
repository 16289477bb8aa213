"""`python scripts/iterate.py --help` explains it; the code is `agents.cli.iterate`."""

import sys

from agents.cli.iterate import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
