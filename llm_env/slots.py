"""The batched transition: N slots, each with an episode or idle. All environment classes step through it.

With a world, the step that takes the last token of a turn has the world answer it: the state grows by the world's text too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llm_env.episode import Episode
from llm_env.lm.sampling import check_log_probs
from llm_env.reward.reference import StepwiseReference
from llm_env.task import TextTask
from llm_env.text.prompts import Prompt, PromptOrder
from llm_env.turns import WorldStart, WorldTurns, record_of, world_state
from llm_env.worlds.calls import Call

SEEDS = 2**31
"""Worlds are reset with a whole number below this, drawn from the generator that shuffles the prompts."""


class Start(NamedTuple):
    """An episode that is to begin.

    Attributes:
        slot: The slot that it will be in; what was in it is replaced.
        prompt: The prompt; None: the next one of the order.
        like: A slot that begins before it, whose prompt and world seed it takes; None: it has its own.
    """

    slot: int
    prompt: Prompt | None = None
    like: int | None = None


class EpisodeSlots:
    """N slots that generate text together: each holds an episode, or is idle.

    Args:
        task: Frozen models, prompts, sizes and the reward.
        n_slots: Number of slots N, each with an episode of its own.
        score_steps: Whether `step` asks the reference about each token and returns its reward. If not, rewards are 0, and
            the caller scores the episodes later. May be changed between steps.

    Attributes:
        episodes: The episode in each slot; None where the slot is idle.
        order: The order in which prompts are handed out.
        mask_source: The model that top-k and top-p look at; the reference, unless a policy puts another one here.
        part: Where several processes share one order of prompts: which of how many this is. Of each `part[1]` prompts that come
            next, it takes the one with the number `part[0]`.

    Raises:
        ValueError: the reward needs the policy's whole distribution, which a step does not see.
    """

    def __init__(self, task: TextTask, n_slots: int, score_steps: bool = True) -> None:
        if score_steps:
            _check_that_steps_can_be_scored(task)
        self.task = task
        self.score_steps = score_steps
        self.episodes: list[Episode | None] = [None] * n_slots
        self.order = PromptOrder(len(task.prompts), np.random.default_rng())
        self.part = (0, 1)
        # The observation, (N, max_length): prompt and response so far, then V, which no token has.
        self._ids = np.full((n_slots, task.max_length), task.pad_value, dtype=np.int64)
        self._lengths = np.zeros(n_slots, dtype=np.int64)  # (N,), in tokens; 0: idle
        self._asked: dict[int, Call | None] = {}
        """Calls of worlds that were not waited for yet, by slot: turns that have ended without an answer."""
        self._connect()

    def _connect(self) -> None:
        """Makes what reads the reference, and the worlds."""
        self._reference = StepwiseReference(self.task.reference, self.task.max_length)
        self.mask_source = self._reference
        self._worlds = None if self.task.make_world is None else WorldTurns(self.task, len(self))

    def __len__(self) -> int:
        return len(self.episodes)

    def seed(self, rng: np.random.Generator) -> None:
        """Starts a fresh pass over the prompts, shuffled by a random generator."""
        self.order = PromptOrder(len(self.task.prompts), rng)

    def observation(self) -> dict[str, NDArray[np.int64]]:
        """Copies of ``input_ids`` (N, max_length) and ``length`` (N, 1)."""
        return {"input_ids": self._ids.copy(), "length": self._lengths[:, None].copy()}

    def begin(self, slot: int, prompt: Prompt | None = None) -> Episode:
        """Starts an episode in a slot; see `begin_all`."""
        return self.begin_all([Start(slot, prompt)])[0]

    def begin_all(self, starts: Sequence[Start]) -> list[Episode]:
        """Starts episodes, at most one a slot; worlds are reset side by side.

        Raises:
            WorldError: a world failed, and `world_errors` is ``raise``.
        """
        begun: dict[int, WorldStart] = {}
        for slot, prompt, like in starts:
            # Drawn slot by slot, so that the same seed gives the same episodes whatever their worlds take.
            if like is not None:
                begun[slot] = begun[like]._replace(slot=slot)
                continue
            mine, all_parts = self.part
            begun[slot] = [self._drawn(slot, prompt) for _ in range(all_parts)][mine]
        if self._worlds is not None:
            episodes = self._worlds.begin(list(begun.values()))
        else:
            episodes = [Episode(start.record) for start in begun.values() if start.record is not None]
        for slot, episode in zip(begun, episodes, strict=True):
            self._place(slot, episode)
        return episodes

    def _drawn(self, slot: int, prompt: Prompt | None) -> WorldStart:
        """The next prompt of the order, unless one is named, and the world's seed."""
        if prompt is None and len(self.task.prompts):
            prompt = self.task.prompts[self.order.next()]
        return WorldStart(slot, prompt, 0 if self._worlds is None else int(self.order.rng.integers(SEEDS)))

    def idle(self, slot: int) -> None:
        """Empties a slot."""
        self._place(slot, None)

    def action_masks(self, logits: Tensor | None = None) -> NDArray[np.bool_]:
        """Which tokens may come next in each slot, by the rules in `llm_env.masks`.

        Args:
            logits: The logits that top-k and top-p look at, shape (N, V); None: those of `mask_source`.

        Returns:
            Shape (N, V); rows of idle slots allow all tokens.
        """
        rules = self.task.masks
        masks = np.ones((len(self), self.task.vocab_size), dtype=bool)
        busy = np.flatnonzero(self._lengths)
        # Idle slots may choose anything: their actions are ignored.
        if not rules.active or not len(busy):
            return masks
        if logits is not None:
            # Only busy rows are masked: (N, V) -> (busy, V).
            logits = logits[torch.from_numpy(busy)]
        elif rules.looks_at_a_model:
            logits = self.mask_source.logits(self._ids, self._lengths)  # (busy, V)
        # `episodes` and `_lengths` agree on which slots are busy, so the rows match: tokens of the turn under way. (busy,)
        response_lengths = np.array([len(e.response_ids) - e.turn_start for e in self.episodes if e is not None])
        masks[busy] = rules.of(response_lengths, logits)
        return masks

    def step(
        self,
        actions: NDArray[np.int64],
        log_probs: NDArray[Any] | None = None,
        pay_policy_kl: bool = True,
        wait: bool = True,
    ) -> NDArray[np.float64]:
        """Appends one token in every busy slot; ended episodes stay in place until `begin` or `idle`.

        Args:
            actions: Next tokens, shape (N,); those of idle slots are ignored.
            log_probs: log π of the actions, in nats, shape (N,); None where the caller does not know them.
            pay_policy_kl: Whether the rewards contain the policy's part -β·log π, if `log_probs` are given.
            wait: Whether worlds are waited for. If not, which goes with deferred scoring, slots whose turn has ended take no
                actions until `settle`.

        Returns:
            Rewards, shape (N,), float64: the full formula where log π is paid, else the environment's part of it. Zeros for
            idle slots, and for all slots if `score_steps` is off.

        Raises:
            ValueError: an action is not a token.
            FloatingPointError: a log-prob is NaN.
            WorldError: a world failed, and `world_errors` is ``raise``.
        """
        task = self.task
        # Check all actions before anything changes, so that an error leaves the slots as they were.
        busy = np.array(
            [i for i, e in enumerate(self.episodes) if e is not None and i not in self._asked], dtype=np.int64
        )
        tokens, vocab_size = actions.tolist(), task.vocab_size
        for i in busy.tolist():
            if not 0 <= tokens[i] < vocab_size:
                raise ValueError(f"Action {tokens[i]} in slot {i} is not a token; tokens are 0 … {vocab_size - 1}.")
        known: list[float] | None = None
        if log_probs is not None:
            log_probs = np.asarray(log_probs)
            check_log_probs(log_probs[busy])
            known = log_probs.tolist()
        # The reference looks at the prefixes before the tokens are appended. (N,), in nats; 0 for idle slots
        if self.score_steps:
            _check_that_steps_can_be_scored(task)
            reference = self._reference.log_probs(self._ids, self._lengths, actions)
        # Append the tokens, to the episodes and to the observation.
        turn_ends, caps = [], (task.settings.max_new_tokens, task.settings.max_turn_tokens)
        for i in busy.tolist():
            episode = self.episodes[i]
            assert episode is not None
            turn_has_ended = episode.append(tokens[i], task.ends, *caps)
            # A world that failed at its reset answers the first token; and where the state is full, no other can follow.
            is_full = self._worlds is not None and self._lengths[i] + 1 >= task.max_length
            if turn_has_ended or is_full or episode.fault:
                turn_ends.append(i)
            if known is not None:
                episode.log_probs.append(known[i])
            # Where earlier tokens are not scored, this one waits for `score_reference` below, which fills all in order.
            if self.score_steps and len(episode.ref_log_probs) == len(episode.response_ids) - 1:
                episode.ref_log_probs.append(float(reference[i]))
        self._ids[busy, self._lengths[busy]] = actions[busy]
        self._lengths[busy] += 1
        self._ask(turn_ends)
        ended = self.settle(turn_ends) if wait else []
        # Pay each token; the last one of a response is paid its score too.
        rewards = np.zeros(len(self), dtype=np.float64)
        if self.score_steps:
            # Only where earlier tokens were not scored as they came: scoring may be deferred in one rollout, not in the next.
            task.score_reference([e for e in self.episodes if e is not None])
            task.score_responses(ended)
            for i in busy.tolist():
                episode = self.episodes[i]
                assert episode is not None
                paid_log_probs = None if known is None or not pay_policy_kl else [known[i]]
                # The formula for this step's token alone, the response's last.
                rewards[i] = task.rewards(episode, len(episode.response_ids) - 1, paid_log_probs)[0]
        return rewards

    @property
    def waiting(self) -> frozenset[int]:
        """Slots whose turn has ended and whose world was not waited for yet."""
        return frozenset(self._asked)

    def _ask(self, slots: Sequence[int]) -> None:
        """Hands the worlds of these slots the turns that have just ended."""
        for i in slots:
            episode = self.episodes[i]
            assert episode is not None
            self._asked[i] = None if self._worlds is None else self._worlds.call(i, episode)

    def settle(self, slots: Sequence[int]) -> list[Episode]:
        """Waits for the worlds of slots that are `waiting`, which were asked side by side.

        Returns:
            The episodes that are over.

        Raises:
            WorldError: a world failed, and `world_errors` is ``raise``.
        """
        ended = []
        for i in slots:
            episode, call = self.episodes[i], self._asked.pop(i)
            assert episode is not None
            if self._worlds is not None:
                self._extend(i, self._worlds.answer(i, episode, call))
            if episode.done:
                episode.response_text = self.task.decode(episode.continuation)
                ended.append(episode)
        return ended

    def _extend(self, slot: int, ids: Sequence[int]) -> None:
        """Appends tokens to a slot's row of the observation."""
        start = self._lengths[slot]
        self._ids[slot, start : start + len(ids)] = ids
        self._lengths[slot] += len(ids)

    def _place(self, slot: int, episode: Episode | None) -> None:
        self._asked.pop(slot, None)
        self.episodes[slot] = episode
        ids = [] if episode is None else episode.ids
        # The slot's row of the observation, padded anew behind the text.
        self._ids[slot, : len(ids)] = ids
        self._ids[slot, len(ids) :] = self.task.pad_value
        self._lengths[slot] = len(ids)

    def close(self) -> None:
        """Parts with the worlds, if there are any."""
        if self._worlds is not None:
            self._worlds.calls.close()

    def clear_caches(self) -> None:
        """Drops what is kept of the prefixes, which are read anew at the next step.

        A prefix read anew rounds otherwise than one that grew token by token. So whoever wants one course of training, wherever
        it is interrupted, drops the caches at each moment at which it could be.
        """
        for source in (self._reference, self.mask_source):
            source.decoder.clear()

    def __getstate__(self) -> dict[str, Any]:
        """What a copy, pickled or deep, is made from: all but worlds, which are played again, and what is kept of prefixes.

        Caches are dropped here too, so that this and its copy compute the same from here on, bit for bit.

        Raises:
            TypeError: the masks look at a copy of the actor, or a world has not answered yet.
        """
        why = (
            "its masks look at a copy of the actor, which has no name"
            if self.mask_source is not self._reference
            else ""
        )
        why = "a world has not answered its turn yet; copy it when all have" if self._asked else why
        if why:
            raise TypeError(f"This environment cannot be pickled or copied: {why}.")
        self.clear_caches()
        return {k: v for k, v in vars(self).items() if k not in ("_reference", "mask_source", "_worlds")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """See `__getstate__`.

        Raises:
            ValueError: there are other prompts now than there were.
        """
        vars(self).update(state)
        if (now := len(self.task.prompts)) != self.order.n_prompts:
            raise ValueError(
                f"prompts: there were {self.order.n_prompts} when this environment was pickled, and are {now} now."
            )
        self._connect()
        for slot, episode in enumerate(self.episodes):
            if self._worlds is not None and episode is not None and not episode.done:
                again = self._worlds.restore(slot, _episode_state(episode) or {}, episode.record)
                episode.fault, episode.end = again.fault, again.end

    def state_dict(self) -> dict[str, Any]:
        """The slots and the prompt order, in plain values, for a checkpoint.

        Caches are dropped: the run that goes on from here, and one that is resumed from it, then compute the same, bit for
        bit.
        """
        self.clear_caches()
        return {"order": self.order.state_dict(), "episodes": [_episode_state(e) for e in self.episodes]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned; the task must be the same."""
        self.order.load_state_dict(state["order"])
        for slot, saved in enumerate(state["episodes"]):
            self._place(slot, None if saved is None else self._episode_from(slot, saved))

    def _episode_from(self, slot: int, saved: dict[str, Any]) -> Episode:
        fields = dict(saved)
        index_or_raw = fields.pop("prompt")
        # An index into the prompt set, the record of a prompt that came with reset(options=…), or with a world None.
        prompt = None
        if isinstance(index_or_raw, int):
            prompt = self.task.prompts[index_or_raw]
        elif index_or_raw is not None:
            prompt = self.task.encode(index_or_raw)
        if self._worlds is not None:
            return self._worlds.restore(slot, saved, prompt)
        assert prompt is not None
        return Episode(prompt, **fields)


def _check_that_steps_can_be_scored(task: TextTask) -> None:
    """Refuses to score steps where the reward holds the exact KL, or frozen models are to be elsewhere while they idle.

    Raises:
        ValueError: it does, or they are.
    """
    if task.settings.offload:
        raise ValueError(
            "offload=True goes with LLMTextVecEnv(scoring='deferred'): scored by steps, the reference is asked at each of them "
            "and never idles. Leave offload out."
        )
    if task.kl.in_reward and task.kl.estimator == "exact":
        raise ValueError(
            "kl_estimator='exact' needs the policy's whole distribution, which a step does not see: it goes with "
            "LLMTextVecEnv(scoring='deferred') while TokenRolloutBuffer collects. To step or evaluate outside of training, "
            "make an environment with kl_estimator='k1', whose returns are the same in expectation."
        )


def _episode_state(episode: Episode | None) -> dict[str, Any] | None:
    """An unfinished episode in plain values; its prompt by index, or raw if it is not in the prompt set."""
    if episode is None:
        return None
    prompt = episode.prompt if episode.world_seed is None else episode.record
    raw = None if prompt is None else prompt.index if prompt.index is not None else record_of(prompt).to_json()
    return {
        "prompt": raw,
        **({} if episode.world_seed is None else world_state(episode)),
        # No score, text or info: an unfinished episode has none yet.
        "response_ids": list(episode.response_ids),
        "log_probs": list(episode.log_probs),
        "ref_log_probs": list(episode.ref_log_probs),
        "exact_kl": list(episode.exact_kl),
    }
