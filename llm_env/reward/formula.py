"""The reward of the token MDP, in one place.

With x the prompt, y the response and β `kl_coef`,

    r_t = -β (log π(y_t | x, y_<t) - log π_ref(y_t | x, y_<t)) + 1[t is last] · R(x, y).

The environment sees actions but no policy, so it pays the part without log π; a caller that knows log π adds the rest.
Every reward in this project is computed by `token_rewards`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llm_env.reward.kl import kl_estimate


def token_rewards(
    ref_log_probs: ArrayLike,
    final_score: float | None,
    kl_coef: float,
    log_probs: ArrayLike | None = None,
    estimator: str = "k1",
    exact_kl: ArrayLike | None = None,
) -> NDArray[np.float64]:
    """Per-token rewards of one response, or of a part of one.

    Ziegler et al. 2019, eq. 2 (https://arxiv.org/abs/1909.08593), with the KL term split over the tokens.

    Args:
        ref_log_probs: log π_ref of each token taken, in nats, shape (n,).
        final_score: R(x, y), added to the last token; None where the response goes on.
        kl_coef: β, in score per nat.
        log_probs: log π of each token, in nats, shape (n,); None stands for 0, a policy that took each token with
            certainty, and gives what the environment alone pays.
        estimator: What stands for the KL of a token: ``k1``, as in the formula above, ``k2``, ``k3``, or ``exact``.
        exact_kl: KL(π‖π_ref) of the whole next-token distributions before each token, in nats, shape (n,); ``exact`` only.

    Returns:
        Rewards, shape (n,), float64.

    Raises:
        ValueError: the estimator is unknown, or is ``exact`` and `exact_kl` does not have one value for each token.
    """
    reference = np.asarray(ref_log_probs, dtype=np.float64)
    # With log π = 0, k1 is -log π_ref: the environment's part of the reward. All arrays here are (n,).
    policy = np.zeros_like(reference) if log_probs is None else np.asarray(log_probs, dtype=np.float64)
    if estimator == "exact":
        if exact_kl is None or len(np.asarray(exact_kl)) != len(reference):
            raise ValueError(
                "kl_estimator='exact' needs the policy's whole distribution: it goes with deferred scoring."
            )
        penalties = np.asarray(exact_kl, dtype=np.float64)
    else:
        penalties = kl_estimate(estimator, policy, reference)
    rewards = -kl_coef * penalties
    if final_score is not None:
        # The whole response's score is paid with its last token.
        rewards[-1] += final_score
    return rewards


def own_kl(
    ref_log_probs: ArrayLike, kl_coef: float, log_probs: ArrayLike, estimator: str, exact_kl: ArrayLike | None = None
) -> NDArray[np.float64]:
    """What must be added to a token's advantage where rewards alone charge another estimator than k1.

    The gradient of E[KL] has two parts: a token leads to states whose KL is large or small, and it is itself a part of the KL
    of its state. Charged as rewards, k1 has both: in expectation, a token's own log-ratio is the second one. k3 and the exact
    KL say of the state, not of the token, and have the first part alone, with less noise. So the token's own log-ratio takes
    the estimate's place in its own advantage, and the estimates stay in those of the tokens before it.

    Args:
        ref_log_probs: log π_ref of each token taken, in nats, shape (n,).
        kl_coef: β, in score per nat.
        log_probs: log π of each token, in nats, shape (n,).
        estimator: As in `token_rewards`.
        exact_kl: As in `token_rewards`.

    Returns:
        Score, shape (n,); its expectation over the token is 0 if the estimator is unbiased.
    """
    charged = token_rewards(ref_log_probs, None, kl_coef, log_probs, estimator, exact_kl)
    return token_rewards(ref_log_probs, None, kl_coef, log_probs) - charged


def shaped_score(score: float, shift: float, scale: float, clip: float | None) -> float:
    """The score that is paid: (score + shift) · scale, held within ±clip.

    Shift and scale bring a reward model's scores to a mean and a spread that β and the critic were chosen for (Stiennon et
    al. 2020 shift them so that reference summaries score 0; Ziegler et al. 2019 normalize mean and variance). Clipping
    keeps a single score from dominating an update (as DQN's, Mnih et al. 2015).

    Args:
        score: The reward model's score.
        shift: Added to the score first.
        scale: Factor above 0 that multiplies the sum.
        clip: Largest absolute value of the result; None: no limit.
    """
    shaped = (score + shift) * scale
    return shaped if clip is None else min(clip, max(-clip, shaped))


def overlong_share(length: int, max_new_tokens: int, buffer: int) -> float:
    """How far a response went into the last `buffer` tokens before the length cap, 0 to 1.

    "Soft overlong punishment", eq. 13 of Yu et al. 2025, "DAPO" (https://arxiv.org/abs/2503.14476), with the sign turned:
    0 up to max_new_tokens - buffer tokens, then rising linearly to 1 at the cap.

    Args:
        length: Tokens of the response, end token included.
        max_new_tokens: Length cap of a response, in tokens.
        buffer: Number of tokens before the cap in which the share rises; 0: only a response at the cap has a share.
    """
    if buffer == 0:
        return float(length >= max_new_tokens)
    # Linear in between: 0 where the buffer begins, 1 at the cap.
    return min(1.0, max(0.0, (length - (max_new_tokens - buffer)) / buffer))
