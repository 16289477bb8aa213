"""Hidden states of packed sequences: no padding in the linear layers, attention one group of similar lengths at a time.

transformers calls attention through a table of functions (`AttentionInterface`). While a packed batch is read, the
model's configuration points to `_packed_attention` here, which cuts queries, keys and values into the sequences that they
belong to and passes each group to transformers' scaled-dot-product attention, or all of them at once to one kernel where
there is one (`llm_env.lm.varlen_attention`). Each model is tried once on three short sequences; one that does not give the
same states as with padding is padded from then on. ``LLM_ENV_FAST`` turns packing off (`llm_env.lm.runtime`).

transformers also recognizes packed sequences by their position ids. Without flash attention it then computes attention
between all N tokens and masks most of it, which costs N² instead of the sum of the squared lengths.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
import weakref
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from llm_env.lm.causal_lm import attention_span
from llm_env.lm.packing import PackedBatch, pack
from llm_env.lm.prefixes import SharedPrefixes
from llm_env.lm.runtime import is_fast
from llm_env.lm.varlen_attention import bounds, usable, varlen_attention

logger = logging.getLogger(__name__)

_NAME = "llm_env_packed"
SIMILAR = 0.8
"""On a CPU, sequences down to this share of a group's longest one are padded to it, in attention only."""


class _Group:
    """Neighboring sequences of a packed batch whose attention is computed together, padded to the longest of them.

    Args:
        lengths: Number of tokens of each sequence, the longest first.
        device: The device of the batch.
    """

    def __init__(self, lengths: list[int], device: torch.device) -> None:
        self.rows, self.longest, self.tokens = len(lengths), lengths[0], sum(lengths)
        self.pad: Tensor | None = None
        if lengths[-1] != self.longest:
            counts = torch.tensor(lengths)  # (rows,)
            place = torch.arange(self.longest)
            inside = place < counts[:, None]  # (rows, longest)
            # Where each sequence begins among the group's tokens. (rows,)
            starts = counts.cumsum(0) - counts
            # The padding repeats a row's last token. Its content does not matter: causality keeps it from real tokens.
            self.pad = (starts[:, None] + torch.minimum(place, counts[:, None] - 1)).flatten().to(device)
            self.unpad = inside.flatten().nonzero()[:, 0].to(device)

    def padded(self, states: Tensor) -> Tensor:
        """States (tokens, heads, D) as a padded batch (rows, heads, longest, D)."""
        if self.pad is not None:
            states = states.index_select(0, self.pad)
        return states.view(self.rows, self.longest, *states.shape[1:]).transpose(1, 2)

    def unpadded(self, states: Tensor) -> Tensor:
        """A padded batch (rows, longest, heads, D) as states of real tokens (tokens, heads, D)."""
        flat = states.flatten(0, 1)
        return flat if self.pad is None else flat.index_select(0, self.unpad)


class _Sequences:
    """The sequences of a packed batch, as the two ways of attention want them; each is made at its first use.

    Args:
        lengths: Number of tokens of each sequence, the longest first.
        device: The device of the batch.
        shared: Which tokens are read, where not all are.
    """

    def __init__(self, lengths: tuple[int, ...], device: torch.device, shared: SharedPrefixes | None = None) -> None:
        self.lengths, self.device = lengths, device
        self.first = self.which = None
        if shared is not None:
            self.first, self.which = (torch.from_numpy(places).to(device) for places in shared)

    def whole(self, states: Tensor, dim: int) -> Tensor:
        """States of all N tokens, from those of the U that are read."""
        return states if self.which is None else states.index_select(dim, self.which)

    @functools.cached_property
    def ends(self) -> Tensor:
        """Where each begins and ends, for `varlen_attention`."""
        return bounds(self.lengths, self.device)

    @functools.cached_property
    def groups(self) -> list[_Group]:
        """Groups of similar length."""
        # On a GPU one large kernel is faster than several small ones.
        similar = SIMILAR if self.device.type == "cpu" else 0.0
        groups: list[list[int]] = []
        for length in self.lengths:
            if not groups or length < similar * groups[-1][0]:
                groups.append([])
            groups[-1].append(length)
        return [_Group(group, self.device) for group in groups]


_sequences: ContextVar[_Sequences] = ContextVar("sequences")


def _packed_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """Causal attention inside each sequence of a packed batch; (1, heads, U, D) to (1, U, heads, D), of the U tokens read.

    The signature is that of transformers' attention functions. The sequences come from `_reading`.
    """
    sequences = _sequences.get()
    # Linear layers read a common prefix once; here each sequence has its own again.
    query, key, value = (sequences.whole(side, 2) for side in (query, key, value))
    states = _attend(module, sequences, query, key, value, kwargs)
    return states if sequences.first is None else states.index_select(1, sequences.first), None


def _attend(
    module: nn.Module, sequences: _Sequences, query: Tensor, key: Tensor, value: Tensor, kwargs: dict[str, Any]
) -> Tensor:
    """Causal attention inside each whole sequence; (1, heads, N, D) to (1, N, heads, D)."""
    if not kwargs.get("dropout") and is_fast("varlen") and usable(query, key):
        q, k, v = (side[0].transpose(0, 1) for side in (query, key, value))  # (N, heads, D)
        return varlen_attention(q, k, v, sequences.ends, sequences.lengths[0], kwargs.get("scaling"))[None]
    groups = sequences.groups
    sizes = [g.tokens for g in groups]
    # (1, heads, N, D) -> (N, heads, D), cut into groups
    parts = zip(*((t[0].transpose(0, 1).split(sizes)) for t in (query, key, value)), strict=True)
    # Some models pass it; inside a sequence it is always True here.
    kwargs.pop("is_causal", None)
    attend = ALL_ATTENTION_FUNCTIONS["sdpa"]
    out = []
    for group, (q, k, v) in zip(groups, parts, strict=True):
        states, _ = attend(module, group.padded(q), group.padded(k), group.padded(v), None, is_causal=True, **kwargs)
        # (rows, longest, heads, D) -> (tokens, heads, D)
        out.append(group.unpadded(states))
    return torch.cat(out)[None]


