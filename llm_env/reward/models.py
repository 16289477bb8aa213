"""Reward models: frozen sequence classifiers, Python functions, and weighted sums of them.

A reward model scores finished episodes. It is named by

- a model folder or hub id of an `AutoModelForSequenceClassification` with one label,
- ``"package.module:function"``, a function of ``(prompts, responses)`` that returns one float for each, or
- a list of such names, or of ``[name, weight]`` pairs, which are summed.

A classifier that shares the actor's tokenizer reads exactly the actor's ids, end token included; one with a tokenizer
of its own reads the decoded text, encoded anew. Its score is the scalar head at the last real token, the same number
that the model gives for that sequence alone, unpadded. If its configuration has ``score_mean`` and ``score_std`` (over
reference responses), the reported score is (score - mean) / std. One with several named heads (`llm_env.reward.heads`) is put
together into one score first.
"""

from __future__ import annotations

import importlib
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from llm_env.episode import Episode
from llm_env.lm.loading import autocast, freeze, load_config, load_tokenizer, load_weights
from llm_env.lm.names import LoadSettings
from llm_env.lm.packed_attention import packed_states
from llm_env.lm.packing import in_groups, pack_ends
from llm_env.lm.registry import MODELS
from llm_env.reward.heads import Gate, combined_head, head_names, head_weights, load_gate
from llm_env.settings import RewardName

RewardFunction: TypeAlias = Callable[[list[str], list[str]], Sequence[float]]

SCORE_TOKENS = 16_384  # tokens read at once, padding included


class RewardModelError(RuntimeError):
    """A reward model failed, or returned something that is not one finite number for each response."""


class RewardModel(Protocol):
    """What scores episodes."""

    def score(self, episodes: Sequence[Episode]) -> list[float]:
        """One finite score for each finished episode."""


def checked_scores(values: Any, count: int, name: str) -> list[float]:
    """Makes sure of one finite float for each response.

    Raises:
        RewardModelError: a wrong count, something that is not a number, NaN or infinity.
    """
    try:
        scores = [float(v) for v in values]
    except (TypeError, ValueError) as error:
        raise RewardModelError(
            f"reward_model={name!r} must return one float for each response; it returned {values!r:.120}."
        ) from error
    if len(scores) != count:
        raise RewardModelError(f"reward_model={name!r} returned {len(scores)} scores for {count} responses.")
    for i, value in enumerate(scores):
        if not math.isfinite(value):
            raise RewardModelError(
                f"reward_model={name!r} returned {value} for response {i} of {count}; scores must be finite."
            )
    return scores


class FunctionReward:
    """A Python function of (prompts, responses).

    Args:
        name: ``"package.module:function"``; the module is looked for in the current folder too.

    Raises:
        ValueError: there is no such module or function.
    """

    def __init__(self, name: str) -> None:
        module_name, _, function_name = name.partition(":")
        if os.getcwd() not in sys.path and "" not in sys.path:
            sys.path.append(os.getcwd())
        try:
            function = getattr(importlib.import_module(module_name), function_name)
        except ImportError as error:
            raise ValueError(
                f"reward_model={name!r}: module {module_name!r} cannot be imported ({error}). A reward function is named "
                "'package.module:function', and its module must be in the current folder or on PYTHONPATH."
            ) from error
        except AttributeError as error:
            raise ValueError(f"reward_model={name!r}: module {module_name!r} has no {function_name!r}.") from error
        if not callable(function):
            raise ValueError(f"reward_model={name!r} is not a function.")
        self.name = name
        self.function: RewardFunction = function

    def score(self, episodes: Sequence[Episode]) -> list[float]:
        """Calls the function once for all episodes.

        Raises:
            RewardModelError: it raised, or did not return one finite float for each.
        """
        prompts, responses = [e.prompt.text for e in episodes], [e.response_text for e in episodes]
        try:
            values = self.function(prompts, responses)
        except Exception as error:
            raise RewardModelError(f"reward_model={self.name!r} raised {type(error).__name__}: {error}") from error
        return checked_scores(values, len(episodes), self.name)


