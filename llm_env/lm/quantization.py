"""A frozen base in 4 bits for LoRA adapters: QLoRA, Dettmers et al. 2023 (https://arxiv.org/abs/2305.14314).

A linear layer's weights become nf4: each block of 64 has a scale, and a half-byte picks one of 16 numbers that are dense where
normally distributed weights are; the scales are bytes with scales of their own ("double quantization"). bitsandbytes does it,
through transformers; embeddings, norms and the LM head stay as they are. Its layers are used here in one way only, everywhere:
weights are put together, and multiplied as any linear layer's. On some CPUs bitsandbytes has another way, for layers that are
not trained, which rounds to bf16 and repacks the weights in place: then a rollout's log-probs would not be those of training.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from llm_env.extras import require
from llm_env.lm.runtime import use_onednn

BLOCK = 64
"""Weights that share a scale."""
SCALES = 256
"""Scales that share a scale of theirs."""


def check_not_quantized(config: Any, label: str) -> None:
    """Refuses a model whose folder holds quantized weights.

    Args:
        config: The model's configuration.
        label: The option and the folder, for the error.

    Raises:
        ValueError: it is one.
    """
    there = getattr(config, "quantization_config", None)
    if there is not None:
        method = there.get("quant_method") if isinstance(there, dict) else getattr(there, "quant_method", None)
        raise ValueError(
            f"{label} is quantized already ({getattr(method, 'value', method)}), and base_quantization='nf4' starts from whole "
            "weights. Give the model that it was made from."
        )


def nf4_config(model: PreTrainedModel, label: str, compute_dtype: torch.dtype) -> BitsAndBytesConfig:
    """What transformers loads a model's weights by, so that its linear layers are in nf4.

    A layer that reads no multiple of 64 numbers stays as it is: there bitsandbytes puts other weights together on a CPU.

    Args:
        model: The model, without weights.
        label: The option and the folder, for error and warning.
        compute_dtype: What products are computed in.

    Raises:
        ValueError: all layers would stay.
        ImportError: bitsandbytes is not installed.
    """
    require("bitsandbytes", "quantized")
    head = model.get_output_embeddings()
    layers = {n: m for n, m in model.named_modules() if is_linear(m) and m is not head}
    left = {n: width for n, m in layers.items() if (width := _read_by(m)) % BLOCK}
    if left:
        name, width = next(iter(left.items()))
        text = f"{len(left)} of {len(layers)} linear layers read no multiple of {BLOCK} numbers ({name} reads {width})"
        if len(left) == len(layers):
            raise ValueError(
                f"{label} cannot be had with base_quantization='nf4': {text}. Leave base_quantization out."
            )
        warnings.warn(f"{label}, base_quantization='nf4': {text} and stay as they are.", stacklevel=2)
    stay = [*left, *(n for n, m in model.named_modules() if m is head)]
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype,
        llm_int8_skip_modules=stay,
    )


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear layer; GPT-2's, which are stored transposed, are too."""
    return isinstance(module, nn.Linear | Conv1D)


def _read_by(layer: nn.Module) -> int:
    """How many numbers a linear layer reads."""
    return int(layer.weight.shape[0] if isinstance(layer, Conv1D) else layer.weight.shape[1])  # type: ignore[index,union-attr]


def multiply_whole_weights(model: nn.Module) -> None:
    """Has quantized layers multiply whole weights on every CPU, in place; see the module's text."""
    for layer in nf4_layers(model).values():
        layer.support_avx512bf16_for_cpu = False


def is_nf4(module: nn.Module) -> bool:
    """Whether a module is a quantized layer; False where bitsandbytes is not in use, without importing it."""
    library = sys.modules.get("bitsandbytes")
    return isinstance(module, ShapeOfNF4) or (library is not None and isinstance(module, library.nn.Linear4bit))


def nf4_layers(model: nn.Module) -> dict[str, Any]:
    """A model's quantized layers by name."""
    return {name: module for name, module in model.named_modules() if is_nf4(module)}


