"""
DPO beside PPO
==============

There are two ways from preferences to a policy. One fits a reward model and has PPO climb it, :doc:`as before
<06_preferences>`. The other, DPO (`Rafailov et al. 2023 <https://arxiv.org/abs/2305.18290>`_), trains on the preferences
themselves: no reward model, no generated text, a loss like a classifier's. Here both get the same preferences, and answer
the same held-out prompts.
"""

# %%
# The same preferences
# --------------------
# As in the tutorial before: 360 prompts, four responses to each, ranked by an annotator who errs as people do.

import contextlib
import io
import json
import shlex
import tempfile
from pathlib import Path

from agents.cli.main import main

folder = Path(tempfile.mkdtemp())


def llm_env(command, shown=2):
    """Runs ``llm-env COMMAND`` in the folder, as a shell would; shows the command and its last lines."""
    said = io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(said):
        assert main(shlex.split(command)) == 0, said.getvalue()
    print(f"$ llm-env {command}", *said.getvalue().replace(f"{folder}/", "").splitlines()[-shown:], sep="\n")


llm_env("collect --n-prompts 360 --judge gold --noise 1 --output-dir preferences")

# %%
# PPO, by way of a reward model
# -----------------------------

llm_env("reward-model --preferences preferences/rankings.jsonl --batch-size 8 --epochs 2 --output-dir reward")
llm_env(
    "train --reward-model reward/reward_model --critic detached_head --learning-rate 6e-4 --total-timesteps 20480 "
    "--n-samples 0 --output-dir ppo"
)

# %%
# DPO
# ---
# One command, and nothing is generated. ``--beta`` plays the part of the KL coefficient.

llm_env(
    "preference --loss dpo --preferences preferences/rankings.jsonl --beta 0.1 --learning-rate 5e-4 "
    "--n-samples 0 --output-dir dpo"
)

# %%
# On held-out prompts
# -------------------
# Both write to the same 180 prompts, whose topics nobody trained on. Three numbers: the learned score, by the reward model;
# the KL, the distance from the model that both started from; and the gold score, by the rule behind the annotator.

numbers = {}
for name in ("ppo", "dpo"):
    judges = "--reward-model reward/reward_model --gold llm_env.default_task.gold:gold_score"
    llm_env(f"evaluate --actor {name}/actor {judges} --n-prompts 180 --output {name}.json", shown=1)
    numbers[name] = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))

rows = {"reference": [numbers["ppo"]["reference_rm_score"], None, numbers["ppo"]["reference_gold_score"]]}
for name in ("ppo", "dpo"):
    rows[name] = [numbers[name][key] for key in ("rm_score", "kl", "gold_score")]
print(f"{'':10}{'score':>14}{'KL, nats':>14}{'gold':>14}")
for name, estimates in rows.items():
    cells = [f"{e['mean']:.2f} ± {e['half_width']:.2f}" if e else "0" for e in estimates]
    print(f"{name:10}" + "".join(f"{cell:>14}" for cell in cells))

# %%
# Read score and gold against the KL, not in a column: every nat away from the reference is a nat in which the language may
# break.

import matplotlib.pyplot as plt

figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3))
for name, (score, kl, gold) in rows.items():
    at = kl["mean"] if kl else 0.0
    for axes, estimate in ((left, score), (right, gold)):
        axes.errorbar(at, estimate["mean"], yerr=estimate["half_width"], fmt="o", label=name, capsize=3)
left.set(xlabel="KL, nats", title="learned score")
right.set(xlabel="KL, nats", title="gold score")
left.legend()
figure.tight_layout()

# %%
# And the text:

for ppo, dpo in list(zip(numbers["ppo"]["samples"], numbers["dpo"]["samples"], strict=True))[:3]:
    print(ppo["prompt"])
    print(f"  reference: {ppo['reference_response'].strip()}")
    print(f"  ppo:       {ppo['response'].strip()}")
    print(f"  dpo:       {dpo['response'].strip()}")

# %%
# An honest reading
# -----------------
# Both are far above the model that they started from, by a margin that the intervals do not explain. Beyond that, be
# careful:
#
# - The learned score is PPO's own target and no judge of it. Here DPO is not behind even there.
# - DPO has the higher gold score, at about the same distance. The reward model is the weak link: it is right about two
#   thirds of the annotator's decisions that it has not seen, and PPO can be no better than what it climbs. DPO had the
#   annotator's word itself.
# - PPO stopped early: ten rollouts of a run that can go on, while DPO has used up its labels. With a reward model from
#   more labels, and more rollouts, PPO is ahead: :doc:`/offline` has both on one budget, with three seeds.
# - It is one seed, one set of 360 rankings, and two learning rates that nobody searched for. That is enough to see how
#   such a comparison is made, and not to say which method is better.
#
# More: :doc:`/offline` has the family (DPOP, TDPO, ORPO, KTO, …) and rounds in which the current policy's own responses are
# ranked, and :doc:`/ab` a test that stops as soon as one of two actors is surely better.
