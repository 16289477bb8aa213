"""The environment's settings: the keyword arguments of `gymnasium.make`, and their checks."""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_env.lm.names import LoadSettings, check_base_quantization, check_choice, check_dtype, check_mixed_precision
from llm_env.reward.endpoint import checked_url, is_url
from llm_env.reward.judges.names import CONCURRENCY, JUDGE_RULES, JudgeOptions, check_judge_name, is_language_judge
from llm_env.reward.kl import KLPenalty
from llm_env.reward.limits import LIMIT_RULES, CallLimits
from llm_env.reward.scores import RewardSource, weighted
from llm_env.reward.verifiers.named import is_verifier, make_verifier
from llm_env.rules import FLAG, SHARE, TOKENS, Rule, check_settings, number, whole
from llm_env.text.prompts import PromptSource

TASK_RULES: dict[str, Rule] = {
    "kl_coef": number(least=0),
    "reward_shift": number(),
    "reward_scale": number(above=0),
    "reward_clip": number(above=0),
    "length_penalty": number(),
    "max_prompt_length": TOKENS,
    "max_new_tokens": TOKENS,
    "temperature": number(above=0),
    "missing_eos_penalty": number(least=0),
    "overlong_buffer": whole(0, of="tokens"),
    "overlong_penalty": number(least=0),
    "top_k": whole(0, of="tokens"),
    "top_p": SHARE,
    "min_new_tokens": whole(0, of="tokens"),
    **LIMIT_RULES,
    "max_turns": whole(1, 1_000_000),
    "max_turn_tokens": TOKENS,
    "max_length": TOKENS,
    "max_world_tokens": TOKENS,
    "world_timeout": number(above=0),
    "world_lag": whole(0, 1_000_000, "steps"),
    **JUDGE_RULES,
    "offload": FLAG,
    "trust_remote_code": FLAG,
    "special_tokens_in_text": FLAG,
}
"""What the environment's settings must be; names and sources are checked by `TaskSettings` itself."""
MASK_RULES = ("top_k", "top_p", "min_new_tokens", "forbidden_tokens", "allowed_tokens", "allowed_pattern")
"""Settings that say which tokens may be chosen."""
WORLD_ERRORS = ("raise", "end")
_OF_A_WORLD = (
    "world_kwargs",
    "max_turns",
    "max_turn_tokens",
    "max_length",
    "max_world_tokens",
    "world_timeout",
    "world_errors",
    "world_lag",
)
"""Settings that mean nothing without a world."""