def scales_of(model: nn.Module) -> Iterator[Tensor]:
    """What quantized layers keep beside their parameters and buffers: scales and tables."""
    for layer in nf4_layers(model).values():
        if (state := getattr(layer.weight, "quant_state", None)) is not None:
            yield from (state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code)


def _stored(layer: Any, weight: Tensor) -> Tensor:
    """A weight (out, in) as the layer that was quantized stores it."""
    return weight.T if getattr(layer, "source_cls", None) is Conv1D else weight


def whole_weight(layer: Any, added: Tensor | None = None) -> Tensor:
    """The weight that a quantized layer multiplies, stored as before it was quantized.

    Args:
        layer: A quantized layer.
        added: What adapters add to it, shape (out, in); None: nothing.
    """
    functional = require("bitsandbytes.functional", "quantized")
    weight: Tensor = functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    return _stored(layer, weight if added is None else weight + added)


def whole_shape(layer: Any) -> torch.Size:
    """The shape of `whole_weight`."""
    size = layer.out_features, layer.in_features
    return torch.Size(size[::-1] if getattr(layer, "source_cls", None) is Conv1D else size)


def whole_layers(model: PreTrainedModel) -> PreTrainedModel:
    """Puts plain linear layers where a model has quantized ones, in place; their weights are what stands there by then."""
    for name, layer in nf4_layers(model).items():
        with torch.device("meta"):
            size = layer.in_features, layer.out_features
            plain = Conv1D(*size[::-1]) if layer.source_cls is Conv1D else nn.Linear(*size, bias=layer.bias is not None)
        plain.weight, plain.bias = layer.weight, layer.bias
        model.set_submodule(name, plain)
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is not None:
        quantizer.remove_quantization_config(model)
        model.is_loaded_in_4bit = False  # type: ignore[assignment]
        use_onednn(model)
    return model


class ShapeOfNF4(nn.Linear):
    """A quantized layer without data: it takes as much memory, and its product as much for the moment.

    bitsandbytes' own layers need values (`agents.memory.weightless` has none).

    Args:
        layer: The layer that would be quantized.
    """

    def __init__(self, layer: nn.Module) -> None:
        nn.Module.__init__(self)
        self.in_features = _read_by(layer)
        numbers = layer.weight.numel()  # type: ignore[union-attr,operator]
        self.out_features = numbers // self.in_features
        self.bias = layer.bias  # type: ignore[assignment]
        self.weight = nn.Parameter(torch.empty(numbers // 2, 1, dtype=torch.uint8), requires_grad=False)
        blocks = numbers // BLOCK
        for name, scales in (
            ("absmax", torch.empty(blocks, dtype=torch.uint8)),
            ("absmax_of_absmax", torch.empty(-(-blocks // SCALES))),
            ("code", torch.empty(16)),
            ("code_of_absmax", torch.empty(256)),
            ("offset", torch.empty(())),
        ):
            self.register_buffer(name, scales)

    def forward(self, input: Tensor) -> Tensor:
        """A tensor of the product's shape: (..., in) to (..., out)."""
        product: Tensor = _ProductOfShapes.apply(input, self.out_features, self.bias)  # type: ignore[no-untyped-call]
        return product.to(input.dtype)  # under autocast too


class _ProductOfShapes(torch.autograd.Function):
    """Puts a weight together for forward and backward pass, as bitsandbytes does, and keeps none."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, out_features: int, bias: Tensor | None) -> Tensor:
        ctx.shape = (out_features, x.shape[-1])
        return nn.functional.linear(x, x.new_empty(ctx.shape), bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        return grad @ grad.new_empty(ctx.shape), None, None


def quantize_shapes(model: PreTrainedModel, label: str) -> None:
    """Puts a `ShapeOfNF4` where loading with `nf4_config` would put a quantized layer, in place."""
    stay = set(nf4_config(model, label, torch.float32).llm_int8_skip_modules)
    for name, layer in list(model.named_modules()):
        if is_linear(layer) and name not in stay:
            model.set_submodule(name, ShapeOfNF4(layer))
