"""
A loss term of your own
=======================

PPO clips. Its authors tried something else as well: a penalty on the KL between the policy that sampled and the policy that
is being updated (eq. 8 of `Schulman et al. 2017 <https://arxiv.org/abs/1707.06347>`_). That is one more term of the loss,
and here you write it, check it, and see what it does to a learning rate that is too high.
"""

# %%
# The term
# --------
# ``TextPPO`` is PPO whose loss is one readable function, and a subclass adds to it what ``further_terms`` returns: by its
# name in the log, a coefficient and a scalar to minimize. It is given the mini-batch, and what one pass over it found: log π
# of each token, the entropies and the values. The estimate of the KL is the one that stable-baselines3 logs as
# ``train/approx_kl``: the mean of :math:`(\rho - 1) - \log \rho`, with the ratio :math:`\rho = \pi / \pi_\mathrm{old}`.

from agents import TextPPO


class PenaltyPPO(TextPPO):
    """PPO with the KL to the policy that sampled in its loss."""

    def __init__(self, *args, old_kl_coef=0.0, **kwargs):
        self.old_kl_coef = old_kl_coef
        super().__init__(*args, **kwargs)

    def further_terms(self, data, log_prob, entropy, values):
        """Adds the penalty; old log-probs and ``log_prob`` have shape (n,), in nats."""
        log_ratio = log_prob - data.old_log_prob
        return {"old_kl_loss": (self.old_kl_coef, (log_ratio.exp() - 1 - log_ratio).mean())}


# %%
# A name for it
# -------------
# ``ALGORITHMS`` is the table that ``make_algorithm`` looks in, and a row of it is an algorithm: a class, a policy, defaults.
# Ours is PPO's row with another class. ``old_kl_coef`` is a setting from now on, as it is an argument of the class.

import dataclasses

from agents import ALGORITHMS, make_algorithm

ALGORITHMS["penalty_ppo"] = dataclasses.replace(
    ALGORITHMS["ppo"], cls=PenaltyPPO, about="PPO with a penalty on the KL to the policy that sampled"
)

# %%
# A typing error is found at once, and the answer names what was meant:

try:
    make_algorithm("penalty_ppo", old_kl_coeff=1.0)
except TypeError as error:
    print(str(error)[:78], "…")

# %%
# Is it right?
# ------------
# Two things must hold, and both take seconds to see. With the coefficient 0 the update is stock PPO's, bit for bit. With a
# coefficient it is not.

import torch


def trained(name, **settings):
    """A model after one small rollout and its update."""
    model = make_algorithm(name, n_envs=8, seed=0, critic="detached_head", env_kwargs={"max_new_tokens": 8}, **settings)
    model.learn(8 * 8)
    return torch.cat([weights.flatten() for weights in model.policy.parameters()])


stock = trained("ppo")
print("coefficient 0 is stock PPO:", torch.equal(trained("penalty_ppo"), stock))
print("coefficient 5 is not:      ", not torch.equal(trained("penalty_ppo", old_kl_coef=5.0), stock))

# %%
# What it does
# ------------
# We take the clipping away (a range of 100 clips nothing), and the bound at which an update ends early (``target_kl``), choose
# a learning rate that is several times too high, and compare. Eight rollouts each.

import tempfile

import matplotlib.pyplot as plt
import pandas as pd
from stable_baselines3.common.logger import configure

from agents import TextMetricsCallback


def run(name, **settings):
    """The log of eight rollouts of 32 responses."""
    fixed = {"n_envs": 32, "seed": 0, "critic": "detached_head", "learning_rate": 3e-3, "target_kl": None}
    model = make_algorithm(name, **fixed, **settings)
    folder = tempfile.mkdtemp()
    model.set_logger(configure(folder, ["csv"]))
    model.learn(8 * 32 * 32, callback=TextMetricsCallback(), log_interval=None)
    return pd.read_csv(f"{folder}/progress.csv")


logs = {
    "neither": run("ppo", clip_range=100.0),
    "clipping": run("ppo"),
    "penalty": run("penalty_ppo", clip_range=100.0, old_kl_coef=3.0),
}
for name, log in logs.items():
    last = log.tail(3).mean()
    print(
        f"{name:9} an update moves the policy by {log['train/approx_kl'].median():.3f} nats a token; "
        f"last scores {last['rollout/rm_score']:+.2f} at {last['rollout/kl']:.0f} nats"
    )

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3))
for name, log in logs.items():
    left.semilogy(log.index + 1, log["train/approx_kl"], "o-", label=name)
    right.plot(log.index + 1, log["rollout/rm_score"], "o-", label=name)
left.set(title="KL(π_old‖π) after an update, nats", xlabel="rollout")
right.set(title="score", xlabel="rollout")
left.legend()
figure.tight_layout()

# %%
# Without either the policy is torn apart within a rollout or two. Clipping stops the *gradient* of a token that has moved
# too far and does not bring it back, so at this learning rate the policy still jumps; the penalty pulls. It ends with a
# score like the clipped run's, at a much smaller distance from the reference. At a sensible learning rate the three hardly
# differ, which is why PPO's authors kept the simpler one.
#
# More: :doc:`/recipes` has new rewards, algorithms and critics as well, and :doc:`/algorithms` says which terms ``TextPPO``
# has already.
