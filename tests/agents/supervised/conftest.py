"""What several tests of supervised training need."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.conftest import SIZE, WIDE, save_model


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """(policy, reference): near one another, so that log ratios are of the size that training meets."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZE, **WIDE, num_key_value_heads=2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3 if parameter.ndim > 1 else 1)
    first = save_model(tmp_path_factory.mktemp("reference"), model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return save_model(tmp_path_factory.mktemp("policy"), model), first
