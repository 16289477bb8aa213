"""What a bound `TokenRolloutBuffer` asks of a policy after collection: scores of whole segments, in a few large batches."""

from __future__ import annotations

import contextlib
import dataclasses
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agents.distributed import ranks
from agents.policies.critic import Critic
from agents.policies.idle_critic import IdleCritic
from agents.shards import as_often_as_others
from llm_env.lm.packing import PackedBatch, Scored, in_groups, micro_batches, pack, pack_ends
from llm_env.reward.reference import Reference

SCORE_TOKENS = 16_384  # tokens scored at once, padding included
Masks = list[NDArray[np.uint8]] | None  # a segment each, as bits, shape (steps, ⌈V/8⌉)


class ScoresRollouts:
    """The part of `LLMActorCriticPolicy` that scores segments; no gradients."""

    critic: Critic
    idle_critic: IdleCritic
    mixed_precision: str
    device: torch.device

    @abstractmethod
    def _evaluate(self, batch: PackedBatch) -> tuple[Tensor, ...]:
        """Values, log-probs and entropies of a packed batch's tokens, each (n,)."""

    @abstractmethod
    def _packed_hidden(self, batch: PackedBatch) -> Tensor:
        """The actor's hidden states (n, H) that predict the scored tokens."""

    @abstractmethod
    def _log_probs(self, hidden: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Log π of tokens and the entropies, each (n,), from the hidden states (n, H) before them."""

    @abstractmethod
    def _exact_kl(self, batch: PackedBatch, hidden: Tensor, reference: Reference) -> Tensor:
        """KL(π‖π_ref) of the whole distributions before each scored token, (n,)."""

    @abstractmethod
    def compute(self, evaluate: Callable[[PackedBatch], tuple[Tensor, ...]], batch: PackedBatch) -> tuple[Tensor, ...]:
        """`evaluate(batch)`, with the weights at hand."""

    @abstractmethod
    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The precision that training computes in."""

    @property
    def rescores_values(self) -> bool:
        """Whether values while collecting are missing or rounded differently from those in training."""
        return self.critic.reads_text or self.rescores_log_probs or ranks().shards

    @property
    def rescores_log_probs(self) -> bool:
        """Whether log-probs while collecting are rounded differently from those in training."""
        return self.mixed_precision != "no"

    @torch.no_grad()
    def score_segments(
        self, sequences: list[list[int]], scored: Sequence[Scored], masks: Masks = None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Log π and V of every scored token, as training computes them.

        Args:
            sequences: Prompt and response ids.
            scored: For each, which tokens are asked about.
            masks: For each, which tokens might be chosen at each of its steps, as bits; None: all.

        Returns:
            (log π in nats, V in score), flat, sequence by sequence. Where the collected log-probs are exact, zeros
            stand for them: only the critic is asked.
        """

        def score(batch: PackedBatch) -> tuple[Tensor, Tensor]:
            # A critic on the actor's states needs the actor's pass anyway; a network of its own does not.
            if self.rescores_log_probs or not self.critic.reads_text:
                values, log_probs, _ = self._evaluate(batch)
            else:
                with self._autocast():
                    values = self.critic(batch, None)
                log_probs = torch.zeros_like(values)
            return log_probs, values

        with self.idle_critic.asked():
            log_probs, values = self._score_in_groups(score, sequences, scored, masks)
        return log_probs, values

    @torch.no_grad()
    def score_turns(
        self, sequences: list[list[int]], starts: list[int]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Log π and V of turns that somebody else wrote, as training computes them.

        Args:
            sequences: Token ids of each text, its turn included.
            starts: Where each one's turn begins.

        Returns:
            (log π in nats, V in score), flat, sequence by sequence; V is NaN from a critic that reads texts, which the
            buffer asks later.
        """

        def score(batch: PackedBatch) -> tuple[Tensor, Tensor]:
            hidden = self._packed_hidden(batch)
            with self._autocast():
                log_probs, _ = self._log_probs(hidden, batch.targets)
                nan = torch.full_like(log_probs, torch.nan)
                return log_probs, nan if self.critic.reads_text else self.critic(batch, hidden)

        log_probs, values = self._score_in_groups(score, sequences, starts, None)
        return log_probs, values

    @torch.no_grad()
    def exact_kl(
        self, reference: Reference, sequences: list[list[int]], scored: Sequence[Scored], masks: Masks = None
    ) -> NDArray[np.float32]:
        """KL(π‖π_ref) of the whole distributions before every scored token, flat, in nats.

        Args:
            reference: π_ref.
            sequences: Prompt and response ids.
            scored: For each, which tokens are asked about.
            masks: For each, which tokens might be chosen at each of its steps, as bits; None: all.
        """

        def score(batch: PackedBatch) -> tuple[Tensor]:
            with self._autocast():
                return (self._exact_kl(batch, self._packed_hidden(batch), reference),)

        with reference.at_hand():  # once for all groups
            return self._score_in_groups(score, sequences, scored, masks)[0]

    def _score_in_groups(
        self,
        score: Callable[[PackedBatch], tuple[Tensor, ...]],
        sequences: list[list[int]],
        scored: Sequence[Scored],
        masks: Masks,
    ) -> list[NDArray[np.float32]]:
        """Each of `score`'s outputs for all sequences, flat, computed in groups of similar length."""
        parts: list[tuple[Tensor, ...]] = [()] * len(sequences)

        def run(group: list[int]) -> None:
            batch = pack([sequences[i] for i in group], [scored[i] for i in group], self.device)
            if masks is not None:
                # One row for each scored token of the group, in the caller's order. (n, ⌈V/8⌉)
                bits = torch.from_numpy(np.concatenate([masks[i] for i in group]))
                batch = dataclasses.replace(batch, masks=bits.to(self.device))
            # Cut each output at the ends of the sequences, and hand the pieces to their owners.
            columns = [values.cpu().split(batch.counts) for values in self.compute(score, batch)]
            for place, i in enumerate(group):
                parts[i] = tuple(column[place] for column in columns)

        lengths = [len(s) for s in sequences]
        if ranks().shards:  # every rank reads as often as the others, and none halves a group alone
            for group, _ in as_often_as_others(list(micro_batches(lengths, SCORE_TOKENS))):
                run(group)
        else:
            in_groups(lengths, SCORE_TOKENS, self.device, run)
        # Groups were in order of length; the flat arrays are in the order of `sequences`.
        return [torch.cat(column).numpy() for column in zip(*parts, strict=True)]

    @torch.no_grad()
    def state_values(self, sequences: list[list[int]]) -> NDArray[np.float32]:
        """V in score of the state after each sequence, shape (n,)."""
        batch = pack_ends(sequences, self.device)
        with self._autocast(), self.idle_critic.asked():
            values = self.critic(batch, None if self.critic.reads_text else self._packed_hidden(batch))
        return values.cpu().numpy()
