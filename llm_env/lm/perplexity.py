"""Perplexity of texts under a causal LM."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llm_env.lm.loading import autocast
from llm_env.lm.registry import SharedLM
from llm_env.lm.sequence_log_probs import sequence_log_probs
from llm_env.text.texts import EncodedText


def perplexity(model: SharedLM, texts: Sequence[EncodedText], mixed_precision: str = "no") -> float:
    """Exp of the mean -log π of the texts' learned tokens, at temperature 1.

    Args:
        model: The causal LM, with the tokenizer that encoded the texts.
        texts: Cut on the right where they are longer than the model can read.
        mixed_precision: ``no``, or ``bf16``: the model computes under autocast.

    Raises:
        ValueError: no text has a token to score.
    """
    limit = model.lm.max_positions
    with model.frozen() as lm, autocast(lm.device, mixed_precision):
        scored = sequence_log_probs(lm, [t.ids[:limit] for t in texts], [t.start for t in texts], temperature=1.0)
    flat = np.concatenate([s.astype(np.float64) for s in scored]) if scored else np.zeros(0)
    if not len(flat):
        raise ValueError("texts: none has a token to score.")
    return float(np.exp(-flat.mean()))
