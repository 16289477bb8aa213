from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from agents.evaluation.compare import compare_actors
from agents.evaluation.settings import EvaluationSettings
from agents.evaluation.statistics import Estimate, wilson_interval
from agents.policies.text_policy import LoadedActor
from llm_env.default_task import DEFAULT_MODEL
from llm_env.default_task.gold import gold_score, score_review
from llm_env.lm.causal_lm import load_causal_lm
from llm_env.lm.names import LoadSettings
from llm_env.rollout import respond
from llm_env.settings import TaskSettings
from llm_env.task import TextTask
from llm_env.text.texts import TextRecord, encode_text


def test_estimate_by_hand() -> None:
    # mean 2, sample standard deviation 1, half-width 1.96 / sqrt(3)
    estimate = Estimate.of([1.0, 2.0, 3.0])
    assert (estimate.mean, estimate.std) == (2.0, 1.0)
    assert estimate.half_width == pytest.approx(1.1316, abs=1e-3)


def test_wilson_interval_against_published_numbers() -> None:
    # 81 of 263 (Newcombe 1998, table I): 0.2553 to 0.3662
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson_interval(0, 20)[0] == 0.0


def test_the_reference_against_itself_is_a_tie() -> None:
    task = TextTask(TaskSettings(max_new_tokens=12))
    lm = load_causal_lm(DEFAULT_MODEL, LoadSettings("float32", "cpu"))
    report = compare_actors(LoadedActor(lm), task, task.prompts.prompts[:32], gold=gold_score)
    assert report.win_rate == 0.5
    assert report.kl.mean == pytest.approx(0, abs=1e-4)
    assert report.rm_score == report.reference_rm_score
    assert len(report.samples) == 8


def test_best_of_n_against_the_reference() -> None:
    task = TextTask(TaskSettings(max_new_tokens=12))
    lm = load_causal_lm(DEFAULT_MODEL, LoadSettings("float32", "cpu"))
    report = compare_actors(LoadedActor(lm), task, task.prompts.prompts[:48], EvaluationSettings(best_of_n=4))
    assert report.kl.mean == pytest.approx(math.log(4) - 3 / 4, abs=1e-4)  # the bound; the actor is the reference
    assert report.rm_score.mean > report.reference_rm_score.mean + 0.5
    assert report.win_rate >= 0.5
    with pytest.raises(ValueError, match="best_of_n=0 must be a whole number, at least 1"):
        EvaluationSettings(best_of_n=0)


def test_respond_is_seeded_and_keeps_the_prompts_order() -> None:
    task = TextTask(TaskSettings(max_new_tokens=8))
    lm = load_causal_lm(DEFAULT_MODEL, LoadSettings("float32", "cpu"))
    prompts = task.prompts.prompts[:10]
    one, same, other = (respond(lm, task, prompts, seed, batch_size=4) for seed in (1, 1, 2))
    assert [e.prompt for e in one] == prompts
    assert [e.response_ids for e in one] == [e.response_ids for e in same]
    assert [e.response_ids for e in one] != [e.response_ids for e in other]
    assert all(e.done and e.rm_score is not None and len(e.ref_log_probs) == len(e.response_ids) for e in one)


@pytest.mark.parametrize(
    ("review", "score"),
    [
        ("", -5.0),
        ("The room was lovely.", 1.0),
        ("The room was lovely", -1.0),
        ("The room was lovely and the clerk was kind. Thank you all.", 3.0),
        ("The room was lovely. The bed was lovely.", 0.0),
        ("The room was awful. They are all clowns.", -3.0),
        ("Great, excellent, lovely, superb, perfect and charming.", 4.0),
    ],
)
def test_gold_rule_by_hand(review: str, score: float) -> None:
    assert score_review(review) == score


def test_evaluate_names_what_is_missing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from agents.cli import evaluate_actor

    assert evaluate_actor.run(evaluate_actor.Args(tmp_path / "actor")) == 1
    assert "actor=" in capfd.readouterr().err


def test_perplexity_diversity_and_another_actor() -> None:
    task = TextTask(TaskSettings(max_new_tokens=12))
    lm = load_causal_lm(DEFAULT_MODEL, LoadSettings("float32", "cpu"))
    worse = load_causal_lm(DEFAULT_MODEL, LoadSettings("float32", "cpu"))
    with torch.no_grad():
        for parameter in worse.model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    records = [TextRecord("How was the hotel?", " The room was lovely."), TextRecord(None, "The room was awful.")]
    texts = [encode_text(r, task.tokenizer) for r in records]
    report = compare_actors(
        LoadedActor(lm), task, task.prompts.prompts[:48], texts=texts, other=("worse", LoadedActor(worse))
    )
    assert report.perplexity == pytest.approx(report.reference_perplexity)
    nats, count = 0.0, 0
    for text in texts:
        log_probs = torch.log_softmax(lm.model(torch.tensor([text.ids])).logits[0], -1)
        nats -= sum(log_probs[i - 1, text.ids[i]].item() for i in range(text.start, len(text.ids)))
        count += len(text.ids) - text.start
    assert report.perplexity == pytest.approx(math.exp(nats / count), rel=1e-4)
    broken = compare_actors(
        LoadedActor(worse), task, task.prompts.prompts[:48], texts=texts, other=("the reference", LoadedActor(lm))
    )
    assert broken.perplexity is not None
    assert report.perplexity is not None
    assert broken.perplexity > 1.5 * report.perplexity
    assert report.against is not None
    assert broken.against is not None
    assert report.against["win_rate"] + broken.against["win_rate"] == pytest.approx(1)
    scores, others = ([e.rm_score for e in respond(model, task, task.prompts.prompts[:48], 0)] for model in (lm, worse))
    higher = [a > b if a != b else 0.5 for a, b in zip(scores, others, strict=True)]
    assert report.against["win_rate"] == pytest.approx(sum(higher) / 48)
    assert report.diversity == report.reference_diversity
    assert 0 < report.diversity["self_bleu"] < 1
