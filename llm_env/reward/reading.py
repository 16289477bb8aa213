"""How a sequence classifier is read, so that a score is the number that its own `forward` gives for that sequence alone.

"Alone" means a batch of one, without padding and without an attention mask. What the last token is then is up to the
model: transformers' decoders pool at the last token that is not ``pad_token_id``, which passes over an end token where
pad is eos; encoders pool at the first token, BART and T5 at the last end token. There are five ways to get that number, from
the fastest on:

| way | what is computed |
|---|---|
| ``packed`` | a decoder's trunk on sequences laid end to end, its head at the token that it pools |
| ``padded`` | the model's own forward on a right-padded batch, with an attention mask |
| ``padded by ends`` | the same, on sequences with one number of end tokens |
| ``equal lengths`` | the model's own forward on sequences of one length, so that nothing is padded |
| ``alone`` | the model's own forward, one sequence at a time |

Each model is tried once on a few short sequences (`trial_sequences`), and read in the first way that agrees with ``alone``.
"""

from __future__ import annotations

import contextlib
import logging
import math
import weakref
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from llm_env.lm.packed_attention import packed_states
from llm_env.lm.packing import pack_ends

logger = logging.getLogger(__name__)

Sequences = Sequence[Sequence[int]]


def linear_head(model: PreTrainedModel) -> nn.Linear | None:
    """The linear layer ``score`` that decoders have on their trunk, or None."""
    head = getattr(model, "score", None)
    return head if isinstance(head, nn.Linear) and model.base_model is not model else None


def vocabulary_size(model: PreTrainedModel) -> float:
    """Number of tokens that the model has; infinity where it does not say, as CANINE, which hashes them."""
    try:
        return int(model.get_input_embeddings().weight.shape[0])  # type: ignore[index, operator, union-attr, arg-type]
    except (AttributeError, NotImplementedError):
        return math.inf


def pad_token(model: PreTrainedModel) -> int | None:
    """The token that the model's own forward takes for padding, or None."""
    return getattr(model.config.get_text_config(), "pad_token_id", None)


def pooled_length(ids: Sequence[int], pad: int | None) -> int:
    """Number of tokens up to the one whose state transformers' decoders score, that one included.

    It is the last token that is not `pad`; the first where there is no other, and the last of all without a pad token
    (`GenericForSequenceClassification.forward` in transformers).

    Args:
        ids: At least one token.
        pad: The model's ``pad_token_id``.
    """
    length = len(ids)
    while pad is not None and length > 1 and ids[length - 1] == pad:
        length -= 1
    return length


def logits(model: PreTrainedModel, sequences: Sequences) -> Tensor:
    """The logits that the model's own forward gives for each sequence alone, shape (n, labels), float32.

    Args:
        model: A classifier in eval mode.
        sequences: Token ids of n ≥ 1 sequences, none of them empty. The caller limits their total size.
    """
    longest = _longest_mixed(model.config)
    if max(map(len, sequences)) <= longest:
        return _WAYS[way_of_reading(model)](model, sequences)
    # Longer sequences would change the positions of the shorter ones beside them.
    out: list[Tensor] = [torch.empty(0)] * len(sequences)
    short = [i for i, s in enumerate(sequences) if len(s) <= longest]
    if short:
        for i, row in zip(short, logits(model, [sequences[i] for i in short]), strict=True):
            out[i] = row
    for i, s in enumerate(sequences):
        if len(s) > longest:
            out[i] = _alone(model, [s])[0]
    return torch.stack(out)


def _packed(model: PreTrainedModel, sequences: Sequences) -> Tensor:
    """The head at the token that a decoder pools; what comes after that token cannot matter, so it is not read."""
    head, pad = linear_head(model), pad_token(model)
    assert head is not None
    batch = pack_ends([s[: pooled_length(s, pad)] for s in sequences], model.device)
    states = packed_states(model.base_model, batch)[batch.index]  # (n, H)
    # Outside of autocast: rounded to bf16, scores would be steps of a hundredth.
    with torch.autocast(states.device.type, enabled=False):
        return head(states.to(model.dtype)).float()


