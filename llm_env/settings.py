"""The environment's settings: the keyword arguments of `gymnasium.make`, and their checks."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from llm_env.lm.names import LoadSettings, check_dtype, check_mixed_precision
from llm_env.reward.kl import KLPenalty
from llm_env.text.prompts import RawPrompt

RewardName: TypeAlias = str | Sequence[Any]
"""A reward model's name, or a list of names or of ``[name, weight]`` pairs; see `llm_env.reward.models`."""


@dataclass(frozen=True)
class TaskSettings:
    """The keyword arguments of the environment: names, paths and numbers, and their checks.

    Attributes:
        model: Folder or hub id of the reference model, which also gives the tokenizer. None: the embedded default.
        reward_model: See `llm_env.reward.models`. None: the embedded default, if `model` is it too.
        prompts: See `llm_env.text.prompts`. None: the embedded default, likewise.
        kl_coef: β ≥ 0, in score per nat. The default suits scores of standard deviation 1.
        max_prompt_length: In tokens; longer prompts are cut on the left.
        max_new_tokens: Length cap of a response, in tokens.
        temperature: Divides the logits wherever a log-probability is taken; part of the policy.
        kl_estimator: What stands for the KL of a token in the reward: ``k1``, ``k2``, ``k3`` (`llm_env.reward.kl`), or
            ``exact``: of the two whole distributions, instead of an estimate from the token drawn (Rao-Blackwellised; Amini
            et al. 2025, https://arxiv.org/abs/2504.10637). Exact needs a buffer that defers scoring. None: k3 where the penalty
            is in the loss only, since k1 has no gradient there, else k1.
        kl_in: Where the penalty is paid: ``reward``, ``loss`` or ``both``; see `llm_env.reward.kl.KLPenalty`. The loss is the
            algorithm's: ``agents.TextPPO`` has the term. With ``loss`` the environment pays the score alone.
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
    kl_estimator: str | None = None
    kl_in: str = "reward"
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
        self.kl_penalty()
        for name in ("reward_shift", "length_penalty"):
            if not _is_number(getattr(self, name)):
                raise ValueError(f"{name}={getattr(self, name)!r} must be a finite number.")
        for name in ("reward_scale", "reward_clip"):
            value = getattr(self, name)
            if not (name == "reward_clip" and value is None) and (not _is_number(value) or value <= 0):
                raise ValueError(f"{name}={value!r} must be a finite number above 0.")
        if not _is_number(self.temperature) or self.temperature <= 0:
            raise ValueError(f"temperature={self.temperature!r} must be a finite number above 0.")
        check_dtype(self.dtype)
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

    def kl_penalty(self) -> KLPenalty:
        """The KL penalty that these settings describe; each task has one of its own."""
        estimator = self.kl_estimator or ("k3" if self.kl_in == "loss" else "k1")
        return KLPenalty(self.kl_coef, estimator, self.kl_in)

    @property
    def load(self) -> LoadSettings:
        """How models are loaded."""
        from llm_env.lm.loading import resolve_device  # torch says which devices there are

        return LoadSettings(self.dtype, str(resolve_device(self.device)), self.trust_remote_code)


def check_temperature(of_policy: float | None, of_reference: float) -> None:
    """Refuses log-probs that were taken at another temperature than the reference's.

    Raises:
        ValueError: the KL would compare two different families of distributions.
    """
    if of_policy != of_reference:
        raise ValueError(
            f"The policy samples at temperature {of_policy}, the environment's reference is at {of_reference}. "
            "Give both the same: policy_kwargs={'temperature': …} and the environment's temperature=…."
        )


def task_settings(settings: dict[str, Any]) -> TaskSettings:
    """Keyword arguments as `TaskSettings`.

    Raises:
        TypeError: an unknown one; a near one is suggested.
        ValueError: a value breaks its rule.
    """
    known = [f.name for f in dataclasses.fields(TaskSettings)]
    for name in settings:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f" Did you mean {near[0]!r}?" if near else f" It has {', '.join(known)}."
            raise TypeError(f"LLMText-v0 got an unexpected keyword argument {name!r}.{hint}")
    return TaskSettings(**settings)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool) and math.isfinite(value)
