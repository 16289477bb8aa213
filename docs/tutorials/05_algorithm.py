"""
An algorithm of your own, and whether it is right
=================================================

Reinforcement learning fails quietly: a sign is wrong, a reward is a token late, and the curve still rises a little. So an algorithm
of one's own is two things, the algorithm and a reason to believe in it. Here you write one in six lines, have it examined, and
then break it on purpose to see what the examination says.
"""

# %%
# The algorithm
# -------------
# REINFORCE with the rollout's mean return as its baseline, and the usual clipped ratio so that a rollout can be used more than once. That is
# stock PPO without a critic and with other advantages. Advantages are a function of a ``Rollout``: rewards, lengths and more as padded
# arrays, a row for each response.

import dataclasses

from agents import ALGORITHMS, check_agent, make_algorithm
from agents.rollouts.estimators import ESTIMATORS, Estimator


def above_average(rollout):
    """How much better a response is than the rollout's mean, for each of its tokens."""
    return rollout.spread_over_steps(rollout.scores - rollout.scores.mean())


ESTIMATORS["above_average"] = Estimator(above_average)
ALGORITHMS["average"] = dataclasses.replace(
    ALGORITHMS["reinforce_pp"],
    about="REINFORCE, baseline: the rollout's mean",
    buffer={"advantages": "above_average", "whiten_advantages": True},
)

# %%
# Is it right?
# ------------
# ``check_agent`` has it learn six tiny tasks with a known optimum, each of which needs one thing more than those before: a sign that is right,
# observations that belong to their actions, memory, credit for a reward that comes a token later, credit across turns, and a KL
# penalty of the right size.


def make(name):
    """A function from a task to the algorithm, as `check_agent` wants it."""
    settings = {"n_envs": 256, "batch_size": 256, "learning_rate": 3e-3, "max_grad_norm": 10.0, "ent_coef": 0.05}
    return lambda env_kwargs: make_algorithm(name, env_kwargs=env_kwargs, seed=0, **settings)


right = check_agent(make("average"))
for result in right:
    print(f"{result.name:12} {result.before:.2f} -> {result.after:.2f} of {result.optimum:.2f}")

# %%
# A mistake
# ---------
# Now the kind of bug that happens: the advantage of a token is its own reward, less the mean. Nobody carries the reward that comes
# at the end back to the tokens that earned it.


def impatient(rollout):
    """Wrong: looks at the token's own reward only."""
    own = rollout.rewards - rollout.rewards.mean()
    return own * (rollout.spread_over_steps(rollout.scores * 0 + 1))


ESTIMATORS["impatient"] = Estimator(impatient)
ALGORITHMS["impatient"] = dataclasses.replace(
    ALGORITHMS["average"], buffer={"advantages": "impatient", "whiten_advantages": True}
)

# %%
# On the embedded task it even seems to learn. The reward model pays for how a review ends, and the last token's own reward has the score in
# it.
