"""Loading models: what is refused, and what the errors say."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, LlamaConfig

import llm_env  # noqa: F401
from llm_env.lm.causal_lm import load_causal_lm
from llm_env.lm.loading import load_weights
from llm_env.lm.names import LoadSettings
from llm_env.lm.registry import shared_causal_lm
from tests.conftest import SIZE, WIDE, save_model

LOAD = LoadSettings("float32", "cpu")


@pytest.mark.parametrize(
    "family", ["llama", "gpt2"]
)  # gpt2's head is tied to its embedding, so transformers misses nothing
def test_a_classifier_is_no_actor(model_folder: Callable[..., str], family: str) -> None:
    folder = model_folder(family, 1)
    message = (
        rf"model='{folder}' is a sequence classifier \(\w+ForSequenceClassification\).*Give model the causal language"
    )
    with pytest.raises(ValueError, match=message):
        gym.make("LLMText-v0", model=folder, reward_model="tests.conftest:count_dots", prompts=["x"])
    with pytest.raises(ValueError, match="is a sequence classifier"):
        load_weights(AutoModelForCausalLM, folder, "causal language model", "model", LOAD)


def test_a_model_without_its_head_is_refused(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "m", AutoModelForCausalLM.from_config(LlamaConfig(**SIZE, **WIDE)))
    path = tmp_path / "m" / "model.safetensors"
    weights = {name: value for name, value in load_file(path).items() if name != "lm_head.weight"}
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=rf"model='{folder}' \(LlamaForCausalLM\).*lm_head.weight would be random"):
        load_causal_lm(folder, LOAD)


def test_a_tied_head_and_a_head_that_is_to_be_trained_are_fine(
    model_folder: Callable[..., str], tmp_path: Path
) -> None:
    tied = LlamaConfig(**SIZE, **WIDE, tie_word_embeddings=True)
    load_causal_lm(save_model(tmp_path / "m", AutoModelForCausalLM.from_config(tied)), LOAD)
    start: Any = (AutoModelForSequenceClassification, model_folder("llama"), "model", "model", LOAD)
    assert load_weights(*start, num_labels=1).config.num_labels == 1
    with pytest.raises(ValueError, match=r"score.weight would be random"):
        load_weights(*start)


def test_errors_name_the_option_that_the_user_gave(model_folder: Callable[..., str]) -> None:
    with pytest.raises(FileNotFoundError, match=r"^ref_model='/nowhere'"):
        load_causal_lm("/nowhere", LOAD, option="ref_model")
    with pytest.raises(FileNotFoundError, match=r"^opponent='/nowhere'"):
        shared_causal_lm("/nowhere", LOAD, option="opponent")
    with pytest.raises(ValueError, match=r"^ref_model='.*Give ref_model the causal"):
        load_causal_lm(model_folder("llama", 1), LOAD, option="ref_model")


def test_transformers_log_is_filtered_at_loading_and_not_at_import(model_folder: Callable[..., str]) -> None:
    code = (
        "import logging, llm_env.lm.loading; "
        "raise SystemExit(len(logging.getLogger('transformers.modeling_utils').filters))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    logger = logging.getLogger("transformers.modeling_utils")
    load_causal_lm(model_folder("llama"), LOAD)
    filters = list(logger.filters)
    load_causal_lm(model_folder("llama"), LOAD)
    assert logger.filters == filters, "one filter is enough"
    advice = "We strongly recommend passing in an `attention_mask` since your input_ids may be padded."
    kept = [
        logger.filter(logger.makeRecord("n", logging.WARNING, "f", 1, text, (), None)) for text in (advice, "other")
    ]
    assert [bool(k) for k in kept] == [False, True]
