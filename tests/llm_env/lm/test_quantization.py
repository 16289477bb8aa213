"""A base in 4 bits: what bitsandbytes makes of the weights, which layers stay, and what is multiplied."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from agents.memory.weightless import nbytes
from agents.policies.decoding_copy import merged_copy
from llm_env.extras import installed
from llm_env.lm.causal_lm import CausalLM, load_causal_lm
from llm_env.lm.loading import without_weights
from llm_env.lm.names import LoadSettings
from llm_env.lm.quantization import nf4_layers, scales_of, whole_weight
from tests.conftest import SIZE, save_model

NF4 = LoadSettings("float32", "cpu", base_quantization="nf4")
# Dettmers et al. 2023, appendix E.
NUMBERS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
needs_bitsandbytes = pytest.mark.skipif(not installed("bitsandbytes"), reason="bitsandbytes is not installed")


def llama(folder: Path, width: int = 64, inner: int = 128, **settings: Any) -> str:
    """A random model of the widths given, larger than at initialization."""
    shape = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, **settings}
    config = transformers.LlamaConfig(**SIZE, hidden_size=width, intermediate_size=inner, **shape)
    return random_model(folder, config)


def random_model(folder: Path, config: transformers.PretrainedConfig) -> str:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    return save_model(folder, model)


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=torch.arange(5, 25)[None]).logits
    return found


@needs_bitsandbytes
@pytest.mark.parametrize(
    ("width", "inner"), [(64, 128), pytest.param(576, 1536, id="SmolLM2-135M's", marks=pytest.mark.slow)]
)
def test_weights_are_the_nearest_of_16_numbers_times_their_blocks_largest(
    width: int, inner: int, tmp_path: Path
) -> None:
    name = llama(tmp_path, width, inner, num_hidden_layers=1)
    before = dict(AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32).named_modules())
    layers = nf4_layers(load_causal_lm(name, NF4).model)
    assert {n.rpartition(".")[2] for n in layers} == {
        *("q_proj", "k_proj", "v_proj", "o_proj"),
        *("gate_proj", "up_proj", "down_proj"),
    }
    for layer_name, layer in layers.items():
        weight = before[layer_name].weight.detach()
        blocks = weight.reshape(-1, 64)
        scales = blocks.abs().amax(1, keepdim=True)
        nearest = (blocks[..., None] / scales[..., None] - torch.tensor(NUMBERS)).abs().argmin(-1)
        # The scales are rounded themselves, to a byte.
        want = (torch.tensor(NUMBERS)[nearest] * scales).view_as(weight)
        torch.testing.assert_close(whole_weight(layer), want, rtol=0.02, atol=0.02 * float(scales.max()))


@needs_bitsandbytes
def test_a_layer_multiplies_whole_weights_whether_it_is_trained_or_not(tmp_path: Path) -> None:
    model = load_causal_lm(llama(tmp_path), NF4).model
    for layer in nf4_layers(model).values():
        assert not layer.support_avx512bf16_for_cpu  # else a CPU that has it rounds to bf16, and repacks the weights
        x, stored = torch.randn(3, layer.in_features), layer.weight.clone()
        want = nn.functional.linear(x, whole_weight(layer))
        with torch.no_grad():
            assert torch.equal(layer.eval()(x), want)
        assert torch.equal(layer.train()(x.requires_grad_()), want)
        assert torch.equal(layer.weight, stored)


@needs_bitsandbytes
def test_layers_that_read_no_whole_blocks_stay_and_are_named(tmp_path: Path) -> None:
    name = llama(tmp_path, 64, 96)
    want = r"2 of 14 linear layers read no multiple of 64 numbers \(model.layers.0.mlp.down_proj reads 96\) and stay"
    with pytest.warns(UserWarning, match=want):
        model = load_causal_lm(name, NF4).model
    assert len(nf4_layers(model)) == 12
    whole = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
    stays = "layers.0.mlp.down_proj.weight"
    assert torch.equal(model.base_model.get_parameter(stays), whole.base_model.get_parameter(stays))


@needs_bitsandbytes
def test_a_model_without_a_layer_that_fits_is_refused(model_folder: Callable[..., str]) -> None:
    want = r"cannot be had with base_quantization='nf4': 14 of 14 linear layers .*q_proj reads 32\). Leave base_quantization"
    with pytest.raises(ValueError, match=want):
        load_causal_lm(model_folder("llama"), NF4)


def test_a_model_that_is_quantized_already_is_refused(tmp_path: Path) -> None:
    name = llama(tmp_path)
    config = AutoConfig.from_pretrained(name)
    config.quantization_config = {"quant_method": "gptq", "bits": 4}
    config.save_pretrained(name)
    with pytest.raises(
        ValueError, match=r"is quantized already \(gptq\), and base_quantization='nf4' starts from whole"
    ):
        load_causal_lm(name, NF4)


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ImportError, match=r"bitsandbytes is needed for .*pip install 'llm-env\[quantized\]'"):
        load_causal_lm(llama(tmp_path), NF4)


@needs_bitsandbytes
def test_put_together_again_it_is_an_ordinary_model(tmp_path: Path) -> None:
    families = {
        "llama": transformers.LlamaConfig(
            **SIZE, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128
        ),
        "gpt2": transformers.GPT2Config(
            **SIZE, n_embd=64, n_layer=2, n_head=4, n_positions=256
        ),  # W is stored transposed
    }
    for family, config in families.items():
        model = load_causal_lm(random_model(tmp_path / family, config), NF4).model
        assert len(nf4_layers(model)) == {"llama": 14, "gpt2": 8}[family]
        whole = merged_copy(model)
        assert not nf4_layers(whole)
        torch.testing.assert_close(logits(whole), logits(model), rtol=0, atol=1e-4)
        again = AutoModelForCausalLM.from_pretrained(save_model(tmp_path / f"{family} whole", whole))
        assert getattr(again.config, "quantization_config", None) is None
        assert torch.equal(logits(again.eval()), logits(whole)) or family == "llama"  # which may multiply with oneDNN
        torch.testing.assert_close(logits(again), logits(model), rtol=0, atol=1e-4)
        CausalLM(whole, "whole")


@needs_bitsandbytes
def test_without_data_it_takes_as_much(tmp_path: Path) -> None:
    name = llama(tmp_path, 128, 256)
    model = load_causal_lm(name, NF4).model
    with without_weights():
        planned = load_causal_lm(name, NF4).model
    real = nbytes([*model.parameters(), *model.buffers(), *scales_of(model)])
    assert nbytes([*planned.parameters(), *planned.buffers()]) == real
    whole = sum(p.nbytes for p in AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32).parameters())
    embeddings = 2 * 1024 * 128 * 4  # and the LM head, which stay
    assert (real - embeddings) / (whole - embeddings) == pytest.approx(
        4.127 / 32, rel=0.15
    )  # small layers have large tables
