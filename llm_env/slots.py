"""The batched transition: N slots, each with an episode or idle. All environment classes step through it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llm_env.episode import Episode
from llm_env.lm.sampling import check_log_probs
from llm_env.reward.reference import StepwiseReference
from llm_env.task import TextTask
from llm_env.text.prompts import Prompt, PromptOrder, PromptRecord

RESET_OPTIONS = ("prompt", "prompt_index")


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
        # The observation, (N, max_length): prompt and response so far, then V, which no token has.
        self._ids = np.full((n_slots, task.max_length), task.pad_value, dtype=np.int64)
        self._lengths = np.zeros(n_slots, dtype=np.int64)  # (N,), in tokens; 0: idle
        self._reference = StepwiseReference(task.reference, task.max_length)
        self.mask_source = self._reference

    def __len__(self) -> int:
        return len(self.episodes)

    def seed(self, rng: np.random.Generator) -> None:
        """Starts a fresh pass over the prompts, shuffled by a random generator."""
        self.order = PromptOrder(len(self.task.prompts), rng)

    def observation(self) -> dict[str, NDArray[np.int64]]:
        """Copies of ``input_ids`` (N, max_length) and ``length`` (N, 1)."""
        return {"input_ids": self._ids.copy(), "length": self._lengths[:, None].copy()}

    def begin(self, slot: int, prompt: Prompt | None = None) -> Episode:
        """Starts an episode in a slot.

        Args:
            slot: Index of the slot; what was in it is replaced.
            prompt: The prompt; None: the next one of the order.
        """
        episode = Episode(prompt if prompt is not None else self.task.prompts[self.order.next()])
        self._place(slot, episode)
        return episode

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
        # `episodes` and `_lengths` agree on which slots are busy, so the rows match. (busy,)
        response_lengths = np.array([len(e.response_ids) for e in self.episodes if e is not None])
        masks[busy] = rules.of(response_lengths, logits)
        return masks

    def step(
        self, actions: NDArray[np.int64], log_probs: NDArray[Any] | None = None, pay_policy_kl: bool = True
    ) -> NDArray[np.float64]:
        """Appends one token in every busy slot; ended episodes stay in place until `begin` or `idle`.

        Args:
            actions: Next tokens, shape (N,); those of idle slots are ignored.
            log_probs: log π of the actions, in nats, shape (N,); None where the caller does not know them.
            pay_policy_kl: Whether the rewards contain the policy's part -β·log π, if `log_probs` are given.

        Returns:
            Rewards, shape (N,), float64: the full formula where log π is paid, else the environment's part of it. Zeros for
            idle slots, and for all slots if `score_steps` is off.

        Raises:
            ValueError: an action is not a token.
            FloatingPointError: a log-prob is NaN.
        """
        task = self.task
        # Check all actions before anything changes, so that an error leaves the slots as they were.
        busy = [i for i, episode in enumerate(self.episodes) if episode is not None]
        for i in busy:
            if not 0 <= actions[i] < task.vocab_size:
                raise ValueError(
                    f"Action {actions[i]} in slot {i} is not a token; tokens are 0 … {task.vocab_size - 1}."
                )
        if log_probs is not None:
            check_log_probs(np.asarray(log_probs)[busy])
        # The reference looks at the prefixes before the tokens are appended. (N,), in nats; 0 for idle slots
        if self.score_steps:
            _check_that_steps_can_be_scored(task)
            reference = self._reference.log_probs(self._ids, self._lengths, actions)
        # Append the tokens, to the episodes and to the observation.
        ended = []
        for i in busy:
            episode = self.episodes[i]
            assert episode is not None
            token = int(actions[i])
            if episode.append(token, task.eos_ids, task.settings.max_new_tokens):
                ended.append(episode)
                episode.response_text = task.decode(episode.response_ids)
            if log_probs is not None:
                episode.log_probs.append(float(log_probs[i]))
            # Where earlier tokens are not scored, this one waits for `score_reference` below, which fills all in order.
            if self.score_steps and len(episode.ref_log_probs) == len(episode.response_ids) - 1:
                episode.ref_log_probs.append(float(reference[i]))
            self._ids[i, self._lengths[i]] = token
            self._lengths[i] += 1
        # Pay each token; the last one of a response is paid its score too.
        rewards = np.zeros(len(self), dtype=np.float64)
        if self.score_steps:
            # Only where earlier tokens were not scored as they came: scoring may be deferred in one rollout, not in the next.
            task.score_reference([e for e in self.episodes if e is not None])
            task.score_responses(ended)
            for i in busy:
                episode = self.episodes[i]
                assert episode is not None
                paid_log_probs = None if log_probs is None or not pay_policy_kl else [float(log_probs[i])]
                # The formula for this step's token alone, the response's last.
                rewards[i] = task.rewards(episode, len(episode.response_ids) - 1, paid_log_probs)[0]
        return rewards

    def _place(self, slot: int, episode: Episode | None) -> None:
        self.episodes[slot] = episode
        ids = [] if episode is None else episode.ids
        # The slot's row of the observation, padded anew behind the text.
        self._ids[slot, : len(ids)] = ids
        self._ids[slot, len(ids) :] = self.task.pad_value
        self._lengths[slot] = len(ids)

    def clear_caches(self) -> None:
        """Drops what is kept of the prefixes, which are read anew at the next step.

        A prefix read anew rounds otherwise than one that grew token by token. So whoever wants one course of training, wherever
        it is interrupted, drops the caches at each moment at which it could be.
        """
        for source in (self._reference, self.mask_source):
            source.decoder.clear()

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
            self._place(slot, None if saved is None else self._episode_from(saved))

    def _episode_from(self, saved: dict[str, Any]) -> Episode:
        fields = dict(saved)
        index_or_raw = fields.pop("prompt")
        # An index into the prompt set, or the record of a prompt that came with reset(options=…).
        if isinstance(index_or_raw, int):
            return Episode(self.task.prompts[index_or_raw], **fields)
        return Episode(self.task.encode(index_or_raw), **fields)


def _check_that_steps_can_be_scored(task: TextTask) -> None:
    """Refuses to score steps where the reward holds the exact KL.

    Raises:
        ValueError: it does.
    """
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
    prompt = episode.prompt
    # What `TextTask.encode` takes: a record of a conversation as messages, or of a text.
    messages = [{"role": r, "content": c} for r, c in prompt.messages or ()]
    raw = PromptRecord(messages or prompt.text, prompt.columns).to_json()
    return {
        "prompt": prompt.index if prompt.index is not None else raw,
        # No score, text or info: an unfinished episode has none yet.
        "response_ids": list(episode.response_ids),
        "log_probs": list(episode.log_probs),
        "ref_log_probs": list(episode.ref_log_probs),
        "exact_kl": list(episode.exact_kl),
    }


def prompt_from_options(task: TextTask, options: dict[str, Any] | None) -> Prompt | None:
    """The prompt that `reset(options=…)` asks for, or None where it asks for none.

    Args:
        task: Encodes a new prompt, or holds the prompt set.
        options: ``{"prompt": …}``, ``{"prompt_index": …}``, empty or None.

    Raises:
        ValueError: an unknown option, both options at once, or an index outside the prompt set.
    """
    if not options:
        return None
    check_options(options, RESET_OPTIONS)
    if len(options) > 1:
        raise ValueError("options: give 'prompt' or 'prompt_index', not both.")
    if "prompt" in options:
        return task.encode(options["prompt"])
    index = options["prompt_index"]
    # A bool would pass for an int: True is 1 in Python.
    if isinstance(index, bool) or not isinstance(index, int | np.integer) or not 0 <= index < len(task.prompts):
        raise ValueError(f"options['prompt_index']={index!r} must be a whole number from 0 to {len(task.prompts) - 1}.")
    return task.prompts[int(index)]


def token_actions(actions: Any, count: int) -> NDArray[np.int64]:
    """Actions as an array of token ids.

    Args:
        actions: One action, or `count` of them: integers, or an array of integers.
        count: Number of slots N.

    Returns:
        Shape (N,).

    Raises:
        ValueError: something is not a whole number, as 3.7, "5" or True, or there are not N. Whether a number is a token's is
            checked by `EpisodeSlots.step`.
    """
    array = np.asarray(actions)
    if array.dtype.kind not in "iu":  # else numpy would cut 3.7 to 3, and read "5" and True as numbers
        raise ValueError(f"action={actions!r} must be a token: a whole number, or an array of whole numbers.")
    if array.size != count:
        raise ValueError(f"action={actions!r} has {array.size} entries for {count} environment(s); give one for each.")
    return array.astype(np.int64, copy=False).reshape(count)


def check_options(options: dict[str, Any], names: Sequence[str]) -> None:
    """Refuses options of `reset` that do not exist.

    Args:
        options: Options of `reset` by name, as the user gave them.
        names: The options that exist.

    Raises:
        ValueError: there is another one; the error names it, and those that exist.
    """
    for name in options:
        if name not in names:
            raise ValueError(f"options has no {name!r}; it can have {' or '.join(repr(n) for n in names)}.")
