from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from agents.cli import train
from llm_env.default_task import DEFAULT_MODEL

TOKENS = torch.tensor([[5, 17, 3, 40, 8, 21]])
SMALL = [
    "--n-envs",
    "4",
    "--max-new-tokens",
    "4",
    "--max-prompt-length",
    "16",
    "--total-timesteps",
    "32",
    "--n-samples",
    "0",
]


@torch.no_grad()
def assert_adapter_gives_the_actor(folder: Path, base: str) -> None:
    """The base model with ``adapter/``, which PEFT loads, has the logits of ``actor/``, and other ones than by itself."""
    peft = pytest.importorskip("peft", reason="pip install 'llm-env[lora]'")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    alone = model(TOKENS).logits
    adapted = peft.PeftModel.from_pretrained(model, folder / "adapter").eval()
    merged = AutoModelForCausalLM.from_pretrained(folder / "actor", dtype=torch.float32).eval()
    torch.testing.assert_close(adapted(TOKENS).logits, merged(TOKENS).logits, rtol=1e-4, atol=1e-4)
    assert (adapted(TOKENS).logits - alone).abs().max() > 1e-3
    assert json.loads((folder / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"] == base


@pytest.mark.parametrize("kind", [None, "gpt2"])
def test_a_run_with_lora_leaves_adapters(kind: str | None, tmp_path: Path, model_folder: Callable[..., str]) -> None:
    pytest.importorskip("peft", reason="pip install 'llm-env[lora]'")
    arguments, base = [], DEFAULT_MODEL
    if kind is not None:
        base = model_folder(kind)
        (tmp_path / "prompts.txt").write_text("One\nTwo\nThree\n")
        prompts = str(tmp_path / "prompts.txt")
        arguments = ["--model", base, "--reward-model", "tests.conftest:count_dots", "--prompts", prompts]
    folder = tmp_path / "run"
    argv = [*SMALL, *arguments, "--lora-rank", "2", "--learning-rate", "0.01", "--output-dir", str(folder)]
    assert train.main(argv) == 0
    assert_adapter_gives_the_actor(folder, base)
    card = (folder / "adapter" / "README.md").read_text()
    assert "library_name: peft" in card
    assert "LoRA adapters of a causal language model" in card


def test_without_lora_there_is_no_adapter(tmp_path: Path) -> None:
    assert train.main([*SMALL, "--output-dir", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run" / "actor").is_dir()
    assert not (tmp_path / "run" / "adapter").exists()
