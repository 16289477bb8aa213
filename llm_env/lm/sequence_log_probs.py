"""Log-probabilities of whole sequences under a causal LM, in a few large packed batches."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from llm_env.lm.causal_lm import CausalLM
from llm_env.lm.log_probs import head_log_probs
from llm_env.lm.packed_attention import packed_states
from llm_env.lm.packing import Scored, in_groups, pack, places_in

SCORE_TOKENS = 16_384  # tokens read at once, padding included


def sequence_log_probs(
    lm: CausalLM, sequences: Sequence[Sequence[int]], scored: Sequence[Scored], temperature: float
) -> list[NDArray[np.float32]]:
    """Log π of every scored token, in nats; each sequence is read in one pass.

    Gradients and precision are the caller's: it enters `torch.no_grad` and autocast as it needs them.

    Args:
        lm: The model.
        sequences: Token ids, prompt and response.
        scored: For each sequence, which tokens are scored, none of them the first.
        temperature: Divides the logits.

    Returns:
        For each sequence an array with an entry for each of its scored tokens; empty where nothing is scored.
    """
    results: list[NDArray[np.float32]] = [np.zeros(0, np.float32)] * len(sequences)
    asked = [i for i in range(len(sequences)) if len(places_in(sequences[i], scored[i]))]

    def run(group: list[int]) -> None:
        members = [asked[g] for g in group]
        batch = pack([sequences[i] for i in members], [scored[i] for i in members], lm.device)
        hidden = packed_states(lm.trunk, batch)[batch.index]  # (scored tokens, H)
        log_probs, _ = head_log_probs(lm, hidden, batch.targets, temperature)
        for i, part in zip(members, log_probs.cpu().split(batch.counts), strict=True):
            results[i] = part.numpy()

    in_groups([len(sequences[i]) for i in asked], SCORE_TOKENS, lm.device, run)
    return results
