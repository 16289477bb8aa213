"""One causal pass over whole sequences instead of one pass for every token.

Sequences of different lengths are laid end to end, without padding: every linear layer reads real tokens only, those of a
common prefix once (`llm_env.lm.prefixes`), and attention, the one place where tokens meet, is computed sequence by sequence
(`llm_env.lm.packed_attention`). Models that cannot be run like this read a right-padded batch, where causality keeps the
padding behind a row's end away from its tokens.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from llm_env.lm.memory import free_after, is_out_of_memory
from llm_env.lm.prefixes import SharedPrefixes, shared_prefixes

logger = logging.getLogger(__name__)
Scored: TypeAlias = int | Sequence[int]
"""Which tokens of a sequence are scored: all from that place on, or those at these places, in order."""


@dataclass(frozen=True)
class PackedBatch:
    """Sequences laid end to end, some of whose tokens are scored.

    There are two orders. The caller's order is that of the sequences passed to `pack`; the packed order has the longest
    sequence first. Shapes: B sequences, N tokens in all, n of them predict a scored token.

    Attributes:
        input_ids: All tokens that are read, in the packed order, shape (N,), long.
        lengths: Number of tokens read of each sequence, in the packed order, B entries.
        index: For each scored token, the place among the N of the token that predicts it, in the caller's order, shape (n,).
        targets: The scored tokens, in the caller's order, shape (n,).
        counts: Number of scored tokens of each sequence, in the caller's order, B entries.
        order: For each sequence in the packed order, its index in the caller's order, B entries.
        masks: Which tokens the policy could choose from where each scored token was chosen, as bits
            (`llm_env.lm.sampling.pack_bits`), shape (n, ⌈V/8⌉), uint8. None: all tokens.
        share: Where several processes hold parts of one batch: the scored tokens here as a share of all, 0 to 1.
        policy_share: The same of what the policy's loss is a mean over: tokens, or sequences.
        shared: Which of the N tokens need to be read, where sequences begin alike. None: all.
    """

    input_ids: Tensor
    lengths: tuple[int, ...]
    index: Tensor
    targets: Tensor
    counts: tuple[int, ...]
    order: tuple[int, ...]
    masks: Tensor | None = None
    share: float = 1.0
    policy_share: float = 1.0
    shared: SharedPrefixes | None = None

    @property
    def device(self) -> torch.device:
        """The device of the tensors."""
        return self.input_ids.device

    def split(self, max_tokens: int) -> list[tuple[PackedBatch, Tensor]]:
        """Splits the batch into parts of whole sequences.

        Args:
            max_tokens: Most tokens of a part; a longer sequence is a part by itself.

        Returns:
            Pairs of a part, and the places of its scored tokens among the n of this batch.
        """
        if len(self.input_ids) <= max_tokens:
            return [(self, torch.arange(len(self.index), device=self.device))]
        ends = list(itertools.accumulate(self.counts))  # where each sequence's scored tokens end among the n
        parts = []
        first = start = 0
        while first < len(self.lengths):
            # Sequences `first` to `last`, tokens `start` to `stop`: as many as fit.
            last, stop = first + 1, start + self.lengths[first]
            while last < len(self.lengths) and stop - start + self.lengths[last] <= max_tokens:
                stop += self.lengths[last]
                last += 1
            members = self.order[first:last]
            # Where the part's scored tokens stand among the n.
            places = torch.cat([torch.arange(ends[i] - self.counts[i], ends[i]) for i in members]).to(self.device)
            part = PackedBatch(
                self.input_ids[start:stop],
                self.lengths[first:last],
                # Places within the part. Its caller's order is the packed one: longest first already.
                self.index[places] - start,
                self.targets[places] if len(self.targets) else self.targets,
                tuple(self.counts[i] for i in members),
                tuple(range(len(members))),
                None if self.masks is None else self.masks[places],
                shared=None if self.shared is None else self.shared.part(start, stop),
            )
            parts.append((part, places))
            first, start = last, stop
        return parts


def pack(sequences: Sequence[Sequence[int]], scored: Sequence[Scored], device: torch.device | str) -> PackedBatch:
    """Packs sequences some of whose tokens are scored.

    What stands at and behind a sequence's last scored token predicts no scored token, so it is not read.

    Args:
        sequences: B token id sequences, prompt and response.
        scored: For each, the place of the first scored token, from which on all are, 1 to its length; or the places of
            all scored tokens, each at least 1, rising.
        device: Where to put the batch.

    Raises:
        ValueError: a place is 0, so that no token predicts the one that is scored.
    """
    places_of = [places_in(s, which) for s, which in zip(sequences, scored, strict=True)]
    if any(len(places) and places[0] < 1 for places in places_of):
        raise ValueError("A scored token needs at least one token before it; got a start of 0.")
    # Tokens read of each sequence: all before its last scored one. One without scored tokens is read as one token.
    read = [places[-1] if len(places) else max(1, len(s) - 1) for s, places in zip(sequences, places_of, strict=True)]
    ids, lengths, firsts, order, shared = _lay_out(sequences, read)
    # A token is predicted at the place before it. (n,)
    index = torch.cat([_tensor(places) + p - 1 for p, places in zip(firsts, places_of, strict=True)])
    targets = [s[place] for s, places in zip(sequences, places_of, strict=True) for place in places]
    counts = tuple(len(places) for places in places_of)
    return PackedBatch(
        ids.to(device),
        lengths,
        index.to(device),
        torch.tensor(targets, dtype=torch.long).to(device),
        counts,
        order,
        shared=shared,
    )


def _tensor(places: Sequence[int]) -> Tensor:
    """Places as a tensor; most are a range."""
    if isinstance(places, range):
        return torch.arange(places.start, places.stop)
    return torch.tensor(places, dtype=torch.long)


def places_in(sequence: Sequence[int], scored: Scored) -> Sequence[int]:
    """The places of a sequence's scored tokens."""
    return range(scored, len(sequence)) if isinstance(scored, int) else scored


