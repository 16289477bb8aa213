from __future__ import annotations

import json
import random
from pathlib import Path

import gymnasium as gym
import pytest

import build_default_models
import llm_env  # noqa: F401
from llm_env.default_task import ASSETS
from llm_env.default_task import grammar as review_grammar
from llm_env.default_task.gold import score_review


def test_the_grammar_writes_readable_reviews_of_every_kind() -> None:
    rng = random.Random(0)
    prompts = review_grammar.all_prompts()
    assert len(set(prompts)) == len(prompts) == 1080
    reviews = [review_grammar.write_review(rng, rng.choice(prompts)) for _ in range(2000)]
    scores = [score_review(r) for r in reviews]
    assert min(scores) <= -4
    assert max(scores) >= 4
    finished = sum(r.endswith(".") for r in reviews) / len(reviews)
    assert 0.6 < finished < 0.9
    assert "  " not in " ".join(reviews)


def test_what_was_measured_at_the_build_is_recorded_and_good() -> None:
    measured = json.loads((ASSETS / "build.json").read_text())
    assert measured["reward_model_heldout_gold_accuracy"] > 0.9
    assert measured["reward_model_gold_correlation"] > 0.9
    held_out = {json.loads(line)["prompt"] for line in (ASSETS / "heldout_prompts.jsonl").read_text().splitlines()}
    kept = {json.loads(line)["prompt"] for line in (ASSETS / "prompts.jsonl").read_text().splitlines()}
    assert not held_out & kept
    topics = set(measured["heldout_topics"])
    assert {review_grammar.topic_of(p) for p in held_out} == topics
    assert not {review_grammar.topic_of(p) for p in kept} & topics


@pytest.mark.slow
def test_the_build_runs_from_nothing(tmp_path: Path) -> None:
    build_default_models.main(build_default_models.Args(tmp_path, reviews=300, pairs=100, measured=50))
    env = gym.make(
        "LLMText-v0", model=str(tmp_path / "actor"), reward_model=str(tmp_path / "reward_model"),
        prompts=str(tmp_path / "prompts.jsonl"), max_new_tokens=4,
    )  # fmt: skip
    env.reset(seed=0)
    assert env.unwrapped.task.reward_model.shares_tokenizer  # type: ignore[attr-defined]
    assert env.step(5)[1] < 0
