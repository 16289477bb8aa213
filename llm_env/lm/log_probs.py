"""The LM head on single positions: log-probabilities and entropies, never with all logits in memory at once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from llm_env.lm.causal_lm import CausalLM
from llm_env.lm.sampling import restrict, unpack_bits

HEAD_CHUNK_ELEMENTS = 2**25  # logits computed at once: 128 MB in float32


class _LogProbs(torch.autograd.Function):
    """Log π of one token a row, and the entropy as a figure, in as few passes over the logits as they take.

    ∂ log π(a) / ∂ logit_v = 1[v = a] - π(v): the probabilities are all that the gradient needs, and become it in place.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        scaled = logits.float()
        if temperature != 1.0:
            scaled = scaled / temperature
        highest = scaled.amax(-1, keepdim=True)
        weights = (scaled - highest).exp_()  # π up to a factor
        total = weights.sum(-1)
        log_normaliser = total.log() + highest[:, 0]
        log_prob = scaled.gather(-1, targets[:, None])[:, 0] - log_normaliser
        with torch.autocast(logits.device.type, enabled=False):  # it would round both factors to bf16
            mean_logit = torch.bmm(weights[:, None], scaled[:, :, None])[:, 0, 0] / total
        ctx.save_for_backward(weights, total, targets)
        ctx.temperature, ctx.dtype = temperature, logits.dtype
        entropy = log_normaliser - mean_logit
        ctx.mark_non_differentiable(entropy)
        return log_prob, entropy

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        weights, total, targets = ctx.saved_tensors
        grad = grad / ctx.temperature
        grad_logits = weights.mul_((-grad / total)[:, None])
        grad_logits[torch.arange(len(targets), device=grad.device), targets] += grad
        return grad_logits.to(ctx.dtype), None, None


def _plain(logits: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """The same in operations that can be derived any number of times; the entropy too."""
    scaled = logits.float() / temperature
    log_normaliser = torch.logsumexp(scaled, -1)
    log_prob = scaled.gather(-1, targets[:, None])[:, 0] - log_normaliser
    probabilities = torch.exp(scaled - log_normaliser[:, None])
    return log_prob, log_normaliser - (probabilities * scaled).sum(-1)


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
        entropy_grad: Whether the entropy carries gradients.
        fused: False takes operations whose gradient has a gradient.
        masks: Which tokens may be chosen at each position, as bits (`llm_env.lm.sampling.pack_bits`), shape (n, ⌈V/8⌉);
            None: all.

    Returns:
        (log π(target), entropy), both (n,), in nats.
    """

    def one_chunk(states: Tensor, tokens: Tensor, bits: Tensor | None = None) -> tuple[Tensor, Tensor]:
        logits = lm.logits(states)
        if bits is not None:
            logits = restrict(logits.float(), unpack_bits(bits, lm.vocab_size))
        if fused and not entropy_grad:
            return _LogProbs.apply(logits, tokens, temperature)  # type: ignore[no-untyped-call]
        log_prob, entropy = _plain(logits, tokens, temperature)
        return log_prob, entropy if entropy_grad else entropy.detach()

    chunk = max(1, HEAD_CHUNK_ELEMENTS // lm.vocab_size)
    if len(targets) <= chunk:
        return one_chunk(hidden, targets, masks)
    log_probs, entropies = [], []
    bits_of = [None] * -(-len(targets) // chunk) if masks is None else masks.split(chunk)
    for states, tokens, bits in zip(hidden.split(chunk), targets.split(chunk), bits_of, strict=True):
        if torch.is_grad_enabled() and states.requires_grad:  # recompute the logits in the backward pass
            log_prob, entropy = checkpoint(one_chunk, states, tokens, bits, use_reentrant=False)
        else:
            log_prob, entropy = one_chunk(states, tokens, bits)
        log_probs.append(log_prob)
        entropies.append(entropy)
    return torch.cat(log_probs), torch.cat(entropies)


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
        hidden: Its last hidden states, shape (n, H).
        ref_lm: The reference.
        ref_hidden: Its last hidden states at the same positions, shape (n, H').
        temperature: Divides both models' logits.
        masks: Which tokens π may choose, as bits, shape (n, ⌈V/8⌉); None: all.
        forward: The other direction, KL(π_ref‖π); without masks, which would make it infinite.

    Returns:
        Nats, at least 0 up to rounding, shape (n,).
    """

    def one_chunk(states: Tensor, ref_states: Tensor, bits: Tensor | None = None) -> Tensor:
        logits = lm.logits(states).float() / temperature
        if bits is not None:
            logits = restrict(logits, unpack_bits(bits, lm.vocab_size))
        log_pi = torch.log_softmax(logits, -1)
        with torch.no_grad():
            log_ref = torch.log_softmax(ref_lm.logits(ref_states).float() / temperature, -1)
        if forward:
            return (log_ref.exp() * (log_ref - log_pi)).sum(-1)
        pi = log_pi.exp()
        return torch.where(pi > 0, pi * (log_pi - log_ref), 0.0).sum(-1)

    chunk = max(1, HEAD_CHUNK_ELEMENTS // lm.vocab_size // 4)  # four tensors of that size are alive at once
    if len(hidden) <= chunk:
        return one_chunk(hidden, ref_hidden, masks)
    bits_of = [None] * -(-len(hidden) // chunk) if masks is None else masks.split(chunk)
    parts = []
    for states, ref_states, bits in zip(hidden.split(chunk), ref_hidden.split(chunk), bits_of, strict=True):
        if torch.is_grad_enabled() and states.requires_grad:
            parts.append(checkpoint(one_chunk, states, ref_states, bits, use_reentrant=False))
        else:
            parts.append(one_chunk(states, ref_states, bits))
    return torch.cat(parts)