@dataclass(frozen=True)
class TaskSettings:
    """The keyword arguments of the environment: names, paths and numbers, and their checks.

    Attributes:
        model: Folder or hub id of the reference model, which also gives the tokenizer. None: the embedded default.
        reward_model: What scores a finished response: a folder, hub id, function, server's address, verifier, language judge,
            or list of them, as in `llm_env.reward.models`. None: the embedded default, which needs the default model.
        prompts: What is asked: a file, a dataset id, or a list of texts, chats or records of either, as in
            `llm_env.text.prompts`. None: the embedded default, which needs the default model.
        kl_coef: β ≥ 0, in score per nat. The default suits scores of standard deviation 1.
        kl_estimator: What stands for the KL of a token in the reward: ``k1``, ``k2``, ``k3`` (`llm_env.reward.kl`), or
            ``exact``: of the two whole distributions, instead of an estimate from the token drawn (Rao-Blackwellized; Amini
            et al. 2025, https://arxiv.org/abs/2504.10637). Exact needs a buffer that defers scoring. None: k3 where the penalty
            is in the loss only, since k1 has no gradient there, else k1.
        kl_in: Where the penalty is paid: ``reward``, ``loss`` or ``both``; see `llm_env.reward.kl.KLPenalty`. The loss is the
            algorithm's: ``agents.TextPPO`` has the term. With ``loss`` the environment pays the score alone. None: in the
            reward, unless an algorithm is made whose own default is another (grpo: the loss).
        reward_shift: Number that is added to the reward model's score first. The default leaves the score as it is.
        reward_scale: Factor above 0 that multiplies the reward model's score after `reward_shift`.
        reward_clip: Largest absolute value of the score after shift and scale, before penalties. None: no limit.
        reward_timeout: Seconds that one call of a reward function or server may take. None: no limit for functions, 60 for
            servers.
        reward_wait: Seconds for which a call of a reward function or server that fails is repeated, with growing pauses. None:
            0 for functions, 600 for servers.
        judge_prompt: File with the instruction of a language model that grades (``llm:…``, ``openai:…``), in which ``{prompt}``
            and ``{response}`` stand for the texts. None: the one that is shipped.
        judge_concurrency: Requests that such a model behind a server is sent side by side.
        length_penalty: Score taken off for each token of a response.
        max_prompt_length: In tokens; longer prompts are cut on the left.
        max_new_tokens: Length cap of a response, in tokens.
        stop_strings: Texts that end a response, or in a world a turn, as an end token does: the token that completes one is its
            last. A line feed makes responses of one line; ``</tool_call>`` has a call answered at once. None: there are none.
        temperature: Divides the logits wherever a log-probability is taken; it is part of the policy.
        missing_eos_penalty: Score taken off a response that reached the length cap without an end token.
        overlong_buffer: Number of tokens before the length cap within which a response pays `overlong_penalty` in part.
        overlong_penalty: Score taken off a response as long as the cap; within `overlong_buffer` it rises from 0 to that.
            0: none. Section 3.4 of Yu et al. 2025, "DAPO" (https://arxiv.org/abs/2503.14476).
        top_k: Mask rule: only the k likeliest tokens of the reference may be chosen. 0: any token. Mask rules make
            `action_masks`, which MaskablePPO obeys and other algorithms ignore; see `llm_env.masks`.
        top_p: Mask rule: only the fewest likeliest tokens of the reference that hold this probability. 1: any token.
        min_new_tokens: Mask rule: no end token before that many other tokens.
        forbidden_tokens: Mask rule: tokens that are never chosen, as ids or as texts of exactly one token.
        allowed_tokens: Mask rule: only these tokens, as ids or texts of exactly one token, and the end tokens.
        allowed_pattern: Mask rule: only tokens whose whole text matches this regular expression, besides `allowed_tokens`
            and the end tokens.
        world: What answers the policy's turns (docs/turns.md): a registered Gymnasium id, ``package.module:factory``, or in
            Python a factory of an environment of texts. None: the response has one turn, and nothing answers it.
        world_kwargs: Arguments of the world's factory, by name.
        max_turns: Turns of the policy in an episode, at most.
        max_turn_tokens: Length cap of a turn, in the policy's tokens. None: `max_new_tokens`, which counts those of the whole
            episode.
        max_length: Length cap of the whole state, in tokens: prompt, policy's and world's. None: `max_prompt_length` +
            `max_new_tokens` + `max_turns` times `max_world_tokens`, or what the model can read where that is less.
        max_world_tokens: Tokens of one text of the world, at most; of a longer one the end is cut off.
        world_timeout: Seconds that one call of the world may take.
        world_errors: What follows when a world fails or does not answer in time: ``raise`` stops with one line, ``end`` ends
            the episode and goes on.
        world_lag: Steps that a slot sits out while its world answers, so that the others need not wait: in synchronous
            episodes, while a buffer that defers scoring collects. 0: all wait for the slowest of those asked in a step.
        dtype: Type of the frozen models' weights: float32, bfloat16 or float16. Only in float32 is the KL exactly 0 at the
            start of training.
        mixed_precision: ``no``, or ``bf16``: reference and reward model compute under autocast, as the actor then should.
        device: Where the frozen models are: auto (the GPU where there is one), cpu, cuda or another torch device.
        offload: Whether reference and reward model are on the CPU except while a rollout is scored; a policy puts its critic
            network aside too (docs/memory.md). Not for scoring by steps, which asks them all the time.
        base_quantization: ``none``, or ``nf4``: the reference's linear layers are in 4 bits, as those below a policy's LoRA
            adapters then are (docs/memory.md).
        trust_remote_code: Whether model code from a hub may run.
        special_tokens_in_text: Whether special tokens that prompts and responses spell out, as ``</s>``, become those tokens.
            Without it they are read as the characters that they are; chat templates write special tokens in either case.
    """

    model: str | None = None
    reward_model: RewardSource | None = None
    prompts: PromptSource | None = None
    kl_coef: float = 0.05
    kl_estimator: str | None = None
    kl_in: str | None = None
    reward_shift: float = 0.0
    reward_scale: float = 1.0
    reward_clip: float | None = None
    reward_timeout: float | None = None
    reward_wait: float | None = None
    judge_prompt: str | None = None
    judge_concurrency: int = CONCURRENCY
    length_penalty: float = 0.0
    max_prompt_length: int = 64
    max_new_tokens: int = 32
    stop_strings: Sequence[str] | None = None
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
    world: str | Callable[..., Any] | None = None
    world_kwargs: Mapping[str, Any] | None = None
    max_turns: int = 8
    max_turn_tokens: int | None = None
    max_length: int | None = None
    max_world_tokens: int = 256
    world_timeout: float = 60.0
    world_errors: str = "raise"
    world_lag: int = 0
    dtype: str = "float32"
    mixed_precision: str = "no"
    device: str = "auto"
    offload: bool = False
    base_quantization: str = "none"
    trust_remote_code: bool = False
    special_tokens_in_text: bool = False

    def __post_init__(self) -> None:
        """Checks what can be checked before anything is loaded.

        Raises:
            ValueError: a setting breaks its rule.
        """
        check_settings(self, TASK_RULES)
        self._check_sources()
        self._check_stop_strings()
        self._check_masks()
        self._check_world()
        for name in ("min_new_tokens", "overlong_buffer"):
            if getattr(self, name) > self.max_new_tokens:
                raise ValueError(f"{name}={getattr(self, name)} must be at most max_new_tokens={self.max_new_tokens}.")
        self.kl_penalty()
        check_dtype(self.dtype)
        check_mixed_precision(self.mixed_precision)
        check_base_quantization(self.base_quantization)

    def _check_sources(self) -> None:
        """Refuses what names no model, reward model or prompts, and defaults that would not fit together."""
        for name in ("model", "reward_model", "prompts", "world"):
            _check_not_blank(name, getattr(self, name))
        if isinstance(self.model, os.PathLike):
            object.__setattr__(self, "model", os.fspath(self.model))  # a name like any other from here on
        for name in ("model", "device"):
            value = getattr(self, name)
            if not (value is None and name == "model") and not isinstance(value, str):
                raise ValueError(f"{name}={value!r} must be a text.")
        if not isinstance(self.judge_prompt, str | os.PathLike | None):
            raise ValueError(f"judge_prompt={self.judge_prompt!r} must be a file.")
        prompts, reward = self.prompts, self.reward_model
        if prompts is not None and not isinstance(prompts, str | os.PathLike | Sequence):
            raise ValueError(f"prompts={prompts!r} must be a file, a dataset id, or a list of prompts.")
        if reward is not None and not callable(reward) and not isinstance(reward, str | Path | list | tuple):
            raise ValueError(
                f"reward_model={reward!r} must be a name, a function of (prompts, responses), or a list of them."
            )
        if isinstance(reward, list | tuple):
            if not reward:
                raise ValueError(f"reward_model={reward!r} is an empty list; name at least one reward model.")
            for entry in reward:
                weighted(entry, "reward_model")
        for name in _names(reward):
            if is_url(name):
                checked_url(name, "reward_model")
            elif is_language_judge(name):
                check_judge_name(name, "reward_model")
            elif is_verifier(name):
                make_verifier(name)
        if self.model is not None and self.world is None:
            for name in ("reward_model", "prompts"):
                if getattr(self, name) is None:
                    raise ValueError(
                        f"model={self.model!r} needs {name} too: the embedded default's {name} fits its own model only."
                    )

    def _check_stop_strings(self) -> None:
        stops = self.stop_strings
        if stops is None:
            return
        if isinstance(stops, str) or not isinstance(stops, Sequence):
            raise ValueError(f"stop_strings={stops!r} must be a list of texts, not one text.")
        for stop in stops:
            if not isinstance(stop, str) or not stop:
                raise ValueError(f"stop_strings: {stop!r} must be a text of at least one character.")

    def _check_masks(self) -> None:
        for name in ("forbidden_tokens", "allowed_tokens"):
            tokens = getattr(self, name)
            if tokens is not None and (isinstance(tokens, str) or not isinstance(tokens, Sequence)):
                raise ValueError(f"{name}={tokens!r} must be a list of tokens, not one text.")
            for token in tokens or ():
                if isinstance(token, bool) or not isinstance(token, str | int):
                    raise ValueError(f"{name}: {token!r} must be a token's text or its id, a whole number.")
        if self.allowed_pattern is not None:
            try:
                re.compile(self.allowed_pattern)
            except (re.error, TypeError) as error:
                raise ValueError(
                    f"allowed_pattern={self.allowed_pattern!r} is not a regular expression: {error}."
                ) from error

    def _check_world(self) -> None:
        """Refuses what is no world, and settings of one where there is none."""
        check_choice("world_errors", self.world_errors, WORLD_ERRORS)
        if self.world is None:
            for name in _OF_A_WORLD:
                if getattr(self, name) != getattr(type(self), name):
                    raise ValueError(
                        f"{name}={getattr(self, name)!r} goes with a world: give world too, or leave it out."
                    )
            return
        if not isinstance(self.world, str) and not callable(self.world):
            raise ValueError(
                f"world={self.world!r} must be a registered Gymnasium id, package.module:factory, or a factory."
            )
        kwargs = self.world_kwargs
        if kwargs is not None and not (isinstance(kwargs, Mapping) and all(isinstance(name, str) for name in kwargs)):
            raise ValueError(f"world_kwargs={kwargs!r} must be a mapping of the factory's arguments by name.")
        if self.max_turn_tokens is not None and self.max_turn_tokens > self.max_new_tokens:
            raise ValueError(
                f"max_turn_tokens={self.max_turn_tokens} must be at most max_new_tokens={self.max_new_tokens}, the policy's "
                "tokens of the whole episode."
            )
        if self.max_length is not None and self.max_length <= self.max_prompt_length:
            raise ValueError(
                f"max_length={self.max_length} must be above max_prompt_length={self.max_prompt_length}: it is the length of "
                "the whole state."
            )

    @property
    def has_masks(self) -> bool:
        """Whether any of the mask rules is set."""
        return any(getattr(self, rule) != getattr(TaskSettings, rule) for rule in MASK_RULES)

    @property
    def round_steps(self) -> int:
        """Steps in which even the longest episode ends, the lag of its world included."""
        return self.max_new_tokens + self.world_lag * self.max_turns * (self.world is not None)

    def kl_penalty(self) -> KLPenalty:
        """The KL penalty that these settings describe; each task has one of its own."""
        place = self.kl_in or "reward"
        return KLPenalty(self.kl_coef, self.kl_estimator or ("k3" if place == "loss" else "k1"), place)

    @property
    def reward_limits(self) -> CallLimits:
        """How long a call of a reward function or server may take, and for how long one that fails is repeated."""
        return CallLimits(self.reward_timeout, self.reward_wait)

    @property
    def judging(self) -> JudgeOptions:
        """What a language model that grades is told, and how many requests it is sent at once."""
        return JudgeOptions(self.judge_prompt, self.judge_concurrency)

    @property
    def load(self) -> LoadSettings:
        """How the frozen models are loaded, on the resolved device, and how their tokenizers read texts."""
        from llm_env.lm.loading import resolve_device  # imports torch, which knows the devices

        device = str(resolve_device(self.device))
        return LoadSettings(self.dtype, device, self.trust_remote_code, self.special_tokens_in_text, self.offload)

    @property
    def load_reference(self) -> LoadSettings:
        """How the reference is loaded: it never idles where masks look at it at every step, or the loss at each mini-batch."""
        kl = self.kl_penalty()
        asked_always = self.top_k > 0 or self.top_p < 1.0 or (kl.in_loss and kl.estimator == "exact")
        load = self.load._replace(offload=self.offload and not asked_always)
        return load.as_base(self.base_quantization, self.mixed_precision)


