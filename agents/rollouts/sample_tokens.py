"""What a run knows of each token of a sample: its text and KL, and where a critic is there its value and advantage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm

from agents.distributed import ranks
from agents.policies.critic import NoCritic
from agents.policies.rollout_scores import ScoresRollouts
from agents.rollouts.buffer import TokenRolloutBuffer
from agents.rollouts.estimators import Rollout, estimator
from llm_env.episode import Episode
from llm_env.rendering import pieces
from llm_env.task import TextTask

DIGITS = 4
"""Decimal places of what is kept of a token."""
Numbers = NDArray[np.float64]
Judged = tuple[Numbers, Numbers | None]
"""Values and advantages of an episode's tokens."""


@dataclass(frozen=True)
class TokenCritic:
    """What an algorithm with a critic would make of tokens that it is not trained on; asking it changes nothing.

    Attributes:
        policy: Has the critic.
        advantages: How a rollout's advantages are estimated: ``gae`` or ``turn_gae``.
        gamma: γ.
        gae_lambda: λ.
    """

    policy: ScoresRollouts
    advantages: str
    gamma: float
    gae_lambda: float

    def judge(self, task: TextTask, episodes: Sequence[Episode]) -> list[Judged]:
        """Value of the state before each token, and the token's advantage, in score, both (n,), of ended, scored episodes.

        The rewards are those of training, KL penalty included where it is in the reward; nothing is whitened. There are no
        advantages (None) where the reward holds the exact KL under masks, which an episode does not keep.
        """
        ids, places = [e.ids for e in episodes], [e.places for e in episodes]
        _, flat = self.policy.score_segments(ids, places)
        edges = np.cumsum([len(e.response_ids) for e in episodes])[:-1]
        is_exact = task.kl.in_reward and task.kl.estimator == "exact"
        if is_exact and task.masks.active:
            return [(part.astype(np.float64), None) for part in np.split(flat, edges)]
        if is_exact:
            exact = self.policy.exact_kl(task.reference, ids, places)
            for episode, part in zip(episodes, np.split(exact, edges), strict=True):
                episode.exact_kl = part.astype(float).tolist()
        judged: list[Judged] = []
        for episode, part in zip(episodes, np.split(flat, edges), strict=True):
            values = part.astype(np.float64)
            rewards = task.rewards(episode, 0, episode.log_probs)
            own_kl = task.own_kl(episode, 0, episode.log_probs)
            judged.append((values, self._advantages(episode, rewards, values, own_kl)))
        return judged

    def _advantages(self, episode: Episode, rewards: Numbers, values: Numbers, own_kl: Numbers) -> Numbers:
        """The advantages of one whole episode, (n,)."""
        number = np.zeros(len(rewards), dtype=np.int64)  # of each token's turn
        for turn in episode.turns:
            number[turn.end :] += 1
        one = np.zeros(1, dtype=np.int64)
        rollout = Rollout(
            rewards[None], values[None], one + len(rewards), number[None], np.zeros(1), one, self.gamma, self.gae_lambda,
            own_kl[None], lambda: np.zeros(1),
        )  # fmt: skip
        return estimator(self.advantages).estimate(rollout)[0][0]


def token_critic(model: BaseAlgorithm) -> TokenCritic | None:
    """An algorithm's critic, to ask about samples; None where it has none that reads texts, or has it in shards."""
    buffer, policy = getattr(model, "rollout_buffer", None), model.policy
    if not isinstance(buffer, TokenRolloutBuffer) or not isinstance(policy, ScoresRollouts):
        return None
    if isinstance(policy.critic, NoCritic) or ranks().shards:  # rank 0 samples alone
        return None
    return TokenCritic(policy, buffer.estimator, buffer.gamma, buffer.gae_lambda)


def token_columns(task: TextTask, episode: Episode, judged: Judged | None = None) -> dict[str, Any]:
    """The pieces of an ended episode's response, in columns with an entry for each piece.

    Args:
        task: The task that the episode is of; its tokenizer makes the texts.
        episode: An ended episode, with log-probs of the policy and the reference where they are known.
        judged: Values and advantages of its tokens, as `TokenCritic.judge` gives them; None: there is no critic.

    Returns:
        ``text``, whose entries make the response, end tokens as ■. Of its tokens ``kl``, log π - log π_ref in nats, where both
        are known, and ``value`` and ``advantage`` in score, where they were judged. With a world, ``world``: the places of the
        pieces that it wrote; they have None in the other columns.
    """
    shown = pieces(task, episode)
    by_world = [kl is None for _, kl in shown]
    columns: dict[str, Any] = {"text": [text for text, _ in shown]}
    known = len(episode.log_probs) == len(episode.ref_log_probs) == len(episode.response_ids)
    numbers: dict[str, Sequence[float | None] | Numbers] = {}
    if known:
        numbers["kl"] = [kl for _, kl in shown if kl is not None]
    if judged is not None:
        numbers["value"], advantages = judged
        if advantages is not None:
            numbers["advantage"] = advantages
    for name, column in numbers.items():
        left = iter((np.asarray(column, dtype=np.float64).round(DIGITS) + 0.0).tolist())  # no minus zero
        columns[name] = [None if skipped else next(left) for skipped in by_world]
    if any(by_world):
        columns["world"] = [place for place, skipped in enumerate(by_world) if skipped]
    return columns
