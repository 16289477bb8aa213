"""Reward models by name: frozen sequence classifiers, Python functions, servers, and weighted sums of them.

A reward model scores finished episodes. The option ``reward_model`` is

- a model folder or hub id of an `AutoModelForSequenceClassification` with one label (`llm_env.reward.classifier`),
- a function of ``(prompts, responses)``, and of columns of the prompts' records that it names, which returns one float for
  each, or its name ``"package.module:function"`` (`llm_env.reward.functions`),
- the address of a server, ``"http://host:port/path"`` (`llm_env.reward.server`),
- a verifier, ``"verifier:number?column=answer"`` (`llm_env.reward.verifiers`),
- a language model that grades, ``"llm:NAME"`` or ``"openai:URL#MODEL"`` (`llm_env.reward.judges`), or
- a list of such, or of ``[reward_model, weight]`` pairs, which are summed.

A run's settings are written to a file, so there only names are possible; a function itself can be passed in Python.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from llm_env.episode import Episode
from llm_env.lm.names import LoadSettings
from llm_env.reward.classifier import ClassifierReward, scalar_head
from llm_env.reward.endpoint import is_url
from llm_env.reward.functions import FunctionReward, function_name
from llm_env.reward.judges.asking import load_asked_model
from llm_env.reward.judges.grade import GradeReward
from llm_env.reward.judges.instruction import read_instruction
from llm_env.reward.judges.names import GRADE, JudgeOptions, is_language_judge
from llm_env.reward.limits import CallLimits
from llm_env.reward.scores import RewardFunction, RewardModel, RewardModelError, RewardSource, TextReward, weighted
from llm_env.reward.server import ServerReward
from llm_env.reward.verifiers.named import PREFIX, VerifierReward, is_verifier
from llm_env.text.prompts import PromptRecord

__all__ = [
    "ClassifierReward",
    "FunctionReward",
    "RewardModel",
    "RewardModelError",
    "ServerReward",
    "WeightedSum",
    "load_reward_model",
    "load_text_reward",
    "reads_texts",
    "scalar_head",
]


class WeightedSum:
    """Σ weight · score over several reward models.

    Args:
        parts: Pairs of a reward model and its weight.
        names: A short name for each part, by which its score is kept in `Episode.part_scores` and logged; None for a part that
            is a sum again.
    """

    def __init__(self, parts: list[tuple[RewardModel, float]], names: Sequence[str | None]) -> None:
        self.parts = parts
        self.names = names

    def check_prompts(self, records: Sequence[PromptRecord]) -> None:
        """See `llm_env.reward.scores.RewardModel.check_prompts`."""
        for model, _ in self.parts:
            model.check_prompts(records)

    def score(self, episodes: Sequence[Episode]) -> list[float]:
        """The weighted sum of the parts' scores, one for each episode."""
        totals = [0.0] * len(episodes)
        for (model, weight), name in zip(self.parts, self.names, strict=True):
            scores = model.score(episodes)
            totals = [t + weight * s for t, s in zip(totals, scores, strict=True)]
            if name is not None:
                for episode, score in zip(episodes, scores, strict=True):
                    episode.part_scores[name] = score
        return totals


def reads_texts(name: str) -> bool:
    """Whether a name is a function's, server's, verifier's or language judge's, and not a classifier's folder or hub id."""
    # ``module:function``, unless a folder has a colon in its name.
    return is_url(name) or is_verifier(name) or (":" in name and not Path(name).exists())