def check_temperature(of_policy: float | None, of_reference: float) -> None:
    """Refuses log-probs that were taken at another temperature than the reference's.

    Args:
        of_policy: The temperature at which the policy sampled; None where its actions do not say.
        of_reference: The environment's temperature.

    Raises:
        ValueError: the two differ, so the KL would compare two different families of distributions.
    """
    if of_policy != of_reference:
        raise ValueError(
            f"The policy samples at temperature {of_policy}, the environment's reference is at {of_reference}. "
            "Give both the same: policy_kwargs={'temperature': …} and the environment's temperature=…."
        )


def task_settings(settings: dict[str, Any]) -> TaskSettings:
    """The keyword arguments of an environment as `TaskSettings`.

    Args:
        settings: Names and values, as `gymnasium.make` got them.

    Raises:
        TypeError: there is no setting of such a name; the nearest name is suggested.
        ValueError: a value breaks its rule.
    """
    known = [f.name for f in dataclasses.fields(TaskSettings)]
    for name in settings:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f" Did you mean {near[0]!r}?" if near else f" It has {', '.join(known)}."
            raise TypeError(f"LLMText-v0 got an unexpected keyword argument {name!r}.{hint}")
    return TaskSettings(**settings)


def _names(reward: Any) -> list[str]:
    """The names in a setting of reward models: itself, or those of a list and of the pairs in it."""
    if isinstance(reward, list | tuple):
        return [name for part in reward for name in _names(part)]
    return [reward] if isinstance(reward, str) else []


def _check_not_blank(name: str, value: Any) -> None:
    if isinstance(value, str) and not value.strip():
        raise ValueError(f"{name}={value!r} names nothing. Leave {name} out (None) for the embedded default.")
