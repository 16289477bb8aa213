"""The task that all faces of the environment share: its settings, its frozen models and its prompts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from llm_env.masks import TokenMasks
from llm_env.models import (
    DEFAULT_MODEL,
    DEFAULT_PROMPTS,
    DEFAULT_REWARD_MODEL,
    LoadSettings,
    SharedLM,
    check_mixed_precision,
    freeze,
    load_causal_lm,
    resolve_device,
    resolve_dtype,
    shared,
    shared_causal_lm,
)
from llm_env.prompts import PromptSet, RawPrompt
from llm_env.reference import Reference
from llm_env.rewards import RewardName, load_reward_model
from llm_env.shaping import KL_ESTIMATORS, overlong_share, shaped_score, token_rewards
from llm_env.transition import Episode


@dataclass(frozen=True)
class TaskSettings:
    """The keyword arguments of the environment: names, paths and numbers, and their checks.

    Attributes:
        model: Folder or hub id of the reference model, which also gives the tokenizer. None: the embedded default.
        reward_model: See `llm_env.rewards`. None: the embedded default, if `model` is it too.
        prompts: See `llm_env.prompts`. None: the embedded default, likewise.
        kl_coef: β ≥ 0, in score per nat. The default suits scores of standard deviation 1.
        max_prompt_length: In tokens; longer prompts are cut on the left.
        max_new_tokens: Length cap of a response, in tokens.
        temperature: Divides the logits wherever a log-probability is taken; part of the policy.
        kl_estimator: What stands for the KL of a token in the reward: ``k1``, ``k2``, ``k3`` (`llm_env.shaping`), or ``exact``:
            of the two whole distributions, instead of an estimate from the token drawn (Rao-Blackwellised; Amini et al. 2025,
            https://arxiv.org/abs/2504.10637). Exact needs a buffer that defers scoring.
        reward_shift: Added to the reward model's score …
        reward_scale: … which is then multiplied with this …
        reward_clip: … and held within plus and minus this; None: not. Penalties come after it.
        length_penalty: Taken off the score for each token of a response.
        missing_eos_penalty: Taken off the score of a response that reached the cap without an end token.
        overlong_buffer: Tokens before the cap within which a response pays for its length (see `overlong_penalty`).
        overlong_penalty: Price of a response at the cap, in score; 0 for none. Section 3.4 of Yu et al. 2025, "DAPO".
        top_k: The policy may choose from the k likeliest tokens of the reference; 0: any. This and the following rules make
            `action_masks`, which only algorithms with masks heed; see `llm_env.masks`.
        top_p: … from the fewest likeliest tokens that hold this probability; 1: any.
        min_new_tokens: No end token before that many others.
        forbidden_tokens: Never chosen: ids, or texts of exactly one token.
        allowed_tokens: Only these, and the end tokens.
        allowed_pattern: Only tokens whose whole text matches this regular expression, `allowed_tokens` and the end tokens.
        dtype: Of the frozen models: float32, bfloat16 or float16. Only in float32 is the KL exactly 0 at the start.
        mixed_precision: ``no``, or ``bf16``: reference and reward model compute under autocast, as the actor then should.
        device: Of the frozen models: auto, cpu, cuda, …
        trust_remote_code: Whether model code from a hub may run.
    """

    model: str | None = None
    reward_model: RewardName | None = None
    prompts: str | Sequence[RawPrompt] | None = None
    kl_coef: float = 0.05
    kl_estimator: str = "k1"
    reward_shift: float = 0.0
    reward_scale: float = 1.0
    reward_clip: float | None = None
    length_penalty: float = 0.0
    max_prompt_length: int = 64
    max_new_tokens: int = 32
    temperature: float = 1.0
    missing_eos_penalty: float = 0.0
    overlong_buffer: int = 0
    overlong_penalty: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_new_tokens: int = 0
    forbidden_tokens: Sequence[str | int] | None = None
    allowed_tokens: Sequence[str | int] | None = None
    allowed_pattern: str | None = None
    dtype: str = "float32"
    mixed_precision: str = "no"
    device: str = "auto"
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        """Checks what can be checked before anything is loaded.

        Raises:
            ValueError: a setting breaks its rule.
        """
        for name in ("max_prompt_length", "max_new_tokens"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
                raise ValueError(f"{name}={value!r} must be a whole number of tokens, at least 1.")
        for name in ("top_k", "min_new_tokens", "overlong_buffer"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 0:
                raise ValueError(f"{name}={value!r} must be a whole number of tokens, at least 0.")
        for name in ("min_new_tokens", "overlong_buffer"):
            if getattr(self, name) > self.max_new_tokens:
                raise ValueError(f"{name}={getattr(self, name)} must be at most max_new_tokens={self.max_new_tokens}.")
        if not _is_number(self.top_p) or not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p!r} must be a probability above 0, at most 1.")
        for name in ("forbidden_tokens", "allowed_tokens"):
            if isinstance(getattr(self, name), str):
                raise ValueError(f"{name}={getattr(self, name)!r} must be a list of tokens, not one text.")
        for name in ("kl_coef", "missing_eos_penalty", "overlong_penalty"):
            value = getattr(self, name)
            if not _is_number(value) or value < 0:
                raise ValueError(f"{name}={value!r} must be a finite number, at least 0.")
        if self.kl_estimator not in KL_ESTIMATORS:
            raise ValueError(f"kl_estimator={self.kl_estimator!r} is not known; use one of {', '.join(KL_ESTIMATORS)}.")
        for name in ("reward_shift", "length_penalty"):
            if not _is_number(getattr(self, name)):
                raise ValueError(f"{name}={getattr(self, name)!r} must be a finite number.")
        for name in ("reward_scale", "reward_clip"):
            value = getattr(self, name)
            if not (name == "reward_clip" and value is None) and (not _is_number(value) or value <= 0):
                raise ValueError(f"{name}={value!r} must be a finite number above 0.")
        if not _is_number(self.temperature) or self.temperature <= 0:
            raise ValueError(f"temperature={self.temperature!r} must be a finite number above 0.")
        resolve_dtype(self.dtype)
        check_mixed_precision(self.mixed_precision)
        if self.model is not None:
            for name in ("reward_model", "prompts"):
                if getattr(self, name) is None:
                    raise ValueError(
                        f"model={self.model!r} needs {name} too: the embedded default's {name} fits its own model only."
                    )

    @property
    def has_masks(self) -> bool:
        """Whether any of the mask rules is set."""
        plain = (0, 1.0, 0, None, None, None)
        return plain != (
            *(self.top_k, self.top_p, self.min_new_tokens),
            *(self.forbidden_tokens, self.allowed_tokens, self.allowed_pattern),
        )

    @property
    def load(self) -> LoadSettings:
        """How models are loaded."""
        return LoadSettings(self.dtype, str(resolve_device(self.device)), self.trust_remote_code)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool) and math.isfinite(value)


class TextTask:
    """Frozen models, prompts and spaces of a token-generation task.

    Args:
        settings: What to load, and the task's numbers.

    Raises:
        FileNotFoundError, ValueError: something cannot be loaded, or the sizes do not fit the model.
    """

    def __init__(self, settings: TaskSettings) -> None:
        self.settings = settings
        self.kl_coef = settings.kl_coef
        """β; a plain attribute, so that a schedule or a controller may move it between rollouts."""
        name = settings.model or DEFAULT_MODEL
        load = settings.load
        self.model = shared_causal_lm(name, load)
        self.tokenizer = self.model.tokenizer
        self.eos_ids = self.model.eos_ids
        self.max_length = settings.max_prompt_length + settings.max_new_tokens
        limit = self.model.lm.max_positions
        if limit is not None and self.max_length > limit:
            raise ValueError(
                f"max_prompt_length={settings.max_prompt_length} + max_new_tokens={settings.max_new_tokens} = "
                f"{self.max_length} tokens, but model={name!r} can read {limit}. Lower one of them."
            )
        self.masks = TokenMasks(settings, self.tokenizer, self.eos_ids, self.vocab_size)
        self.reference = Reference(self.model, settings.temperature, settings.mixed_precision)
        self.reward_model = load_reward_model(
            settings.reward_model or DEFAULT_REWARD_MODEL, load, self.tokenizer, settings.mixed_precision
        )
        source = settings.prompts if settings.prompts is not None else DEFAULT_PROMPTS
        key = source if isinstance(source, str) else repr(source)
        self.prompts: PromptSet = shared(
            ("prompts", name, key, settings.max_prompt_length),
            lambda: PromptSet(source, self.tokenizer, settings.max_prompt_length),
        )

    @property
    def vocab_size(self) -> int:
        """V, the number of actions."""
        return self.model.lm.vocab_size

    @property
    def pad_value(self) -> int:
        """What fills observations behind the text: V, which no token has."""
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

    def decode(self, ids: Sequence[int]) -> str:
        """Text of response tokens, special tokens left out; ids beyond the tokenizer's vocabulary have none."""
        size = len(self.tokenizer)
        return str(self.tokenizer.decode([i for i in ids if i < size], skip_special_tokens=True))

    def score_reference(self, episodes: Sequence[Episode]) -> None:
        """Fills in log π_ref of all tokens that lack it, in a few large batches."""
        missing = [e for e in episodes if len(e.ref_log_probs) < len(e.response_ids)]
        starts = [len(e.prompt.ids) + len(e.ref_log_probs) for e in missing]
        for episode, values in zip(missing, self.reference.log_probs([e.ids for e in missing], starts), strict=True):
            episode.ref_log_probs.extend(values.astype(float).tolist())

    def score_responses(self, episodes: Sequence[Episode]) -> None:
        """Asks the reward model about the ended episodes that lack a score.

        Raises:
            RewardModelError: it failed or returned something unusable.
        """
        unscored = [e for e in episodes if e.done and e.rm_score is None]
        if not unscored:
            return
        for episode, value in zip(unscored, self.reward_model.score(unscored), strict=True):
            episode.rm_score = value
            rules = self.settings
            length = len(episode.response_ids)
            missing = 0.0 if episode.has_end else rules.missing_eos_penalty
            overlong = rules.overlong_penalty * overlong_share(length, rules.max_new_tokens, rules.overlong_buffer)
            shaped = shaped_score(value, rules.reward_shift, rules.reward_scale, rules.reward_clip)
            episode.final_score = shaped - missing - overlong - rules.length_penalty * length

    def rewards(
        self,
        episode: Episode,
        start: int = 0,
        log_probs: Sequence[float] | None = None,
        kl_coef: float | None = None,
    ) -> NDArray[np.float64]:
        """The rewards of an episode's tokens from `start` on, by `llm_env.shaping.token_rewards`.

        Args:
            episode: Its reference log-probs, and its score if it has ended, must be known.
            start: First response token.
            log_probs: log π of those tokens, in nats; None: a policy without randomness.
            kl_coef: β; None: the task's.
        """
        score = episode.final_score if episode.done else None
        beta = self.kl_coef if kl_coef is None else kl_coef
        estimator = self.settings.kl_estimator
        exact = episode.exact_kl[start:] if estimator == "exact" else None
        return token_rewards(episode.ref_log_probs[start:], score, beta, log_probs, estimator, exact)

    def refresh_reference(self, model: PreTrainedModel, share: float = 1.0) -> None:
        """Moves the reference towards a model: this task's own copy of it, made when this is first called.

        Others who share the frozen model keep it as it was.

        Args:
            model: With the reference's architecture.
            share: How far: 1 replaces it, less is one step of a moving average, θ_ref ← (1 - share)·θ_ref + share·θ.

        Raises:
            ValueError: the share is not above 0 and at most 1.
        """
        if not 0 < share <= 1:
            raise ValueError(f"share={share} must be above 0, at most 1.")
        with torch.no_grad():
            new = dict(model.named_parameters())
            for name, value in self.own_reference().named_parameters():  # tied weights come once
                value.lerp_(new[name].to(value), share)
        self.reference.version += 1

    def load_reference(self, weights: dict[str, Tensor]) -> None:
        """Gives this task a reference of its own with these parameters, as a checkpoint kept them."""
        with torch.no_grad():
            for name, value in self.own_reference().named_parameters():
                value.copy_(weights[name])
        self.reference.version += 1

    def own_reference(self) -> PreTrainedModel:
        """The reference's weights, as a copy that belongs to this task alone."""
        if self.reference.shared is self.model:
            lm = load_causal_lm(self.model.lm.name, self.settings.load)
            freeze(lm.model)
            self.reference.shared = SharedLM(lm, self.tokenizer, self.eos_ids, self.settings.load)
        return self.reference.shared.lm.model

    def final_info(self, episode: Episode) -> dict[str, Any]:
        """What the last step's `info` tells of an episode; NaN for what is not known yet."""
        known = len(episode.ref_log_probs) == len(episode.response_ids)
        return {
            "prompt": episode.prompt.text,
            "response": episode.response_text,
            "rm_score": math.nan if episode.rm_score is None else episode.rm_score,
            "ref_log_prob": float(sum(episode.ref_log_probs)) if known else math.nan,
            "response_length": len(episode.response_ids),
            "has_end": episode.has_end,
        }
