"""PPO-ptx: a language model's loss on texts, mixed into the update."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from agents.distributed import ranks
from agents.rules import check_arguments
from llm_env.lm.packing import PackedBatch, pack
from llm_env.text.prompts import PromptOrder
from llm_env.text.texts import EncodedText


class PretrainingMix:
    """Texts whose language-model loss each mini-batch's loss is mixed with.

    Eq. 2 of Ouyang et al. 2022, "InstructGPT" (https://arxiv.org/abs/2203.02155): the loss gets γ · mean(-log π(token)) over
    other texts.

    Args:
        texts: Encoded texts; one longer than `tokens` or `limit` is cut.
        coef: γ, above 0.
        tokens: Tokens read with each mini-batch, at least 2.
        seed: Of the order of the texts.
        limit: Tokens of a text that the model can read; None: any number.

    Raises:
        ValueError: there are no texts, or a number breaks its rule.
    """

    def __init__(
        self, texts: list[EncodedText], coef: float, tokens: int, seed: int = 0, limit: int | None = None
    ) -> None:
        check_arguments({"ptx_coef": coef, "ptx_tokens": tokens})
        if not texts:
            raise ValueError("ptx_texts holds no text.")
        # A text whose prompt alone is as long as what is read has nothing left to learn.
        most = min(tokens, limit or tokens)
        self.texts = [EncodedText(t.ids[:most], t.start) for t in texts if t.start < min(len(t.ids), most)]
        if not self.texts:
            raise ValueError(f"ptx_texts: no text has a token to learn within {most} tokens; ptx_tokens={tokens}.")
        self.coef = coef
        self.tokens = tokens
        self.order = PromptOrder(len(self.texts), np.random.default_rng(seed))
        """Which texts come next; a checkpoint keeps it."""

    def next_batch(self, device: torch.device) -> PackedBatch:
        """The next texts, at least one and about `tokens` tokens of them, laid end to end.

        Of several processes each reads every world-th of them; one that gets none reads the first one, with a share of 0.
        """
        chosen: list[EncodedText] = []
        room = self.tokens
        # Until the tokens are used up, or each text is in once; the last one may go beyond.
        while not chosen or (room > 0 and len(chosen) < len(self.texts)):
            chosen.append(self.texts[self.order.next()])
            room -= len(chosen[-1].ids)
        mine = chosen[ranks().rank :: ranks().world]
        share = sum(len(t.ids) - t.start for t in mine) / sum(len(t.ids) - t.start for t in chosen)
        read = mine or chosen[:1]
        packed = pack([t.ids for t in read], [t.start for t in read], device)
        return dataclasses.replace(packed, share=share, policy_share=share)
