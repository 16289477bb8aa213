"""Memory that can be had by a formula: caches, buffers, what shards put together, and activations where they cannot be counted.

Sizes are in bytes, if nothing else is said.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llm_env.lm.decoding import GROW
from llm_env.lm.ragged_cache import row_bucket


def cache_columns(prompt: int, longest: int) -> int:
    """Columns that a key-value cache has come to when prefixes of `prompt` tokens have grown to `longest`, one by one.

    As `CachedDecoder.widen` has it: where there is no room it grows by half, to a multiple of 32.
    """
    columns = 0
    for length in range(prompt, longest + 1):
        if length > columns:
            columns = -(-max(length, columns + columns // 2) // GROW) * GROW
    return columns


def cache_bytes(rows: int, columns: int, layers: int, heads: int, head_size: int, element: int) -> int:
    """A key-value cache: two tables of (rows, heads, columns, head size) in each layer.

    Args:
        rows: Slots; some more are stored, so that few different shapes are met.
        columns: Tokens that there is room for in each.
        layers: Number of the decoder's layers, each with tables of its own.
        heads: Heads of keys and values, which are fewer than those of queries in grouped-query attention.
        head_size: Width of a head.
        element: Bytes of a number: 4, or 2 in half precision.
    """
    return 2 * layers * row_bucket(rows) * heads * columns * head_size * element


SEGMENT_TOKEN = 8 + 4 * (8 + 32) + 6 * 4
"""A response's token in `TokenRolloutBuffer`: its id; action, reward, value and log-prob as Python's numbers in lists; and a
place in six flat arrays."""
REPLAY_TOKEN = 4 + 3 * (8 + 32)
"""The same in `TokenReplayBuffer`, which has no arrays."""


def rollout_bytes(tokens: int, prompts: int, vocab_size: int, masks: bool) -> int:
    """A rollout of texts, on the CPU wherever the models are.

    Args:
        tokens: Tokens of all responses in the buffer.
        prompts: Tokens of all their prompts; an id each is kept.
        vocab_size: V, the bits of a mask.
        masks: Whether each token has a mask, a bit for each of the vocabulary.
    """
    return tokens * (SEGMENT_TOKEN + (-(-vocab_size // 8) if masks else 0)) + 8 * prompts


def share(size: int, processes: int) -> int:
    """A process's shard of a size."""
    return -(-size // processes)


def gathered_bytes(unit: int, rest: int) -> int:
    """Weights that FSDP2 has put together at a time: two units, one of which is fetched while the other computes, and the rest.

    Zhao et al. 2023 (https://arxiv.org/abs/2304.11277), section 3.2.1: the peak is that of the largest unit, twice where units
    are prefetched. The rest is what is in no unit, embedding and head, which stays together from forward to backward.

    Args:
        unit: The largest decoder layer.
        rest: All that is in no layer.
    """
    return 2 * unit + rest


@dataclass(frozen=True)
class Shape:
    """A decoder's shape, by its configuration.

    Attributes:
        layers: Number of decoder layers.
        hidden: Width of the states between them.
        queries: Width of all queries: heads x head size.
        kv_heads: Heads of keys and values.
        head_size: Width of a head.
        inner: Width inside the feed-forward part; of experts, that of all that a token is sent to.
    """

    layers: int
    hidden: int
    queries: int
    kv_heads: int
    head_size: int
    inner: int

    @classmethod
    def of(cls, config: Any) -> Shape:
        """The shape that a transformers configuration has; names differ, and 4 x hidden is the usual inner width."""
        heads = config.num_attention_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // heads
        inner = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
        experts = getattr(config, "num_experts_per_tok", None)
        if experts:
            inner = experts * (getattr(config, "moe_intermediate_size", None) or inner)
        kv_heads = getattr(config, "num_key_value_heads", None) or heads
        return cls(config.num_hidden_layers, config.hidden_size, heads * size, kv_heads, size, inner)


def layer_bytes(config: Any, element: int) -> int:
    """What a layer keeps of a token for its backward pass.

    Korthikanti et al. 2022 (https://arxiv.org/abs/2205.05198), section 4.1, without what is not here: dropout's masks, and the
    scores of attention, which is computed in blocks (Dao et al. 2022, https://arxiv.org/abs/2205.14135). With RMS norms and a
    gate as in Llama: each of two norms keeps its input, the normalized input and its output (3 h); attention keeps queries,
    keys, values and its output, twice, for it is laid out anew (3 q + 2 k); the feed-forward part keeps gate, its activation,
    the other factor and the product (4 f).

    Args:
        config: A transformers configuration.
        element: Bytes of a number.
    """
    s = Shape.of(config)
    return element * (6 * s.hidden + 3 * s.queries + 2 * s.kv_heads * s.head_size + 4 * s.inner)


def kept_bytes(config: Any, tokens: int, element: int, checkpointing: bool) -> int:
    """What a decoder keeps of a batch for its backward pass.

    With gradient checkpointing that is each layer's input, and one layer's all at a time: section 5 of Korthikanti et al.
    """
    s, layer = Shape.of(config), layer_bytes(config, element)
    return tokens * (s.layers * element * s.hidden + layer if checkpointing else s.layers * layer)


def work_bytes(config: Any, tokens: int, element: int) -> int:
    """What a pass without gradients has in memory at a time: about a layer's, and the states between layers."""
    return tokens * (layer_bytes(config, element) + 2 * element * Shape.of(config).hidden)
