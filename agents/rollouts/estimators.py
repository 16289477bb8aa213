"""The advantage estimators by name, as functions of a rollout; the arithmetic is in `agents.rollouts.advantages`.

A new one is a function of a `Rollout` and a row in `ESTIMATORS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agents.rollouts.advantages import (
    Array,
    dr_grpo,
    gae,
    group_spread,
    grpo,
    remax,
    returns_to_go,
    rloo,
    turn_gae,
)


@dataclass(frozen=True)
class Rollout:
    """A rollout's numbers, padded with zeros: S segments of at most T steps.

    Attributes:
        rewards: Per step, in score, KL penalty included where it is in the reward, shape (S, T).
        values: V before each step, shape (S, T).
        lengths: Steps of each segment, shape (S,).
        turns: The number of each step's turn in its segment, from 0, shape (S, T).
        ends: V of the state after each segment's last step, 0 where it has ended, shape (S,).
        groups: The number of each segment's group, shape (S,).
        gamma: γ.
        gae_lambda: λ of generalized advantage estimation.
        own_kl: What each action lacks in its advantage for its own part in the KL (`llm_env.reward.formula.own_kl`), in score,
            shape (S, T). `Estimator.estimate` adds it.
        greedy_scores: Has the policy respond greedily to each segment's prompt; returns the scores, shape (S,).
    """

    rewards: Array
    values: Array
    lengths: NDArray[np.int64]
    turns: NDArray[np.int64]
    ends: Array
    groups: NDArray[np.int64]
    gamma: float
    gae_lambda: float
    own_kl: Array
    greedy_scores: Callable[[], Array]

    @property
    def scores(self) -> Array:
        """The return of each whole segment, shape (S,)."""
        return returns_to_go(self.rewards, self.lengths, self.gamma)[:, 0]

    def spread_over_steps(self, per_segment: Array) -> Array:
        """Gives each step its segment's number; (S,) to (S, T), zeros in the padding."""
        inside = np.arange(self.rewards.shape[1]) < self.lengths[:, None]
        return np.where(inside, per_segment[:, None], 0.0)


@dataclass(frozen=True)
class Estimator:
    """One row of the table.

    Attributes:
        function: From a rollout to advantages, shape (S, T); where the values should not become the sum of advantage and value,
            a pair of advantages and what they should become.
        whole_episodes: Whether each segment must be a whole episode.
        groups: Whether it compares the responses of a group, so that `group_size` must be at least 2.
        unit: From a rollout to what is 1 in each segment's advantages, in score, shape (S,). None: score itself.
    """

    function: Callable[[Rollout], Array | tuple[Array, Array]]
    whole_episodes: bool = True
    groups: bool = False
    unit: Callable[[Rollout], Array] | None = None

    def estimate(self, rollout: Rollout) -> tuple[Array, Array]:
        """Advantages, the actions' own part in the KL included, and what the values should become, both (S, T)."""
        estimated = self.function(rollout)
        advantages, returns = estimated if isinstance(estimated, tuple) else (estimated, estimated + rollout.values)
        own = rollout.own_kl if self.unit is None else rollout.own_kl / self.unit(rollout)[:, None]
        return advantages + own, returns


ESTIMATORS: dict[str, Estimator] = {
    # Schulman et al. 2015 (https://arxiv.org/abs/1506.02438); this and the next have a critic
    "gae": Estimator(
        lambda r: gae(r.rewards, r.values, r.lengths, r.ends, r.gamma, r.gae_lambda), whole_episodes=False
    ),
    # The same with a turn as one step; see `agents.rollouts.advantages.turn_gae`
    "turn_gae": Estimator(
        lambda r: turn_gae(r.rewards, r.values, r.turns, r.lengths, r.ends, r.gamma, r.gae_lambda), whole_episodes=False
    ),
    # Shao et al. 2024 (https://arxiv.org/abs/2402.03300)
    "grpo": Estimator(
        lambda r: r.spread_over_steps(grpo(r.scores, r.groups)),
        groups=True,
        unit=lambda r: group_spread(r.scores, r.groups),
    ),
    # Liu et al. 2025 (https://arxiv.org/abs/2503.20783)
    "dr_grpo": Estimator(lambda r: r.spread_over_steps(dr_grpo(r.scores, r.groups)), groups=True),
    # Ahmadian et al. 2024 (https://arxiv.org/abs/2402.14740)
    "rloo": Estimator(lambda r: r.spread_over_steps(rloo(r.scores, r.groups)), groups=True),
    # Li et al. 2023 (https://arxiv.org/abs/2310.10505)
    "remax": Estimator(lambda r: remax(r.rewards, r.lengths, r.greedy_scores(), r.gamma)),
    # REINFORCE++, Hu et al. 2025 (https://arxiv.org/abs/2501.03262): to be whitened over the rollout
    "reinforce_pp": Estimator(lambda r: returns_to_go(r.rewards, r.lengths, r.gamma)),
}


def estimator(name: str) -> Estimator:
    """A row of `ESTIMATORS`.

    Raises:
        ValueError: the name is not known.
    """
    if name not in ESTIMATORS:
        raise ValueError(f"advantages={name!r} is not known; use one of {', '.join(ESTIMATORS)}.")
    return ESTIMATORS[name]
