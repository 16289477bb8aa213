"""Losses of reward models: pure functions of one prompt's scores, and `RankingLoss`, which puts them together."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from agents.supervised.settings import RewardSettings


def pairwise_loss(
    scores: Tensor, tiers: Sequence[int], margins: Tensor | None = None, label_smoothing: float = 0.0
) -> Tensor:
    """Mean over a prompt's pairs of -log σ(better - worse - margin).

    With K = 2 Bradley and Terry 1952, as Stiennon et al. 2020 (https://arxiv.org/abs/2009.01325) train it; with more,
    eq. 1 of Ouyang et al. 2022, "InstructGPT" (https://arxiv.org/abs/2203.02155): the C(K, 2) pairs of a prompt are one
    element of the batch, so that each response is read once and no pair of it is learned by heart in an epoch.

    Args:
        scores: r(x, y_k), shape (K,).
        tiers: Rank of each response, K of them, 0 the best; equal ranks tie and make no pair.
        margins: m(better, worse) ≥ 0, in units of the score, shape (K, K), indexed [better, worse]: eq. 2 of Touvron et al.
            2023, "Llama 2" (https://arxiv.org/abs/2307.09288). None: 0.
        label_smoothing: ε, the probability that a pair is the other way round than labeled (Wang et al. 2024, "Secrets of
            RLHF II", https://arxiv.org/abs/2401.06080).

    Returns:
        Scalar to minimize; 0 where all tie.
    """
    pairs = [(i, j) for i, j in itertools.permutations(range(len(tiers)), 2) if tiers[i] < tiers[j]]
    if not pairs:
        return scores.sum() * 0.0  # 0 with a gradient, which the backward pass needs
    better, worse = (torch.tensor(side, device=scores.device) for side in zip(*pairs, strict=True))
    difference = scores[better] - scores[worse]  # (pairs,)
    if margins is not None:
        difference = difference - margins.to(scores.device)[better, worse]
    loss = -logsigmoid(difference)
    if label_smoothing:
        loss = (1 - label_smoothing) * loss - label_smoothing * logsigmoid(-difference)
    return loss.mean()


def plackett_luce_loss(scores: Tensor, tiers: Sequence[int]) -> Tensor:
    """-log P(ranking) under the Plackett-Luce model, over the number of choices made.

    The best is chosen among all, the next among the rest, and so on: Π_k exp(s_k) / Σ_{j ≥ k} exp(s_j) (Plackett 1975; Luce
    1959; for preferences of responses Rafailov et al. 2023, appendix A.3, https://arxiv.org/abs/2305.18290). Members of a
    tier are each chosen among the tier and what is below it (Breslow's treatment of ties); the last tier was not chosen.

    Args:
        scores: r(x, y_k), shape (K,).
        tiers: Rank of each response, K of them, 0 the best.

    Returns:
        Scalar to minimize; 0 where all tie. With two responses it is Bradley-Terry's loss.
    """
    terms = []
    last = max(tiers)
    for place in sorted(set(tiers)):
        if place == last:
            break
        rest = torch.tensor([i for i, t in enumerate(tiers) if t >= place], device=scores.device)
        chosen = torch.tensor([i for i, t in enumerate(tiers) if t == place], device=scores.device)
        terms.append(torch.logsumexp(scores[rest], 0) - scores[chosen])  # one choice for each member of the tier
    if not terms:
        return scores.sum() * 0.0
    return torch.cat(terms).mean()


def centering_loss(scores: Tensor) -> Tensor:
    """(2/K Σ_k s_k)²: keeps the scores around 0, which a loss of differences leaves free.

    Eisenstein et al. 2023, "Helping or Herding?", eq. 2 (https://arxiv.org/abs/2312.09244), where K is 2.

    Args:
        scores: r(x, y_k), shape (K,).

    Returns:
        Scalar to minimize.
    """
    return (2 * scores.mean()) ** 2


class RankingLoss:
    """The loss of one prompt's scores that `RewardSettings` describe.

    Args:
        settings: Checked settings, of which ``loss``, ``margins``, ``margin_scale``, ``center_rewards_coefficient`` and
            ``label_smoothing`` are read.
    """

    def __init__(self, settings: RewardSettings) -> None:
        self.settings = settings

    def __call__(self, scores: Tensor, tiers: Sequence[int], given: Tensor | None = None) -> Tensor:
        """Computes the loss.

        Args:
            scores: r(x, y_k), shape (K,).
            tiers: Rank of each response, K of them, 0 the best.
            given: The records' margins, shape (K, K), indexed [better, worse], NaN where one has none; None: there are none.

        Returns:
            Scalar to minimize.
        """
        s = self.settings
        if s.loss == "plackett_luce":
            loss = plackett_luce_loss(scores, tiers)
        else:
            loss = pairwise_loss(scores, tiers, self.margins(tiers, given), s.label_smoothing)
        if s.center_rewards_coefficient:
            loss = loss + s.center_rewards_coefficient * centering_loss(scores)
        return loss

    def margins(self, tiers: Sequence[int], given: Tensor | None = None) -> Tensor | None:
        """The margin of each pair, shape (K, K), indexed [better, worse]; None where the settings want none."""
        s = self.settings
        if s.margins == "none":
            return None
        if s.margins == "given":
            return None if given is None else s.margin_scale * given.nan_to_num(0.0)
        ranks = torch.tensor(tiers)
        apart = ranks[None] - ranks[:, None]  # (K, K): how many places the worse response lies below the better
        return s.margin_scale * (apart - 1).clamp(min=0).float()
