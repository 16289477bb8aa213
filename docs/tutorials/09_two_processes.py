"""
Two processes, one update
=========================

A run that is too slow for one device can be shared by several: each process, a *rank*, writes and learns from its part of
the responses, and their gradients are added up. Stock PPO does not know. Two processes on this machine's CPU stand for two
devices here; the question is whether they make the update that one process would have made.
"""

# %%
# On the command line
# -------------------
# That is one option. All settings keep their meaning: 32 responses a rollout are 16 for each of the two.

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd

folder = Path(tempfile.mkdtemp())
os.environ["OMP_NUM_THREADS"] = "1"  # a thread for each process


def shell(*words):
    """Runs a Python module in the folder, as a shell would; prints what it says."""
    done = subprocess.run([sys.executable, "-m", *words], cwd=folder, capture_output=True, text=True, check=False)
    print(done.stdout.strip() if done.returncode == 0 else done.stderr)


options = "--processes 2 --n-envs 32 --total-timesteps 3072 --critic detached_head --output-dir two --n-samples 0"
shell("agents.cli.main", "train", *options.split())

# %%
# One log for both: counts are added up, means are of all responses.

progress = pd.read_csv(folder / "two" / "progress.csv")
print(progress[["rollout/tokens", "rollout/rm_score", "rollout/kl", "train/approx_kl"]].round(3).to_string(index=False))

# %%
# In a script
# -----------
# ``torchrun`` starts a script of one's own several times, and ``join`` lets the processes find each other. The rest is what
# it would be in one process, but that stable-baselines3 counts this rank's steps. Ours makes a single update, and keeps what
# was written and what became of the weights.

script = """
import json
import numpy as np
from agents import make_algorithm
from agents.distributed import join, ranks

join()
model = make_algorithm("ppo", n_envs=16, seed=0, critic="detached_head", n_epochs=1, batch_size=512)
model.learn(16 * 32 // ranks().world)

rank = ranks().rank
written = [[segment.context, segment.actions] for segment in model.rollout_buffer.segments]
json.dump(written, open(f"written{rank}.json", "w"))
np.save(f"weights{rank}.npy", np.concatenate([p.detach().numpy().ravel() for p in model.policy.parameters()]))
print(f"rank {rank} of {ranks().world}: {len(written)} responses, {len(model.rollout_buffer.actions)} tokens")
"""
(folder / "update.py").write_text(script, encoding="utf-8")
shell("torch.distributed.run", "--nproc-per-node", "2", "update.py")

# %%
# Are the ranks still one model?

import numpy as np

weights = [np.load(folder / f"weights{rank}.npy") for rank in (0, 1)]
print("equal bit for bit:", np.array_equal(*weights))

# %%
# The same in one process
# -----------------------
# Ranks draw from random streams of their own, so one process would write other responses. To compare updates, it has to
# write the same ones: we give it a policy that repeats what was written. It finds each state among them, and takes the token
# that came next.

import dataclasses
import json

import torch

from agents import ALGORITHMS, LLMActorCriticPolicy, make_algorithm

written = [tuple(pair) for rank in (0, 1) for pair in json.loads((folder / f"written{rank}.json").read_text())]


class Repeats(LLMActorCriticPolicy):
    """Takes the tokens that two ranks took."""

    def forward(self, obs, deterministic=False):
        """See `LLMActorCriticPolicy`; tokens, values and log-probs of all slots."""
        states = [row[:length].tolist() for row, length in zip(obs["input_ids"], obs["length"][:, 0], strict=True)]
        tokens = torch.tensor([self.next_token(state) for state in states])
        values, log_prob, _ = self.evaluate_actions(obs, tokens)
        return tokens, values[:, None], log_prob

    def next_token(self, state):
        """What came next; an idle slot, whose state is empty, takes any token."""
        for prompt, response in written:
            if (
                state
                and state[: len(prompt)] == prompt
                and response[: len(state) - len(prompt)] == state[len(prompt) :]
            ):
                return response[len(state) - len(prompt)]
        assert not state, "nobody wrote this"
        return 0


ALGORITHMS["repeats"] = dataclasses.replace(ALGORITHMS["ppo"], policy=Repeats)


def flat(model):
    """All weights of actor and critic."""
    return np.concatenate([p.detach().numpy().ravel() for p in model.policy.parameters()])


model = make_algorithm("repeats", n_envs=16, seed=0, critic="detached_head", n_epochs=1, batch_size=512)
start = flat(model)
model.learn(16 * 32)
alone = flat(model)

# %%
# The update moves the weights; how far apart do one process and two end, in parts of the way? Beside it, what another 16
# responses would have done.

other = make_algorithm("ppo", n_envs=16, seed=1, critic="detached_head", n_epochs=1, batch_size=512)
other.learn(16 * 32)


def apart(weights):
    """The distance to the weights of one process, in lengths of its update."""
    return np.linalg.norm(weights - alone) / np.linalg.norm(alone - start)


print(f"{len(model.rollout_buffer.actions)} tokens in one process")
print(f"two ranks:       {apart(weights[0]):.1e} of the way")
print(f"other responses: {apart(flat(other)):.1e} of the way")

# %%
# A few millionths of the way: what rounding leaves when the same numbers are added in another order. So settings that were
# found in one process hold in several, and a curve means what it meant.
#
# Only the update is shared here; the tests do the same for each algorithm, critics, LoRA, turns and weights in shards. More:
# :doc:`/scale` says what is shared and when, and has several machines, ``--sharding full`` for models that do not fit, and
# what happens when a process dies.
