"""Reward models that are frozen sequence classifiers.

A classifier that shares the actor's tokenizer reads exactly the actor's ids, end token included; one with another
tokenizer reads the decoded text, encoded anew. Its score is the number that its own `forward` gives for that sequence alone,
unpadded (`llm_env.reward.reading`). If its configuration has ``score_mean`` and ``score_std`` (over reference responses), the
reported score is (score - mean) / std. One with several named heads (`llm_env.reward.heads`) is put together into one score
first.
"""

from __future__ import annotations

import logging
import math
import weakref
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from llm_env.episode import Episode
from llm_env.lm.loading import (
    autocast,
    freeze,
    lacks_weights,
    load_config,
    load_tokenizer,
    load_weights,
    resolve_device,
)
from llm_env.lm.memory import is_out_of_memory
from llm_env.lm.names import LoadSettings
from llm_env.lm.packed_attention import packed_states
from llm_env.lm.packing import in_groups, pack_ends
from llm_env.lm.placement import at_hand
from llm_env.lm.registry import MODELS
from llm_env.reward.heads import (
    Gate,
    MLPHead,
    ScoreHead,
    combined_head,
    head_names,
    head_weights,
    load_gate,
    load_mlp_head,
    mlp_size,
)
from llm_env.reward.reading import linear_head, logits, way_of_reading
from llm_env.reward.scores import RewardModelError, checked_scores
from llm_env.text.encoding import chat_ids, has_special_tokens, text_ids
from llm_env.text.prompts import PromptRecord
from llm_env.text.texts import response_after

logger = logging.getLogger(__name__)

SCORE_TOKENS = 16_384  # tokens read at once, padding included

LIMITLESS = 10**9
"""Tokens that a text may have for a model that names no limit."""

_TEXT_READERS: weakref.WeakSet[PreTrainedModel] = weakref.WeakSet()
"""Models of which the log already says that they read text."""


