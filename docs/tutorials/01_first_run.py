"""
First run: a language model as an environment
=============================================

A language model that writes is an agent that acts. The *state* is the text so far, an *action* is the next token, and when
the response is over somebody says how good it was. That is a Gymnasium environment. Here you step through it by hand, see
what a reward is made of, and then let stable-baselines3's own PPO loose on it.
"""

# %%
# The environment
# ---------------
# ``import llm_env`` registers ``LLMText-v0``. Without further arguments it is the embedded task: a tiny model that writes
# reviews, a reward model that has an opinion on them, and 900 prompts.

import gymnasium as gym

import llm_env

env = gym.make(llm_env.ENV_ID, kl_coef=0.05)
observation, info = env.reset(seed=0, options={"prompt": "How was the hotel?"})

print("actions:", env.action_space)
print("prompt: ", info["prompt"])
print("state:  ", observation["input_ids"][: observation["length"][0]])

# %%
# The state is a row of token ids, and each of 1,024 tokens may come next. Nobody says that a model has to choose them: we
# write a review ourselves, token by token, and close it with the end token, which says *I am done*.

task = env.unwrapped.task
tokenizer = task.tokenizer
review = tokenizer.encode(" The room was lovely. Thank you to the whole team.", add_special_tokens=False)

steps = []
for token in [*review, tokenizer.eos_token_id]:
    observation, reward, terminated, truncated, info = env.step(token)
    steps.append((tokenizer.decode([token]), reward))
    print(f"{steps[-1][0]!r:12} {reward:+.2f}")

print(f"ended: {terminated}, score: {info['rm_score']:.2f}")

# %%
# What a reward is made of
# ------------------------
# The reward model's *score* is paid once, with the last token. Each token is charged a little besides: the less the frozen
# *reference model*, the one that training starts from, would have said it, the more. With :math:`\beta` for ``kl_coef``,
#
# .. math:: r_t = -\beta \, \bigl(\log \pi(a_t | s_t) - \log \pi_\mathrm{ref}(a_t | s_t)\bigr) + [t \text{ is last}] \, R(x, y)
#
# In expectation the first term is :math:`-\beta` times the KL divergence from the reference. It is what keeps a policy from
# forgetting its language while it hunts for score. An environment sees actions and no policy, so it cannot know :math:`\log
# \pi`; the policy adds that part itself. (We rolled no dice, so for us it was 0.)

import matplotlib.pyplot as plt

rewards = [reward for _, reward in steps]
score = [0.0] * (len(steps) - 1) + [info["rm_score"]]
charge = [reward - paid for reward, paid in zip(rewards, score, strict=True)]

plt.figure(figsize=(8, 3.2))
plt.bar(range(len(steps)), score, color="tab:green", label="score of the whole response")
plt.bar(range(len(steps)), charge, color="tab:red", label=r"$\beta\,\log\,\pi_\mathrm{ref}$ of the token")
plt.xticks(range(len(steps)), [text.strip() for text, _ in steps], rotation=60, ha="right")
plt.axhline(0, color="black", linewidth=0.8)
plt.ylabel("reward")
plt.legend()
plt.tight_layout()

# %%
# Stock PPO
# ---------
# ``make_algorithm`` puts a policy around the language model, gives it 64 slots to write in, and hands both to the algorithm.
# That is the library's own class, unchanged.

from agents import TextMetricsCallback, compare_actors, make_algorithm

model = make_algorithm("ppo", n_envs=64, seed=0, env_kwargs={"kl_coef": 0.05})
print(type(model))

# %%
# Eight rollouts of 64 responses. The callback prints a line for each, and stable-baselines3's own logger keeps all numbers.

import tempfile

from stable_baselines3.common.logger import configure

folder = tempfile.mkdtemp()
model.set_logger(configure(folder, ["csv"]))
model.learn(8 * 64 * 32, callback=TextMetricsCallback(verbose=1), log_interval=None)

# %%
# Score rises, and so does the KL: the policy walks away from its reference, as far as the score pays for the way.

import pandas as pd

progress = pd.read_csv(f"{folder}/progress.csv")
tokens = progress["rollout/tokens"]

figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3))
left.plot(tokens, progress["rollout/rm_score"], "o-", color="tab:green")
left.set(title="score", xlabel="tokens generated")
right.plot(tokens, progress["rollout/kl"], "o-", color="tab:red")
right.set(title="KL to the reference, nats", xlabel="tokens generated")
figure.tight_layout()

# %%
# Before and after
# ----------------
# Numbers are one thing. ``compare_actors`` has the trained policy and its reference answer the same prompts, here four whose
# topics were not among the 900, with the same random numbers.

topics = ["taxi ride", "bakery", "haircut", "market"]
prompts = [task.encode(f"How was the {topic}?") for topic in topics]
report = compare_actors(model.policy, task, prompts)

for sample in report.samples:
    print(sample["prompt"])
    print(f"  before ({sample['reference_rm_score']:+.2f}): {sample['reference_response'].strip()}")
    print(f"  after  ({sample['rm_score']:+.2f}): {sample['response'].strip()}")

# %%
# Friendlier, mostly; a word may break where the policy is in a hurry, and some answers are no better than before. Eight
# rollouts are a beginning: ``llm-env train --output-dir runs/demo`` goes on to fifty, and leaves a page with curves and
# samples. More: :doc:`/environment` has every argument and what ``info`` holds, :doc:`/first_steps` what the demo learns,
# and :doc:`/how_it_works` how the library's own class becomes fast. Next: :doc:`a reward function of your own
# <02_your_reward>`.
