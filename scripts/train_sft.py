"""`python scripts/train_sft.py --help` explains it; the code is `agents.cli.train_sft`."""

import sys

from agents.cli.train_sft import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
