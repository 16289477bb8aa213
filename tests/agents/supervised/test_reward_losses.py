"""Losses, rows and report of a reward model, by hand."""

from __future__ import annotations

import math
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agents.preferences.records import Candidates, Ranking, Response
from agents.supervised.reward_model.losses import RankingLoss, centering_loss, pairwise_loss, plackett_luce_loss
from agents.supervised.reward_model.report import (
    JudgedPair,
    bootstrap_interval,
    calibration,
    rank_correlation,
    summarize,
    worst_mistakes,
)
from agents.supervised.reward_model.trainer import RankingTrainer, collate
from agents.supervised.rows import encode_rankings
from agents.supervised.settings import RewardSettings
from llm_env.default_task import DEFAULT_MODEL
from llm_env.lm.loading import load_tokenizer


def test_bradley_terry_by_hand() -> None:
    scores = torch.tensor([1.0, 3.0])
    assert pairwise_loss(scores, [0, 1]).item() == pytest.approx(-math.log(1 / (1 + math.exp(2))))
    assert pairwise_loss(scores, [1, 0]).item() == pytest.approx(-math.log(1 / (1 + math.exp(-2))))
    margins = torch.tensor([[0.0, 0.0], [0.5, 0.0]])
    assert pairwise_loss(scores, [1, 0], margins).item() == pytest.approx(-math.log(1 / (1 + math.exp(-1.5))))
    smooth = -0.9 * math.log(1 / (1 + math.exp(-2))) - 0.1 * math.log(1 / (1 + math.exp(2)))
    assert pairwise_loss(scores, [1, 0], label_smoothing=0.1).item() == pytest.approx(smooth)


def test_k_wise_is_the_mean_over_all_pairs_that_do_not_tie() -> None:
    scores, tiers = torch.tensor([0.3, -1.0, 2.0, 0.7]), [1, 2, 0, 1]
    want = [
        -math.log(1 / (1 + math.exp(-(scores[i] - scores[j]))))
        for i, j in permutations(range(4), 2)
        if tiers[i] < tiers[j]
    ]
    assert len(want) == 5
    assert pairwise_loss(scores, tiers).item() == pytest.approx(np.mean(want))
    assert pairwise_loss(scores, [0, 0, 0, 0]).item() == 0


def test_plackett_luce_sums_to_one_over_all_rankings_and_is_bradley_terry_for_two() -> None:
    scores = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64)
    total = sum(math.exp(-2 * plackett_luce_loss(scores, tiers).item()) for tiers in permutations(range(3)))
    assert total == pytest.approx(1)  # the mean is over two choices
    two = torch.tensor([0.4, 1.1])
    assert plackett_luce_loss(two, [1, 0]).item() == pytest.approx(pairwise_loss(two, [1, 0]).item())
    assert plackett_luce_loss(scores, [0, 0, 0]).item() == 0
    tie = plackett_luce_loss(scores, [0, 0, 1]).item()
    lse = torch.logsumexp(scores, 0).item()
    assert tie == pytest.approx(np.mean([lse - 0.3, lse + 1.0]))


@pytest.mark.parametrize("loss", [pairwise_loss, plackett_luce_loss])
def test_gradients_of_the_losses_by_finite_differences(loss: Any) -> None:
    scores = torch.tensor([0.3, -1.0, 2.0, 0.1], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: loss(s, [2, 0, 1, 1]), (scores,))


def reward_settings(**changes: Any) -> RewardSettings:
    return RewardSettings(**{"output_dir": Path("no-such-folder"), "preferences": "", **changes})


def test_margins_by_rank_and_centering() -> None:
    margins = RankingLoss(reward_settings(margins="rank", margin_scale=0.5)).margins([0, 1, 2])
    assert margins is not None
    assert margins[0].tolist() == [0.0, 0.0, 0.5]  # one place apart: none; two: one more
    recorded = RankingLoss(reward_settings(loss="bradley_terry", margins="given"))
    given = torch.tensor([[0.0, 1.0], [math.nan, 0.0]])
    assert recorded(torch.tensor([1.0, 0.0]), [0, 1], given).item() == pytest.approx(math.log(2))
    scores = torch.tensor([1.0, 3.0])
    assert centering_loss(scores).item() == 16  # (1 + 3)², as Eisenstein et al. have it for a pair
    with_term = RankingLoss(reward_settings(center_rewards_coefficient=0.01))(scores, [1, 0]).item()
    assert with_term == pytest.approx(pairwise_loss(scores, [1, 0]).item() + 0.16)


