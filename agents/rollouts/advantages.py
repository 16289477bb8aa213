"""Advantage estimators: pure functions on one batch of trajectories.

Without a critic, the baseline of a response is what other responses to its prompt got: N responses in groups, each
scored once. "Score" here is what the whole response earned: Σ r_t, the KL penalty included where it is in the reward.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def gae(
    rewards: Array, values: Array, lengths: NDArray[np.int64], last_values: Array, gamma: float, gae_lambda: float
) -> Array:
    """Generalized advantage estimation, eq. 16 of Schulman et al. 2016 (https://arxiv.org/abs/1506.02438).

    δ_t = r_t + γ V(s_{t+1}) - V(s_t),   A_t = Σ_l (γλ)^l δ_{t+l}.

    Args:
        rewards: r_t, shape (N, T), right-padded.
        values: V(s_t), shape (N, T), right-padded.
        lengths: Steps of each trajectory, 1 to T, shape (N,).
        last_values: V of the state after the last step, shape (N,); 0 where the trajectory has ended.
        gamma: Discount γ.
        gae_lambda: λ, 0 to 1: 0 trusts the values, 1 the rewards.

    Returns:
        A_t, shape (N, T), zero in the padding.
    """
    n, steps = rewards.shape
    inside = np.arange(steps) < lengths[:, None]
    next_values = np.zeros_like(values)  # V(s_{t+1}); behind each trajectory's last step, its entry of last_values
    next_values[:, :-1] = values[:, 1:]
    next_values[np.arange(n), lengths - 1] = last_values
    delta = np.where(inside, rewards + gamma * next_values - values, 0.0)
    # From the last step back: A_t = δ_t + γλ A_{t+1}, all trajectories at once.
    advantages = np.zeros_like(values)
    running = np.zeros(n)
    for t in range(steps - 1, -1, -1):
        running = np.where(inside[:, t], delta[:, t] + gamma * gae_lambda * running, 0.0)
        advantages[:, t] = running
    return advantages


def turn_gae(
    rewards: Array,
    values: Array,
    turns: NDArray[np.int64],
    lengths: NDArray[np.int64],
    last_values: Array,
    gamma: float,
    gae_lambda: float,
) -> tuple[Array, Array]:
    """Generalized advantage estimation with a turn as one step: V is read, and learned, where a turn begins.

    With R_k the sum of the rewards of turn k and V_k the value before its first token,

        δ_k = R_k + γ V_{k+1} - V_k,   A_k = Σ_l (γλ)^l δ_{k+l},

    and each token of a turn has its turn's advantage. AgileRL's and AReaL's PPO have the like; token by token, `gae` tells the
    tokens of a turn apart.

    Args:
        rewards: r_t, shape (N, T), right-padded.
        values: V(s_t), shape (N, T), right-padded.
        turns: The number of each step's turn, from 0 and rising by 1 along a row, shape (N, T).
        lengths: Steps of each trajectory, 1 to T, shape (N,).
        last_values: V of the state after the last step, shape (N,); 0 where the trajectory has ended.
        gamma: Discount γ of a turn.
        gae_lambda: λ, 0 to 1.

    Returns:
        The advantages; and what the values should become: A_k + V_k at a turn's first token, elsewhere the value as it is,
        which teaches nothing. Both (N, T), zero in the padding.
    """
    inside = np.arange(rewards.shape[1]) < lengths[:, None]
    row = np.nonzero(inside)[0]
    of_turn = (row, turns[inside])
    first = inside & (np.diff(turns, axis=1, prepend=-1) > 0)
    counts = turns[np.arange(len(turns)), lengths - 1] + 1  # turns of each trajectory
    # A trajectory of turns: (N, K).
    turn_rewards = np.zeros((len(rewards), int(counts.max())))
    np.add.at(turn_rewards, of_turn, rewards[inside])
    turn_values = np.zeros_like(turn_rewards)
    turn_values[np.nonzero(first)[0], turns[first]] = values[first]
    of_turns = gae(turn_rewards, turn_values, counts, last_values, gamma, gae_lambda)
    advantages = np.zeros_like(rewards)
    advantages[inside] = of_turns[of_turn]
    return advantages, np.where(first, advantages + values, np.where(inside, values, 0.0))


def returns_to_go(rewards: Array, lengths: NDArray[np.int64], gamma: float) -> Array:
    """Σ_{i≥t} γ^{i-t} r_i, which is `gae` at λ = 1 with all values 0.

    Args:
        rewards: r_t, shape (N, T), right-padded.
        lengths: Steps of each trajectory, shape (N,).
        gamma: Discount γ.

    Returns:
        Shape (N, T), zero in the padding.
    """
    return gae(rewards, np.zeros_like(rewards), lengths, np.zeros(len(rewards)), gamma, 1.0)


def group_means(scores: Array, groups: NDArray[np.int64]) -> tuple[Array, Array, Array]:
    """Computes statistics of the group that each score is in.

    Args:
        scores: What each response earned, shape (N,).
        groups: The number of each response's group, any whole number, shape (N,).

    Returns:
        Mean, standard deviation (of the whole group, not an estimate from a sample) and size of the group: three arrays with an
        entry for every score, shape (N,).
    """
    _, member = np.unique(groups, return_inverse=True)
    sizes = np.bincount(member).astype(np.float64)
    means = np.bincount(member, scores) / sizes
    spread = np.sqrt(np.bincount(member, (scores - means[member]) ** 2) / sizes)
    return means[member], spread[member], sizes[member]


def grpo(scores: Array, groups: NDArray[np.int64]) -> Array:
    """(R_i - mean of the group) / standard deviation of the group; 0 where all scores are equal.

    Outcome supervision in section 4.1.2 of Shao et al. 2024, "DeepSeekMath" (https://arxiv.org/abs/2402.03300).

    Args:
        scores: R_i, what each response earned, shape (N,).
        groups: The number of each response's group, shape (N,).

    Returns:
        The advantage of every token of each response, shape (N,).
    """
    return dr_grpo(scores, groups) / group_spread(scores, groups)


def group_spread(scores: Array, groups: NDArray[np.int64]) -> Array:
    """What `grpo` divides by: the standard deviation of a score's group, ∞ where all of it are equal. Shapes as `grpo`."""
    mean, spread, _ = group_means(scores, groups)
    return np.where(spread <= 1e-8 * np.maximum(1.0, np.abs(mean)), np.inf, spread)


def dr_grpo(scores: Array, groups: NDArray[np.int64]) -> Array:
    """R_i - mean of the group: GRPO without the division that lets easy and hard prompts weigh more.

    Section 3.2 of Liu et al. 2025, "Understanding R1-Zero-Like Training" (https://arxiv.org/abs/2503.20783). Shapes as
    `grpo`.
    """
    return scores - group_means(scores, groups)[0]


def rloo(scores: Array, groups: NDArray[np.int64]) -> Array:
    """R_i - mean of the others in the group: REINFORCE with a leave-one-out baseline, which leaves it unbiased.

    Eq. 8 of Ahmadian et al. 2024, "Back to Basics" (https://arxiv.org/abs/2402.14740); Kool et al. 2019. Shapes as
    `grpo`; groups must have at least two members.
    """
    mean, _, size = group_means(scores, groups)
    return (scores - mean) * size / (size - 1)


def remax(rewards: Array, lengths: NDArray[np.int64], baselines: Array, gamma: float) -> Array:
    """Return to go less the score of the greedy response to the same prompt.

    Algorithm 1 of Li et al. 2023, "ReMax" (https://arxiv.org/abs/2310.10505).

    Args:
        rewards: r_t, shape (N, T), right-padded.
        lengths: Steps of each trajectory, shape (N,).
        baselines: What the greedy response to each trajectory's prompt earned, shape (N,).
        gamma: Discount γ.

    Returns:
        Shape (N, T), zero in the padding.
    """
    inside = np.arange(rewards.shape[1]) < lengths[:, None]
    return np.where(inside, returns_to_go(rewards, lengths, gamma) - baselines[:, None], 0.0)


def whiten(advantages: Array, mean: float, std: float) -> Array:
    """Shifts and scales to mean 0 and standard deviation 1; shape kept. A single or constant entry becomes 0.

    "Advantage whitening", detail 2.4 of Huang et al. 2023, "The N Implementation Details of RLHF with PPO".

    Args:
        advantages: Any shape.
        mean: Of all advantages, which may be more than those here.
        std: Their standard deviation.
    """
    return (advantages - mean) / (std + 1e-8)
