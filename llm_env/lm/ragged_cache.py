"""A key-value cache whose rows sit at different positions.

The caches of transformers append one column for all rows, which needs left padding and rows of equal age. Here every row
has a write position for itself; stale columns behind it are masked until they are overwritten.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer


def row_bucket(n: int) -> int:
    """Rows that are read where n are in use: 1, 2, 4, then multiples of 8, so that few different shapes are met."""
    return next((size for size in (1, 2, 4) if n <= size), -(-n // 8) * 8)


def distinct_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Each different row once, in the order of their first appearance.

    Args:
        rows: Shape (n, L), on the CPU.

    Returns:
        The different rows, shape (u, L), and which of them each row is, shape (n,).
    """
    contents = [row.tobytes() for row in rows.numpy()]
    first: dict[bytes, int] = {}
    for i, content in enumerate(contents):
        first.setdefault(content, i)
    number = {content: u for u, content in enumerate(first)}
    return rows[list(first.values())], torch.tensor([number[content] for content in contents])


class Positions:
    """Where this decoding step writes, and how far it looks; all layers share one object.

    Attributes:
        rows: Stored rows that are written, shape (rows,).
        columns: The columns that each of them writes, shape (rows, T), T being the tokens read in this step.
        kv_length: Number of columns that any row may look at.
        is_part: Whether other stored rows sit this step out.
    """

    def __init__(self) -> None:
        self.rows = torch.empty(0, dtype=torch.long)
        self.columns = torch.empty(0, 1, dtype=torch.long)
        self.kv_length = 0
        self.is_part = False


class RaggedLayer(DynamicLayer):
    """A full-attention cache layer with a write position for each row.

    Keys and values have shape (rows, heads, columns, head_dim). `update` takes T new tokens a row.
    """

    keys: Tensor  # type: ignore[assignment]  # None only before the first `store`
    values: Tensor  # type: ignore[assignment]

    def __init__(self, positions: Positions) -> None:
        super().__init__()
        self.positions = positions

    def store(
        self, rows: Tensor, keys: Tensor, values: Tensor, n_rows: int, n_columns: int, which: Tensor | None = None
    ) -> None:
        """Writes keys and values of whole prefixes.

        Args:
            rows: Rows to write, shape (n,).
            keys: Of u different prefixes, shape (u, heads, T, head_dim).
            values: Of the same prefixes, shape (u, heads, T, head_dim).
            n_rows: Rows that the storage has at least.
            n_columns: Columns that the storage has at least.
            which: The prefix of each row, shape (n,); None: each has one of its own, in order.
        """
        if not self.is_initialized:
            self.dtype, self.device = keys.dtype, keys.device
            self.keys = keys.new_zeros(n_rows, keys.shape[1], n_columns, keys.shape[3])
            self.values = values.new_zeros(n_rows, values.shape[1], n_columns, values.shape[3])
            self.is_initialized = True
        self.reserve(n_rows, n_columns)
        for own, filled in ((self.keys, keys), (self.values, values)):
            # Where all are different, they are in order.
            own[rows, :, : filled.shape[2]] = filled if which is None or len(filled) == len(rows) else filled[which]

    def reserve(self, n_rows: int, n_columns: int) -> None:
        """Grows the storage to at least that many rows and columns; what is there stays."""
        have_rows, _, have_columns, _ = self.keys.shape
        if n_rows <= have_rows and n_columns <= have_columns:
            return
        shape = (max(n_rows, have_rows), max(n_columns, have_columns))
        # Callers ask for half as many columns again (`CachedDecoder.widen`), so that this copy is rare.
        for name in ("keys", "values"):
            old = getattr(self, name)
            new = old.new_zeros(shape[0], old.shape[1], shape[1], old.shape[3])
            new[:have_rows, :, :have_columns] = old
            setattr(self, name, new)

    def keep(self, rows: Tensor, in_place: bool = False) -> None:
        """Moves these rows to the front, in this order; drops the others unless the storage must stay where it is."""
        for name in ("keys", "values"):
            kept = getattr(self, name).index_select(0, rows)
            if in_place:
                getattr(self, name)[: len(rows)] = kept
            else:
                setattr(self, name, kept)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Writes T tokens in each row, and returns keys and values of the columns that any row may look at.

        Args:
            key_states: Shape (rows, heads, T, head_dim).
            value_states: Shape (rows, heads, T, head_dim).
            args: Ignored; transformers passes the layer's index.
            kwargs: Not used: transformers hands over what its own layers need.

        Returns:
            Keys and values, both of shape (rows, heads, kv_length, head_dim).
        """
        at = self.positions
        if at.is_part:
            # Indices with a slice between them put their own dimensions first: (rows, T, heads, head_dim).
            self.keys[at.rows[:, None], :, at.columns] = key_states.transpose(1, 2).to(self.keys.dtype)
            self.values[at.rows[:, None], :, at.columns] = value_states.transpose(1, 2).to(self.values.dtype)
            return self.keys[at.rows, :, : at.kv_length], self.values[at.rows, :, : at.kv_length]
        keys, values = self.keys[: len(at.rows)], self.values[: len(at.rows)]
        places = at.columns[:, None, :, None].expand_as(key_states)
        keys.scatter_(2, places, key_states.to(keys.dtype))
        values.scatter_(2, places, value_states.to(values.dtype))
        return keys[:, :, : at.kv_length], values[:, :, : at.kv_length]

    def get_seq_length(self) -> int:
        """Number of columns before this step's tokens, in the longest row."""
        return self.positions.kv_length - self.positions.columns.shape[1]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(Number of columns that may be looked at, offset of the first), as transformers' mask functions need them."""
        return self.positions.kv_length, 0
