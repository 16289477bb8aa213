"""Supervised training stops at numbers that are not finite, and writes no model then."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from agents.cli import train_preference, train_reward_model, train_sft
from agents.supervised.faults import StopAtFaults


@pytest.fixture
def data(tmp_path: Path) -> dict[str, str]:
    texts, pairs = tmp_path / "texts.jsonl", tmp_path / "pairs.jsonl"
    texts.write_text(
        "".join(json.dumps({"prompt": f"Number {i}:", "response": " It is good."}) + "\n" for i in range(40))
    )
    pairs.write_text(
        "".join(
            json.dumps({"prompt": f"Number {i}:", "chosen": " It is good.", "rejected": " It is not so bad."}) + "\n"
            for i in range(40)
        )
    )
    return {"--texts": str(texts), "--preferences": str(pairs)}


STAGES: dict[str, tuple[Callable[[list[str]], int], str, str]] = {
    "sft": (train_sft.main, "--texts", "actor"),
    "reward model": (train_reward_model.main, "--preferences", "reward_model"),
    "preference": (train_preference.main, "--preferences", "actor"),
}


@pytest.mark.parametrize("stage", STAGES)
def test_a_learning_rate_that_is_too_high_is_one_line_and_no_model(
    stage: str,
    data: dict[str, str],
    tmp_path: Path,
    model_folder: Callable[..., str],
    capfd: pytest.CaptureFixture[str],
) -> None:
    main, option, result = STAGES[stage]
    folder = tmp_path / "out"
    arguments = [option, data[option], "--model", model_folder("llama"), "--output-dir", str(folder), "--device", "cpu"]
    arguments += ["--batch-size", "8", "--epochs", "2", "--learning-rate", "1e18", "--warmup", "0"]
    assert main(arguments) == 1
    errors = [line for line in capfd.readouterr().err.splitlines() if line]
    assert len(errors) == 1
    assert errors[0].startswith("error: Step ")
    assert "Likely cause: learning_rate=1e+18 is too high" in errors[0]
    assert not (folder / result).exists()
    for weights in folder.rglob("*.safetensors"):
        assert all(bool(torch.isfinite(w).all()) for w in load_file(weights).values()), weights


def callback(event: str, model: nn.Module, **kwargs: Any) -> None:
    args, state = SimpleNamespace(learning_rate=0.1), SimpleNamespace(global_step=4)
    getattr(StopAtFaults(), event)(args, state, kwargs.pop("control", None), model=model, **kwargs)


def test_gradient_loss_and_weights_are_looked_at() -> None:
    model = nn.Linear(2, 2)
    saving, going_on = SimpleNamespace(should_save=True), SimpleNamespace(should_save=False)
    model.weight.grad = torch.ones(2, 2)
    callback("on_pre_optimizer_step", model)
    callback("on_step_end", model, control=saving)
    callback("on_evaluate", model, metrics={"eval_loss": 2.0})
    callback("on_train_end", model)
    model.weight.grad[0, 1] = torch.inf
    with pytest.raises(FloatingPointError, match="Step 5: the gradient is inf"):
        callback("on_pre_optimizer_step", model)
    with pytest.raises(FloatingPointError, match="Step 4: the held-out loss is nan"):
        callback("on_evaluate", model, metrics={"eval_loss": float("nan")})
    with torch.no_grad():
        model.bias[0] = torch.nan
    callback("on_step_end", model, control=going_on)  # nothing is written now
    for event in ("on_step_end", "on_train_end"):
        with pytest.raises(FloatingPointError, match="Step 4: the norm of the weights is nan"):
            callback(event, model, control=saving)
