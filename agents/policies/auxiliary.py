"""Further terms of the loss, under stock `train` methods: they ride on a tensor that the loss is made of.

`PPO.train` and `A2C.train` form their loss themselves and call `backward`. A term that they do not know joins there:
`ride` returns its tensor unchanged, and adds the gradient of the term, with weight 1, when the gradient of that tensor is
due. It is added before the gradients are clipped, as if it stood in the loss.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from agents.algorithms.losses import k3_penalty
from llm_env.lm.causal_lm import CausalLM
from llm_env.lm.log_probs import head_log_probs
from llm_env.lm.packed_attention import packed_states
from llm_env.lm.packing import PackedBatch, pack
from llm_env.text.prompts import PromptOrder
from llm_env.text.texts import EncodedText


class _Ride(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, carrier: Tensor, term: Tensor) -> Tensor:
        ctx.term = term.new_ones(())
        return carrier.view_as(carrier)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return grad, ctx.term


def ride(carrier: Tensor, term: Tensor) -> Tensor:
    """`carrier`, whose backward pass also brings the gradient of `term`, a scalar."""
    return _Ride.apply(carrier, term)  # type: ignore[no-untyped-call]


def kl_loss(batch: PackedBatch, log_probs: Tensor, exact: Tensor | None, estimator: str) -> Tensor:
    """The KL to the reference as a term of the loss: mean over the tokens of the batch, in nats, before β.

    The gradients differ from those of the same estimator in the reward. On samples of π, that of k2 is the KL's gradient
    token by token; k3's is it up to second order; k1's is 0 in expectation (Tang and Munos 2025,
    https://arxiv.org/abs/2506.09477). That of the exact KL has no sampling noise of the token itself.

    Args:
        batch: With `ref_log_probs`.
        log_probs: log π of the tokens, in nats, shape (n,), with gradients.
        exact: KL of the whole distributions, shape (n,), with gradients, for ``exact``.
        estimator: ``k1``, ``k2``, ``k3`` or ``exact``.
    """
    if estimator == "exact":
        assert exact is not None
        return exact.mean()
    assert batch.ref_log_probs is not None
    if estimator == "k3":
        return k3_penalty(log_probs, batch.ref_log_probs).mean()
    difference = log_probs - batch.ref_log_probs
    return difference.mean() if estimator == "k1" else (difference**2 / 2).mean()


class PretrainingMix:
    """PPO-ptx: the language-model loss on texts, for the update to be mixed with.

    Eq. 2 of Ouyang et al. 2022, "InstructGPT" (https://arxiv.org/abs/2203.02155): each mini-batch's loss gets
    γ · mean(-log π(token)) over other texts.

    Args:
        texts: Encoded texts; one longer than `tokens` is cut.
        coef: γ.
        tokens: Tokens read with each mini-batch.
        seed: Of the order of the texts.

    Raises:
        ValueError: there are no texts, γ is not above 0, or `tokens` is below 2.
    """

    def __init__(self, texts: list[EncodedText], coef: float, tokens: int, seed: int = 0) -> None:
        if not coef > 0:
            raise ValueError(f"ptx_coef={coef} must be above 0.")
        if tokens < 2:
            raise ValueError(f"ptx_tokens={tokens} must be at least 2.")
        if not texts:
            raise ValueError("ptx_texts holds no text.")
        self.texts = [EncodedText(t.ids[:tokens], t.start) for t in texts if t.start < min(len(t.ids), tokens)]
        if not self.texts:
            raise ValueError(f"ptx_texts: no text has a token to learn within ptx_tokens={tokens}.")
        self.coef = coef
        self.tokens = tokens
        self.order = PromptOrder(len(self.texts), np.random.default_rng(seed))

    def loss(self, lm: CausalLM) -> Tensor:
        """Mean -log π of the next texts' tokens, in nats, at temperature 1, before γ."""
        chosen: list[EncodedText] = []
        room = self.tokens
        while not chosen or (room > 0 and len(chosen) < len(self.texts)):
            chosen.append(self.texts[self.order.next()])
            room -= len(chosen[-1].ids)
        batch = pack([t.ids for t in chosen], [t.start for t in chosen], lm.device)
        hidden = packed_states(lm.trunk, batch)[batch.index]
        return -head_log_probs(lm, hidden, batch.targets, temperature=1.0)[0].mean()
