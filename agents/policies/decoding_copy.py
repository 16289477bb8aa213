"""A copy of the actor that is brought up to date when asked, with LoRA adapters merged.

There are three uses. In mixed precision a bfloat16 copy decodes: under autocast every decoding step would cast all weights
anew, which costs more than the step itself. Its log-probs are rounded differently from those of training, so that the buffer
asks for the old log-probs again (`LLMActorCriticPolicy.rescores_log_probs`). A float32 copy is the older actor that masks look
at (`agents.callbacks.mask_refresh`). And a copy decodes where the actor itself is in shards (`agents.shards`).
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from agents.shards import whole
from llm_env.lm.causal_lm import CausalLM
from llm_env.lm.quantization import nf4_layers, whole_layers, whole_shape, whole_weight


class DecodingCopy(CausalLM):
    """A `CausalLM` on a copy of another one's weights, frozen.

    Args:
        source: The actor to copy; LoRA layers may have been put into it.
        dtype: Type of the copy's weights. The default suits decoding in mixed precision.
        model: What `empty_copy` made of the actor before it was cut into shards; None: it is made now.
    """

    def __init__(
        self, source: CausalLM, dtype: torch.dtype = torch.bfloat16, model: PreTrainedModel | None = None
    ) -> None:
        self._source = source.model
        self.model = empty_copy(source.model, dtype, source.device) if model is None else model
        for name, buffer in source.model.named_buffers():  # they keep their type: rotary frequencies must be float32
            parent, _, leaf = name.replace(".base_layer.", ".").rpartition(".")
            self.model.get_submodule(parent)._buffers[leaf] = buffer.clone()
        self.update()
        super().__init__(self.model, source.name)

    @torch.no_grad()
    def update(self) -> None:
        """Copies the actor's weights as they are now, adapters merged, in place; of one in shards, all ranks must ask."""
        self._fill(self.model)

    @torch.no_grad()
    def in_float32(self) -> PreTrainedModel:
        """The actor as it is now, adapters merged, in float32 on the CPU; of one in shards, all ranks must ask."""
        model = empty_copy(self.model, torch.float32, torch.device("cpu"))
        self._fill(model)
        return model

    def _fill(self, model: PreTrainedModel) -> None:
        _fill(model, self._source, self.device)


def _fill(model: PreTrainedModel, source: PreTrainedModel, device: torch.device) -> None:
    """Copies a model's weights into what `empty_copy` made of it; adapters are merged on the device."""
    parameters = dict(model.named_parameters())
    with torch.autocast(device.type, enabled=False):  # the adapters' product is rounded once, with the sum
        for name, value in merged_parameters(source):
            parameters[name].copy_(whole(value))


@torch.no_grad()
def merged_copy(model: PreTrainedModel) -> PreTrainedModel:
    """A model as it is now, adapters merged and nothing quantized, in float32 on the CPU."""
    copied = empty_copy(model, torch.float32, torch.device("cpu"))
    _fill(copied, model, model.device)
    return copied.to("cpu")  # type: ignore[arg-type]  # the buffers


def empty_copy(model: PreTrainedModel, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """A frozen copy of a model with other values in its parameters: whatever was in memory.

    It has plain layers where the model has adapters or quantized layers. Buffers are copied as they are.

    Args:
        model: The model, whose weights are not read.
        dtype: Type of the parameters.
        device: Where the parameters are.
    """
    # What `deepcopy` finds in its memo it does not copy: the new parameters stand in for the old ones.
    shapes = {id(layer.weight): whole_shape(layer) for layer in nf4_layers(model).values()}
    memo: dict[int, Any] = {
        id(p): nn.Parameter(torch.empty(shapes.get(id(p), p.shape), dtype=dtype, device=device), requires_grad=False)
        for p in model.parameters()
    }
    # Tensors without data (`agents.memory.weightless`) have to be asked for a copy: `deepcopy` would read them.
    memo |= {id(b): b.clone() for b in model.buffers()}
    copied = copy.deepcopy(model, memo)
    for name, module in list(copied.named_modules()):
        if is_adapter(module):
            parent, _, leaf = name.rpartition(".")
            setattr(copied.get_submodule(parent), leaf, module.get_base_layer())  # type: ignore[operator]
    return whole_layers(copied).eval()


def merged_parameters(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yields a model's parameters under the names that they had before adapters came in, the adapters' part added.

    PEFT moves a layer ``X`` to ``X.base_layer``, and puts its own matrices beside it.
    """
    adapters: dict[str, Any] = {n: m for n, m in model.named_modules() if is_adapter(m)}
    quantized = nf4_layers(model)
    for name, parameter in model.named_parameters():
        owner, inside, rest = name.partition(".base_layer.")
        if not inside:
            # A parameter outside the adapted layers; the adapters' own matrices are left out.
            if not any(name.startswith(f"{n}.") for n in adapters):
                layer = quantized.get(name.removesuffix(".weight"))
                yield name, parameter if layer is None else whole_weight(layer)
        elif rest == "weight":
            # W + ΔW, in float32.
            layer = adapters[owner]
            deltas = [layer.get_delta_weight(adapter) for adapter in layer.active_adapters]
            base = quantized.get(f"{owner}.base_layer")
            value = sum(deltas, start=parameter.float()) if base is None else whole_weight(base, sum(deltas))
            yield f"{owner}.{rest}", value
        else:
            yield f"{owner}.{rest}", parameter


def is_adapter(module: nn.Module) -> bool:
    """Whether a module is one of PEFT's adapter layers; False where PEFT is not in use, without importing it."""
    tuners = sys.modules.get("peft.tuners.tuners_utils")
    return tuners is not None and isinstance(module, tuners.BaseTunerLayer)