def _padded(model: PreTrainedModel, sequences: Sequences) -> Tensor:
    """The model's own forward on a right-padded batch, with an attention mask."""
    lengths = torch.tensor([len(s) for s in sequences])
    inside = torch.arange(int(lengths.max())) < lengths[:, None]  # (n, longest): True at tokens, False at padding
    # RoBERTa and its like count positions by the pad id, so the padding must be that.
    ids = torch.full(inside.shape, pad_token(model) or 0)
    ids[inside] = torch.tensor([t for s in sequences for t in s])
    return _own_logits(model, ids, inside.long())


def _padded_by_ends(model: PreTrainedModel, sequences: Sequences) -> Tensor:
    """`_padded` on sequences with one number of end tokens: BART and T5 take no others together."""
    ends = _end_tokens(model)
    return _in_parts(model, sequences, [sum(t in ends for t in s) for s in sequences], _padded)


def _equal_lengths(model: PreTrainedModel, sequences: Sequences) -> Tensor:
    """The model's own forward on sequences that have one length, and one number of end tokens."""
    ends = _end_tokens(model)
    return _in_parts(
        model,
        sequences,
        [(len(s), sum(t in ends for t in s)) for s in sequences],
        lambda model, part: _own_logits(model, torch.tensor([list(s) for s in part])),
    )


def _in_parts(
    model: PreTrainedModel,
    sequences: Sequences,
    keys: Sequence[Hashable],
    read: Callable[[PreTrainedModel, Sequences], Tensor],
) -> Tensor:
    """Reads those sequences together whose keys are equal; the logits are in the order of `sequences`."""
    parts: dict[Hashable, list[int]] = {}
    for i, key in enumerate(keys):
        parts.setdefault(key, []).append(i)
    out = torch.cat([read(model, [sequences[i] for i in part]) for part in parts.values()])
    order = torch.tensor([i for part in parts.values() for i in part], device=out.device)
    return out[order.argsort()]


def _alone(model: PreTrainedModel, sequences: Sequences) -> Tensor:
    """The model's own forward on each sequence, by definition what the other ways have to give."""
    return torch.cat([_own_logits(model, torch.tensor([list(s)])) for s in sequences])


_WAYS: dict[str, Callable[[PreTrainedModel, Sequences], Tensor]] = {
    "packed": _packed,
    "padded": _padded,
    "padded by ends": _padded_by_ends,
    "equal lengths": _equal_lengths,
    "alone": _alone,
}


def _own_logits(model: PreTrainedModel, ids: Tensor, mask: Tensor | None = None) -> Tensor:
    """The model's own forward: ids and attention mask (n, length), to logits (n, labels) in float32."""
    inputs = {"input_ids": ids.to(model.device)}
    if mask is not None:
        inputs["attention_mask"] = mask.to(model.device)
    with _exact_heads(model):
        return model(**inputs).logits.float()


@contextlib.contextmanager
def _exact_heads(model: PreTrainedModel) -> Iterator[None]:
    """Has the linear layers that make the logits compute in the weights' type under autocast, as `_packed` does."""

    def exactly(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        with torch.autocast(output.device.type, enabled=False):
            return nn.functional.linear(args[0].to(module.weight.dtype), module.weight, module.bias)  # type: ignore[arg-type]

    labels, trunk = model.config.num_labels, set(model.base_model.modules())
    heads = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == labels and m not in trunk]
    active = torch.is_autocast_enabled(model.device.type)
    hooks = [head.register_forward_hook(exactly) for head in heads] if active else []
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _longest_mixed(config: Any) -> float:
    """Longest sequence, in tokens, that may be read beside shorter ones.

    Dynamic NTK and LongRoPE stretch the positions of a whole batch once its longest sequence is beyond the length that the
    model was trained on first. Infinity for every other model.
    """
    config = config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    limits = [
        r.get("original_max_position_embeddings")
        or getattr(config, "original_max_position_embeddings", None)
        or config.max_position_embeddings
        for r in [rope, *rope.values()]  # one for all layers, or one for each kind of layer
        if isinstance(r, dict) and r.get("rope_type") in ("dynamic", "longrope")
    ]
    return min(limits, default=math.inf)