class ClassifierReward:
    """A frozen sequence-classification model with one label.

    Args:
        name: Model folder or hub id.
        settings: dtype, device, trust_remote_code.
        actor_tokenizer: Decides between ids and text.
        mixed_precision: ``no`` or ``bf16`` autocast.

    Raises:
        FileNotFoundError, ValueError: it cannot be loaded, or has other than one label.
    """

    def __init__(
        self,
        name: str,
        settings: LoadSettings,
        actor_tokenizer: PreTrainedTokenizerBase,
        mixed_precision: str = "no",
    ) -> None:
        self.name = name
        self.mixed_precision = mixed_precision
        self.model, self.tokenizer = MODELS.get(
            "reward_model", name, settings, lambda: _load_classifier(name, settings)
        )
        self.shares_tokenizer = same_tokenizer(self.tokenizer, actor_tokenizer)
        self.heads = head_names(self.model.config)
        self.gate: Gate | None = None
        if self.heads is not None:
            hidden_size = _linear_head(self.model).in_features  # type: ignore[union-attr]
            gate = load_gate(name, hidden_size, len(self.heads))
            self.gate = None if gate is None else gate.to(self.model.device)
        self._head = scalar_head(self.model)
        self.mean = float(getattr(self.model.config, "score_mean", 0.0))
        self.std = float(getattr(self.model.config, "score_std", 1.0))
        if not (math.isfinite(self.mean) and math.isfinite(self.std) and self.std > 0):
            raise ValueError(
                f"reward_model={name!r}: config.json has score_mean={self.mean}, score_std={self.std}; the first must be "
                "finite and the second positive."
            )

    def token_ids(self, episode: Episode) -> list[int]:
        """What the model reads of an episode."""
        if self.shares_tokenizer:
            return [*episode.prompt.ids, *episode.response_ids]
        if episode.prompt.messages is not None and self.tokenizer.chat_template is not None:
            messages = [{"role": role, "content": content} for role, content in episode.prompt.messages]
            messages.append({"role": "assistant", "content": episode.response_text})
            text = str(self.tokenizer.apply_chat_template(messages, tokenize=False))
            ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        else:
            prompt, response = episode.prompt.text, episode.response_text
            gap = "" if not response or response[0].isspace() or prompt[-1:].isspace() else " "
            ids = self.tokenizer(prompt + gap + response)["input_ids"]
        limit = getattr(self.model.config, "max_position_embeddings", None)
        if limit is not None and len(ids) > limit:
            ids = ids[-limit:]
        return list(ids) or [self.tokenizer.eos_token_id or 0]

    @torch.no_grad()
    def score(self, episodes: Sequence[Episode]) -> list[float]:
        """Scores episodes in batches of similar length.

        Raises:
            RewardModelError: a score is NaN or infinite.
        """
        sequences = [self.token_ids(e) for e in episodes]
        rows = self.model.get_input_embeddings().weight.shape[0]
        highest = max((i for s in sequences for i in s), default=0)
        if highest >= rows:
            raise RewardModelError(
                f"reward_model={self.name!r}: its tokenizer gives token {highest}, the model has {rows}: they do not belong "
                "together. Save the tokenizer that the model was trained with beside it."
            )
        starts = [self._prompt_length(e, ids) for e, ids in zip(episodes, sequences, strict=True)]
        raw = [0.0] * len(sequences)

        def run(group: list[int]) -> None:
            with autocast(self.model.device, self.mixed_precision):
                values = self._forward([sequences[i] for i in group], [starts[i] for i in group]).tolist()
            for i, value in zip(group, values, strict=True):
                raw[i] = (value - self.mean) / self.std

        in_groups([len(s) for s in sequences], SCORE_TOKENS, self.model.device, run)
        return checked_scores(raw, len(episodes), self.name)

    def _prompt_length(self, episode: Episode, ids: list[int]) -> int:
        """Tokens of the prompt among what the model reads; only a gate needs to know."""
        if self.gate is None:
            return 1
        if self.shares_tokenizer:
            return len(episode.prompt.ids)
        return max(1, len(ids) - len(self.tokenizer(episode.response_text, add_special_tokens=False)["input_ids"]))

    def _forward(self, sequences: list[list[int]], starts: list[int]) -> Tensor:
        """The model's score of each sequence, shape (n,), float32."""
        device = self.model.device
        if self.gate is not None:
            head = _linear_head(self.model)
            assert head is not None
            batch = pack_ends(sequences, device)
            prompts = pack_ends([s[:start] for s, start in zip(sequences, starts, strict=True)], device)
            ends = packed_states(self.model.base_model, batch)[batch.index]
            weights = self.gate(packed_states(self.model.base_model, prompts)[prompts.index])
            return (self._exactly(head, ends) * weights).sum(-1)
        if self._head is not None:  # a decoder: causality is the mask
            batch = pack_ends(sequences, device)
            return self._exactly(self._head, packed_states(self.model.base_model, batch)[batch.index])[:, 0]
        lengths = torch.tensor([len(s) for s in sequences])
        inside = torch.arange(int(lengths.max())) < lengths[:, None]
        ids = torch.zeros(inside.shape, dtype=torch.long)
        ids[inside] = torch.tensor([t for s in sequences for t in s])
        return self.model(input_ids=ids.to(device), attention_mask=inside.long().to(device)).logits[:, 0].float()

    def _exactly(self, head: nn.Module, states: Tensor) -> Tensor:
        """The head outside of autocast: rounded to bf16, scores would be steps of a hundredth."""
        with torch.autocast(states.device.type, enabled=False):
            return head(states.to(self.model.dtype)).float()


