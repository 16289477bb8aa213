"""Cached decoding for rows that sit at different positions.

An RL environment needs the next token of N prefixes, over and over. Rows end and restart at different times, a second user
(an evaluation callback) may ask about other prefixes in between, and the weights change between rollouts. `CachedDecoder`
keeps `hidden` a pure function of the prefixes all the same: each row remembers which token ids its cache encodes. A row
whose prefix is that plus one token is decoded; one whose prefix is that plus several, as where a world has answered, reads
those as a chunk; any other row is read from the start.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache

from llm_env.lm.causal_lm import CausalLM, attention_span
from llm_env.lm.ragged_cache import Positions, RaggedLayer, distinct_rows, row_bucket

logger = logging.getLogger(__name__)

GROW = 32  # columns are allocated, and looked at, in multiples of this


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
        self._plain_mask = False
        """Whether this model needs to be told by a mask of two dimensions what to look at; tried in `_check`."""
        self._reads_chunks: bool | None = None
        """Whether a chunk gives what a full forward pass gives; None: it was not tried yet."""
        self.max_length = max_length
        self.use_cache = use_cache
        self._checked = not use_cache
        self.keeps_storage = False
        """Whether keys and values stay where they are in memory when nobody needs them."""
        self._positions = Positions()
        self._layers: list[RaggedLayer] = []
        self.clear()

    def clear(self, n_slots: int = 0) -> None:
        """Forgets everything, and how many slots there were; must follow every change of the weights."""
        self._stale = True
        self._drop_rows()
        self._tokens = torch.zeros(n_slots, 0, dtype=torch.long)  # (slots, columns): what each slot's row encodes
        self._lengths = torch.zeros(n_slots, dtype=torch.long)  # (slots,)
        self._row_of_slot = torch.full((n_slots,), -1)  # (slots,), -1: none
        self._last: Tensor | None = None  # (slots, H): the last hidden state of each slot's row

    def _drop_rows(self) -> None:
        self._n_rows = 0  # rows that the model reads: those in use, and some that fill up their bucket
        if not self.keeps_storage:
            self._layers = []

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
        if not self.ready():
            return self._uncached(ids, lengths)
        self.read(ids, lengths)
        if self._last is None:  # every slot has been idle so far
            return torch.zeros(len(lengths), self.lm.hidden_size, device=self.lm.device)
        return self._last * (lengths > 0).to(self._last.device)[:, None]

    def ready(self) -> bool:
        """Prepares the model's use: whether the cache works for it, tried once, and `refresh` where weights have changed.

        Returns:
            Whether there is a cache.
        """
        if not self._checked:
            self._check()
        if self._stale and self._refresh is not None:
            self._refresh()
        self._stale = False
        return self.use_cache

    def read(self, ids: Tensor, lengths: Tensor) -> None:
        """Brings the cache to where it encodes these prefixes; to be called when `ready`.

        Args:
            ids: Right-padded prefixes, long, on the CPU, shape (N, L).
            lengths: Tokens of each prefix, long, on the CPU, shape (N,); 0 for an idle row.
        """
        longest = int(lengths.max()) if len(lengths) else 0
        if len(lengths) != len(self._lengths):  # another number of slots: start with an empty cache
            self.clear(len(lengths))
            self._stale = False
        if not longest:  # all are idle, as between two synchronous rounds
            return self.release(lengths == 0)
        self.widen(longest)

        # Compare each prefix with what its slot's row encodes: the same, one token longer, or another one.
        width = min(ids.shape[1], self._tokens.shape[1])
        inside = torch.arange(width) < self._lengths[:, None]  # (slots, width)
        same = ((ids[:, :width] == self._tokens[:, :width]) | ~inside).all(1) & (self._lengths > 0)
        # Read from the start what has another prefix; what is new where it grew; nothing where it is unchanged. (slots,)
        grown = same & (lengths == self._lengths + 1)
        longer = same & (lengths > self._lengths + 1)
        if longer.any() and not self._can_read_chunks():
            longer[:] = False
        fresh = (lengths > 0) & ~(grown | longer | same & (lengths == self._lengths))
        self.release(lengths == 0)
        if grown.any():
            self._decode(ids, grown)
        if longer.any():
            self._append(ids, lengths, longer)
        if fresh.any():
            self._prefill(ids, lengths, fresh)

    def widen(self, longest: int) -> None:
        """Makes room for `longest` tokens a row."""
        have = self._tokens.shape[1]
        if longest <= have:
            return
        # Half as much again, rounded up to a multiple: a growing prefix copies the storage a few times only.
        want = -(-max(longest, have + have // 2) // GROW) * GROW
        wider = torch.zeros(len(self._tokens), want, dtype=torch.long)
        wider[:, :have] = self._tokens
        self._tokens = wider
        for layer in self._layers:
            layer.reserve(self._n_rows, want)

    def release(self, idle: Tensor) -> None:
        """Takes idle slots' rows away (boolean, shape (N,)), and moves the others together where a smaller bucket fits."""
        self._row_of_slot[idle] = -1
        self._lengths[idle] = 0
        used = self._row_of_slot >= 0
        n_used = int(used.sum())
        if self._layers and n_used > 0 and row_bucket(n_used) < self._n_rows:
            # In the order of the slots; rows that fill up the bucket hold whatever they hold.
            rows = torch.zeros(row_bucket(n_used), dtype=torch.long)
            rows[:n_used] = self._row_of_slot[used]
            for layer in self._layers:
                layer.keep(rows.to(layer.keys.device), self.keeps_storage)
            self._row_of_slot[used] = torch.arange(n_used)
            self._n_rows = len(rows)
        # Nobody is left, as between two synchronous rounds: the storage goes, the next round allocates its own.
        elif self._layers and n_used == 0:
            self._drop_rows()

    def fits_fewer(self, n: int) -> bool:
        """Whether a smaller bucket of rows would do for n slots."""
        return row_bucket(n) < self._n_rows

    def slots_of_rows(self) -> Tensor:
        """The slot of each row that the model reads, on the CPU, shape (rows,); the number of slots for a row without one."""
        slots = torch.full((self._n_rows,), len(self._lengths))
        used = (self._row_of_slot >= 0).nonzero()[:, 0]
        slots[self._row_of_slot[used]] = used
        return slots

    def states_of(self, slots: Tensor) -> Tensor:
        """The last hidden states of slots, as `slots_of_rows` gives them, on the device, shape (rows, H)."""
        assert self._last is not None
        return self._last[slots.clamp(max=len(self._lengths) - 1)]

    def wrote(self, grown: Tensor, tokens: Tensor, states: Tensor) -> None:
        """Notes that tokens were read, by `read_tokens`, that nobody asked for by a prefix.

        Args:
            grown: Whether a slot's row has read them, boolean, on the CPU, shape (N,).
            tokens: The tokens, on the CPU, shape (T, N).
            states: The last hidden state of each row, shape (≥ rows, H).
        """
        assert self._last is not None
        slots = grown.nonzero()[:, 0]
        columns = self._lengths[slots][:, None] + torch.arange(len(tokens))  # (n, T)
        self._tokens[slots[:, None], columns] = tokens[:, slots].T
        self._lengths[slots] += len(tokens)
        new = states[self._row_of_slot[slots].to(states.device)].to(self._last.dtype)
        self._last = self._last.index_copy(0, slots.to(states.device), new)

    def addresses(self) -> tuple[int, ...]:
        """Where keys, values and weights are in memory."""
        tensors = [t for layer in self._layers for t in (layer.keys, layer.values)]
        return tuple(t.data_ptr() for t in (*tensors, *self.lm.model.parameters()))

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
        """Reads the prefixes of the fresh slots from the start, each once, and stores their keys and values."""
        slots = fresh.nonzero()[:, 0]
        prefix_lengths = lengths[slots]  # (n,)
        padding = torch.arange(int(prefix_lengths.max())) >= prefix_lengths[:, None]  # (n, longest)
        # The prompt of a group is in several slots: (u, longest), and which of them each slot has, (n,).
        prefixes, which = distinct_rows(ids[slots, : padding.shape[1]].masked_fill(padding, -1))
        # One right-padded forward pass fills an ordinary cache; token 0 stands behind a prefix.
        batch = prefixes.clamp(min=0).to(self.lm.device)
        cache: Any = DynamicCache(config=self.lm.config)
        out = self.lm.hidden(batch, past_key_values=cache, use_cache=True)
        which, last_positions = which.to(batch.device), prefix_lengths.to(batch.device) - 1
        hidden = out.last_hidden_state[which, last_positions]  # (n, H)
        # Its rows are copied into ours; slots that had a row keep it.
        new = slots[self._row_of_slot[slots] < 0]
        self._row_of_slot[new] = self._free_rows(len(new))
        if not self._layers:
            self._layers = [RaggedLayer(self._positions) for _ in cache.layers]
        rows, columns = self._row_of_slot[slots].to(batch.device), self._tokens.shape[1]
        for layer, filled in zip(self._layers, cache.layers, strict=True):
            layer.store(rows, filled.keys, filled.values, self._n_rows, columns, which)
        self._remember(slots, hidden, lengths, ids)

    def _free_rows(self, count: int) -> Tensor:
        """Rows of the storage that no slot uses, new ones behind the last if there are not enough."""
        # Gaps first, then new rows.
        taken = set(self._row_of_slot[self._row_of_slot >= 0].tolist())
        free = [r for r in range(self._n_rows) if r not in taken][:count]
        free += range(self._n_rows, self._n_rows + count - len(free))
        self._n_rows = max(self._n_rows, row_bucket(max(free, default=-1) + 1))
        return torch.tensor(free, dtype=torch.long)

    def _decode(self, ids: Tensor, grown: Tensor) -> None:
        """Reads one new token in the rows of the grown slots.

        The other rows compute too, and write into the column behind their prefix, which their next token will overwrite.
        """
        slots = grown.nonzero()[:, 0]
        rows = self._row_of_slot[slots]
        columns = self._next_columns()
        tokens = torch.zeros(self._n_rows, dtype=torch.long)
        tokens[rows] = ids[slots, self._lengths[slots]]
        device, width = self.lm.device, self.columns_for(int(columns.max()))
        states = self.read_tokens(tokens.to(device), columns.to(device), width)
        self._remember(slots, states[rows.to(device)], self._lengths + grown.long(), ids)  # without those that waited

    def _next_columns(self) -> Tensor:
        """The column that each row's next token goes to, on the CPU, shape (rows,)."""
        # A row that does not grow writes one column behind its prefix, which may lie beyond the storage.
        self.widen(int(self._lengths.max()) + 1)
        columns = torch.zeros(self._n_rows, dtype=torch.long)
        used = self._row_of_slot >= 0
        columns[self._row_of_slot[used]] = self._lengths[used]
        return columns

    def columns_for(self, column: int) -> int:
        """Columns that are looked at where a row writes this one: a multiple, so that few different shapes are met."""
        return -(-(column + 1) // GROW) * GROW

    def read_tokens(self, tokens: Tensor, columns: Tensor, width: int) -> Tensor:
        """Reads one token in every row: a function of tensors, whose shapes depend on the numbers of rows and columns alone.

        Args:
            tokens: The tokens, shape (rows,).
            columns: The column that each row writes, shape (rows,); it looks at that one and those before it.
            width: Columns that any row may look at, from `columns_for`.

        Returns:
            Hidden states, shape (rows, H).
        """
        positions = self._positions
        # All stored rows, because attention to a subset would copy the cache.
        positions.rows, positions.is_part = torch.arange(len(tokens), device=tokens.device), False
        positions.columns, positions.kv_length = columns[:, None], width
        # (rows, width): each row looks at its prefix and its new token. One that is full, and waits, has no position for it.
        mask, most = torch.arange(width, device=tokens.device) <= positions.columns, self.lm.max_positions or width
        out = self.lm.hidden(
            tokens[:, None],
            attention_mask=mask.long() if self._plain_mask else self._added(mask[:, None, None]),
            position_ids=positions.columns if width <= most else positions.columns.clamp(max=most - 1),
            past_key_values=Cache(layers=list(self._layers)),
            use_cache=True,
        )
        states: Tensor = out.last_hidden_state[:, 0]
        return states

    def _append(self, ids: Tensor, lengths: Tensor, longer: Tensor) -> None:
        """Reads several new tokens in the rows of the slots that are `longer`; the other rows are not touched."""
        device = self.lm.device
        slots = longer.nonzero()[:, 0]
        before, after = self._lengths[slots], lengths[slots]  # (n,)
        chunk = int((after - before).max())
        self.widen(int(before.max()) + chunk)
        # (n, T): the columns behind each row's prefix. Those behind its new end are masked until they are written again.
        columns = before[:, None] + torch.arange(chunk)
        inside = columns < after[:, None]
        tokens = ids[slots].gather(1, columns.clamp(max=ids.shape[1] - 1)).masked_fill(~inside, 0)
        positions = self._positions
        positions.rows, positions.is_part = self._row_of_slot[slots].to(device), True
        positions.columns = columns.to(device)
        positions.kv_length = int(columns.max()) + 1
        # Each token looks at its prefix and at itself. (n, 1, T, kv_length)
        mask = (torch.arange(positions.kv_length, device=device) <= positions.columns[:, :, None])[:, None]
        out = self.lm.hidden(
            tokens.to(device),
            attention_mask=self._added(mask),
            # The model may have no position behind the row's end.
            position_ids=torch.minimum(columns, after[:, None] - 1).to(device),
            past_key_values=Cache(layers=list(self._layers)),
            use_cache=True,
        )
        last = (after - before - 1).to(device)
        hidden = out.last_hidden_state[torch.arange(len(slots), device=device), last]  # (n, H)
        self._remember(slots, hidden, lengths, ids)

    def _added(self, mask: Tensor) -> Tensor:
        """A mask of four dimensions as attention takes it: what is not looked at as the lowest number, added to the scores."""
        dtype = self.lm.model.dtype
        return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, torch.finfo(dtype).min)

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
        growing = [[2, 5], [3, 6], [4, 6]]  # both grow, then one while the other waits
        if attention_span(self.lm.config) < self.max_length:
            reason = "its cache is not plain attention over the whole prefix"
        elif not self._agrees_with_full_forward(growing):
            self._plain_mask = True
            if not self._agrees_with_full_forward(growing):
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

    def _can_read_chunks(self) -> bool:
        """Whether a text that grew by several tokens need not be read from its start: tried at the first such text."""
        if self._reads_chunks is None:
            # One row reads a chunk, then both chunks of different lengths, then both one token.
            self._reads_chunks = self._agrees_with_full_forward([[2, 3], [4, 3], [6, 7], [7, 8]])
            if not self._reads_chunks:
                logger.info("%s reads a text from its start where it grew by several tokens.", self.lm.name)
        return self._reads_chunks

    def _agrees_with_full_forward(self, lengths: list[list[int]]) -> bool:
        """Compares cached steps with a full forward pass, on two rows of these lengths, one step after the other."""
        trial = CachedDecoder(self.lm, self.max_length)
        trial._checked = trial._reads_chunks = True
        trial._plain_mask = self._plain_mask
        vocab = self.lm.vocab_size
        ids = (torch.arange(2 * 8).reshape(2, 8) * 7 + 1) % vocab
        try:
            for step in lengths:
                got = trial.hidden(ids, torch.tensor(step)).float()  # (2, H)
        except Exception as error:  # an architecture that refuses our cache or a ragged mask
            logger.debug("cached decoding of %s failed: %s", self.lm.name, error)
            return False
        want = trial._uncached(ids, torch.tensor(lengths[-1])).float()
        # Relative to the largest state: rounding differs with the order of the sums, in half precision by percents.
        tolerance = 1e-3 if want.dtype == torch.float32 and self.lm.model.dtype == torch.float32 else 5e-2
        if torch.is_autocast_enabled(self.lm.device.type):
            tolerance = 5e-2
        return bool((got - want).abs().max() <= tolerance * want.abs().max().clamp(min=1e-6))
