"""How an actor-critic policy acts: the next tokens, from a cache or from what was written ahead."""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from typing import Any

import torch
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import Tensor

from agents.distributed import ranks
from agents.engines.ahead import EngineWriter, Score
from agents.policies.actor import Actor
from agents.policies.critic import Critic
from agents.policies.decoding_copy import merged_parameters
from agents.policies.idle_critic import IdleCritic
from agents.policies.observations import sequences_of, split_observation
from agents.policies.plan import Foresee, Step
from agents.policies.planner import Planner
from agents.policies.sampled_actions import ActionTensor
from agents.policies.settings import PolicySettings
from llm_env.lm.causal_lm import CausalLM
from llm_env.lm.packing import PackedBatch, pack_ends
from llm_env.lm.sampling import choose_tokens, draw, restrict
from llm_env.lm.writer import Outlook, Writer, Written


class ActsOnText:
    """The part of `LLMActorCriticPolicy` that acts."""

    settings: PolicySettings
    temperature: float
    defer_values: bool
    device: torch.device
    lm: CausalLM
    critic: Critic
    idle_critic: IdleCritic
    _acting: Actor
    _planner: Planner
    _writes: Writer | None
    _engine: EngineWriter | None
    score_turns: Score  # the part that scores rollouts has it

    @abstractmethod
    def _packed_hidden(self, batch: PackedBatch) -> Tensor:
        """The actor's hidden states (n, H) that predict the scored tokens."""

    @abstractmethod
    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The precision that training computes in."""

    def forward(
        self, obs: PyTorchObs, deterministic: bool = False, allowed: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Samples the next tokens.

        Args:
            obs: Dictionary of ``input_ids`` (N, L) and ``length`` (N, 1).
            deterministic: Take the likeliest token.
            allowed: Which tokens may be chosen, boolean, shape (N, V); None: all.

        Returns:
            Actions (N,), which carry their log-probs to the environment; values (N, 1), NaN under `defer_values`;
            log-probs (N,), in nats. Idle rows get 0.
        """
        ids, lengths = split_observation(obs)
        step = None
        if not (deterministic or torch.is_grad_enabled()) and self._can_plan():
            step = self._planner.next(ids, lengths, allowed)
        actions, values, log_probs = self._step(ids, lengths, allowed, deterministic) if step is None else step
        return ActionTensor.carry(actions, log_probs, self.temperature), values, log_probs

    @property
    def engine(self) -> str | None:
        """The engine that writes turns ahead; None: this project's own loop."""
        return self.settings.engine

    def foresee_with(self, foresee: Foresee) -> None:
        """Tells the policy whom to ask what comes, so that it can write turns ahead; a bound buffer does so."""
        self._planner.foresee = foresee

    def _can_plan(self) -> bool:
        """Whether turns are written ahead, which takes a cache, and a critic that need not read each prefix now."""
        needs_texts = self.critic.reads_text and not self.defer_values
        return self.settings.planned and not needs_texts and (self._acting.decoder.ready() or self.engine is not None)

    def _write_ahead(self, ids: Tensor, lengths: Tensor, outlook: Outlook) -> Written:
        """Writes as far as can be foreseen, with a random number for each step and slot; or has an engine write."""
        if self.engine is not None:
            return self._engine_writer(self.engine).write(ids, lengths, outlook)
        before = torch.get_rng_state()
        drawn = draw(outlook.steps, len(lengths))
        with self._autocast():
            written = self._writer().write(ids, lengths, outlook, drawn)
        # Numbers of steps that were not needed are still to be drawn by whoever comes next.
        if len(written.actions) < outlook.steps:
            torch.set_rng_state(before)
            draw(len(written.actions), len(lengths))
        return written

    def _step(self, ids: Tensor, lengths: Tensor, allowed: Tensor | None, deterministic: bool = False) -> Step:
        """Actions (N,), values (N, 1) and log-probs (N,) after prefixes (N, L) of the lengths given (N,)."""
        if not torch.is_grad_enabled() and lengths.any() and self._acting.decoder.ready():
            actions, values, log_probs = self._write_one(ids, lengths, allowed, deterministic)
            return actions, self._values(None, ids, lengths) if self.critic.reads_text else values[:, None], log_probs
        hidden = self._last_hidden(ids, lengths)  # (N, H)
        actions, log_probs = self._sample(hidden, lengths, deterministic, allowed)
        return actions, self._values(hidden, ids, lengths), log_probs

    def _write_one(self, ids: Tensor, lengths: Tensor, allowed: Tensor | None, deterministic: bool) -> Step:
        """Actions, values and log-probs of one step, all (N,), in the same way as `_write_ahead`."""
        busy = (lengths > 0).long().cpu()
        outlook = Outlook(1, busy, torch.zeros(self.lm.vocab_size, dtype=torch.bool), goes_on=False)
        drawn = None if deterministic else draw(1, len(lengths))
        with self._autocast():
            written = self._writer().write(ids.cpu(), lengths.cpu(), outlook, drawn, allowed)
        return written.actions[0], written.values[0], written.log_probs[0]

    def _writer(self) -> Writer:
        """What writes on with the decoder that there is."""
        decoder = self._acting.decoder
        if self._writes is None or self._writes.decoder is not decoder or self._writes.device != decoder.lm.device:
            self._writes = Writer(decoder, self._choose)
        return self._writes

    def _engine_writer(self, name: str) -> EngineWriter:
        """What writes with an engine and the model that acts."""
        decoder = self._acting.decoder
        lm = decoder.lm
        if self._engine is None or self._engine.lm is not lm or self._engine.device != lm.device:
            self._engine = EngineWriter(
                name, lm, decoder.max_length, self.temperature, lambda: merged_parameters(lm.model), self.score_turns
            )
        return self._engine

    def engine_metrics(self) -> dict[str, float]:
        """The log's values of what an engine wrote since the last call; see `agents.engines.ahead.Mismatch`."""
        return {} if self._engine is None else self._engine.mismatch.take()

    def _choose(self, hidden: Tensor, drawn: Tensor | None, allowed: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens, their log-probs and, from a critic on the actor's states, values, all (R,), from hidden states (R, H)."""
        logits = self._acting.decoder.lm.logits(hidden).float()
        logits = logits if self.temperature == 1.0 else logits / self.temperature
        tokens, log_probs = choose_tokens(logits if allowed is None else restrict(logits, allowed), drawn)
        if self.critic.reads_text or ranks().shards:
            return tokens, log_probs, torch.full_like(log_probs, torch.nan)
        return tokens, log_probs, self.critic(None, hidden)

    @torch.no_grad()
    def _predict(self, observation: PyTorchObs, deterministic: bool = False, allowed: Tensor | None = None) -> Tensor:
        """The next tokens (N,), among those allowed (N, V), which carry their log-probs; the critic is not asked."""
        ids, lengths = split_observation(observation)
        if lengths.any() and self._acting.decoder.ready():
            actions, _, log_probs = self._write_one(ids, lengths, allowed, deterministic)
        else:
            actions, log_probs = self._sample(self._last_hidden(ids, lengths), lengths, deterministic, allowed)
        return ActionTensor.carry(actions, log_probs, self.temperature)

    def _sample(
        self, hidden: Tensor, lengths: Tensor, deterministic: bool, allowed: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Tokens and their log-probs, both (N,), from hidden states (N, H) without a cache; idle rows cost no head."""
        busy = lengths > 0
        actions, log_probs = torch.zeros_like(lengths), torch.zeros(len(lengths), device=lengths.device)
        if busy.any():
            # Rows of ended episodes have length 0 in synchronous environments. (busy, V)
            logits = self._logits(hidden[busy], self._acting_lm())
            drawn = None if deterministic else draw(len(lengths)).to(logits.device)[busy]
            logits = logits if allowed is None else restrict(logits, allowed[busy])
            actions[busy], log_probs[busy] = choose_tokens(logits, drawn)
        return actions, log_probs

    def _values(self, hidden: Tensor | None, ids: Tensor, lengths: Tensor) -> Tensor:
        """V at each row's last token, (N, 1), float32; 0 for idle rows, NaN where the critic is not asked now."""
        # The buffer asks for these later, in one batch for the whole rollout; in shards a head cannot be asked alone either.
        if (self.critic.reads_text and self.defer_values) or ranks().shards:
            return torch.full((len(lengths), 1), torch.nan, device=self.device)
        with self._autocast(), self.idle_critic.asked():
            # Idle rows are read as one token, and their values set to 0. (N,)
            batch = pack_ends(sequences_of(ids, lengths), ids.device) if self.critic.reads_text else None
            values = self.critic(batch, hidden)
        return (values * (lengths > 0))[:, None]

    def _last_hidden(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """The actor's hidden state at each row's last token, (N, H): from the cache, or afresh where gradients are due."""
        with self._autocast():
            # Cached keys and values have no gradients.
            if torch.is_grad_enabled():
                return self._fresh_hidden(ids, lengths)
            return self._acting.decoder.hidden(ids, lengths)

    def _fresh_hidden(self, ids: Tensor, lengths: Tensor) -> Tensor:
        return self._packed_hidden(pack_ends(sequences_of(ids, lengths), ids.device)) * (lengths > 0)[:, None]

    def _acting_lm(self) -> CausalLM:
        """The model that `_last_hidden` asks, whose head goes with its states."""
        return self.lm if torch.is_grad_enabled() else self._acting.decoder.lm

    def _logits(self, hidden: Tensor, lm: CausalLM) -> Tensor:
        """Logits over the temperature, float32."""
        with self._autocast():
            return lm.logits(hidden).float() / self.temperature
