"""Perplexity of texts under a causal LM."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llm_env.lm.registry import SharedLM
from llm_env.reward.reference import Reference
from llm_env.text.texts import EncodedText


def perplexity(model: SharedLM, texts: Sequence[EncodedText], mixed_precision: str = "no") -> float:
    """Exp of the mean -log π of the texts' learned tokens, at temperature 1.

    Args:
        model: Whose.
        texts: Cut on the right where they are longer than the model can read.
        mixed_precision: ``no`` or ``bf16``.

    Raises:
        ValueError: no text has a token to score.
    """
    limit = model.lm.max_positions
    scored = Reference(model, 1.0, mixed_precision).log_probs([t.ids[:limit] for t in texts], [t.start for t in texts])
    flat = np.concatenate([s.astype(np.float64) for s in scored]) if scored else np.zeros(0)
    if not len(flat):
        raise ValueError("texts: none has a token to score.")
    return float(np.exp(-flat.mean()))