@pytest.mark.parametrize("loss", ["bradley_terry", "k_wise"])
def test_given_margins_are_the_differences_of_stars_or_scores_else_the_records(loss: str) -> None:
    tokenizer, texts, tiers = load_tokenizer(DEFAULT_MODEL), [" Good.", " Fair.", " Bad."], [["r0"], ["r1"], ["r2"]]
    settings = reward_settings(loss=loss, margins="given", margin_scale=0.5)
    unequal = torch.tensor([0.7, 0.2, 0.4])
    for more, apart in (
        ({"stars": {"r0": 5, "r1": 4, "r2": 1}}, {(0, 1): 1.0, (0, 2): 4.0, (1, 2): 3.0}),
        ({"scores": {"r0": 2.0, "r1": 1.5, "r2": -1.0}}, {(0, 1): 0.5, (0, 2): 3.0, (1, 2): 2.5}),
        ({"margin": 2.0}, {(0, 1): 2.0, (0, 2): 2.0, (1, 2): 2.0}),
        ({}, {(0, 1): 0.0, (0, 2): 0.0, (1, 2): 0.0}),
    ):
        rows, _ = encode_rankings([ranking("A?", texts, tiers, **more)], tokenizer, 64, loss == "bradley_terry")
        scores = unequal if loss == "k_wise" else torch.cat([unequal[[i, j]] for i, j in apart])
        got, _, pairs = RankingTrainer._ranking_loss(RankingLoss(settings), scores, collate(rows))
        want = [-math.log(1 / (1 + math.exp(-(unequal[i] - unequal[j] - 0.5 * m)))) for (i, j), m in apart.items()]
        assert pairs == 3
        assert got.item() == pytest.approx(np.mean(want))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": "elo"}, "loss='elo' is not known"),
        ({"margins": "wide"}, "margins='wide' is not known"),
        ({"label_smoothing": 0.5}, "label_smoothing=0.5"),
        ({"loss": "plackett_luce", "margins": "rank"}, "neither margins nor label smoothing"),
        (
            {"center_rewards_coefficient": -1.0},
            "center_rewards_coefficient=-1.0 must be a finite number, at least 0",
        ),
        ({"max_length": 1}, "max_length=1 must be a whole number of tokens, at least 2"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"gate": True}, "name them: --heads"),
        ({"heads": ("good",)}, "two or more different aspects"),
        ({"heads": ("a", "b"), "head_weights": (1.0,)}, "must be one for each"),
        ({"batch_size": 32, "micro_batch_size": 5}, "must divide batch_size"),
        ({"mixed_precision": "fp16"}, "mixed_precision='fp16' is not known; use one of no, bf16"),
    ],
)
def test_unusable_settings(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        reward_settings(**changes).check()


def ranking(prompt: str, texts: list[str], tiers: list[list[str]], **more: Any) -> Ranking:
    responses = tuple(Response(f"r{i}", t) for i, t in enumerate(texts))
    return Ranking(Candidates(prompt, prompt, responses), tuple(map(tuple, tiers)), "x", **more)


def test_rows_hold_what_the_environment_would_show_the_model() -> None:
    tokenizer = load_tokenizer(DEFAULT_MODEL)
    texts = [" The room was great.", " The room was poor.", " I left."]
    one = ranking("How was the hotel?", texts, [["r0"], ["r1"], ["r2"]])
    rows, left_out = encode_rankings([one], tokenizer, 64, False)
    assert len(rows) == 1
    assert rows[0]["ids"][1] == [
        *tokenizer("How was the hotel?")["input_ids"],
        *tokenizer(" The room was poor.", add_special_tokens=False)["input_ids"],
        tokenizer.eos_token_id,
    ]
    assert rows[0]["tiers"] == [0, 1, 2]
    pairs, _ = encode_rankings([one], tokenizer, 64, True)
    assert [len(r["ids"]) for r in pairs] == [2, 2, 2]
    batch = collate(pairs)
    assert batch["lengths"].tolist() == [len(ids) for r in pairs for ids in r["ids"]]
    nothing = [
        ranking("A?", texts, [["r0", "r1", "r2"]]),
        ranking("A?", texts, [], all_bad=True),
        ranking("A?", [" Same.", " Same."], [["r0"], ["r1"]]),
    ]
    rows, left_out = encode_rankings(nothing, tokenizer, 64, False)
    assert not rows
    assert left_out == {"all bad": 1, "all tied": 1, "equal texts": 1, "cut": 0}


def test_the_reports_numbers_by_hand() -> None:
    pairs = [JudgedPair("p", "a b", "c", d, longer, group) for d, longer, group in
             [(2.0, 1, 0), (1.0, -1, 0), (-0.5, 1, 1), (0.0, 0, 1)]]  # fmt: skip
    report = summarize(pairs, [1.0, 2.0, 3.0], [10, 20, 15])
    assert report["accuracy"] == (1 + 1 + 0 + 0.5) / 4
    assert report["longer_is_better"] == (1 + 0 + 1 + 0.5) / 4
    assert report["length_correlation"] == pytest.approx(0.5)
    assert worst_mistakes(pairs)[0] == {"prompt": "p", "preferred": "a b", "model_prefers": "c", "by": 0.5}
    assert rank_correlation(np.array([1.0, 2, 2, 3]), np.array([4.0, 5, 5, 9])) == pytest.approx(1)
    low, high = bootstrap_interval(np.array([1.0] * 90 + [-1.0] * 10), np.arange(100))
    assert low < 0.9 < high
    assert high - low < 0.15
    with pytest.raises(ValueError, match="no pair"):
        summarize([], [], [])


def test_an_interval_on_two_rankings_does_not_look_certain() -> None:
    # Five of six pairs in the right order in each of two rankings: drawn anew, that is 83.3 % each time.
    right = np.array([1.0, 1, 1, 1, 1, -1] * 2)
    low, high = bootstrap_interval(right, np.repeat([0, 1], 6))
    assert low < 0.35
    assert high > 0.95
    many = np.tile(right, 50)
    low, high = bootstrap_interval(many, np.repeat(np.arange(100), 6))
    assert (low, high) == (pytest.approx(5 / 6), pytest.approx(5 / 6))


def test_a_calibrated_model_is_on_the_diagonal() -> None:
    rng = np.random.default_rng(0)
    true = rng.normal(0, 2, 20_000)
    preferred = rng.random(20_000) < 1 / (1 + np.exp(-true))
    curve = calibration(np.where(preferred, true, -true))
    assert max(abs(b["predicted"] - b["observed"]) for b in curve) < 0.03
    sure = calibration(np.where(preferred, 3 * true, -3 * true))  # three times too sure
    assert max(b["predicted"] - b["observed"] for b in sure) > 0.1
