"""The LM head on single positions: log-probabilities and entropies, never with all logits in memory at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from llm_env.lm.causal_lm import CausalLM
from llm_env.lm.sampling import restrict, unpack_bits

T = TypeVar("T")

HEAD_CHUNK_ELEMENTS = 2**25  # logits computed at once: 128 MB in float32


class FusedLogProbs(torch.autograd.Function):
    """Log π of one token a row, and the entropy without its gradient, in as few passes over the logits as possible.

    ∂ log π(a) / ∂ logit_v = 1[v = a] - π(v): the gradient needs the probabilities only, and is written over them. A second
    backward pass through the same graph therefore raises.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """Logits (n, V) and tokens (n,) to log π(token) and entropy, both (n,), in nats."""
        scaled = logits.float()
        if temperature != 1.0:
            scaled = scaled / temperature
        # Unnormalized probabilities, and their sum: together they are all that both results and the gradient need.
        highest = scaled.amax(-1, keepdim=True)  # (n, 1)
        weights = (scaled - highest).exp_()  # (n, V)
        total = weights.sum(-1)  # (n,)
        log_normalizer = total.log() + highest[:, 0]
        log_prob = scaled.gather(-1, targets[:, None])[:, 0] - log_normalizer
        # entropy = log Z - E[logit]; the expectation is a product of rows, which autocast would round to bf16
        with torch.autocast(logits.device.type, enabled=False):
            mean_logit = torch.bmm(weights[:, None], scaled[:, :, None])[:, 0, 0] / total
        ctx.save_for_backward(weights, total, targets)
        ctx.temperature, ctx.dtype = temperature, logits.dtype
        entropy = log_normalizer - mean_logit
        ctx.mark_non_differentiable(entropy)
        return log_prob, entropy

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        """Gradient of the loss in log π, shape (n,), to its gradient in the logits, shape (n, V)."""
        weights, total, targets = ctx.saved_tensors
        grad = grad / ctx.temperature
        # 1[v = a] - π(v), times the incoming gradient, written over the saved probabilities
        grad_logits = weights.mul_((-grad / total)[:, None])  # (n, V)
        grad_logits[torch.arange(len(targets), device=grad.device), targets] += grad
        return grad_logits.to(ctx.dtype), None, None


