"""Action masks: which tokens the policy may choose from. A mask is part of the policy: what is sampled is what is scored.

Some rules depend on the text so far (top-k, top-p, minimum length), some on the vocabulary alone. Top-k and top-p look at
a model's distribution: the reference's, or that of an older copy of the actor, the learned masking of NLPO (Ramamurthy
et al. 2022, https://arxiv.org/abs/2210.01241). The method `action_masks` of each environment class returns them in the form
that sb3-contrib's MaskablePPO asks for.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llm_env.lm.sampling import restrict, top_k_mask, top_p_mask
from llm_env.settings import TaskSettings


class TokenMasks:
    """The mask rules of a task.

    Args:
        settings: Numbers and tokens of the rules.
        tokenizer: Knows the text of each token.
        eos_ids: End tokens; allowed unless `forbidden_tokens` names them.
        vocab_size: Number of actions V.

    Raises:
        ValueError: a text is not one token, a pattern matches no token, or nothing is left to choose but end tokens.
    """

    def __init__(self, settings: TaskSettings, tokenizer: Any, eos_ids: frozenset[int], vocab_size: int) -> None:
        self.top_k = settings.top_k
        self.top_p = settings.top_p
        self.min_new_tokens = settings.min_new_tokens
        self.vocab_size = vocab_size
        self.eos = np.zeros(vocab_size, dtype=bool)  # (V,)
        self.eos[sorted(i for i in eos_ids if i < vocab_size)] = True
        self.allowed = self._vocabulary(settings, tokenizer)  # (V,), the same at every step
        # End tokens alone would make every response empty, and a minimum length holds even those back.
        if not (self.allowed & ~self.eos).any():
            raise ValueError(
                f"forbidden_tokens={settings.forbidden_tokens!r}, allowed_tokens={settings.allowed_tokens!r} and "
                f"allowed_pattern={settings.allowed_pattern!r} leave no token to choose but an end token."
            )

    @property
    def active(self) -> bool:
        """Whether there is any rule."""
        return self.looks_at_a_model or self.min_new_tokens > 0 or not bool(self.allowed.all())

    @property
    def looks_at_a_model(self) -> bool:
        """Whether a rule needs a model's logits."""
        return 0 < self.top_k < self.vocab_size or self.top_p < 1.0

    def of(self, response_lengths: NDArray[np.int64], logits: Tensor | None) -> NDArray[np.bool_]:
        """Which tokens may come next.

        Args:
            response_lengths: Number of response tokens so far, shape (N,).
            logits: Logits of the model that top-k and top-p look at, divided by the temperature, shape (N, V); needed if
                `looks_at_a_model`.

        Returns:
            Shape (N, V); at least one token is allowed in each row.
        """
        # First the rules of the vocabulary and the minimum length, then top-k, then top-p of what those have left.
        masks = np.repeat(self.allowed[None], len(response_lengths), axis=0)  # (N, V)
        masks[np.asarray(response_lengths) < self.min_new_tokens] &= ~self.eos  # too short to end
        if not self.looks_at_a_model:
            return masks
        assert logits is not None
        allowed = torch.from_numpy(masks).to(logits.device)  # (N, V)
        logits = restrict(logits.float(), allowed)
        if self.top_k:
            allowed &= top_k_mask(logits, self.top_k)
            logits = restrict(logits, allowed)
        if self.top_p < 1.0:
            allowed &= top_p_mask(logits, self.top_p)
        return allowed.cpu().numpy()

    def _vocabulary(self, settings: TaskSettings, tokenizer: Any) -> NDArray[np.bool_]:
        """Tokens that the rules of the vocabulary allow, shape (V,)."""
        allowed = np.ones(self.vocab_size, dtype=bool)
        if settings.allowed_tokens is not None or settings.allowed_pattern is not None:
            # A list of allowed tokens starts from nothing; a response must still be able to end.
            allowed[:] = False
            allowed[token_ids(settings.allowed_tokens or (), tokenizer, self.vocab_size, "allowed_tokens")] = True
            if settings.allowed_pattern is not None:
                allowed |= _matching(settings.allowed_pattern, tokenizer, self.vocab_size)
            allowed |= self.eos
        # Forbidding comes last, so it wins over both kinds of allowing.
        allowed[token_ids(settings.forbidden_tokens or (), tokenizer, self.vocab_size, "forbidden_tokens")] = False
        return allowed


def token_ids(tokens: Sequence[str | int], tokenizer: Any, vocab_size: int, setting: str) -> list[int]:
    """Ids of tokens that a user named by number or by text.

    Args:
        tokens: Ids, or texts of exactly one token.
        tokenizer: Encodes the texts.
        vocab_size: Number of actions V.
        setting: The setting that they come from, for error messages.

    Raises:
        ValueError: a number is not a token's, or a text is not one token.
    """
    ids: list[int] = []
    for token in tokens:
        if isinstance(token, str):
            encoded = tokenizer.encode(token, add_special_tokens=False)
            if len(encoded) != 1:
                pieces = tokenizer.convert_ids_to_tokens(encoded)
                raise ValueError(
                    f"{setting}: {token!r} is {len(encoded)} tokens here ({', '.join(map(repr, pieces))}); name single ones. "
                    "A word inside a text often begins with its space: ' word'."
                )
            ids.append(int(encoded[0]))
        # A bool would pass for an int: True is 1 in Python.
        elif isinstance(token, bool) or not 0 <= int(token) < vocab_size:
            raise ValueError(f"{setting}: {token!r} is not a token; tokens are 0 … {vocab_size - 1}.")
        else:
            ids.append(int(token))
    return ids


def _matching(pattern: str, tokenizer: Any, vocab_size: int) -> NDArray[np.bool_]:
    """Tokens whose whole text matches a regular expression; special tokens have no text."""
    rule = re.compile(pattern)  # `TaskSettings` has checked that it is one
    special = set(tokenizer.all_special_ids)
    ids = [i for i in range(min(vocab_size, len(tokenizer))) if i not in special]
    # One token each; clean-up would drop spaces before punctuation, which are part of a token's text.
    texts = tokenizer.batch_decode([[i] for i in ids], clean_up_tokenization_spaces=False)
    matches = np.zeros(vocab_size, dtype=bool)
    matches[[i for i, text in zip(ids, texts, strict=True) if rule.fullmatch(text)]] = True
    if not matches.any():
        raise ValueError(
            f"allowed_pattern={pattern!r} matches no token; it is compared with each token's whole text, as ' word'."
        )
    return matches
