"""Advantage estimators: pure functions on one batch of trajectories."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def gae(
    rewards: Array, values: Array, lengths: NDArray[np.int64], last_values: Array, gamma: float, gae_lambda: float
) -> Array:
    """Generalised advantage estimation, eq. 16 of Schulman et al. 2016 (https://arxiv.org/abs/1506.02438).

    δ_t = r_t + γ V(s_{t+1}) - V(s_t),   A_t = Σ_l (γλ)^l δ_{t+l}.

    Args:
        rewards: r_t, shape (N, T), right-padded.
        values: V(s_t), shape (N, T), right-padded.
        lengths: Steps of each trajectory, shape (N,), 1 … T.
        last_values: V of the state after the last step, shape (N,); 0 where the trajectory has ended.
        gamma: Discount γ.
        gae_lambda: λ.

    Returns:
        A_t, shape (N, T), zero in the padding.
    """
    n, steps = rewards.shape
    inside = np.arange(steps) < lengths[:, None]
    next_values = np.zeros_like(values)
    next_values[:, :-1] = values[:, 1:]
    next_values[np.arange(n), lengths - 1] = last_values
    delta = np.where(inside, rewards + gamma * next_values - values, 0.0)
    advantages = np.zeros_like(values)
    running = np.zeros(n)
    for t in range(steps - 1, -1, -1):
        running = np.where(inside[:, t], delta[:, t] + gamma * gae_lambda * running, 0.0)
        advantages[:, t] = running
    return advantages


def whiten(advantages: Array) -> Array:
    """Shifts and scales to mean 0 and standard deviation 1; shape kept. A single or constant entry becomes 0.

    "Advantage whitening", detail 2.4 of Huang et al. 2023, "The N Implementation Details of RLHF with PPO".
    """
    return (advantages - advantages.mean()) / (advantages.std() + 1e-8)
