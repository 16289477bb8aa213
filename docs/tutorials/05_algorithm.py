"""
An algorithm of your own, and whether it is right
=================================================

Reinforcement learning fails quietly: a sign is wrong, a reward comes a token late, and the curve still rises a little. So an
algorithm of one's own is two things, the algorithm and a reason to believe in it. Here you write one in a few lines, have it
examined, and then break it on purpose to see whether the examination notices.
"""

# %%
# The algorithm
# -------------
# REINFORCE with the rollout's mean return as its baseline, and with PPO's clipped ratio, so that a rollout can be used more
# than once: that is stock PPO without a critic and with other advantages. Advantages are a function of a ``Rollout``, whose
# numbers are arrays with a row for each response and a column for each token.

import dataclasses

from agents import ALGORITHMS, check_agent, make_algorithm
from agents.rollouts.estimators import ESTIMATORS, Estimator


def above_average(rollout):
    """How far a response's return is above the rollout's mean, for each of its tokens; shape (responses, tokens)."""
    return rollout.spread_over_steps(rollout.scores - rollout.scores.mean())


def add(name, advantages):
    """Puts advantages into the table of estimators, and an algorithm that uses them into that of algorithms."""
    ESTIMATORS[name] = Estimator(advantages)
    ALGORITHMS[name] = dataclasses.replace(
        ALGORITHMS["reinforce_pp"],
        about=f"REINFORCE with advantages {name}",
        buffer={"advantages": name, "whiten_advantages": True},
    )


add("above_average", above_average)

# %%
# And a mistake of the kind that happens: somebody takes each token's own reward, less the mean reward. Nothing carries the
# score, which is paid at the end, back to the tokens that earned it.


def impatient(rollout):
    """Wrong: a token is credited with its own reward only."""
    inside = rollout.spread_over_steps(0 * rollout.scores + 1)
    return (rollout.rewards - rollout.rewards[inside > 0].mean()) * inside


add("impatient", impatient)

# %%
# The curve does not tell
# -----------------------
# Both on the embedded task, eight rollouts of 32 responses.

from agents import TextMetricsCallback


class Scores(TextMetricsCallback):
    """Keeps the mean score of each rollout."""

    def after_iteration(self):
        """Called when a rollout and its update are over."""
        curve.append(self.last["rollout/rm_score"])


curves = {}
for name in ("above_average", "impatient"):
    curve = curves[name] = []
    model = make_algorithm(name, n_envs=32, seed=0, learning_rate=8e-4)
    model.learn(8 * 32 * 32, callback=Scores(), log_interval=None)
    print(f"{name:14}", " ".join(f"{score:+.2f}" for score in curve))

# %%
import matplotlib.pyplot as plt

plt.figure(figsize=(6, 3))
for name, curve in curves.items():
    plt.plot(range(1, 9), curve, "o-", label=name)
plt.xlabel("rollout")
plt.ylabel("score")
plt.legend()
plt.tight_layout()

# %%
# The broken one learns too. An end token is a token whose own reward has the score in it, so when to stop can be learned
# from that alone, and a reader of this curve would look for a better learning rate, not for a bug.
#
# The examination
# ---------------
# ``check_agent`` has an algorithm learn six tiny tasks whose optimum is known. Each asks for one thing more: the sign,
# observations that belong to their actions, memory, credit for a reward that comes a token later, the same a turn later, and
# a KL penalty of the right size. What is not learned says what is broken.


def make(name):
    """What `check_agent` wants: a function from a task's settings to a new algorithm."""
    settings = {"n_envs": 128, "batch_size": 128, "learning_rate": 3e-3, "max_grad_norm": 10.0, "ent_coef": 0.05}
    return lambda env_kwargs: make_algorithm(name, env_kwargs=env_kwargs, seed=0, **settings)


for result in check_agent(make("above_average"), timesteps=8192):
    print(f"{result.name:12} {result.before:.2f} -> {result.after:.2f} of {result.optimum:.2f}")

# %%
# It passes. Now the other one, with the first of the tasks and with the one that is paid a token late (all six would take as
# long again).

from agents.probes.tasks import PROBES

some = {name: PROBES[name] for name in ("constant", "delayed")}
try:
    check_agent(make("impatient"), timesteps=8192, probes=some)
except AssertionError as failed:
    print(failed)

# %%
# The first task, whose only token is paid at once, it has learned: there an impatient algorithm is right. The second it has
# not, and the message says where to look. Whoever writes an algorithm here does this before the first real run, and again
# after each change.
#
# The same function takes any algorithm of stable-baselines3's interface: a subclass of your own goes into the table as
# :doc:`the loss term did <04_loss_term>`. More: :doc:`/turns` tells what settings the tasks need and why, :doc:`/recipes`
# has critics and losses, and :doc:`/algorithms` compares those that are there.
