"""Estimators of the KL divergence between the policy and the reference, token by token."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray


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
    # expm1 keeps its digits near 0, where policy and reference agree and exp(x) - 1 loses them.
    return np.expm1(-k1) + k1


_ESTIMATORS = {"k1": kl_k1, "k2": kl_k2, "k3": kl_k3}
# ``exact`` is no function of sampled log-probs: it needs whole distributions (`llm_env.lm.log_probs.head_kl`).
KL_ESTIMATORS = (*_ESTIMATORS, "exact")


def kl_estimate(name: str, log_probs: ArrayLike, ref_log_probs: ArrayLike) -> NDArray[np.float64]:
    """One of the three estimators by name.

    Args:
        name: ``k1``, ``k2`` or ``k3``.
        log_probs: log π of tokens drawn from π, in nats, any shape.
        ref_log_probs: log π_ref of the same tokens, in nats, the same shape.

    Returns:
        Nats, shape kept.

    Raises:
        ValueError: an unknown name.
    """
    if name not in _ESTIMATORS:
        raise ValueError(f"kl_estimator={name!r} is not known; use one of {', '.join(KL_ESTIMATORS)}.")
    return _ESTIMATORS[name](log_probs, ref_log_probs)


KL_PLACES = ("reward", "loss", "both")


@dataclass
class KLPenalty:
    """The price of moving away from the reference: how much, measured how, and paid where.

    The task owns one of these. The reward formula and `agents.TextPPO` read it at every use, so that a schedule or a
    controller may move `coef` between rollouts.

    Attributes:
        coef: β, in score per nat, at least 0.
        estimator: What stands for the KL of a token: ``k1``, ``k2``, ``k3`` or ``exact``.
        place: ``reward``: part of each token's reward (Ziegler et al. 2019). ``loss``: a term of the loss (Shao et al. 2024),
            and the reward is the score alone. ``both``: in either place, each with the whole of β.

    Raises:
        ValueError: a value breaks its rule.
    """

    coef: float
    estimator: str = "k1"
    place: str = "reward"

    def __post_init__(self) -> None:
        """Checks the names; the number may be moved later, and is checked with the settings."""
        if self.estimator not in KL_ESTIMATORS:
            raise ValueError(f"kl_estimator={self.estimator!r} is not known; use one of {', '.join(KL_ESTIMATORS)}.")
        if self.place not in KL_PLACES:
            raise ValueError(f"kl_in={self.place!r} is not known; use one of {', '.join(KL_PLACES)}.")

    @property
    def in_reward(self) -> bool:
        """Whether token rewards hold the penalty."""
        return self.place != "loss"

    @property
    def lacks_own(self) -> bool:
        """Whether a token's own part in the KL is neither in its reward nor in the loss (`llm_env.reward.formula.own_kl`)."""
        return self.place == "reward" and self.estimator != "k1"

    @property
    def in_loss(self) -> bool:
        """Whether the loss has the penalty as a term."""
        return self.place != "reward"