def _plain(logits: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """As `FusedLogProbs`, from operations that can be differentiated any number of times; so can the entropy."""
    scaled = logits.float() / temperature
    log_normalizer = torch.logsumexp(scaled, -1)
    log_prob = scaled.gather(-1, targets[:, None])[:, 0] - log_normalizer
    probabilities = torch.exp(scaled - log_normalizer[:, None])
    return log_prob, log_normalizer - (probabilities * scaled).sum(-1)


def _in_chunks(
    compute: Callable[[Tensor, Tensor, Tensor | None], T],
    rows: int,
    hidden: Tensor,
    other: Tensor,
    masks: Tensor | None,
) -> list[T]:
    """Results of `compute` on chunks of positions, so that only one chunk's logits are in memory at once.

    Args:
        compute: Takes hidden states, what belongs to them, and mask bits; every one may have up to `rows` rows.
        rows: Positions in a chunk.
        hidden: Last hidden states of the policy, shape (n, H).
        other: What belongs to each position, first dimension n.
        masks: Mask bits, shape (n, ⌈V/8⌉), or None.
    """
    if len(hidden) <= rows:
        return [compute(hidden, other, masks)]
    parts = []
    bits_of = [None] * -(-len(hidden) // rows) if masks is None else masks.split(rows)
    for states, others, bits in zip(hidden.split(rows), other.split(rows), bits_of, strict=True):
        if torch.is_grad_enabled() and states.requires_grad:
            # Logits are not kept for the backward pass: it computes them again, chunk by chunk.
            parts.append(checkpoint(compute, states, others, bits, use_reentrant=False))
        else:
            parts.append(compute(states, others, bits))
    return parts


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(tuple(parts))


def head_log_probs(
    lm: CausalLM,
    hidden: Tensor,
    targets: Tensor,
    temperature: float,
    entropy_grad: bool = False,
    fused: bool = True,
    masks: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Log π and entropy at single positions, in float32.

    Args:
        lm: The model whose head is used.
        hidden: Last hidden states, shape (n, H).
        targets: Tokens taken, shape (n,).
        temperature: Divides the logits: it is part of π.
        entropy_grad: Whether the entropy carries gradients, as an entropy bonus in a loss needs them.
        fused: True takes `FusedLogProbs`; False takes operations whose gradient has a gradient, as TRPO needs them.
        masks: Which tokens may be chosen at each position, as bits (`llm_env.lm.sampling.pack_bits`), shape (n, ⌈V/8⌉).
            None: all tokens.

    Returns:
        (log π(target), entropy), both (n,), in nats.
    """

    def one_chunk(states: Tensor, tokens: Tensor, bits: Tensor | None) -> tuple[Tensor, Tensor]:
        logits = lm.logits(states)
        if bits is not None:
            logits = restrict(logits.float(), unpack_bits(bits, lm.vocab_size))
        if fused and not entropy_grad:
            return FusedLogProbs.apply(logits, tokens, temperature)  # type: ignore[no-untyped-call]
        log_prob, entropy = _plain(logits, tokens, temperature)
        return log_prob, entropy if entropy_grad else entropy.detach()

    rows = max(1, HEAD_CHUNK_ELEMENTS // lm.vocab_size)
    log_probs, entropies = zip(*_in_chunks(one_chunk, rows, hidden, targets, masks), strict=True)
    return _joined(log_probs), _joined(entropies)


def head_kl(
    lm: CausalLM,
    hidden: Tensor,
    ref_lm: CausalLM,
    ref_hidden: Tensor,
    temperature: float,
    masks: Tensor | None = None,
    forward: bool = False,
) -> Tensor:
    """KL(π‖π_ref) of the whole next-token distributions at single positions, in float32; differentiable in π.

    Σ_a π(a) (log π(a) - log π_ref(a)): the expectation of k1 over the token, given what precedes it, and so of lower
    variance than k1 on the token drawn (Rao-Blackwell; Amini et al. 2025, https://arxiv.org/abs/2504.10637).

    Args:
        lm: The policy's model.
        hidden: Last hidden states of the policy's model, shape (n, H).
        ref_lm: The reference model.
        ref_hidden: Last hidden states of the reference at the same positions, shape (n, H').
        temperature: Divides the logits of both models.
        masks: Which tokens π may choose, as bits, shape (n, ⌈V/8⌉). None: all tokens.
        forward: Whether to take the other direction, KL(π_ref‖π); not with masks, which would make it infinite.

    Returns:
        Nats, at least 0 up to rounding, shape (n,).
    """

    def one_chunk(states: Tensor, ref_states: Tensor, bits: Tensor | None) -> Tensor:
        logits = lm.logits(states).float() / temperature
        if bits is not None:
            logits = restrict(logits, unpack_bits(bits, lm.vocab_size))
        log_pi = torch.log_softmax(logits, -1)  # (chunk, V), in nats
        with torch.no_grad():
            log_ref = torch.log_softmax(ref_lm.logits(ref_states).float() / temperature, -1)
        if forward:
            return (log_ref.exp() * (log_ref - log_pi)).sum(-1)
        pi = log_pi.exp()
        # 0 · log 0 counts as 0, for forbidden tokens too.
        return torch.where(pi > 0, pi * (log_pi - log_ref), 0.0).sum(-1)

    rows = max(1, HEAD_CHUNK_ELEMENTS // lm.vocab_size // 4)  # four tensors of that size are alive at once
    return _joined(_in_chunks(one_chunk, rows, hidden, ref_hidden, masks))