AttentionInterface.register(_NAME, _packed_attention)


@contextlib.contextmanager
def _reading(config: Any, sequences: _Sequences) -> Iterator[None]:
    """Points a model's configuration to packed attention for the duration of a `with` block."""
    before = config._attn_implementation
    token = _sequences.set(sequences)
    config._attn_implementation = _NAME
    try:
        yield
    finally:
        config._attn_implementation = before
        _sequences.reset(token)


_recomputing: ContextVar[tuple[Any, _Sequences] | None] = ContextVar("recomputing", default=None)


def recompute_contexts() -> tuple[contextlib.AbstractContextManager[Any], contextlib.AbstractContextManager[Any]]:
    """`context_fn` for gradient checkpointing: a layer that the backward pass recomputes is packed as in the forward pass.

    Returns:
        The contexts of the forward pass and of the recomputation, as `torch.utils.checkpoint.checkpoint` wants them.
    """
    now = _recomputing.get()
    return contextlib.nullcontext(), contextlib.nullcontext() if now is None else _reading(*now)


_CAN_PACK: weakref.WeakKeyDictionary[nn.Module, bool] = weakref.WeakKeyDictionary()
"""What `can_pack` found out, for each trunk that is still alive."""


def packed_states(trunk: nn.Module, batch: PackedBatch) -> Tensor:
    """The last hidden state of every token of a packed batch, shape (N, H).

    Args:
        trunk: A causal decoder without its head, `PreTrainedModel.base_model`.
        batch: Sequences laid end to end.

    Raises:
        ValueError: the value of ``LLM_ENV_FAST`` is bad.
    """
    reads_all = batch.shared is None or not is_fast("prefixes")
    if batch.lengths[0] == batch.lengths[-1] and reads_all:  # equally long: an ordinary batch
        ids = batch.input_ids.view(len(batch.lengths), -1)
        return trunk(input_ids=ids, use_cache=False).last_hidden_state.flatten(0, 1)
    # A sliding window shorter than a sequence needs transformers' own mask.
    if is_fast("attention") and can_pack(trunk) and attention_span(trunk.config) >= batch.lengths[0]:
        return _packed(trunk, batch)
    return _padded(trunk, batch)


def _packed(trunk: nn.Module, batch: PackedBatch) -> Tensor:
    """Hidden states (N, H) from one row of the U tokens that are read; positions start again at each sequence."""
    config: Any = trunk.config
    # 0, 1, …, n-1 for each sequence, as if it stood alone.
    positions = torch.cat([torch.arange(n) for n in batch.lengths]).to(batch.device)
    sequences = _Sequences(tuple(batch.lengths), batch.device, batch.shared if is_fast("prefixes") else None)
    ids = batch.input_ids
    if sequences.first is not None:
        ids, positions = ids[sequences.first], positions[sequences.first]
    # Gradient checkpointing asks for its contexts inside the forward pass; see `recompute_contexts`.
    token = _recomputing.set((config, sequences))
    try:
        with _reading(config, sequences):
            out = trunk(input_ids=ids[None], position_ids=positions[None], use_cache=False)
    finally:
        _recomputing.reset(token)
    return sequences.whole(out.last_hidden_state[0], 0)


def _padded(trunk: nn.Module, batch: PackedBatch) -> Tensor:
    """Hidden states (N, H) from a right-padded batch (B, longest)."""
    lengths = torch.tensor(batch.lengths)
    inside = (torch.arange(batch.lengths[0]) < lengths[:, None]).to(batch.device)
    ids = batch.input_ids.new_zeros(inside.shape).masked_scatter(inside, batch.input_ids)
    return trunk(input_ids=ids, use_cache=False).last_hidden_state[inside]


def can_pack(trunk: nn.Module) -> bool:
    """Whether packing gives the same states as padding; tried once for each trunk, on three short sequences."""
    if trunk not in _CAN_PACK:
        _CAN_PACK[trunk] = _packing_agrees(trunk)
    return _CAN_PACK[trunk]


def note_can_pack(trunk: nn.Module, value: bool) -> None:
    """Says what `can_pack` would find out, of a trunk that cannot be tried as it is."""
    _CAN_PACK[trunk] = value


@torch.no_grad()
def _packing_agrees(trunk: nn.Module) -> bool:
    """Compares packed with padded states on three short sequences of different lengths."""
    if "position_ids" not in inspect.signature(trunk.forward).parameters:
        return False
    size = trunk.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
    sequences = [[(7 * i + 1) % size for i in range(first, first + n)] for first, n in ((0, 9), (1, 5), (0, 8))]
    # Two of nearly the same length and a short one: one group with padding, and one alone. Those two begin alike.
    sequences[2][4:] = sequences[2][:3:-1]
    batch = pack(sequences, [1, 1, 1], next(trunk.parameters()).device)
    want = _padded(trunk, batch).float()
    try:
        got = _packed(trunk, batch).float()
    except Exception as error:  # an architecture that does not call attention through the table
        logger.debug("%s cannot be packed: %s", type(trunk).__name__, error)
        return False
    # Relative to the largest state: rounding differs with the order of the sums, in half precision by percents.
    half = want.dtype != torch.float32 or torch.is_autocast_enabled(batch.device.type)
    half = half or next(trunk.parameters()).dtype != torch.float32
    return bool((got - want).abs().max() <= (5e-2 if half else 1e-3) * want.abs().max().clamp(min=1e-6))
