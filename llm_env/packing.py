"""One causal pass over whole sequences instead of one pass for every token.

Sequences are right-padded without an attention mask: causality alone keeps what stands behind a row's end away from
its real tokens, so every row gets the numbers that it would get alone. The LM head runs on the scored positions only,
in chunks, because a float32 tensor of (tokens, vocabulary) is the memory peak of token-level RL.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from llm_env.models import CausalLM

HEAD_CHUNK_ELEMENTS = 2**25  # logits computed at once: 128 MB in float32


@dataclass(frozen=True)
class PackedBatch:
    """Sequences of which some tokens are scored.

    Shapes: B sequences, T the longest one's tokens, n scored tokens in all, sequence by sequence.
    """

    input_ids: Tensor  # (B, T) long, right-padded with 0
    rows: Tensor  # (n,) long: the sequence of each scored token
    columns: Tensor  # (n,) long: the position that predicts it, one before its own
    targets: Tensor  # (n,) long: the scored tokens
    lengths: Tensor  # (B,) long: tokens of each sequence

    @property
    def device(self) -> torch.device:
        """Where the tensors lie."""
        return self.input_ids.device

    def select(self, hidden: Tensor) -> Tensor:
        """The hidden states (n, H) that predict the scored tokens, out of (B, T, H)."""
        return hidden[self.rows, self.columns]


def pack(sequences: Sequence[Sequence[int]], starts: Sequence[int], device: torch.device | str) -> PackedBatch:
    """Packs sequences whose tokens from `starts` on are scored.

    Args:
        sequences: B token id sequences, prompt and response.
        starts: For each, the index of the first scored token, at least 1.
        device: Where to put the batch.

    Raises:
        ValueError: a start is 0, and nothing precedes the first scored token.
    """
    if any(start < 1 for start in starts):
        raise ValueError("A scored token needs at least one token before it; got a start of 0.")
    lengths = [len(s) for s in sequences]
    ids = torch.zeros(len(sequences), max(lengths), dtype=torch.long)
    for i, sequence in enumerate(sequences):
        ids[i, : lengths[i]] = torch.as_tensor(sequence, dtype=torch.long)
    rows = torch.cat([torch.full((n - s,), i) for i, (n, s) in enumerate(zip(lengths, starts, strict=True))])
    columns = torch.cat([torch.arange(s - 1, n - 1) for n, s in zip(lengths, starts, strict=True)])
    # The last token of a sequence predicts nothing here: it need not be read.
    targets = ids[rows, columns + 1]
    ids = ids[:, : max(1, max(lengths) - 1)]
    parts = (ids, rows, columns, targets, torch.tensor(lengths))
    return PackedBatch(*(part.to(device) for part in parts))


def micro_batches(lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Indices of sequences grouped by similar length, each group at most `max_tokens` with its padding.

    A sequence longer than `max_tokens` makes a group of its own.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    group: list[int] = []
    for i in order:
        if group and lengths[group[0]] * (len(group) + 1) > max_tokens:
            yield group
            group = []
        group.append(i)
    if group:
        yield group


def head_log_probs(
    lm: CausalLM, hidden: Tensor, targets: Tensor, temperature: float, entropy_grad: bool = True
) -> tuple[Tensor, Tensor]:
    """Log π and entropy at single positions, in float32, never with all logits in memory at once.

    Args:
        lm: The model whose head is used.
        hidden: Last hidden states, shape (n, H).
        targets: Tokens taken, shape (n,).
        temperature: Divides the logits: it is part of π.
        entropy_grad: Whether the entropy carries gradients.

    Returns:
        (log π(target), entropy), both (n,), in nats.
    """

    def one_chunk(states: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        logits = lm.logits(states).float() / temperature
        log_normaliser = torch.logsumexp(logits, -1)
        log_prob = logits.gather(-1, tokens[:, None])[:, 0] - log_normaliser
        with torch.set_grad_enabled(entropy_grad and torch.is_grad_enabled()):
            probabilities = torch.exp(logits - log_normaliser[:, None])
            entropy = log_normaliser - (probabilities * logits).sum(-1)
        return log_prob, entropy if entropy_grad else entropy.detach()

    chunk = max(1, HEAD_CHUNK_ELEMENTS // lm.vocab_size)
    if len(targets) <= chunk:
        return one_chunk(hidden, targets)
    log_probs, entropies = [], []
    for states, tokens in zip(hidden.split(chunk), targets.split(chunk), strict=True):
        if torch.is_grad_enabled() and states.requires_grad:  # recompute the logits in the backward pass
            log_prob, entropy = checkpoint(one_chunk, states, tokens, use_reentrant=False)
        else:
            log_prob, entropy = one_chunk(states, tokens)
        log_probs.append(log_prob)
        entropies.append(entropy)
    return torch.cat(log_probs), torch.cat(entropies)
