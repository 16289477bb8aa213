"""The model that becomes a reward model: its head, gate, dropout and frozen layers, and the folder that is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from agents.supervised.reward_model.stars import MEAN, THRESHOLDS, StarThresholds
from agents.supervised.settings import RewardSettings
from agents.supervised.trainer import save_model
from llm_env.lm.loading import load_config, load_weights
from llm_env.lm.names import LoadSettings
from llm_env.reward.heads import Gate, MLPHead, load_mlp_head, mlp_size

DROPOUT_FIELDS = ("attention_dropout", "hidden_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop")
"""Names of dropout rates in the configurations of transformers' decoders."""


def head_shares(settings: RewardSettings) -> list[float] | None:
    """Weight of each head in the overall score, equal ones by default; None with a single head."""
    if not settings.heads:
        return None
    return list(settings.head_weights) or [1 / len(settings.heads)] * len(settings.heads)


def load_base(name: str, settings: RewardSettings, tokenizer: Any) -> PreTrainedModel:
    """Loads the model to train: the trunk of any model with a new head, or a reward model to train further.

    A new head is drawn with standard deviation 1/√(H + 1), H the hidden size (Stiennon et al. 2020; "The N Implementation
    Details of RLHF with PPO", Huang et al. 2023).

    Args:
        name: Folder or hub id.
        settings: Heads, gate, dropout, frozen layers, and the seed of new weights.
        tokenizer: The model's tokenizer; its pad token, else its end token, becomes the model's.

    Raises:
        FileNotFoundError, ValueError: it cannot be loaded, or does not have the heads or layers that the settings want.
    """
    load = LoadSettings("float32", "cpu", settings.trust_remote_code)
    config = load_config(name, "model", "model", settings.trust_remote_code)
    is_new = not any("SequenceClassification" in a for a in getattr(config, "architectures", None) or [])
    torch.manual_seed(settings.seed)
    units = _mlp_units(config, name, is_new, settings)
    labels = units or max(1, len(settings.heads))
    model = load_weights(AutoModelForSequenceClassification, name, "model", "model", load, num_labels=labels)
    head = _checked_head(model, name, labels, settings)
    if head is not None and is_new:
        nn.init.normal_(head.weight, std=1 / (head.in_features + 1) ** 0.5)
    model.config.pad_token_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    if units:
        mlp = MLPHead(units) if is_new else load_mlp_head(name, config, "model")
        assert mlp is not None
        model.mlp_head = mlp
    if settings.gate:
        assert head is not None
        model.gate = Gate(head.in_features, labels)
    if settings.dropout:
        set_dropout(model, settings.dropout)
    freeze_lower(model, settings.freeze_layers, name)
    return model


def _mlp_units(config: Any, name: str, is_new: bool, settings: RewardSettings) -> int:
    """Hidden units of the head: those that the settings ask for, or that a reward model to train further has; 0: a linear head.

    Raises:
        ValueError: a reward model has another head than the settings ask for.
    """
    before = 0 if is_new else mlp_size(config)
    if not is_new and settings.mlp_head not in (0, before):
        has = f"an MLP head of {before} units" if before else "a linear head"
        raise ValueError(
            f"mlp_head={settings.mlp_head}: model={name!r} is a reward model with {has}, which is trained further. Leave "
            "mlp_head out, or start from a language model."
        )
    if before and settings.heads:
        raise ValueError(f"model={name!r} is a reward model with an MLP head; several heads need linear ones.")
    return settings.mlp_head or before


def _checked_head(model: PreTrainedModel, name: str, labels: int, settings: RewardSettings) -> nn.Linear | None:
    """A decoder's head; None for an encoder, whose head stands behind a pooling of its own.

    Raises:
        ValueError: the head has another size, or an encoder is to have several heads.
    """
    head = getattr(model, "score", None)
    if head is None:
        if settings.heads:
            raise ValueError(f"model={name!r} is an encoder; several heads need a decoder.")
        return None
    if not isinstance(head, nn.Linear) or head.out_features != labels:
        raise ValueError(
            f"model={name!r} has a head of {getattr(head, 'out_features', '?')} labels; {labels} are asked for."
        )
    return head


def set_dropout(model: PreTrainedModel, rate: float) -> None:
    """Sets all dropout rates of a model, in its modules and in its configuration."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = rate
        if isinstance(getattr(module, "attention_dropout", None), float):  # llama and its like keep it as a number
            module.attention_dropout = rate  # type: ignore[assignment]
    _set_dropout_fields(model, rate)


def _set_dropout_fields(model: PreTrainedModel, rate: float) -> None:
    for field in DROPOUT_FIELDS:
        if hasattr(model.config, field):
            setattr(model.config, field, rate)


def freeze_lower(model: PreTrainedModel, count: int, name: str) -> None:
    """Freezes the embedding and the lowest layers; with a count of 0 nothing.

    Args:
        model: A model whose layers stand in one `nn.ModuleList`.
        count: Number of layers to freeze.
        name: The model's folder or hub id, for errors.

    Raises:
        ValueError: the model has fewer layers, or its layers cannot be recognized.
    """
    if not count:
        return
    stacks = [m for m in model.base_model.modules() if isinstance(m, nn.ModuleList) and len(m) > 1]
    if not stacks or count > len(stacks[0]):
        raise ValueError(f"freeze_layers={count}: model={name!r} has {len(stacks[0]) if stacks else 0} layers.")
    model.get_input_embeddings().requires_grad_(False)
    for layer in stacks[0][:count]:
        layer.requires_grad_(False)


def save_reward_model(
    model: PreTrainedModel, tokenizer: Any, folder: Path, settings: RewardSettings, star_mean: float | None = None
) -> None:
    """Writes the model folder: weights, dropout off, the heads' names and weights, and the gate in a file beside them.

    Args:
        model: The trained model.
        tokenizer: Its tokenizer.
        folder: Where it is written to.
        settings: What it was trained with.
        star_mean: Mean of the training stars of a regression; None with another loss.
    """
    _set_dropout_fields(model, 0.0)
    thresholds: StarThresholds | None = getattr(model, "thresholds", None)
    # None where a model that had learned stars was trained further on rankings
    setattr(model.config, THRESHOLDS, None if thresholds is None else thresholds().tolist())
    setattr(model.config, MEAN, star_mean)
    if thresholds is not None:
        del model.thresholds
    gate = getattr(model, "gate", None)
    if settings.heads:
        model.config.reward_heads = list(settings.heads)
        model.config.reward_gate = gate is not None
        if gate is None:
            model.config.reward_head_weights = head_shares(settings)
    mlp: MLPHead | None = getattr(model, "mlp_head", None)
    model.config.reward_mlp = None if mlp is None else len(mlp.weight)
    if mlp is not None:  # what each label is, for whoever loads the classifier by itself
        model.config.id2label = {i: f"hidden unit {i} of the reward's MLP head" for i in range(len(mlp.weight))}
        model.config.label2id = {label: i for i, label in model.config.id2label.items()}
        del model.mlp_head
    if gate is not None:
        del model.gate  # transformers would load its weights as unexpected ones
    save_model(model, tokenizer, folder)
    if mlp is not None:
        mlp.save(folder)
    if gate is not None:
        gate.save(folder)
