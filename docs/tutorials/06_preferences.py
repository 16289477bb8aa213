"""
From preferences to a policy
============================

Nobody can write down what a good review is, but anybody can say which of two is better. So people compare, a *reward model*
learns to predict what they say, and a policy learns to please the reward model. That is RLHF, and here are its three stages
on the command line, in small. The people are simulated, and since we wrote the rule that they go by, the *gold rule*, we can
look behind the curtain at the end.
"""

# %%
# A helper first: it runs a command as a shell would, in a new folder.

import contextlib
import io
import json
import shlex
import tempfile
from pathlib import Path

from agents.cli.main import main

folder = Path(tempfile.mkdtemp())


def llm_env(command):
    """Runs ``llm-env COMMAND`` in the folder, and shows it."""
    said = io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(said):
        assert main(shlex.split(command)) == 0, said.getvalue()
    print(f"$ llm-env {command}", said.getvalue().replace(f"{folder}/", ""), sep="\n")


# %%
# Somebody compares
# -----------------
# The tiny model answers 360 of the embedded prompts four times each, and an annotator ranks the four. ``--noise 1`` makes
# one who errs as people do, by Bradley and Terry's law: the closer two responses, the more often the worse one wins.

llm_env("collect --n-prompts 360 --judge gold --noise 1 --output-dir preferences")

# %%
# One of the rankings, from best to worst in this annotator's eyes. With ``--people`` in place of ``--judge gold`` a page
# opens on which you rank yourself.

ranking = json.loads((folder / "preferences" / "rankings.jsonl").read_text(encoding="utf-8").splitlines()[0])
texts = {response["id"]: response["text"].strip() for response in ranking["responses"]}
print(ranking["prompt"])
for place, tied in enumerate(ranking["ranking"], start=1):
    print(f"  {place}. {' / '.join(texts[one] for one in tied)}")

# %%
# A model of what they say
# ------------------------
# The reward model is a transformer with one number at its end, trained so that the preferred response of a pair has the
# higher one. What matters is whether it is right about pairs that it has not seen. A tenth of the prompts is held out for
# that.

GOLD = "llm_env.default_task.gold:gold_score"
llm_env(
    f"reward-model --preferences preferences/rankings.jsonl --batch-size 8 --epochs 2 --gold {GOLD} --output-dir reward"
)

report = json.loads((folder / "reward" / "report.json").read_text(encoding="utf-8"))
print(f"right about {report['accuracy']:.0%} of the annotator's held-out decisions")
print(f"by the gold rule the reward model is right about {report['gold_accuracy']:.0%}", end=", ")
print(f"the annotator about {report['annotator_gold_accuracy']:.0%}")

# %%
# A policy that pleases it
# ------------------------
# PPO, ten rollouts. ``--gold`` only logs the rule: neither the reward model nor the policy ever sees it.

llm_env(
    f"train --reward-model reward/reward_model --gold {GOLD} --critic detached_head --learning-rate 6e-4 "
    "--total-timesteps 20480 --n-samples 4 --output-dir ppo"
)

# %%
# Did what was learned carry over to what was meant? Both curves rise: the reward model's score, which is maximized, and the
# gold score, which nobody saw.

import matplotlib.pyplot as plt
import pandas as pd

progress = pd.read_csv(folder / "ppo" / "progress.csv")
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3))
left.plot(progress.index + 1, progress["rollout/rm_score"], "o-", color="tab:green")
left.set(xlabel="rollout", title="learned score: what PPO climbs")
right.plot(progress.index + 1, progress["rollout/gold_score"], "o-", color="goldenrod")
right.set(xlabel="rollout", title="gold score: what was meant")
figure.tight_layout()
print(progress[["rollout/rm_score", "rollout/gold_score", "rollout/kl"]].round(2).iloc[[0, -1]].to_string(index=False))

# %%
# What it writes
# --------------
# A run keeps samples: the same held-out prompts before training and after.

samples = [json.loads(line) for line in (folder / "ppo" / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
last = max(sample["timestep"] for sample in samples)
for before in [sample for sample in samples if sample["timestep"] == 0]:
    after = next(s for s in samples if s["timestep"] == last and s["prompt"] == before["prompt"])
    print(before["prompt"])
    print(f"  before ({before['rm_score']:+.2f}): {before['response'].strip()}")
    print(f"  after  ({after['rm_score']:+.2f}): {after['response'].strip()}")

# %%
# The reward model was made from 360 noisy rankings, so it is no oracle, and a policy that goes far enough finds where it is
# wrong: :doc:`Reading a run <08_reading_a_run>` shows what that looks like. ``make rlhf`` does all of this from new weights
# and writes a report. More: :doc:`/rlhf` has the stages and PPO's practices, :doc:`/people` the page for people,
# :doc:`/reward_models` the losses and heads.
