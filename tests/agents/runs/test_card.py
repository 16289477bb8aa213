from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from agents.flat_settings import from_flat
from agents.runs.card import model_card
from agents.runs.settings import RunSettings

SAMPLES: list[dict[str, Any]] = [
    {"timestep": 0, "prompt": "Old", "response": "first", "rm_score": 0.0},
    {"timestep": 9, "prompt": "Hello", "response": "```\n# no heading", "rm_score": 1.5},
]


def card(last: dict[str, float] | None = None, samples: list[dict[str, Any]] | None = None, **settings: Any) -> str:
    return model_card(from_flat(RunSettings, settings, "test"), "mine", last or {}, samples or [], "1.2")


def test_the_card_says_how_it_was_trained_and_what_came_out() -> None:
    text = card({"rollout/rm_score": 2.125, "rollout/kl": 5.0}, SAMPLES, algo="grpo", kl_coef=0.1)
    head, body = text.removeprefix("---\n").split("---\n", 1)
    assert yaml.safe_load(head)["tags"] == ["llm-env", "reinforcement-learning", "grpo"]
    assert "# mine" in body
    assert "by llm-env 1.2" in body
    assert "algo: grpo\nkl_coef: 0.1\n" in body
    assert "n_envs" not in body  # a default
    assert "| score of the rollout | 2.12 |" in body
    assert "````text\nHello\n--> ```\n# no heading\n    score 1.50\n````" in body  # the fence is longer than any in it
    assert "Old" not in body  # the latest samples alone


def test_a_run_without_rows_and_samples_has_a_card() -> None:
    text = card()
    assert "## Result" not in text
    assert "## Samples" not in text


def test_a_base_model_is_a_hubs_id_and_no_folder(tmp_path: Path) -> None:
    base = {"reward_model": ["verifier:number"], "prompts": "p.jsonl"}
    assert "\nbase_model: maker/model\n" in card(model="maker/model", **base)
    assert "\nbase_model" not in card(model=str(tmp_path), **base)
