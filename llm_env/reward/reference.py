"""Log-probabilities under the frozen reference model π_ref."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from llm_env.lm.causal_lm import CausalLM
from llm_env.lm.decoding import CachedDecoder
from llm_env.lm.loading import autocast
from llm_env.lm.log_probs import head_log_probs
from llm_env.lm.packing import Scored
from llm_env.lm.registry import SharedLM
from llm_env.lm.sequence_log_probs import sequence_log_probs


class Reference:
    """Log-probabilities under a frozen causal LM.

    Args:
        shared: The reference model.
        temperature: Divides the logits, as it divides the policy's: the KL compares distributions at one temperature.
        mixed_precision: ``no`` or ``bf16``, the same as the policy's, so that equal weights give equal log-probs.

    Attributes:
        version: Rises when the weights change, which happens only where a run refreshes its reference.
    """

    def __init__(self, shared: SharedLM, temperature: float, mixed_precision: str = "no") -> None:
        self.shared = shared
        self.temperature = temperature
        self.mixed_precision = mixed_precision
        self.version = 0

    @contextlib.contextmanager
    def frozen(self) -> Iterator[CausalLM]:
        """The model for the duration of a `with` block: no gradients, adapters off, autocast as set."""
        with self.shared.frozen() as lm, autocast(lm.device, self.mixed_precision):
            yield lm

    def at_hand(self) -> contextlib.AbstractContextManager[None]:
        """The model on its device for the duration of a `with` block, in which it is asked several times."""
        return self.shared.at_hand()

    def log_probs(self, sequences: Sequence[Sequence[int]], scored: Sequence[Scored]) -> list[NDArray[np.float32]]:
        """Log π_ref of every scored token, in nats; each sequence is read in one pass.

        Args:
            sequences: Prompt and response ids.
            scored: For each sequence, which tokens are scored, none of them the first.

        Returns:
            For each sequence an array with an entry for each of its scored tokens.
        """
        with self.frozen() as lm:
            return sequence_log_probs(lm, sequences, scored, self.temperature)


class StepwiseReference:
    """Log-probabilities under the reference, one token at a time for N growing prefixes, with a decoding cache.

    Args:
        reference: The reference model and its temperature.
        max_length: Longest prefix, in tokens.
    """

    def __init__(self, reference: Reference, max_length: int) -> None:
        self.reference = reference
        self.max_length = max_length
        self.decoder = CachedDecoder(reference.shared.lm, max_length)
        self._version = reference.version

    def _current_decoder(self) -> CachedDecoder:
        if self._version != self.reference.version:  # the weights have changed, so everything in the cache is stale
            self.decoder = CachedDecoder(self.reference.shared.lm, self.max_length)
            self._version = self.reference.version
        return self.decoder

    def logits(self, input_ids: NDArray[np.int64], lengths: NDArray[np.int64]) -> torch.Tensor:
        """The next token's logits, divided by the temperature, after each prefix that is not idle.

        Args:
            input_ids: Right-padded prefixes, shape (N, L).
            lengths: Tokens of each prefix, shape (N,); 0 for idle rows.

        Returns:
            Shape (busy rows, V), float32.
        """
        with self.reference.frozen() as lm:
            busy = np.flatnonzero(lengths)
            hidden = self._current_decoder().hidden(torch.from_numpy(input_ids), torch.from_numpy(lengths))  # (N, H)
            return lm.logits(hidden[busy]).float() / self.reference.temperature

    def log_probs(
        self, input_ids: NDArray[np.int64], lengths: NDArray[np.int64], actions: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Log π_ref of each action after its prefix, in nats.

        Args:
            input_ids: Right-padded prefixes, shape (N, L).
            lengths: Tokens of each prefix, shape (N,); 0 for idle rows, which get 0.
            actions: Next tokens, shape (N,).

        Returns:
            Shape (N,), float64.
        """
        result = np.zeros(len(lengths))
        busy = np.flatnonzero(lengths)
        if not len(busy):
            return result
        with self.reference.frozen() as lm:
            # The head reads busy rows only. (busy, H)
            hidden = self._current_decoder().hidden(torch.from_numpy(input_ids), torch.from_numpy(lengths))[busy]
            tokens = torch.as_tensor(actions[busy], device=lm.device)
            log_probs, _ = head_log_probs(lm, hidden, tokens, self.reference.temperature)
        result[busy] = log_probs.double().cpu().numpy()
        return result