def _end_tokens(model: PreTrainedModel) -> set[int]:
    """The model's end tokens by its configuration."""
    eos = getattr(model.config.get_text_config(), "eos_token_id", None)
    return set() if eos is None else set(eos) if isinstance(eos, list | tuple) else {eos}


def trial_sequences(model: PreTrainedModel) -> list[list[int]]:
    """Short sequences on which a way of reading shows whether it pools, masks and counts positions as the model does.

    Ragged and equal lengths; one token; with an end token, without, with two; pad tokens at the end, in the middle, at the
    beginning, and nothing else. Ids that the model does not have are left out.
    """
    size = vocabulary_size(model)
    ends, pad = _end_tokens(model), pad_token(model)
    words = [t for t in range(3, 3 + 40) if t != pad and t not in ends and t < size]
    end, pad = min(ends, default=words[0]), words[1] if pad is None else pad
    sequences = [
        words[:9],
        [*words[9:16], end],
        [*words[8:15], end],
        [*words[4:8], end],
        [words[5]],
        [end],
        [words[7], end],
        [*words[11:14], end, *words[2:5], end],
        [*words[3:8], pad, *words[16:20], end],
        [*words[6:10], end, pad, pad],
        [*words[12:17], pad],
        [pad, *words[20:24], end],
        [pad, pad],
        [words[i % len(words)] for i in range(19)],
    ]
    return [s for s in sequences if max(s) < size]


_CHOSEN: weakref.WeakKeyDictionary[nn.Module, str] = weakref.WeakKeyDictionary()
"""What `way_of_reading` found out, for each classifier that is still alive."""


def way_of_reading(model: PreTrainedModel) -> str:
    """The way in which a classifier is read, by its name in the table above; tried once for each model."""
    if model not in _CHOSEN:
        _CHOSEN[model] = way = _tried_way(model)
        if way != "packed":
            logger.info("%s is scored by its own forward pass: %s.", type(model).__name__, _SAID[way])
    return _CHOSEN[model]


_SAID = {
    "padded": "padded batches agree with one sequence at a time",
    "padded by ends": "padded batches of equally many end tokens agree with one sequence at a time",
    "equal lengths": "batches of one length agree with one sequence at a time, padded ones do not",
    "alone": "one sequence at a time, which is slow, because no batch agrees with that",
}


@torch.no_grad()
def _tried_way(model: PreTrainedModel) -> str:
    """The first way that gives the same logits as ``alone`` on the trial sequences."""
    with torch.autocast(model.device.type, enabled=False):  # rounding must not hide a difference
        known: list[tuple[list[int], Tensor]] = []
        for sequence in trial_sequences(model):
            try:
                known.append((sequence, _alone(model, [sequence])))
            except Exception as error:  # BART and T5 have no score for a text without an end token
                logger.debug("%s refuses %s: %s", type(model).__name__, sequence, error)
        if not known:
            return "alone"
        sequences, want = [s for s, _ in known], torch.cat([w for _, w in known])
        for way in ("packed", "padded", "padded by ends", "equal lengths"):
            if way == "packed" and linear_head(model) is None:
                continue
            try:
                if _agree(_WAYS[way](model, sequences), want, model.dtype == torch.float32):
                    return way
            except Exception as error:  # batches without a pad token, unequal numbers of end tokens, …
                logger.debug("%s cannot be read %s: %s", type(model).__name__, way, error)
    return "alone"


def _agree(got: Tensor, want: Tensor, full_precision: bool) -> bool:
    """Whether logits are equal but for rounding, which differs with the order of the sums, in half precision by percents."""
    if got.shape != want.shape or not bool(want.isfinite().all()):
        return False
    of_spread, of_size = (1e-3, 1e-5) if full_precision else (5e-2, 1e-2)
    allowed = of_spread * (want.max() - want.min()) + of_size * want.abs().max()
    return bool((got - want).abs().max() <= allowed)