def pack_ends(sequences: Sequence[Sequence[int]], device: torch.device | str) -> PackedBatch:
    """Packs sequences of which the last token's hidden state is wanted.

    Args:
        sequences: B token id sequences, read whole.
        device: Where to put the batch.

    Returns:
        A batch whose `index` has the place of each sequence's last token; `targets` is empty, `counts` are ones.
    """
    ids, lengths, places, order, shared = _lay_out(sequences, [len(s) for s in sequences])
    # Sequence i fills the positions from places[i] on. (B,)
    index = torch.tensor([p + len(s) - 1 for p, s in zip(places, sequences, strict=True)])
    nothing = torch.zeros(0, dtype=torch.long, device=device)
    counts = (1,) * len(sequences)
    return PackedBatch(ids.to(device), lengths, index.to(device), nothing, counts, order, shared=shared)


def _lay_out(
    sequences: Sequence[Sequence[int]], read: Sequence[int]
) -> tuple[Tensor, tuple[int, ...], list[int], tuple[int, ...], SharedPrefixes | None]:
    """Lays sequences end to end, the longest first.

    Args:
        sequences: B token id sequences.
        read: Number of tokens that are read of each, from its beginning.

    Returns:
        All ids (N,); lengths in the packed order; where each sequence starts, in the caller's order; the packed order; the
        prefixes that they have in common.
    """
    order = sorted(range(len(sequences)), key=lambda i: -read[i])
    places, end = [0] * len(sequences), 0
    for i in order:
        places[i] = end
        end += read[i]
    texts = [list(sequences[i][: read[i]]) for i in order]
    ids = torch.tensor([t for text in texts for t in text], dtype=torch.long)
    return ids, tuple(read[i] for i in order), places, tuple(order), shared_prefixes(texts)


def micro_batches(lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Groups sequences of similar length.

    Args:
        lengths: Number of tokens of each sequence.
        max_tokens: Most tokens of a group, padding to its longest sequence included; a longer sequence is a group by itself.

    Yields:
        Indices of the sequences in a group, longest first.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    group: list[int] = []
    for i in order:
        # The first of a group is its longest, so this product is its size with padding.
        if group and lengths[group[0]] * (len(group) + 1) > max_tokens:
            yield group
            group = []
        group.append(i)
    if group:
        yield group


def in_groups(lengths: Sequence[int], max_tokens: int, device: torch.device, run: Callable[[list[int]], None]) -> None:
    """Calls `run` with groups of indices as `micro_batches` makes them; a group that does not fit in memory is halved.

    Args:
        lengths: Number of tokens of each sequence.
        max_tokens: Most tokens of a group, padding included.
        device: The device that `run` computes on.
        run: Takes the indices of a group. It is called again with the halves of a group for which it ran out of memory.

    Raises:
        torch.OutOfMemoryError, RuntimeError: a single sequence does not fit, or `run` failed otherwise.
    """
    waiting = list(micro_batches(lengths, max_tokens))[::-1]  # a stack: the longest group is on top
    while waiting:
        group = waiting.pop()
        try:
            run(group)
        except RuntimeError as error:
            if not is_out_of_memory(error) or len(group) == 1:
                raise
            # Both halves wait on the stack, the first on top.
            free_after(error, device)
            logger.warning("%d sequences do not fit in memory at once: they are read in halves.", len(group))
            waiting += [group[len(group) // 2 :], group[: len(group) // 2]]
