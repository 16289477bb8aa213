"""
A reward function of your own
=============================

A reward is a Python function: it gets prompts and responses, and returns a number for each. It may also ask for any other
field of the prompts' records, and ready-made rules, *verifiers*, can stand beside it. Here a model learns to mention a
person where it is asked for a review, and a thing where it is asked how it was.
"""

# %%
# Prompts with columns
# --------------------
# A prompt may be a record: the text, and whatever else belongs to it. Ours have a word that the response should contain.

topics = {
    "hotel": ("porter", "view"),
    "market": ("farmer", "honey"),
    "zoo": ("keeper", "map"),
    "theatre": ("usher", "play"),
}
prompts = []
for topic, (person, thing) in topics.items():
    prompts.append({"prompt": f"Review of the {topic}:", "answer": person})
    prompts.append({"prompt": f"How was the {topic}?", "answer": thing})
for record in prompts:
    print(record)

# %%
# The function
# ------------
# ``answer`` is the name of a column, so the function gets that column: a list with an entry for each response. Columns that
# it does not name arrive in ``**columns``. A record without ``answer`` would be refused before anything is generated.


def score(prompts, responses, answer, **columns):
    """1 where the response says the record's word."""
    return [float(word in response) for word, response in zip(answer, responses, strict=True)]


print(score(prompts=["Review of the zoo:"], responses=[" The keeper was kind."], answer=["keeper"]))

# %%
# Verifiers beside it
# -------------------
# That alone would be paid for "keeper keeper keeper". Two :doc:`verifiers </verifiers>` ask for more: a whole sentence at
# the end, and at most twelve words. A list of rewards is a weighted sum, and each part is logged by itself.

reward = [
    score,
    ["verifier:regex?pattern=[.!]$", 0.5],
    ["verifier:length?least=3&most=12", 0.5],
]

# %%
# The environment takes all of it, and pays it like any other reward. What came of each part is in ``info``.

import gymnasium as gym

import llm_env

env = gym.make(llm_env.ENV_ID, prompts=prompts, reward_model=reward)
tokenizer = env.unwrapped.task.tokenizer


def write(prompt, text):
    """Steps through a response that we wrote; returns the last step's information."""
    env.reset(options={"prompt": prompt})
    for token in [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]:
        *_, info = env.step(token)
    return info


for text in (" The keeper was kind.", " The keeper the keeper the", " The map was useless."):
    info = write(prompts[4], text)
    print(f"{text!r:30} {info['rm_score']:.1f}  {info['reward_parts']}")

# %%
# Training
# --------
# Nothing else changes. The policy has a small head on the actor as its critic here, which is quick, and the learning rate falls
# over the run, by stable-baselines3's own schedule.

import tempfile

import matplotlib.pyplot as plt
import pandas as pd
from stable_baselines3.common.logger import configure
from stable_baselines3.common.utils import LinearSchedule

from agents import TextMetricsCallback, compare_actors, make_algorithm

settings = {"prompts": prompts, "reward_model": reward, "kl_coef": 0.05}
rate = LinearSchedule(1.5e-3, 0.0, 1.0)
model = make_algorithm("ppo", n_envs=64, seed=0, env_kwargs=settings, critic="detached_head", learning_rate=rate)

folder = tempfile.mkdtemp()
model.set_logger(configure(folder, ["csv"]))
model.learn(24 * 64 * 32, callback=TextMetricsCallback(), log_interval=None)

progress = pd.read_csv(f"{folder}/progress.csv")
parts = sorted(name for name in progress if name.startswith("rollout/reward/"))
print(progress[["rollout/rm_score", *parts, "rollout/kl"]].round(2).to_string(index=False))

# %%
plt.figure(figsize=(7, 3))
for name in parts:
    plt.plot(progress["rollout/tokens"], progress[name], "o-", label=name.removeprefix("rollout/reward/"))
plt.xlabel("tokens generated")
plt.ylabel("share of responses")
plt.legend()
plt.tight_layout()

# %%
# Does it read the prompt?
# ------------------------
# It must have learned to: the same topic asks for two different words, and nothing but the prompt says which. Before and
# after, with the same random numbers:

task = model.get_env().unwrapped.task
report = compare_actors(model.policy, task, [task.encode(record) for record in prompts])
for sample in report.samples[4:]:
    print(sample["prompt"], f"({sample['columns']['answer']})")
    print(f"  before ({sample['reference_rm_score']:.1f}): {sample['reference_response'].strip()}")
    print(f"  after  ({sample['rm_score']:.1f}): {sample['response'].strip()}")
print(f"mean score of all eight prompts: {report.reference_rm_score.mean:.1f} before, {report.rm_score.mean:.1f} after")

# %%
# It mostly does, and would do better with more rollouts. Read the responses, though: the rule asks for a word and a full stop,
# and whatever gets them is as good as anything else. With a smaller ``kl_coef`` they become short and alike, at a KL of 15 nats
# instead of 5. What is not asked for is not kept.
#
# On the command line a function is ``--reward-model my_module:score``, and ``llm-env init my-task`` writes a folder with
# one, its test and prompts. More: :doc:`/verifiers` (numbers, formulas, JSON, instructions, …), :doc:`/reward_server` for
# rewards behind an address, :doc:`/judges` for a language model that grades. Next: :doc:`an environment with turns
# <03_turns>`.
