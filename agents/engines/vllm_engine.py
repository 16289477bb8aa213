"""vLLM as an engine, in this process: token ids go in and come out, and weights are handed over in memory.

Nothing is sent over a network, and nothing is unpickled: vLLM's own process for its engine is switched off, and so are its
usage statistics. The model's folder is read for its configuration alone; its weights are those that `load_weights` gives.
"""

from __future__ import annotations

import importlib
import math
import os
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

from agents.engines.engine import EngineError, Turn
from llm_env.lm.causal_lm import CausalLM

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # its engine in this process, so that weights need no copy through a socket
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # it would bind the threads that train, too
    "VLLM_LOGGING_LEVEL": "WARNING",
}
"""What vLLM reads from the environment, where nothing else is said."""
PAGE = 128
"""Tokens of the largest page that its cache is made of by default."""


class VLLMEngine:
    """See `agents.engines.engine.Engine`.

    Args:
        lm: The model that acts; its ``name`` must be a folder or hub id whose configuration vLLM knows.
        max_length: The longest text, in tokens.
        slots: Texts at a time.

    Raises:
        EngineError: vLLM cannot be had with this model.
    """

    def __init__(self, lm: CausalLM, max_length: int, slots: int) -> None:
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        vllm: Any = importlib.import_module("vllm")
        self._model, self._sampling = lm.model, vllm.SamplingParams
        on_cpu = lm.device.type == "cpu"
        try:
            self._llm: Any = vllm.LLM(
                model=lm.name,
                dtype=str(lm.model.dtype).removeprefix("torch."),
                max_model_len=max_length,
                max_num_seqs=slots,
                kv_cache_memory_bytes=_cache_bytes(lm, max_length, slots),
                load_format="dummy",
                skip_tokenizer_init=True,
                # A head that is the embedding would keep the weights that its copy for the CPU was made from.
                hf_overrides={"tie_word_embeddings": False},
                logprobs_mode="processed_logprobs",  # at the temperature
                enforce_eager=on_cpu,  # on a CPU the alternative is to compile for minutes
                disable_log_stats=True,
            )
        except Exception as error:
            raise EngineError(f"engine='vllm' cannot be made with model={lm.name!r}: {error}") from error

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Takes the weights, and drops keys and values of those before."""
        named = {name: tensor.detach() for name, tensor in weights}
        # What is one tensor here, under one of its names, are two there.
        names: dict[int, list[str]] = {}
        for name, parameter in self._model.named_parameters(remove_duplicate=False):
            names.setdefault(id(parameter), []).append(name)
        for first, *others in names.values():
            named.update({other: named[first] for other in others if first in named})
        self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(named.items())})
        if not self._llm.reset_prefix_cache():
            raise EngineError("engine='vllm' keeps what it read with the weights before.")

    def generate(
        self, prompts: Sequence[list[int]], room: Sequence[int], end_ids: Sequence[int], temperature: float, seed: int
    ) -> list[Turn]:
        """See `Engine.generate`."""
        sampling = [
            self._sampling(
                temperature=temperature,
                max_tokens=most,
                stop_token_ids=list(end_ids),
                ignore_eos=True,  # those of the folder; which tokens end a turn the environment says
                seed=seed + i,
                logprobs=0,  # of the chosen token alone
                detokenize=False,
            )
            for i, most in enumerate(room)
        ]
        texts = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        outputs = [request.outputs[0] for request in self._llm.generate(texts, sampling, use_tqdm=False)]
        return [
            Turn(list(o.token_ids), [at[token].logprob for at, token in zip(o.logprobs, o.token_ids, strict=True)])
            for o in outputs
        ]


def _cache_bytes(lm: CausalLM, max_length: int, slots: int) -> int:
    """Memory of keys and values of all texts at their longest, and a page each to spare."""
    config = lm.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    tokens = slots * (math.ceil(max_length / PAGE) + 1) * PAGE
    return int(tokens * config.num_hidden_layers * 2 * heads * size * lm.model.dtype.itemsize)
