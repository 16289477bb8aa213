"""`python scripts/find_hacks.py --help` explains it; the code is `agents.cli.find_hacks`."""

import sys

from agents.cli.start import start

if __name__ == "__main__":
    sys.exit(start("find_hacks"))