def load_text_reward(
    source: str | RewardFunction | TextReward,
    option: str = "reward_model",
    limits: CallLimits | None = None,
    load: LoadSettings | None = None,
    judging: JudgeOptions | None = None,
    mixed_precision: str = "no",
) -> TextReward:
    """The reward model of a function, of its name, of a server's address, of a verifier, or of a language judge's name.

    Args:
        source: The function, ``package.module:function``, an address, ``verifier:NAME``, ``llm:NAME`` or ``openai:URL#MODEL``.
            What is a reward model already is returned.
        option: The option that the source came from, for error messages.
        limits: How long a call may take, and for how long one that fails is repeated.
        load: dtype, device and whether remote code may run, for ``llm:NAME``.
        judging: What a language judge is told, and how many requests are sent at once.
        mixed_precision: ``no`` or ``bf16``: the model of ``llm:NAME`` computes under autocast.

    Raises:
        FileNotFoundError, ValueError: there is no such module, function or model, or the address is malformed.
    """
    if isinstance(source, TextReward):
        return source
    if isinstance(source, str) and is_language_judge(source):
        judging = judging or JudgeOptions()
        instruction = read_instruction(GRADE, judging.prompt)
        model = load_asked_model(source, load or LoadSettings(), option, limits, judging.concurrency, mixed_precision)
        return GradeReward(model, instruction)
    if isinstance(source, str) and is_url(source):
        return ServerReward(source, option, limits)
    if isinstance(source, str) and is_verifier(source):
        return VerifierReward(source, option, limits)
    return FunctionReward(source, option, limits)


def load_reward_model(
    source: RewardSource,
    settings: LoadSettings,
    actor_tokenizer: PreTrainedTokenizerBase,
    mixed_precision: str = "no",
    option: str = "reward_model",
    limits: CallLimits | None = None,
    judging: JudgeOptions | None = None,
) -> RewardModel:
    """The reward model that a setting describes, or the weighted sum of several.

    Args:
        source: One of the forms in the module's docstring.
        settings: dtype, device and whether remote code may run, for classifiers and ``llm:NAME``.
        actor_tokenizer: Decides whether a classifier reads the actor's ids or the text.
        mixed_precision: ``no`` or ``bf16``: classifiers compute under autocast.
        option: The option that the source came from, for error messages.
        limits: How long a call of a function or server may take, and for how long one that fails is repeated.
        judging: What a language judge is told, and how many requests are sent at once.

    Raises:
        FileNotFoundError, ValueError: the source has none of those forms, or cannot be loaded.
    """
    if callable(source):
        return load_text_reward(source, option, limits)
    if isinstance(source, str | Path):
        name = str(source)
        if reads_texts(name):
            return load_text_reward(name, option, limits, settings, judging, mixed_precision)
        return ClassifierReward(name, settings, actor_tokenizer, mixed_precision, option)
    parts: list[tuple[RewardModel, float]] = []
    names: list[str | None] = []
    # A list: each entry is loaded by itself, and may be a list again; none before all of them are checked.
    for part, weight in [weighted(entry, option) for entry in source]:
        parts.append(
            (load_reward_model(part, settings, actor_tokenizer, mixed_precision, option, limits, judging), weight)
        )
        names.append(None if isinstance(part, list | tuple) else _unlike(short_name(part), names))
    if not parts:
        raise ValueError(f"{option} is an empty list; name at least one reward model.")
    return WeightedSum(parts, names)


def short_name(source: str | Path | RewardFunction) -> str:
    """A reward model's name in the log: a verifier's, function's or judge's own, a server's address, or the folder's."""
    if callable(source):
        return function_name(source).rpartition(":")[2]
    name = str(source)
    if is_language_judge(name):
        return name.rpartition("#")[2] if "#" in name else Path(name.partition(":")[2]).name
    if is_url(name):
        return name.partition("://")[2].rstrip("/")
    if is_verifier(name):
        return name.removeprefix(PREFIX).partition("?")[0]
    return name.rpartition(":")[2] if reads_texts(name) else Path(name).name


def _unlike(name: str, others: Sequence[str | None]) -> str:
    """A name, with a number behind it where others have it already."""
    number, numbered = 1, name
    while numbered in others:
        number += 1
        numbered = f"{name}_{number}"
    return numbered
