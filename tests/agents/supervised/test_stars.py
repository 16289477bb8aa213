"""Losses of stars by hand, and reward models that learn stars."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agents.cli import train_reward_model as script
from agents.preferences.records import read_rankings, write_jsonl
from agents.supervised.reward_model.stars import (
    StarThresholds,
    concordance,
    expected_stars,
    ordinal_loss,
    regression_loss,
    stars_report,
)
from llm_env.default_task import DEFAULT_HELDOUT_PROMPTS, DEFAULT_MODEL, DEFAULT_PROMPTS
from llm_env.default_task.gold import gold_score
from llm_env.lm.loading import load_tokenizer
from llm_env.lm.names import LoadSettings
from llm_env.reward.models import ClassifierReward
from llm_env.text.prompts import read_prompts
from tests.agents.supervised.test_reward_model import rank_responses

CPU = LoadSettings("float32", "cpu")


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_the_ordinal_loss_by_hand_is_of_probabilities_that_sum_to_one() -> None:
    thresholds = torch.tensor([-2.0, -0.5, 0.7, 2.5], dtype=torch.float64)
    r = 0.3
    below = [0.0, *(sigmoid(t - r) for t in thresholds.tolist()), 1.0]
    want = [below[k] - below[k - 1] for k in range(1, 6)]
    scores = torch.full((1,), r, dtype=torch.float64)
    got = [math.exp(-ordinal_loss(scores, torch.tensor([k]), thresholds).item()) for k in range(1, 6)]
    assert got == pytest.approx(want)
    assert sum(got) == pytest.approx(1)
    both = ordinal_loss(torch.tensor([r, r], dtype=torch.float64), torch.tensor([1, 5]), thresholds).item()
    assert both == pytest.approx(-(math.log(want[0]) + math.log(want[4])) / 2)


def test_the_ordinal_loss_stays_finite_far_out_and_its_gradient_is_that_of_differences() -> None:
    thresholds = torch.tensor([-2.0, -0.5, 0.7, 2.5], dtype=torch.float64, requires_grad=True)
    scores = torch.tensor([-60.0, 60.0, 60.0, 0.1, -0.4], dtype=torch.float64, requires_grad=True)
    stars = torch.tensor([4, 2, 1, 3, 5])
    assert math.isfinite(ordinal_loss(scores, stars, thresholds).item())
    near = torch.tensor([0.1, -0.4, 1.0, -1.0, 0.6], dtype=torch.float64, requires_grad=True)
    all_stars = torch.tensor([1, 2, 3, 4, 5])
    assert torch.autograd.gradcheck(lambda s, t: ordinal_loss(s, all_stars, t), (near, thresholds))


def test_thresholds_begin_at_the_shares_and_keep_their_order() -> None:
    stars = [1] * 10 + [2] * 20 + [3] * 40 + [4] * 20 + [5] * 10
    thresholds = StarThresholds(stars)
    assert torch.sigmoid(thresholds()).tolist() == pytest.approx([0.1, 0.3, 0.7, 0.9], abs=1e-4)
    with torch.no_grad():
        thresholds.steps.fill_(-8.0)
    assert bool((thresholds().diff() > 0).all())
    assert bool(StarThresholds([5, 5, 4])().isfinite().all())


def test_regression_and_expected_stars() -> None:
    assert regression_loss(torch.tensor([1.0, -1.0]), torch.tensor([5, 3]), 3.5).item() == pytest.approx(
        (0.25 + 0.25) / 2
    )
    assert expected_stars(np.array([0.5, 9.0, -9.0]), {"star_mean": 3.0}).tolist() == [3.5, 5.0, 1.0]
    thresholds = [-2.0, -0.5, 0.7, 2.5]
    (got,) = expected_stars(np.array([0.3]), {"star_thresholds": thresholds})
    below = [0.0, *(sigmoid(t - 0.3) for t in thresholds), 1.0]
    assert got == pytest.approx(sum(k * (below[k] - below[k - 1]) for k in range(1, 6)))
    assert expected_stars(np.array([0.3]), {}) is None


def test_concordance_and_report_by_hand() -> None:
    scores, stars = np.array([0.1, 0.4, 0.4, 0.9]), np.array([1.0, 3.0, 2.0, 2.0])
    # pairs with different stars: (1, 3) right, (1, 2) right, (1, 2) right, (2, 3) tied, (2, 3) wrong
    assert concordance(scores, stars) == pytest.approx(3.5 / 5)
    assert math.isnan(concordance(scores, np.full(4, 2.0)))
    report = stars_report([0.0, 1.0], [2, 4], [2.4, 4.6], 3.0)
    assert report["mean_error"] == pytest.approx(0.5)
    assert (report["mean_error_of_mean"], report["exact"], report["concordance"]) == (1.0, 0.5, 1.0)
    assert "mean_error" not in stars_report([0.0, 1.0], [2, 4], None, math.nan)


def write_stars(path: Path, source: Any, count: int, noise: float, alone: bool = False) -> None:
    """Stars by the gold rule and logistic noise, of the embedded actor's responses."""
    prompts = read_prompts(source)
    rank_responses(path, [prompts[i] for i in np.random.default_rng(0).permutation(len(prompts))[:count]], 0.0)
    rng, records = np.random.default_rng(1), []
    for r in read_rankings(path):
        texts = [c.text for c in r.candidates.responses]
        felt = np.array(gold_score([""] * len(texts), texts)) + noise * rng.logistic(size=len(texts))
        stars = (1 + (felt[:, None] > np.array([-3.5, -2, -0.5, 1.5])).sum(1)).tolist()
        if alone:
            records += [{"prompt": r.candidates.prompt, "response": texts[0], "stars": stars[0]}]
        else:
            by_id = dict(zip([c.id for c in r.candidates.responses], stars, strict=True))
            records.append({**r.candidates.to_json(), "stars": by_id, "annotator": "ann"})
    write_jsonl(path, records)


