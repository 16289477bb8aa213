"""The registry of shared models: one load for each state of a folder, and no stale prompts, models or tokenizers."""

from __future__ import annotations

import gc
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch
from safetensors.torch import load_file, save_file

import llm_env  # noqa: F401
from llm_env.lm.names import LoadSettings
from llm_env.lm.registry import MODELS, ModelRegistry, folder_fingerprint, shared_causal_lm
from llm_env.settings import TaskSettings
from llm_env.task import TextTask

LOAD = LoadSettings("float32", "cpu")
SMALL: dict[str, Any] = {"max_new_tokens": 4, "max_prompt_length": 16}


@pytest.fixture
def folder(model_folder: Callable[..., str], tmp_path: Path) -> Callable[..., Path]:
    """A factory of model folders that a test may change."""

    def copy(family: str = "llama", labels: int = 0) -> Path:
        target = tmp_path / f"{family}{labels}"
        shutil.copytree(model_folder(family, labels), target)
        return target

    return copy


def scale_weights(folder: Path, factor: float) -> None:
    """What another training run of ours does to a folder: the same names and sizes, other numbers, in a new file.

    A file that is overwritten in place changes models that were loaded from it, with safetensors below 0.8 (docs/limits.md).
    """
    path = folder / "model.safetensors"
    weights = {name: factor * value for name, value in load_file(path).items()}
    save_file(weights, path.with_suffix(".new"), metadata={"format": "pt"})
    path.with_suffix(".new").replace(path)


def test_an_edited_prompt_file_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_text("How was the zoo?\n", encoding="utf-8")
    before = gym.make("LLMText-v0", prompts=str(path), **SMALL)
    path.write_text("How was the gym?\nAnd the pool?\n", encoding="utf-8")
    after = gym.make("LLMText-v0", prompts=str(path), **SMALL)
    texts = [[p.text for p in env.unwrapped.task.prompts.prompts] for env in (before, after)]  # type: ignore[attr-defined]
    assert texts == [["How was the zoo?"], ["How was the gym?", "And the pool?"]]


def test_a_changed_reward_model_folder_is_loaded_again(folder: Callable[..., Path]) -> None:
    judge = folder("llama", 1)

    def score() -> float:
        env = gym.make("LLMText-v0", reward_model=str(judge), prompts=["How was the zoo?"], kl_coef=0.0, **SMALL)
        env.reset(seed=0)
        return float(env.step(2)[1])

    before = score()
    assert score() == before
    scale_weights(judge, 3.0)
    assert score() != before


def test_an_unchanged_folder_is_loaded_once(folder: Callable[..., Path]) -> None:
    name = str(folder())
    first = shared_causal_lm(name, LOAD)
    assert shared_causal_lm(name, LOAD) is first
    assert shared_causal_lm(name, LoadSettings("bfloat16", "cpu")) is not first


def test_a_changed_folder_replaces_its_stale_entries_and_frees_their_memory(folder: Callable[..., Path]) -> None:
    actor = folder()
    name = str(actor)
    MODELS.clear(name)
    others = len(MODELS)
    stale = [weakref.ref(shared_causal_lm(name, LoadSettings(dtype, "cpu"))) for dtype in ("float32", "bfloat16")]
    assert len(MODELS) == others + 2
    scale_weights(actor, 3.0)
    fresh = shared_causal_lm(name, LOAD)
    assert len(MODELS) == others + 1
    gc.collect()
    assert [ref() for ref in stale] == [None, None]
    weight = fresh.lm.model.get_output_embeddings().weight
    torch.testing.assert_close(weight, load_file(actor / "model.safetensors")["lm_head.weight"])


def test_a_task_keeps_the_model_that_it_was_made_with(folder: Callable[..., Path]) -> None:
    actor = folder()
    settings = TaskSettings(
        model=str(actor), reward_model="tests.conftest:count_dots", prompts=["One"], device="cpu", **SMALL
    )
    task = TextTask(settings)
    before = task.reference.log_probs([[1, 5, 9]], [1])[0].tolist()
    scale_weights(actor, 3.0)
    assert TextTask(settings).reference.log_probs([[1, 5, 9]], [1])[0].tolist() != before
    assert task.reference.log_probs([[1, 5, 9]], [1])[0].tolist() == before


def test_clear_forgets_all_models_or_those_of_one_name() -> None:
    registry = ModelRegistry()
    loads: list[str] = []

    def load(name: str) -> str:
        loads.append(name)
        return name

    for name in ("a/one", "a/two", "a/one"):
        registry.get("kind", name, LOAD, lambda name=name: load(name))  # type: ignore[misc]
    assert loads == ["a/one", "a/two"]
    registry.clear("a/one")
    assert len(registry) == 1
    registry.clear()
    assert len(registry) == 0
    assert registry.get("kind", "a/one", LOAD, lambda: "again") == "again"
    assert registry.get("kind", "a/one", LOAD, lambda: "anew", fresh=True) == "anew"


def test_a_failed_load_leaves_nothing_behind(folder: Callable[..., Path]) -> None:
    registry = ModelRegistry()

    def fail() -> None:
        raise ValueError("no model")

    with pytest.raises(ValueError, match="no model"):
        registry.get("kind", "x", LOAD, fail)
    assert len(registry) == 0


def test_the_fingerprint_sees_sizes_times_and_names(tmp_path: Path) -> None:
    assert folder_fingerprint("someone/model") is None  # a hub id
    (tmp_path / "config.json").write_text("{}")
    seen = {folder_fingerprint(str(tmp_path))}
    (tmp_path / "config.json").write_text('{"a": 1}')
    seen.add(folder_fingerprint(str(tmp_path)))
    (tmp_path / "config.json").rename(tmp_path / "other.json")
    seen.add(folder_fingerprint(str(tmp_path)))
    assert len(seen) == 3
    assert folder_fingerprint(str(tmp_path)) in seen


def test_a_model_with_a_lost_policys_adapters_is_not_handed_out_again(folder: Callable[..., Path]) -> None:
    class Policy:
        """What puts adapters into a shared model."""

    name, policy = str(folder()), Policy()
    shared = shared_causal_lm(name, LOAD)
    assert shared.lend(policy)
    assert not shared.lend(Policy()), "one policy at a time"
    assert not shared.abandoned
    assert shared_causal_lm(name, LOAD) is shared
    del policy
    gc.collect()
    assert shared.abandoned
    fresh = shared_causal_lm(name, LOAD)
    assert fresh is not shared
    assert shared_causal_lm(name, LOAD) is fresh
