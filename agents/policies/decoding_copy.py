"""A copy of the actor that is brought up to date when asked, with LoRA adapters merged.

There are two uses. In mixed precision a bfloat16 copy decodes: under autocast every decoding step would cast all weights anew,
which costs more than the step itself. Its log-probs are rounded differently from those of training, so that the buffer asks for
the old log-probs again (`LLMActorCriticPolicy.rescores_log_probs`). And a float32 copy is the older actor that masks look at
(`agents.callbacks.mask_refresh`).
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from llm_env.lm.causal_lm import CausalLM


class DecodingCopy(CausalLM):
    """A `CausalLM` on a copy of another one's weights, frozen.

    Args:
        source: The actor to copy; LoRA layers may have been put into it.
        dtype: Type of the copy's weights. The default suits decoding in mixed precision.
    """

    def __init__(self, source: CausalLM, dtype: torch.dtype = torch.bfloat16) -> None:
        self._source = source.model
        model = copy.deepcopy(source.model)
        # The copy has plain layers where the actor has adapters; `update` adds the adapters' part to their weights.
        for name, module in list(model.named_modules()):
            if is_adapter(module):
                parent, _, leaf = name.rpartition(".")
                setattr(model.get_submodule(parent), leaf, module.get_base_layer())  # type: ignore[operator]
        model.requires_grad_(False)
        for parameter in model.parameters():  # buffers keep their type: rotary frequencies must be float32
            parameter.data = parameter.data.to(dtype)
        super().__init__(model.eval(), source.name)
        self.update()

    @torch.no_grad()
    def update(self) -> None:
        """Copies the actor's weights as they are now, adapters merged, in place."""
        parameters = dict(self.model.named_parameters())
        with torch.autocast(self.device.type, enabled=False):  # the adapters' product is rounded once, with the sum
            for name, value in _merged(self._source):
                parameters[name].copy_(value)


def _merged(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
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
