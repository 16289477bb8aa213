"""Cached decoding for rows that sit at different positions.

An RL environment needs the next token of N prefixes, over and over. Rows end and restart at different times, a second user
(an evaluation callback) may ask about other prefixes in between, and the weights change between rollouts. `CachedDecoder`
keeps `hidden` a pure function of the prefixes all the same: each row remembers which token ids its cache encodes. A row
whose prefix is that plus one token is decoded; any other row is read from the start.

The caches of transformers append one column for all rows, which needs left padding and rows of equal age. Here every row
has a write position for itself (`RaggedLayer`); stale columns behind it are masked until they are overwritten.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from llm_env.lm.causal_lm import CausalLM, attention_span

logger = logging.getLogger(__name__)

_GROW = 32  # columns are allocated in multiples of this
_COMPACT_BELOW = 0.75  # storage is compacted when a smaller share of its rows than this is in use


class _Positions:
    """Where this decoding step writes, and how far it looks; all layers share one object.

    Attributes:
        rows: Stored rows that are written, shape (rows,).
        columns: The column that each of them writes, shape (rows,).
        kv_length: Number of columns that any row may look at.
    """

    def __init__(self) -> None:
        self.rows = torch.empty(0, dtype=torch.long)
        self.columns = torch.empty(0, dtype=torch.long)
        self.kv_length = 0


class RaggedLayer(DynamicLayer):
    """A full-attention cache layer with a write position for each row.

    Keys and values have shape (rows, heads, columns, head_dim). `update` takes one new token a row.
    """

    keys: Tensor  # type: ignore[assignment]  # None only before the first `store`
    values: Tensor  # type: ignore[assignment]

    def __init__(self, positions: _Positions) -> None:
        super().__init__()
        self.positions = positions

    def store(self, rows: Tensor, keys: Tensor, values: Tensor, n_rows: int, n_columns: int) -> None:
        """Writes keys and values of whole prefixes.

        Args:
            rows: Rows to write, shape (n,).
            keys: Shape (n, heads, T, head_dim).
            values: Shape (n, heads, T, head_dim).
            n_rows: Rows that the storage has at least.
            n_columns: Columns that the storage has at least.
        """
        if not self.is_initialized:
            self.dtype, self.device = keys.dtype, keys.device
            self.keys = keys.new_zeros(n_rows, keys.shape[1], n_columns, keys.shape[3])
            self.values = values.new_zeros(n_rows, values.shape[1], n_columns, values.shape[3])
            self.is_initialized = True
        self.reserve(n_rows, n_columns)
        self.keys[rows, :, : keys.shape[2]] = keys
        self.values[rows, :, : values.shape[2]] = values

    def reserve(self, n_rows: int, n_columns: int) -> None:
        """Grows the storage to at least that many rows and columns; what is there stays."""
        have_rows, _, have_columns, _ = self.keys.shape
        if n_rows <= have_rows and n_columns <= have_columns:
            return
        shape = (max(n_rows, have_rows), max(n_columns, have_columns))
        # Callers ask for half as many columns again (`_widen`), so that this copy is rare.
        for name in ("keys", "values"):
            old = getattr(self, name)
            new = old.new_zeros(shape[0], old.shape[1], shape[1], old.shape[3])
            new[:have_rows, :, :have_columns] = old
            setattr(self, name, new)

    def keep(self, rows: Tensor) -> None:
        """Keeps these rows only, in this order."""
        self.keys = self.keys.index_select(0, rows)
        self.values = self.values.index_select(0, rows)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Writes one token in each row, and returns keys and values of the columns that any row may look at.

        Args:
            key_states: Shape (rows, heads, 1, head_dim).
            value_states: Shape (rows, heads, 1, head_dim).
            args: Ignored; transformers passes the layer's index.
            kwargs: Ignored.

        Returns:
            Keys and values, both of shape (rows, heads, kv_length, head_dim).
        """
        positions = self.positions
        self.keys[positions.rows, :, positions.columns] = key_states[:, :, 0].to(self.keys.dtype)
        self.values[positions.rows, :, positions.columns] = value_states[:, :, 0].to(self.values.dtype)
        return self.keys[:, :, : positions.kv_length], self.values[:, :, : positions.kv_length]

    def get_seq_length(self) -> int:
        """Number of columns before this step's token, in the longest row."""
        return self.positions.kv_length - 1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(Number of columns that may be looked at, offset of the first), as transformers' mask functions need them."""
        return self.positions.kv_length, 0


