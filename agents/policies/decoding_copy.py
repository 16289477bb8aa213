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
        parameters = dict(model.named_parameters())
        with torch.autocast(self.device.type, enabled=False):  # the adapters' product is rounded once, with the sum
            for name, value in merged_parameters(self._source):
                parameters[name].copy_(whole(value))


def empty_copy(model: PreTrainedModel, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """A frozen copy of a model with other values in its parameters: whatever was in memory.

    It has plain layers where the model has adapters. Buffers are copied as they are.

    Args:
        model: The model, whose weights are not read.
        dtype: Type of the parameters.
        device: Where the parameters are.
    """
    # What `deepcopy` finds in its memo it does not copy: the new parameters stand in for the old ones.
    memo: dict[int, Any] = {
        id(p): nn.Parameter(torch.empty(p.shape, dtype=dtype, device=device), requires_grad=False)
        for p in model.parameters()
    }
    # Tensors without data (`agents.memory.weightless`) have to be asked for a copy: `deepcopy` would read them.
    memo |= {id(b): b.clone() for b in model.buffers()}
    copied = copy.deepcopy(model, memo)
    for name, module in list(copied.named_modules()):
        if is_adapter(module):
            parent, _, leaf = name.rpartition(".")
            setattr(copied.get_submodule(parent), leaf, module.get_base_layer())  # type: ignore[operator]
    return copied.eval()


def merged_parameters(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yields a model's parameters under the names that they had before adapters came in, the adapters' part added.

    PEFT moves a layer ``X`` to ``X.base_layer``, and puts its own matrices beside it.
    """
    adapters: dict[str, Any] = {n: m for n, m in model.named_modules() if is_adapter(m)}
    for name, parameter in model.named_parameters():
        owner, inside, rest = name.partition(".base_layer.")
        if not inside:
            # A parameter outside the adapted layers; the adapters' own matrices are left out.
            if not any(name.startswith(f"{n}.") for n in adapters):
                yield name, parameter
        elif rest == "weight":
            # W + ΔW, in float32.
            layer = adapters[owner]
            deltas = [layer.get_delta_weight(adapter) for adapter in layer.active_adapters]
            yield f"{owner}.{rest}", sum(deltas, start=parameter.float())
        else:
            yield f"{owner}.{rest}", parameter


def is_adapter(module: nn.Module) -> bool:
    """Whether a module is one of PEFT's adapter layers; False where PEFT is not in use, without importing it."""
    tuners = sys.modules.get("peft.tuners.tuners_utils")
    return tuners is not None and isinstance(module, tuners.BaseTunerLayer)