def train(folder: Path, output: Path, *extra: str) -> int:
    files = ["--preferences", str(folder / "train.jsonl"), "--eval-preferences", str(folder / "test.jsonl")]
    return script.main([*files, "--output-dir", str(output), "--device", "cpu", "--learning-rate", "1e-3", *extra])


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Single responses, which no loss of rankings could learn from."""
    folder = tmp_path_factory.mktemp("stars")
    write_stars(folder / "train.jsonl", DEFAULT_PROMPTS, 48, 0.5, alone=True)
    write_stars(folder / "test.jsonl", DEFAULT_HELDOUT_PROMPTS, 16, 0.0, alone=True)
    return folder


@pytest.mark.parametrize(
    "extra",
    [
        ("--loss", "ordinal", "--lora-rank", "2"),
        pytest.param(("--loss", "ordinal"), marks=pytest.mark.slow),
        pytest.param(("--loss", "regression"), marks=pytest.mark.slow),
    ],
)
def test_single_responses_with_stars_train_and_are_reported(
    small: Path, tmp_path: Path, extra: tuple[str, ...]
) -> None:
    assert train(small, tmp_path / "rm", *extra, "--epochs", "2", "--batch-size", "8", "--evaluations", "1") == 0
    report = json.loads((tmp_path / "rm" / "report.json").read_text())
    assert (report["pairs"], report["stars"]["responses"]) == (0, 16)
    assert sum(b["responses"] for b in report["stars"]["star_calibration"]) == 16
    config = json.loads((tmp_path / "rm" / "reward_model" / "config.json").read_text())
    model = ClassifierReward(str(tmp_path / "rm" / "reward_model"), CPU, load_tokenizer(DEFAULT_MODEL))
    assert model.heads is None
    given = [s for r in read_rankings(small / "train.jsonl") for s in r.stars.values()]
    if "ordinal" in extra:
        thresholds = config["star_thresholds"]
        assert sorted(thresholds) == thresholds
        assert thresholds != pytest.approx(StarThresholds(given)().tolist(), abs=1e-4), "they were not trained"
    else:
        assert config["star_mean"] == pytest.approx(np.mean(given))


def test_rankings_without_stars_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("train", "test"):
        write_jsonl(tmp_path / f"{name}.jsonl", [{"prompt": f"{name}?", "chosen": " Good.", "rejected": " Bad."}])
    assert train(tmp_path, tmp_path / "rm", "--loss", "ordinal") == 1
    assert "No training preference is left to learn from; left out: {'without stars': 1" in capsys.readouterr().err
    assert not (tmp_path / "rm").exists()


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["ordinal", "regression"])
def test_stars_recover_the_gold_order_on_held_out_prompts(tmp_path: Path, loss: str) -> None:
    write_stars(tmp_path / "train.jsonl", DEFAULT_PROMPTS, 400, 0.5)
    write_stars(tmp_path / "test.jsonl", DEFAULT_HELDOUT_PROMPTS, 100, 0.0)
    assert (
        train(
            tmp_path, tmp_path / "rm", "--loss", loss, "--epochs", "2", "--gold", "llm_env.default_task.gold:gold_score"
        )
        == 0
    )
    report = json.loads((tmp_path / "rm" / "report.json").read_text())
    assert report["gold_accuracy"] > 0.65
    assert report["stars"]["concordance"] > 0.65
    assert report["stars"]["mean_error"] < 0.9 * report["stars"]["mean_error_of_mean"]
