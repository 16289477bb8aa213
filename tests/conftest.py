"""Small random models of many families, saved as ordinary folders with the embedded default's tokenizer."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# One thread a process, child processes too: matrices of these sizes gain nothing from a second one, and each of
# pytest-xdist's workers then has a core of its own. Must be set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, PretrainedConfig

from llm_env.default_task import DEFAULT_MODEL
from llm_env.lm.loading import quiet_loading

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))  # where a plugin had imported torch already

ROOT = Path(__file__).parent.parent
SIZE = {"vocab_size": 1024, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
WIDE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}

FAMILIES: dict[str, Callable[[], PretrainedConfig]] = {
    "llama": lambda: transformers.LlamaConfig(**SIZE, **WIDE, num_key_value_heads=2),
    "gpt2": lambda: transformers.GPT2Config(**SIZE, n_embd=32, n_layer=2, n_head=4, n_positions=256),
    "gpt_neox": lambda: transformers.GPTNeoXConfig(**SIZE, **WIDE),
    "mistral": lambda: transformers.MistralConfig(**SIZE, **WIDE, num_key_value_heads=2, sliding_window=512),
    "qwen2": lambda: transformers.Qwen2Config(**SIZE, **WIDE, num_key_value_heads=2),
    "qwen3": lambda: transformers.Qwen3Config(**SIZE, **WIDE, num_key_value_heads=2, head_dim=8),
    "phi": lambda: transformers.PhiConfig(**SIZE, **WIDE),
    "opt": lambda: transformers.OPTConfig(
        **SIZE, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=48, word_embed_proj_dim=32
    ),
    "bloom": lambda: transformers.BloomConfig(**SIZE, hidden_size=32, n_layer=2, n_head=4),
}


def short_model(folder: Path, positions: int = 48) -> str:
    """A random model that can read few tokens; returns the folder's name."""
    config = transformers.GPT2Config(**SIZE, n_embd=32, n_layer=2, n_head=4, n_positions=positions)
    return save_model(folder, transformers.GPT2LMHeadModel(config))


def save_model(folder: Path, model: Any, tokenizer: Any = None) -> str:
    """Saves a model and the default's tokenizer; returns the folder's name."""
    with quiet_loading():
        model.save_pretrained(folder)
    (tokenizer or AutoTokenizer.from_pretrained(DEFAULT_MODEL)).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """A factory: family name to the folder of a random causal LM, or with `labels` of a sequence classifier."""
    made: dict[tuple[str, int], str] = {}

    def make(family: str, labels: int = 0) -> str:
        key = (family, labels)
        if key not in made:
            config = FAMILIES[family]()
            torch.manual_seed(list(FAMILIES).index(family))  # the same weights whichever tests run, in whatever order
            if labels:
                config.num_labels = labels
                model = AutoModelForSequenceClassification.from_config(config)
            else:
                model = AutoModelForCausalLM.from_config(config)
            with torch.no_grad():  # larger than at initialization, so that positions and contexts matter
                for parameter in model.parameters():
                    if parameter.ndim > 1:
                        parameter.mul_(4)
            made[key] = save_model(tmp_path_factory.mktemp(f"{family}{labels}"), model)
        return made[key]

    return make


def count_dots(prompts: list[str], responses: list[str]) -> list[float]:
    """A reward function: how many full stops a response has."""
    return [float(r.count(".")) for r in responses]


def count_words(prompts: list[str], responses: list[str]) -> list[float]:
    """Another reward."""
    return [float(len(response.split())) for response in responses]