class ClassifierReward:
    """A frozen sequence-classification model with one label, or with named heads.

    Args:
        name: Model folder or hub id.
        settings: dtype, device and whether remote code may run.
        actor_tokenizer: If the classifier's tokenizer is the same, it reads the actor's ids, otherwise the text.
        mixed_precision: ``no``, or ``bf16``: the model computes under autocast, its head in the weights' type.
        option: The option that the name came from, for error messages.

    Attributes:
        model: The classifier, shared by all users in this process; with `LoadSettings.offload` on the CPU while nobody asks it.
        device: Where it computes.
        tokenizer: The classifier's own tokenizer.
        shares_tokenizer: Whether the classifier reads the actor's ids.
        heads: The names of its heads, or None for an ordinary reward model.
        gate: What weighs the heads by the prompt, or None where their weights are fixed.
        mean: Subtracted from the head's output.
        std: Divides the head's output after that.

    Raises:
        FileNotFoundError, ValueError: it cannot be loaded, or has other than one label.
    """

    def __init__(
        self,
        name: str,
        settings: LoadSettings,
        actor_tokenizer: PreTrainedTokenizerBase,
        mixed_precision: str = "no",
        option: str = "reward_model",
    ) -> None:
        self.name = name
        self.option = option
        self.mixed_precision = mixed_precision
        # Shared by all environments of this process that ask for the same name, dtype and device.
        self.model, self.tokenizer = MODELS.get(
            "reward_model", name, settings, lambda: _load_classifier(name, settings, option)
        )
        self.n_tokens: int = self.model.get_input_embeddings().weight.shape[0]  # type: ignore[assignment, index]
        self.device = resolve_device(settings.device)
        self.shares_tokenizer = same_tokenizer(self.tokenizer, actor_tokenizer)
        if not self.shares_tokenizer:
            self._log_that_text_is_read(actor_tokenizer)
        self.heads = head_names(self.model.config)
        self.gate: Gate | None = None
        if self.heads is not None:
            # Several heads come from a decoder with a linear head; `_load_classifier` has checked that.
            hidden_size = linear_head(self.model).in_features  # type: ignore[union-attr]
            gate = load_gate(name, hidden_size, len(self.heads))
            self.gate = None if gate is None else gate.to(self.device)  # as small as it is, it stays there
        self._weights = torch.tensor(head_weights(self.model.config))  # (heads,)
        self.mean = float(getattr(self.model.config, "score_mean", 0.0))
        self.std = float(getattr(self.model.config, "score_std", 1.0))
        if not (math.isfinite(self.mean) and math.isfinite(self.std) and self.std > 0):
            raise ValueError(
                f"{option}={name!r}: config.json has score_mean={self.mean}, score_std={self.std}; the first must be "
                "finite and the second positive."
            )

    def _log_that_text_is_read(self, actor_tokenizer: PreTrainedTokenizerBase) -> None:
        """Says once for each model that it does not see the actor's tokens, why, and what it sees instead."""
        if self.model in _TEXT_READERS:
            return
        _TEXT_READERS.add(self.model)
        chat = self.tokenizer.chat_template is not None
        logger.warning(
            "%s=%r has another tokenizer than the actor (%s). It reads the decoded text of prompt and response, encoded anew "
            "with its own tokenizer: without the actor's special tokens, so without its end token%s.",
            self.option,
            self.name,
            tokenizer_difference(self.tokenizer, actor_tokenizer),
            "; of a chat prompt, the conversation in its own chat template" if chat else "",
        )

    def token_ids(self, episode: Episode) -> list[int]:
        """What the model reads of an episode: the actor's ids if the tokenizers are the same, or the text encoded anew."""
        if self.shares_tokenizer:
            # The actor's vocabulary may be padded further than this model's: the last token stands for one that is nobody's.
            if max(episode.ids) >= self.n_tokens:
                return [min(t, self.n_tokens - 1) for t in episode.ids]
            return episode.ids
        # A text that is longer than the model can read loses its beginning: the response stands at its end.
        positions = getattr(self.model.config, "max_position_embeddings", None) or LIMITLESS
        limit = int(min(positions, self.tokenizer.model_max_length, LIMITLESS))
        if episode.prompt.messages is not None and self.tokenizer.chat_template is not None:
            messages = [{"role": role, "content": content} for role, content in episode.prompt.messages]
            # The conversation with the response as the assistant's last turn, in the classifier's own chat template.
            messages += [{"role": role, "content": content} for role, content in episode.said]
            ids = chat_ids(messages, self.tokenizer)[1][-limit:]
        else:
            prompt = episode.prompt.text
            text = prompt + response_after(prompt, episode.response_text)
            # What the actor's template has written keeps its special tokens, unless somebody wrote such into a message.
            by_hand = [episode.response_text, *(content for _, content in episode.prompt.messages or [])]
            in_template = episode.prompt.messages is not None and not any(
                has_special_tokens(t, self.tokenizer) for t in by_hand
            )
            ids = text_ids(text, self.tokenizer, frame=True, special_tokens=in_template)
            if len(ids) > limit:
                ids = _cut(ids, text_ids(text, self.tokenizer, special_tokens=in_template), limit)
        # An empty text has no last token to be scored at; one token stands for it.
        return list(ids) or [self.tokenizer.eos_token_id or 0]

    def check_prompts(self, records: Sequence[PromptRecord]) -> None:
        """See `llm_env.reward.scores.RewardModel.check_prompts`: it reads any prompt, and no columns."""

    @torch.no_grad()
    def score(self, episodes: Sequence[Episode]) -> list[float]:
        """One score for each episode, (head's output - mean) / std; episodes of similar length are read together.

        Raises:
            RewardModelError: a score is NaN or infinite, or the model refuses a text.
        """
        sequences = [self.token_ids(e) for e in episodes]
        starts = [self._prompt_length(e, ids) for e, ids in zip(episodes, sequences, strict=True)]
        raw = [0.0] * len(sequences)

        def run(group: list[int]) -> None:
            try:
                with autocast(self.model.device, self.mixed_precision):
                    values = self._forward([sequences[i] for i in group], [starts[i] for i in group]).tolist()
            except (ValueError, IndexError, RuntimeError) as error:
                if is_out_of_memory(error):
                    raise
                raise RewardModelError(
                    f"{self.option}={self.name!r}: {type(self.model).__name__} cannot score one of these texts, of "
                    f"{min(len(sequences[i]) for i in group)} to {len(sequences[group[0]])} tokens: "
                    f"{(str(error).strip() or type(error).__name__).splitlines()[0]}"
                ) from error
            for i, value in zip(group, values, strict=True):
                raw[i] = (value - self.mean) / self.std

        with at_hand(self.model, self.device):
            in_groups([len(s) for s in sequences], SCORE_TOKENS, self.model.device, run)
        texts = [e.prompt.text for e in episodes], [e.response_text for e in episodes]
        return checked_scores(raw, *texts, repr(self.name), self.option)

    def _prompt_length(self, episode: Episode, ids: list[int]) -> int:
        """Number of tokens of the prompt among `ids`, what the model reads of an episode; only a gate needs it."""
        if self.gate is None:
            return 1
        if self.shares_tokenizer:
            return len(episode.prompt.ids)
        # The text was encoded as a whole: the response's share of it is counted by encoding the response alone.
        return max(1, len(ids) - len(text_ids(episode.response_text, self.tokenizer)))

    def _forward(self, sequences: list[list[int]], starts: list[int]) -> Tensor:
        """The model's score of each sequence before normalization, shape (n,), float32.

        Args:
            sequences: Token ids of n episodes.
            starts: Number of prompt tokens of each.
        """
        values = logits(self.model, sequences)  # (n, labels)
        mlp = mlp_of(self.model)
        if mlp is not None:  # the labels are its hidden units
            return mlp(values)[:, 0]
        if self.heads is None:
            return values[:, 0]
        if self.gate is None:
            return values @ self._weights.to(values.device)
        # Heads weighted by the prompt, of which the gate reads the last token's state.
        prompts = pack_ends([s[:start] for s, start in zip(sequences, starts, strict=True)], self.model.device)
        return (values * self.gate(packed_states(self.model.base_model, prompts)[prompts.index])).sum(-1)