def _linear_head(model: PreTrainedModel) -> nn.Linear | None:
    head = getattr(model, "score", None)
    return head if isinstance(head, nn.Linear) and model.base_model is not model else None


def scalar_head(model: PreTrainedModel) -> nn.Module | None:
    """The linear head of a decoder that scores its last token, or None for other classifiers.

    Several heads whose weights are fixed are one linear head; with a gate they are not.
    """
    head = _linear_head(model)
    if head is None or head_names(model.config) is None:
        return head
    if getattr(model.config, "reward_gate", False):
        return None
    return combined_head(head, head_weights(model.config))


def _load_classifier(name: str, settings: LoadSettings) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    config = load_config(name, "sequence classifier", "reward_model", settings.trust_remote_code)
    labels = config.num_labels
    architectures = getattr(config, "architectures", None) or []
    if not any("SequenceClassification" in a for a in architectures):
        raise ValueError(
            f"reward_model={name!r} is {' or '.join(architectures) or 'of unknown kind'}, not a sequence-classification model."
        )
    heads = head_names(config)
    if heads is not None and len(heads) != labels:
        raise ValueError(f"reward_model={name!r} has {labels} labels, but config.json names {len(heads)} reward_heads.")
    if labels != 1 and heads is None:
        raise ValueError(
            f"reward_model={name!r} has {labels} labels; a reward model has one (num_labels=1). To use one label of a "
            "classifier, wrap it in a function and give its name as 'package.module:function'."
        )
    model = load_weights(AutoModelForSequenceClassification, name, "reward model", "reward_model", settings)
    if heads is not None and _linear_head(model) is None:
        raise ValueError(f"reward_model={name!r}: reward_heads need a decoder with a linear head named 'score'.")
    tokenizer = load_tokenizer(name, "reward_model", settings.trust_remote_code)
    return freeze(model), tokenizer


def same_tokenizer(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> bool:
    """Whether two tokenizers mean the same by the same ids."""
    return one is other or (one.get_vocab() == other.get_vocab() and one.all_special_ids == other.all_special_ids)


class WeightedSum:
    """Σ weight · score over several reward models."""

    def __init__(self, parts: list[tuple[RewardModel, float]]) -> None:
        self.parts = parts

    def score(self, episodes: Sequence[Episode]) -> list[float]:
        """The weighted sum of the parts' scores."""
        totals = [0.0] * len(episodes)
        for model, weight in self.parts:
            totals = [t + weight * s for t, s in zip(totals, model.score(episodes), strict=True)]
        return totals


def load_reward_model(
    name: RewardName,
    settings: LoadSettings,
    actor_tokenizer: PreTrainedTokenizerBase,
    mixed_precision: str = "no",
) -> RewardModel:
    """The reward model of a name, or the weighted sum of several.

    Raises:
        FileNotFoundError, ValueError: the name is not one of the forms in the module's docstring.
    """
    if isinstance(name, str | Path):
        text = str(name)
        if ":" in text and not Path(text).exists():
            return FunctionReward(text)
        return ClassifierReward(text, settings, actor_tokenizer, mixed_precision)
    parts: list[tuple[RewardModel, float]] = []
    for item in name:
        part: Any
        part, weight = (item, 1.0) if isinstance(item, str | Path) else item
        if not isinstance(weight, int | float) or not math.isfinite(weight):
            raise ValueError(f"reward_model: the weight of {part!r} must be a finite number; got {weight!r}.")
        parts.append((load_reward_model(part, settings, actor_tokenizer, mixed_precision), float(weight)))
    if not parts:
        raise ValueError("reward_model is an empty list; name at least one reward model.")
    return WeightedSum(parts)
