"""`python scripts/train_reward_model.py --help` explains it; the code is `agents.cli.train_reward_model`."""

import sys

from agents.cli.start import start

if __name__ == "__main__":
    sys.exit(start("train_reward_model"))