class CachedDecoder:
    """The last hidden state of N prefixes, at the cost of one token each where they grew by one.

    Args:
        lm: The model. If its weights change between calls, `clear` must be called after the change.
        max_length: Longest prefix, in tokens. A sliding window that is no shorter does not prevent the cache.
        use_cache: Whether to cache; False reads every prefix from the start. Models without a plain attention cache fall
            back to that, with one line in the log.
        refresh: Called before the first use of the model, and before the first use after each `clear`.

    Not thread-safe. Memory: O(rows × longest prefix) keys and values a layer.
    """

    def __init__(
        self, lm: CausalLM, max_length: int, use_cache: bool = True, refresh: Callable[[], None] | None = None
    ) -> None:
        self.lm = lm
        self._refresh = refresh
        self.max_length = max_length
        self.use_cache = use_cache
        self._checked = not use_cache
        self.clear()

    def clear(self) -> None:
        """Forgets everything; must follow every change of the weights."""
        self._stale = True
        self._positions = _Positions()
        self._layers: list[RaggedLayer] = []
        self._tokens = torch.empty(0, 0, dtype=torch.long)  # (slots, columns): what each slot's row encodes
        self._lengths = torch.empty(0, dtype=torch.long)  # (slots,)
        self._row_of_slot = torch.empty(0, dtype=torch.long)  # (slots,), -1: none
        self._n_rows = 0
        self._last: Tensor | None = None  # (slots, H): the last hidden state of each slot's row

    @torch.no_grad()
    def hidden(self, input_ids: Tensor, lengths: Tensor) -> Tensor:
        """The hidden state at each prefix's last token.

        Args:
            input_ids: Right-padded prefixes, shape (N, L); tokens beyond a row's length are ignored.
            lengths: Number of tokens of each prefix, shape (N,); 0 marks an idle row, which costs nothing.

        Returns:
            Shape (N, H), in the model's dtype, on its device; zeros for idle rows. A new tensor, which later calls do not
            change.
        """
        # Bookkeeping stays on the CPU; only keys, values and hidden states are on the device.
        ids, lengths = input_ids.detach().cpu().long(), lengths.detach().cpu().long().flatten()
        longest = int(lengths.max()) if len(lengths) else 0
        # Once: does the cache work for this model? And `refresh`, before the first use of weights that changed.
        if not self._checked:
            self._check()
        if self._stale and self._refresh is not None:
            self._refresh()
        self._stale = False
        if not self.use_cache:
            return self._uncached(ids, lengths)
        if len(lengths) != len(self._lengths):  # another number of slots: start with an empty cache
            self.clear()
            self._lengths = torch.zeros_like(lengths)
            self._row_of_slot = torch.full_like(lengths, -1)
            self._tokens = torch.zeros(len(lengths), 0, dtype=torch.long)
        self._widen(longest)

        # Compare each prefix with what its slot's row encodes: the same, one token longer, or another one.
        width = min(ids.shape[1], self._tokens.shape[1])
        inside = torch.arange(width) < self._lengths[:, None]  # (slots, width)
        same = ((ids[:, :width] == self._tokens[:, :width]) | ~inside).all(1) & (self._lengths > 0)
        # Read from the start what has another prefix; one token where it grew; nothing where it is unchanged. (slots,)
        fresh = (lengths > 0) & ~(same & ((lengths == self._lengths) | (lengths == self._lengths + 1)))
        grown = same & (lengths == self._lengths + 1)
        self._release(lengths == 0)
        if grown.any():
            self._decode(ids, grown)
        if fresh.any():
            self._prefill(ids, lengths, fresh)
        assert self._last is not None or longest == 0
        if self._last is None:
            # Every slot has been idle so far.
            return torch.zeros(len(lengths), self.lm.hidden_size, device=self.lm.device)
        return self._last * (lengths > 0).to(self._last.device)[:, None]

    def _widen(self, longest: int) -> None:
        """Makes room for `longest` tokens a row."""
        have = self._tokens.shape[1]
        if longest <= have:
            return
        # Half as much again, rounded up to a multiple: a growing prefix copies the storage a few times only.
        want = -(-max(longest, have + have // 2) // _GROW) * _GROW
        wider = torch.zeros(len(self._tokens), want, dtype=torch.long)
        wider[:, :have] = self._tokens
        self._tokens = wider
        for layer in self._layers:
            layer.reserve(self._n_rows, want)

    def _release(self, idle: Tensor) -> None:
        """Takes idle slots' rows away, and compacts the storage when many have gone."""
        self._row_of_slot[idle] = -1
        self._lengths[idle] = 0
        # Rows in use are moved together at the front of the storage.
        used = self._row_of_slot >= 0
        n_used = int(used.sum())
        if self._layers and 0 < n_used < _COMPACT_BELOW * self._n_rows:
            rows = self._row_of_slot[used]
            for layer in self._layers:
                layer.keep(rows.to(layer.keys.device))
            self._row_of_slot[used] = torch.arange(n_used)
            self._n_rows = n_used
        # Nobody is left, as between two synchronous rounds: the storage goes, the next round allocates its own.
        elif self._layers and n_used == 0:
            self._layers, self._n_rows = [], 0

    def _remember(self, slots: Tensor, hidden: Tensor, lengths: Tensor, ids: Tensor) -> None:
        """Notes which prefix each of these slots' rows encodes now, and its last hidden state (n, H)."""
        if self._last is None or self._last.dtype != hidden.dtype:
            self._last = hidden.new_zeros(len(self._lengths), hidden.shape[1])
        self._last = self._last.index_copy(0, slots.to(hidden.device), hidden)
        # Whichever is narrower: columns behind a prefix are never compared.
        width = min(ids.shape[1], self._tokens.shape[1])
        self._tokens[slots, :width] = ids[slots, :width]
        self._lengths[slots] = lengths[slots]

    def _prefill(self, ids: Tensor, lengths: Tensor, fresh: Tensor) -> None:
        """Reads the prefixes of the fresh slots from the start, and stores their keys and values."""
        slots = fresh.nonzero()[:, 0]
        prefix_lengths = lengths[slots]  # (n,)
        longest = int(prefix_lengths.max())
        # One right-padded forward pass fills an ordinary cache; token 0 stands for V, which has no embedding.
        padding = torch.arange(longest) >= prefix_lengths[:, None]  # (n, longest)
        batch = ids[slots, :longest].masked_fill(padding, 0).to(self.lm.device)
        cache: Any = DynamicCache(config=self.lm.config)
        out = self.lm.hidden(batch, past_key_values=cache, use_cache=True)
        last_positions = prefix_lengths.to(batch.device) - 1
        hidden = out.last_hidden_state[torch.arange(len(slots), device=batch.device), last_positions]  # (n, H)

        # Its rows are copied into ours; slots that had a row keep it.
        new = slots[self._row_of_slot[slots] < 0]
        self._row_of_slot[new] = self._free_rows(len(new))
        if not self._layers:
            self._layers = [RaggedLayer(self._positions) for _ in cache.layers]
        rows = self._row_of_slot[slots].to(batch.device)
        for layer, filled in zip(self._layers, cache.layers, strict=True):
            layer.store(rows, filled.keys, filled.values, self._n_rows, self._tokens.shape[1])
        self._remember(slots, hidden, lengths, ids)

    def _free_rows(self, count: int) -> Tensor:
        """Rows of the storage that no slot uses, new ones behind the last if there are not enough."""
        # Gaps first, then new rows.
        taken = set(self._row_of_slot[self._row_of_slot >= 0].tolist())
        free = [r for r in range(self._n_rows) if r not in taken][:count]
        free += range(self._n_rows, self._n_rows + count - len(free))
        self._n_rows = max([self._n_rows, *(r + 1 for r in free)])
        return torch.tensor(free, dtype=torch.long)

    def _decode(self, ids: Tensor, grown: Tensor) -> None:
        """Reads one new token in the rows of the grown slots.

        The other rows compute too, and write into the column behind their prefix, which their next token will overwrite.
        """
        # A row that does not grow writes one column behind its prefix, which may lie beyond the storage.
        self._widen(int(self._lengths.max()) + 1)
        device = self.lm.device
        slots = grown.nonzero()[:, 0]
        rows = self._row_of_slot[slots]
        # The column that each row writes, and the token that it reads.
        columns = torch.zeros(self._n_rows, dtype=torch.long)
        others = (self._row_of_slot >= 0) & ~grown
        columns[self._row_of_slot[others]] = self._lengths[others]
        columns[rows] = self._lengths[slots]
        tokens = torch.zeros(self._n_rows, dtype=torch.long)
        tokens[rows] = ids[slots, self._lengths[slots]]
        positions = self._positions
        # All stored rows, because attention to a subset would copy the cache.
        positions.rows = torch.arange(self._n_rows, device=device)
        positions.columns = columns.to(device)
        positions.kv_length = int(columns.max()) + 1
        # (rows, kv_length): each row looks at its prefix and its new token, not at stale columns behind them
        mask = torch.arange(positions.kv_length, device=device) <= positions.columns[:, None]
        out = self.lm.hidden(
            tokens.to(device)[:, None],
            attention_mask=mask.long(),
            position_ids=positions.columns[:, None],
            past_key_values=Cache(layers=list(self._layers)),
            use_cache=True,
        )
        # The rows that only waited are not read.
        hidden = out.last_hidden_state[rows.to(device), 0]  # (grown slots, H)
        self._remember(slots, hidden, self._lengths + grown.long(), ids)

    def _uncached(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """The same as `hidden`, each prefix read from the start."""
        slots = (lengths > 0).nonzero()[:, 0]
        if not len(slots):
            return torch.zeros(len(lengths), self.lm.hidden_size, device=self.lm.device)
        prefix_lengths = lengths[slots]  # (n,)
        longest = int(prefix_lengths.max())
        padding = torch.arange(longest) >= prefix_lengths[:, None]  # (n, longest)
        batch = ids[slots, :longest].masked_fill(padding, 0).to(self.lm.device)
        states = self.lm.hidden(batch, use_cache=False).last_hidden_state  # (n, longest, H)
        last = states[torch.arange(len(slots), device=batch.device), prefix_lengths.to(batch.device) - 1]  # (n, H)
        return last.new_zeros(len(lengths), last.shape[1]).index_copy(0, slots.to(batch.device), last)

    def _check(self) -> None:
        """Decides once whether this model can be cached: by its configuration, then by trying it on ragged rows."""
        self._checked = True
        reason = None
        if attention_span(self.lm.config) < self.max_length:
            reason = "its cache is not plain attention over the whole prefix"
        elif not self._agrees_with_full_forward():
            reason = "its cached step disagrees with a full forward pass"
        self.clear()
        if reason is not None:
            self.use_cache = False
            logger.warning(
                "%s (%s) decodes without a cache, which is slow: %s.",
                self.lm.name,
                type(self.lm.model).__name__,
                reason,
            )

    def _agrees_with_full_forward(self) -> bool:
        """Compares cached steps with a full forward pass, on two rows of which one grows while the other waits."""
        trial = CachedDecoder(self.lm, self.max_length)
        trial._checked = True
        vocab = self.lm.vocab_size
        ids = (torch.arange(2 * 8).reshape(2, 8) * 7 + 1) % vocab
        try:
            trial.hidden(ids, torch.tensor([2, 5]))  # fills the cache with two rows of different length
            trial.hidden(ids, torch.tensor([3, 6]))  # both grow
            got = trial.hidden(ids, torch.tensor([4, 6])).float()  # (2, H): the first grows, the second waits
        except Exception as error:  # an architecture that refuses our cache or a ragged mask
            logger.debug("cached decoding of %s failed: %s", self.lm.name, error)
            return False
        want = trial._uncached(ids, torch.tensor([4, 6])).float()
        # Relative to the largest state: rounding differs with the order of the sums, in half precision by percents.
        tolerance = 1e-3 if want.dtype == torch.float32 and self.lm.model.dtype == torch.float32 else 5e-2
        if torch.is_autocast_enabled(self.lm.device.type):
            tolerance = 5e-2
        return bool((got - want).abs().max() <= tolerance * want.abs().max().clamp(min=1e-6))
