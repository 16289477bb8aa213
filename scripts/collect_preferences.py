"""`python scripts/collect_preferences.py --help` explains it; the code is `agents.cli.collect_preferences`."""

import sys

from agents.cli.collect_preferences import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