def _cut(framed: list[int], text: list[int], limit: int) -> list[int]:
    """A text's last tokens in the tokenizer's frame, of which encoders pool the first token or the last.

    Args:
        framed: The text with the tokenizer's special tokens around it.
        text: The text without.
        limit: Most tokens, above those of the frame.
    """
    before = next((i for i in range(len(framed) - len(text) + 1) if framed[i : i + len(text)] == text), 0)
    after = before + len(text)
    room = max(1, limit - (len(framed) - len(text)))
    return [*framed[:before], *text[-room:], *framed[after:]][-limit:]


def scalar_head(model: PreTrainedModel) -> nn.Linear | ScoreHead | None:
    """The head with which a decoder scores one token's state, linear or an MLP; None for other classifiers.

    Several heads with fixed weights are combined into one. With a gate the weights depend on the prompt, so there is none.
    """
    head = linear_head(model)
    if head is None:
        return None
    # Some encoders call their head by the same name. One without weights cannot be tried; who has them says what it is.
    if not lacks_weights(model) and way_of_reading(model) != "packed":
        return None
    mlp = mlp_of(model)
    if mlp is not None:
        return ScoreHead(head, mlp)
    if head_names(model.config) is None:
        return head
    if getattr(model.config, "reward_gate", False):
        return None
    return combined_head(head, head_weights(model.config))


def _load_classifier(name: str, settings: LoadSettings, option: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    config = load_config(name, "sequence classifier", option, settings.trust_remote_code)
    # Refuse what is no reward model before its weights are read.
    labels = config.num_labels
    architectures = getattr(config, "architectures", None) or []
    if not any("SequenceClassification" in a for a in architectures):
        raise ValueError(
            f"{option}={name!r} is {' or '.join(architectures) or 'of unknown kind'}, not a sequence-classification model."
        )
    heads = head_names(config)
    if heads is not None and len(heads) != labels:
        raise ValueError(f"{option}={name!r} has {labels} labels, but config.json names {len(heads)} reward_heads.")
    if labels != 1 and heads is None and not mlp_size(config):
        raise ValueError(
            f"{option}={name!r} has {labels} labels; a reward model has one (num_labels=1). To use one label of a "
            "classifier, wrap it in a function and give its name as 'package.module:function'."
        )
    model = load_weights(AutoModelForSequenceClassification, name, "reward model", option, settings.at_rest)
    if heads is not None and linear_head(model) is None:
        raise ValueError(f"{option}={name!r}: reward_heads need a decoder with a linear head named 'score'.")
    attach_mlp_head(model, name, option)
    tokenizer = load_tokenizer(name, option, settings.trust_remote_code, settings.special_tokens_in_text)
    return freeze(model), tokenizer


def attach_mlp_head(model: PreTrainedModel, name: str, option: str) -> None:
    """Gives a classifier the second half of its MLP head as an attribute, where its configuration says that it has one.

    Raises:
        ValueError: it cannot be loaded.
    """
    mlp = load_mlp_head(name, model.config, option)
    if mlp is not None:
        model.mlp_head = mlp.to(model.device)


def mlp_of(model: PreTrainedModel) -> MLPHead | None:
    """The second half of a classifier's MLP head; None where its head is linear."""
    mlp: MLPHead | None = getattr(model, "mlp_head", None)
    return mlp


def same_tokenizer(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> bool:
    """Whether two tokenizers mean the same by the same ids: vocabulary, first token and end token are equal.

    Other special tokens, such as padding, never stand in what a model reads here.
    """
    return one is other or not tokenizer_difference(one, other)


def tokenizer_difference(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> str:
    """What keeps two tokenizers from being the same, in words; empty where nothing does."""
    ids, other_ids = one.get_vocab(), other.get_vocab()
    if len(ids) != len(other_ids):
        return f"{len(ids)} tokens in its vocabulary against {len(other_ids)}"
    if ids != other_ids:
        return "other tokens in its vocabulary, or in another order"
    for name in ("bos_token_id", "eos_token_id"):
        if getattr(one, name) != getattr(other, name):
            return f"its {name} is {getattr(one, name)} against {getattr(other, name)}"
    return ""
