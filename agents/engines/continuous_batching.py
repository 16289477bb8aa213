"""transformers' own continuous batching as an engine: a paged cache, from which a text that has ended makes room for others.

It runs wherever transformers does, on the very module that acts, so that no weights have to be handed over. One manager, whose
thread ends with it, is made for each call: what it keeps of texts is of the weights as they were.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig

from agents.engines.engine import EngineError, Turn
from llm_env.lm.causal_lm import CausalLM

MOST_READ = 512
"""Tokens of prompts that are read at once. Without flash attention a mask has a row for each of them."""
CPU_PAGE = 32
"""Tokens of a page on a CPU, where no kernel asks for transformers' own 256."""


class TransformersEngine:
    """See `agents.engines.engine.Engine`.

    Args:
        lm: The model that acts.
        max_length: Not needed: each call takes what it needs.
        slots: Not needed either.
    """

    def __init__(self, lm: CausalLM, max_length: int, slots: int) -> None:
        self._model: Any = lm.model

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Does nothing: the module is the policy's."""

    def generate(
        self, prompts: Sequence[list[int]], room: Sequence[int], end_ids: Sequence[int], temperature: float, seed: int
    ) -> list[Turn]:
        """See `Engine.generate`."""
        model = self._model
        # transformers seeds torch's global generators.
        with torch.random.fork_rng([model.device] if model.device.type == "cuda" else []):
            manager = model.init_continuous_batching(
                generation_config=_generation(temperature, end_ids),
                continuous_batching_config=_batching(prompts, room, seed, model.device.type == "cpu"),
            )
            # All texts are there before its thread begins: the order of random numbers must not depend on who is faster.
            names = [
                manager.add_request(list(prompt), max_new_tokens=most, eos_token_id=list(end_ids) or -1)
                for prompt, most in zip(prompts, room, strict=True)
            ]
            manager.start()
            finished = False
            try:
                done = _results(manager, len(names))
                finished = True
            finally:
                manager.stop(hard_stop=not finished)
                manager.destroy()
        return [Turn(done[name].generated_tokens, done[name].logprobs or None) for name in names]


def _generation(temperature: float, end_ids: Sequence[int]) -> GenerationConfig:
    """How tokens are chosen: by the temperature alone, whatever the model's folder says."""
    if not temperature:
        return GenerationConfig(do_sample=False, eos_token_id=list(end_ids) or -1)
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    return GenerationConfig(**sampling, eos_token_id=list(end_ids) or -1)


def _batching(prompts: Sequence[list[int]], room: Sequence[int], seed: int, on_cpu: bool) -> ContinuousBatchingConfig:
    """A cache that holds all texts to their ends, instead of most of the memory that there is."""
    config = ContinuousBatchingConfig(return_logprobs=True, seed=seed)
    size = "page_size" if hasattr(config, "page_size") else "block_size"  # its name before transformers 5.17
    if on_cpu:
        setattr(config, size, CPU_PAGE)
    page = getattr(config, size)
    longest = [len(prompt) + most for prompt, most in zip(prompts, room, strict=True)]
    config.num_blocks = sum(math.ceil((n + 1) / page) for n in longest) + 1
    config.max_batch_tokens = max(len(prompts), min(sum(map(len, prompts)), MOST_READ))
    return config


def _results(manager: Any, n: int) -> dict[str, Any]:
    """What became of n texts, by name.

    Raises:
        EngineError: one failed, or the manager did.
    """
    done: dict[str, Any] = {}
    while len(done) < n:
        result = manager.get_result(timeout=1)
        if result is None:
            if not manager.is_running():
                raise EngineError("engine='transformers': continuous batching ended early; its own log says why.")
        elif result.error is not None:
            raise EngineError(f"engine='transformers': {result.error}")
        elif result.is_finished():
            done[result.request_id] = result
    return done
