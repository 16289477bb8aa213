"""The reward of the token MDP, assembled in one place, and the KL estimators.

With x the prompt, y the response and β `kl_coef`,

    r_t = -β (log π(y_t | x, y_<t) - log π_ref(y_t | x, y_<t)) + 1[t is last] · R(x, y).

The environment, which sees actions but no policy, pays the part without log π; whoever knows log π adds the rest.
Every path through this project calls `token_rewards`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def token_rewards(
    ref_log_probs: ArrayLike, final_score: float | None, kl_coef: float, log_probs: ArrayLike | None = None
) -> NDArray[np.float64]:
    """Per-token rewards of one response, or of a part of one.

    Ziegler et al. 2019, eq. 2 (https://arxiv.org/abs/1909.08593), with the KL term split over the tokens.

    Args:
        ref_log_probs: log π_ref of each token taken, in nats, shape (n,).
        final_score: R(x, y), added to the last token; None where the response goes on.
        kl_coef: β, in score per nat.
        log_probs: log π of each token, in nats, shape (n,); None stands for 0, a policy that took each token with
            certainty, and gives what the environment alone pays.

    Returns:
        Rewards, shape (n,), float64.
    """
    reference = np.asarray(ref_log_probs, dtype=np.float64)
    own = np.zeros_like(reference) if log_probs is None else np.asarray(log_probs, dtype=np.float64)
    rewards = -kl_coef * (own - reference)
    if final_score is not None:
        rewards[-1] += final_score
    return rewards


def overlong_share(length: int, max_new_tokens: int, buffer: int) -> float:
    """How far into the last `buffer` tokens before the cap a response went, 0 to 1.

    "Soft overlong punishment", eq. 13 of Yu et al. 2025, "DAPO" (https://arxiv.org/abs/2503.14476), with the sign turned:
    0 up to max_new_tokens - buffer tokens, then rising linearly to 1 at the cap.

    Args:
        length: Response tokens, end token included.
        max_new_tokens: The cap.
        buffer: Tokens before it that are punished; 0: only the cap itself is.
    """
    if buffer == 0:
        return float(length >= max_new_tokens)
    return min(1.0, max(0.0, (length - (max_new_tokens - buffer)) / buffer))


def kl_k1(log_probs: ArrayLike, ref_log_probs: ArrayLike) -> NDArray[np.float64]:
    """k1 = log π - log π_ref on samples of π: unbiased for KL(π‖π_ref), of either sign.

    Schulman 2020, "Approximating KL divergence" (http://joschu.net/blog/kl-approx.html). In nats, shape kept.
    """
    return np.asarray(log_probs, dtype=np.float64) - np.asarray(ref_log_probs, dtype=np.float64)


def kl_k2(log_probs: ArrayLike, ref_log_probs: ArrayLike) -> NDArray[np.float64]:
    """k2 = (log π - log π_ref)² / 2: biased, positive, low in variance. Source as `kl_k1`."""
    return kl_k1(log_probs, ref_log_probs) ** 2 / 2


def kl_k3(log_probs: ArrayLike, ref_log_probs: ArrayLike) -> NDArray[np.float64]:
    """k3 = π_ref/π - 1 - log(π_ref/π): unbiased and positive. Source as `kl_k1`."""
    k1 = kl_k1(log_probs, ref_log_probs)
    return np.expm1(-k1) + k1
