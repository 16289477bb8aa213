"""`python scripts/chat.py --help` explains it; the code is `agents.cli.chat`."""

import sys

from agents.cli.start import start

if __name__ == "__main__":
    sys.exit(start("chat"))
