"""The task that all environment classes share: its settings, its frozen models and its prompts."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from llm_env.default_task import DEFAULT_MODEL, DEFAULT_PROMPTS, DEFAULT_REWARD_MODEL
from llm_env.episode import Episode
from llm_env.lm.causal_lm import load_causal_lm
from llm_env.lm.loading import freeze
from llm_env.lm.registry import SharedLM, shared_causal_lm
from llm_env.masks import TokenMasks
from llm_env.reward.formula import overlong_share, own_kl, shaped_score, token_rewards
from llm_env.reward.models import RewardModel, load_reward_model
from llm_env.reward.reference import Reference
from llm_env.settings import TaskSettings
from llm_env.text.ends import TurnEnds
from llm_env.text.prompts import NoPrompts, Prompt, PromptSet, prompt_record
from llm_env.text.turns import TurnEncoder
from llm_env.worlds.base import TextWorld
from llm_env.worlds.make import world_maker


class TextTask:
    """Frozen models, prompts, spaces and reward of a token-generation task.

    Args:
        settings: Models, prompts, sizes and the numbers of the reward.

    Attributes:
        model: The reference model as loaded, shared by all users in this process.
        tokenizer: The reference model's tokenizer.
        eos_ids: Tokens that end a response.
        ends: What ends a response, or in a world a turn: those tokens and the stop strings.
        max_length: Longest observation, in tokens: longest prompt plus longest response, and room for what a world says.
        masks: The rules for which tokens may be chosen.
        reference: Log-probabilities under π_ref; another model than `model` once the reference was refreshed.
        reward_model: What scores finished responses; None where only a world pays.
        prompts: The prompt set, encoded; with a world it may be empty.
        make_world: Makes a world for a slot; None where nothing answers the policy.
        turns: How a world's texts become tokens; None without a world.

    Raises:
        FileNotFoundError, ValueError: something cannot be loaded, or the sizes do not fit the model.
    """

    def __init__(self, settings: TaskSettings) -> None:
        self.settings = settings
        self.kl = settings.kl_penalty()
        """The KL penalty; a schedule or a controller may move its `coef` between rollouts."""
        # What is imported comes before what is loaded: it fails sooner.
        self.make_world: Callable[[], TextWorld] | None = None
        if settings.world is not None:
            self.make_world = world_maker(settings.world, settings.world_kwargs)
        # The reference model, and the sizes that it has to be able to read.
        name = DEFAULT_MODEL if settings.model is None else settings.model
        load = settings.load
        self.model = shared_causal_lm(name, settings.load_reference)
        self.tokenizer = self.model.tokenizer
        self.eos_ids = self.model.eos_ids
        self.ends = TurnEnds(
            self.eos_ids, settings.stop_strings or (), lambda ids: self.decode(ids, special_tokens=True)
        )
        self.max_length = _longest_state(settings, name, self.model.lm.max_positions)
        # What is built on the model: mask rules over its vocabulary, and π_ref at the policy's temperature.
        self.masks = TokenMasks(settings, self.tokenizer, self.eos_ids, self.vocab_size)
        self.reference = Reference(self.model, settings.temperature, settings.mixed_precision)
        # The reward model may read the actor's ids, so it is loaded after the tokenizer; the prompts are encoded here.
        reward_model = settings.reward_model
        if reward_model is None and settings.world is None:
            reward_model = DEFAULT_REWARD_MODEL
        self.reward_model: RewardModel | None = None
        if reward_model is not None:
            self.reward_model = load_reward_model(
                reward_model,
                load,
                self.tokenizer,
                settings.mixed_precision,
                limits=settings.reward_limits,
                judging=settings.judging,
            )
        self.turns: TurnEncoder | None = None
        self.prompts: PromptSet | NoPrompts = NoPrompts(self.tokenizer, settings.max_prompt_length)
        if settings.world is not None:
            self.turns = TurnEncoder(self.tokenizer, self.eos_ids, settings.max_world_tokens)
        if settings.prompts is not None or settings.world is None:
            prompts = DEFAULT_PROMPTS if settings.prompts is None else settings.prompts
            self.prompts = PromptSet(prompts, self.tokenizer, settings.max_prompt_length)
        if self.reward_model is not None:
            self.reward_model.check_prompts(self.prompts.records)

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy, pickled or deep, is made from the settings: it loads what they name, or finds it in its process.

        Raises:
            TypeError: the reference was refreshed, so that no name stands for it.
        """
        if self.reference.shared is not self.model:
            raise TypeError(
                "This environment cannot be pickled or copied: its reference was refreshed, so its weights are not those of a "
                "folder or hub id. Copy it before training with ref_refresh_every, or make a new one from its settings."
            )
        return type(self), (self.settings,), {"kl_coef": self.kl.coef}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """See `__reduce__`."""
        self.kl.coef = state["kl_coef"]

    @property
    def vocab_size(self) -> int:
        """V, the number of logits of the model and so of actions."""
        return self.model.lm.vocab_size

    @property
    def pad_value(self) -> int:
        """The number that fills observations behind the text: V, which is no token."""
        return self.vocab_size

    @property
    def observation_space(self) -> spaces.Dict:
        """``input_ids`` (max_length,) and ``length`` (1,), both int64."""
        return spaces.Dict(
            {
                "input_ids": spaces.Box(0, self.pad_value, (self.max_length,), np.int64),
                "length": spaces.Box(0, self.max_length, (1,), np.int64),
            }
        )

    @property
    def action_space(self) -> spaces.Discrete:
        """The next token."""
        return spaces.Discrete(self.vocab_size)

    def encode(self, raw: Any) -> Prompt:
        """A prompt from outside the prompt set, ready to be continued.

        Args:
            raw: A text, chat messages, or a record of either with columns, as in `llm_env.text.prompts`.

        Raises:
            ValueError: it is empty or malformed, or has no column that the reward model needs.
        """
        record = prompt_record("options['prompt']", raw)
        if self.reward_model is not None:
            self.reward_model.check_prompts([record])
        return self.prompts.encode(record)

    def decode(self, ids: Sequence[int], special_tokens: bool = False) -> str:
        """The text of response tokens, with special tokens or without; ids beyond the tokenizer's vocabulary have no text."""
        # A model may have more logits than its tokenizer has tokens: embeddings are padded to round sizes.
        size = len(self.tokenizer)
        return str(self.tokenizer.decode([i for i in ids if i < size], skip_special_tokens=not special_tokens))

    def score_reference(self, episodes: Sequence[Episode]) -> None:
        """Fills in `ref_log_probs` of all tokens that lack it, in a few large batches."""
        unscored = [e for e in episodes if len(e.ref_log_probs) < len(e.response_ids)]
        # What is scored of each sequence: the policy's tokens that have no log π_ref yet.
        places = [e.places[len(e.ref_log_probs) :] for e in unscored]
        for episode, values in zip(unscored, self.reference.log_probs([e.ids for e in unscored], places), strict=True):
            episode.ref_log_probs.extend(values.astype(float).tolist())

    def score_responses(self, episodes: Sequence[Episode]) -> None:
        """Fills in `rm_score` and `final_score` of the ended episodes that lack them.

        Raises:
            RewardModelError: it failed or returned something unusable.
        """
        unscored = [e for e in episodes if e.done and e.rm_score is None]
        if not unscored:
            return
        rules = self.settings
        values = [0.0] * len(unscored) if self.reward_model is None else self.reward_model.score(unscored)
        for episode, value in zip(unscored, values, strict=True):
            # `rm_score` is what is logged, `final_score` what the last token is paid. All terms are in units of score.
            episode.rm_score = value + episode.world_return
            length = len(episode.response_ids)  # tokens, end token included
            missing_end = 0.0 if episode.has_end else rules.missing_eos_penalty
            overlong = rules.overlong_penalty * overlong_share(length, rules.max_new_tokens, rules.overlong_buffer)
            shaped = 0.0
            if self.reward_model is not None:
                shaped = shaped_score(value, rules.reward_shift, rules.reward_scale, rules.reward_clip)
            episode.final_score = shaped - missing_end - overlong - rules.length_penalty * length

    def rewards(
        self,
        episode: Episode,
        start: int = 0,
        log_probs: Sequence[float] | None = None,
    ) -> NDArray[np.float64]:
        """The rewards of an episode's tokens from `start` on, by `llm_env.reward.formula.token_rewards`.

        What a world paid for a turn is paid with the turn's last token.

        Args:
            episode: Its reference log-probs, and its score if it has ended, must be known.
            start: Index of the first response token whose reward is wanted, from 0.
            log_probs: log π of those tokens, in nats, shape (n - start,); None: a policy without randomness.

        Returns:
            Rewards in score, shape (n - start,), n being the number of response tokens.
        """
        score = episode.final_score if episode.done else None
        reference = episode.ref_log_probs[start:]
        if not self.kl.in_reward:  # the loss charges the KL, so the reward has β = 0
            rewards = token_rewards(reference, score, 0.0, log_probs)
        else:
            exact = episode.exact_kl[start:] if self.kl.estimator == "exact" else None
            rewards = token_rewards(reference, score, self.kl.coef, log_probs, self.kl.estimator, exact)
        for turn in episode.turns:
            if start < turn.end <= start + len(rewards):
                rewards[turn.end - 1 - start] += turn.reward
        return rewards

    def own_kl(self, episode: Episode, start: int, log_probs: Sequence[float]) -> NDArray[np.float64]:
        """What `llm_env.reward.formula.own_kl` adds to the advantages of an episode's tokens from `start` on.

        Arguments and shape are those of `rewards`; there are as many tokens as log-probs.
        """
        if not self.kl.lacks_own:
            return np.zeros(len(log_probs))
        here = slice(start, start + len(log_probs))
        exact = episode.exact_kl[here] if self.kl.estimator == "exact" else None
        return own_kl(episode.ref_log_probs[here], self.kl.coef, log_probs, self.kl.estimator, exact)

    def refresh_reference(self, model: PreTrainedModel, share: float = 1.0) -> None:
        """Moves the reference's weights towards those of a model.

        The first call copies the reference for this task, so others who share the frozen model keep it as it was.

        Args:
            model: A model of the reference's architecture, with weights θ.
            share: Size of the step, θ_ref ← (1 - share)·θ_ref + share·θ: 1 replaces the reference, less is one step of a
                moving average.

        Raises:
            ValueError: the share is not above 0 and at most 1.
        """
        if not 0 < share <= 1:
            raise ValueError(f"share={share} must be above 0, at most 1.")
        own = self.own_reference()
        with torch.no_grad(), self.reference.at_hand():
            new = dict(model.named_parameters())
            for name, value in own.named_parameters():  # tied weights come once
                value.lerp_(new[name].to(value), share)  # θ_ref + share·(θ - θ_ref)
        self.reference.version += 1  # whoever caches the reference's keys and values drops them

    def load_reference(self, weights: dict[str, Tensor]) -> None:
        """Gives this task a copy of the reference with weights from a checkpoint.

        Args:
            weights: Name and value of each parameter, as `own_reference().named_parameters()` returned them.
        """
        with torch.no_grad():
            for name, value in self.own_reference().named_parameters():
                value.copy_(weights[name])
        self.reference.version += 1

    def own_reference(self) -> PreTrainedModel:
        """The reference model, as a copy that belongs to this task alone; the first call loads it."""
        # As long as the reference is the shared model, other tasks in this process see it: load a second one.
        if self.reference.shared is self.model:
            load = self.settings.load_reference
            if load.base_quantization != "none":
                raise ValueError(
                    f"base_quantization={load.base_quantization!r}: weights in 4 bits cannot move, so the reference stays as "
                    "it is. Leave ref_refresh_every out, or base_quantization."
                )
            lm = load_causal_lm(self.model.lm.name, load.at_rest)
            freeze(lm.model)
            self.reference.shared = SharedLM(lm, self.tokenizer, self.eos_ids, load)
        return self.reference.shared.lm.model

    def full_info(self, episode: Episode, start_time: float | None = None) -> dict[str, Any]:
        """`final_info` with what the policy said: ``log_prob``, ``kl`` and ``episode``, as from SB3's `Monitor`.

        Args:
            episode: An ended episode.
            start_time: When the environment was made, in seconds since the epoch, for ``episode["t"]``; None leaves that out.

        Returns:
            The dictionary; NaN for what is not known yet.
        """
        info = self.final_info(episode)
        n = len(episode.response_ids)
        has_log_probs = len(episode.log_probs) == n  # of every token
        info["log_prob"] = float(sum(episode.log_probs)) if has_log_probs else math.nan
        info["kl"] = info["log_prob"] - info["ref_log_prob"]
        # The return needs every term of the formula; under deferred scoring they come after the episode's end.
        has_reward = len(episode.ref_log_probs) == n and episode.final_score is not None
        if self.kl.in_reward and self.kl.estimator == "exact":
            has_reward = has_reward and len(episode.exact_kl) == n
        log_probs = episode.log_probs if has_log_probs else None
        reward = float(self.rewards(episode, 0, log_probs).sum()) if has_reward else math.nan
        # SB3's `Monitor` names: r, the undiscounted return in score; l, the length in tokens; t, seconds.
        info["episode"] = {"r": reward, "l": n}
        if start_time is not None:
            info["episode"]["t"] = round(time.time() - start_time, 6)
        return info

    def complete_info(self, episode: Episode) -> None:
        """Fills in, in place, what an ended episode's information could not know when it was given out."""
        if episode.info is None:
            return
        # Updated, not replaced: SB3's `ep_info_buffer` holds these very objects, and `episode["t"]` stays.
        fresh = self.full_info(episode)
        episode.info["episode"].update(fresh.pop("episode"))
        episode.info.update(fresh)

    def final_info(self, episode: Episode) -> dict[str, Any]:
        """The `info` dictionary of an episode's last step; NaN for what is not known yet."""
        return {
            "prompt": episode.prompt.text,
            "response": episode.response_text,
            "rm_score": math.nan if episode.rm_score is None else episode.rm_score,
            "ref_log_prob": episode.ref_log_prob,
            "response_length": len(episode.response_ids),
            "has_end": episode.has_end,
            **({"reward_parts": dict(episode.part_scores)} if episode.part_scores else {}),
            "end": episode.end,
            **(self._world_info(episode) if self.make_world is not None else {}),
        }

    @staticmethod
    def _world_info(episode: Episode) -> dict[str, Any]:
        """What the last step's `info` says of a world."""
        return {
            "turns": len(episode.turns),
            "world_return": episode.world_return,
            "world_seed": episode.world_seed,
            "world_text": episode.turns[-1].reply if episode.turns else "",
            "world_cut": episode.world_cut,
            "world_fault": episode.fault,
            "world_info": dict(episode.world_info),
        }


def _longest_state(settings: TaskSettings, model: str, limit: int | None) -> int:
    """Tokens of the longest state.

    Args:
        settings: The sizes.
        model: The model's name, for errors.
        limit: Tokens that it can read; None: any number.

    Raises:
        ValueError: it cannot read as many.
    """
    words = f"max_prompt_length={settings.max_prompt_length} + max_new_tokens={settings.max_new_tokens}"
    length = settings.max_prompt_length + settings.max_new_tokens
    if settings.max_length is not None:
        words, length = "max_length", settings.max_length
    elif settings.world is not None and (limit is None or length < limit):
        # A default fits the model: an episode that fills it ends, and is counted.
        length = min(length + settings.max_turns * settings.max_world_tokens, limit or length * 10**9)
    if limit is not None and length > limit:
        raise ValueError(f"{words} = {length} tokens, but model={model!r} can read {limit}. Lower one of them.")
    return length
