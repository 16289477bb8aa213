"""Loading Hugging Face models and tokenizers by name, with errors that say what to do."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from llm_env.hub import why_not
from llm_env.lm.names import LoadSettings, check_dtype
from llm_env.lm.quantization import check_not_quantized, multiply_whole_weights, nf4_config, quantize_shapes
from llm_env.lm.runtime import use_onednn
from llm_env.lm.weights import damaged_weights, pickle_only, refuse_other_weights
from llm_env.text.encoding import take_special_tokens, takes_special_tokens

_DTYPES = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
}


class _NoPaddingAdvice(logging.Filter):
    """Drops transformers' advice to pass an attention mask: behind right padding, causality is the mask."""

    def filter(self, record: logging.LogRecord) -> bool:
        return "We strongly recommend passing in an `attention_mask`" not in record.getMessage()


_NO_PADDING_ADVICE = _NoPaddingAdvice()


def resolve_dtype(name: str) -> torch.dtype:
    """``"float32"``, ``"bfloat16"`` or ``"float16"`` (or fp32, bf16, fp16) as a torch dtype.

    Raises:
        ValueError: for any other name.
    """
    check_dtype(name)
    return _DTYPES[name]


def autocast(device: torch.device, mixed_precision: str) -> contextlib.AbstractContextManager[Any]:
    """A context with autocast to bf16 on a device for ``"bf16"``, and without for ``"no"``."""
    return torch.autocast(device.type, torch.bfloat16, enabled=mixed_precision == "bf16")


def resolve_device(name: str) -> torch.device:
    """``"auto"`` (the GPU where there is one), or a torch device.

    Raises:
        ValueError: for a device that torch does not know or does not have.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device={name!r} is not a torch device; use 'auto', 'cpu' or 'cuda'.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"device={name!r} was asked for, but torch {torch.__version__} sees no GPU; use 'auto' or 'cpu'."
        )
    return device


def freeze(model: PreTrainedModel) -> PreTrainedModel:
    """Puts a model in eval mode and turns its gradients off, in place."""
    model.requires_grad_(False)
    model.eval()
    return model


def without_dropout(config: Any) -> Any:
    """Sets every dropout probability of a model configuration to 0, in place.

    Dropout makes the new log-probs differ from the old ones before any update, which biases PPO's ratio.
    """
    for name, value in list(vars(config).items()):
        if isinstance(value, float) and any(part in name for part in ("dropout", "pdrop", "layerdrop")):
            setattr(config, name, 0.0)
    return config


@contextlib.contextmanager
def quiet_loading() -> Iterator[None]:
    """Silences transformers' progress bars and load reports for the duration of a `with` block."""
    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        # Only where they were on before: the user may have turned them off.
        if bars:
            transformers_logging.enable_progress_bar()


def _check_name(name: str, kind: str, option: str) -> None:
    """Refuses names that look like folders and are none, before a hub is asked."""
    if not name.strip():
        raise ValueError(f"{option}={name!r} names nothing. Give a model folder or a hub id.")
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ValueError(f"{option}={name!r}: the folder holds no {kind} (there is no config.json in it).")
    # A hub id has one slash at most and does not begin like a path.
    elif path.is_file() or name.startswith(("/", "./", "../", "~")) or name.count("/") > 1:
        raise FileNotFoundError(f"{option}={name!r}: there is no such folder. Give a model folder or a hub id.")
    elif (reason := why_not(name, "model")) is not None:
        raise ValueError(
            f"{option}={name!r}: there is no such folder here, and {reason}. Give a model folder or a hub id."
        )


def _not_loaded(option: str, name: str, kind: str, error: Exception) -> str:
    """Why something could not be loaded, on one line, with the file that is to blame where it can be told."""
    start = f"{option}={name!r}: no {kind} could be loaded from there"
    lines = [line.strip() for line in str(error).strip().splitlines()]
    if lines and "custom code" in lines[0]:
        return (
            f"{start}: it needs Python code of its own, which is not run while trust_remote_code is off. Read the .py files "
            "in that place; where you trust them, turn trust_remote_code on."
        )
    if kind != "tokenizer" and (damaged := damaged_weights(name)) is not None:
        return (
            f"{start}: {damaged.name} is cut off or damaged ({lines[0] if lines else 'empty'}). Copy or write it again."
        )
    if kind != "tokenizer" and (pickled := pickle_only(name)) is not None:
        return (
            f"{start}: its weights are in {pickled.name}, which can run code when it is loaded, so only safetensors is read. "
            "Where you trust the file, load the model with transformers and write it again: model.save_pretrained(folder)."
        )
    # transformers' messages go on for many lines; the first says what is wrong, or the second where that ends with a colon.
    reason = " ".join(lines[: 2 if lines[0].endswith(":") else 1]) if lines else type(error).__name__
    return f"{start} ({reason})."


def load_config(name: str, kind: str, option: str, trust_remote_code: bool = False) -> Any:
    """A model's configuration, with dropout off.

    Args:
        name: Model folder or hub id.
        kind: What the folder should hold, in words, for error messages.
        option: The option that the name came from, for error messages.
        trust_remote_code: Whether configuration code from a hub may run.

    Raises:
        FileNotFoundError: the name looks like a folder that does not exist.
        ValueError: the folder holds no model, or the hub id cannot be loaded.
    """
    _check_name(name, kind, option)
    try:
        with quiet_loading():
            config = AutoConfig.from_pretrained(str(Path(name).expanduser()), trust_remote_code=trust_remote_code)
    except Exception as error:  # transformers raises many kinds here
        raise ValueError(_not_loaded(option, name, kind, error)) from error
    return without_dropout(config)


def load_tokenizer(
    name: str, option: str = "model", trust_remote_code: bool = False, special_tokens_in_text: bool = False
) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder or hub id.

    Args:
        name: Model folder or hub id.
        option: The option that the name came from, for error messages.
        trust_remote_code: Whether tokenizer code from a hub may run.
        special_tokens_in_text: Whether it takes special tokens in texts for what they name; see `llm_env.text.encoding`.

    Raises:
        FileNotFoundError: the name looks like a folder that does not exist.
        ValueError: no tokenizer can be loaded from there, or it has more tokens than the model beside it.
    """
    _check_name(name, "model", option)
    try:
        with quiet_loading():
            tokenizer = AutoTokenizer.from_pretrained(str(Path(name).expanduser()), trust_remote_code=trust_remote_code)
    except Exception as error:  # transformers raises many kinds here
        raise ValueError(_not_loaded(option, name, "tokenizer", error)) from error
    if special_tokens_in_text:
        take_special_tokens(tokenizer)
    _refuse_larger_tokenizer(tokenizer, load_config(name, "model", option, trust_remote_code), name, option)
    return tokenizer


def _refuse_larger_tokenizer(tokenizer: PreTrainedTokenizerBase, config: Any, name: str, option: str) -> None:
    """Refuses a tokenizer that gives ids for which the model beside it has no embedding."""
    rows = getattr(config.get_text_config(), "vocab_size", None)
    # Special tokens that no text becomes need no embedding: padding, an image's, the unknown one of a vocabulary of bytes.
    unused = {tokenizer.unk_token_id}
    if not takes_special_tokens(tokenizer):
        unused |= {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    unused -= {tokenizer.bos_token_id, tokenizer.eos_token_id}
    highest = max((i for i in tokenizer.get_vocab().values() if i not in unused), default=0)
    if rows is not None and highest >= rows:
        raise ValueError(
            f"{option}={name!r}: the tokenizer gives ids up to {highest}, the model has {rows} embeddings (vocab_size): they "
            "do not belong together. Save the tokenizer that the model was trained with beside it, or resize the model's "
            f"embeddings to {highest + 1}."
        )


def _architectures(config: Any) -> str:
    """The classes that a configuration names, for error messages."""
    return " or ".join(getattr(config, "architectures", None) or ["unknown architecture"])


def refuse_classifier(config: Any, name: str, option: str) -> None:
    """Refuses a sequence classifier where a causal LM is needed: transformers would load it, with a random LM head."""
    if any("ForSequenceClassification" in a for a in getattr(config, "architectures", None) or []):
        raise ValueError(
            f"{option}={name!r} is a sequence classifier ({_architectures(config)}): it scores texts and cannot write any. "
            f"Give {option} the causal language model that the classifier was made from; a classifier can be reward_model."
        )


_instead_of_weights: ContextVar[str | None] = ContextVar("instead_of_weights", default=None)


@contextlib.contextmanager
def without_weights(device: str = "meta") -> Iterator[None]:
    """Has `load_weights` make models without reading their weights, for the duration of a `with` block.

    For weights that come from elsewhere, or are only weighed; the folders' configurations are read and checked all the same.

    Args:
        device: Where they are made: the meta device; or, where tensors hold no data anyway (`agents.memory.weightless`), the
            one that they stand for.
    """
    token = _instead_of_weights.set(device)
    try:
        yield
    finally:
        _instead_of_weights.reset(token)


def lacks_weights(model: PreTrainedModel) -> bool:
    """Whether a model was made by `without_weights`, so that what it computes means nothing."""
    return model.device.type == "meta" or _instead_of_weights.get() is not None


def load_weights(
    auto_class: Any, name: str, kind: str, option: str, settings: LoadSettings, num_labels: int | None = None
) -> PreTrainedModel:
    """A model on its device, in eval mode, dropout off, from safetensors only.

    Args:
        auto_class: The transformers class that loads it, `AutoModelForCausalLM` or `AutoModelForSequenceClassification`.
        name: Model folder or hub id.
        kind: What the folder should hold, in words, for error messages.
        option: The option that the name came from, for error messages.
        settings: dtype, device and whether remote code may run.
        num_labels: Number of labels of a classifier that is to be trained. The head is new and random where the folder holds
            another kind of model. None: as many as the configuration says.

    Raises:
        FileNotFoundError, ValueError: the model cannot be loaded, or its weights are not exactly those in the folder.
    """
    config = load_config(name, kind, option, settings.trust_remote_code)
    if auto_class is AutoModelForCausalLM:
        refuse_classifier(config, name, option)
    label = f"{option}={name!r} ({_architectures(config)})"
    # A classifier that is to be trained may begin as another kind of model, which has no such head.
    new_head = num_labels is not None and "ForSequenceClassification" not in _architectures(config)
    if num_labels is not None:
        config.num_labels = num_labels
    logging.getLogger("transformers.modeling_utils").addFilter(_NO_PADDING_ADVICE)  # the same filter is added once only
    if (device := _instead_of_weights.get()) is not None:
        return _prepared(_empty_model(auto_class, config, settings, device, label))
    quantized = _quantization(auto_class, config, settings, label)
    try:
        with quiet_loading():
            model: PreTrainedModel
            model, loading = auto_class.from_pretrained(
                str(Path(name).expanduser()),
                config=config,
                dtype=resolve_dtype(settings.dtype),
                trust_remote_code=settings.trust_remote_code,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # refused below, by name
                **quantized,
            )
    except Exception as error:  # transformers and safetensors raise many kinds here
        raise ValueError(_not_loaded(option, name, kind, error)) from error
    refuse_other_weights(loading, model, label, kind, option, new_head)
    model.to(resolve_device(settings.device))  # type: ignore[arg-type]
    return _prepared(model)


def _quantization(auto_class: Any, config: Any, settings: LoadSettings, label: str) -> dict[str, Any]:
    """Arguments of `from_pretrained` that quantize what is loaded; none, where nothing is to be."""
    if settings.base_quantization == "none":
        return {}
    check_not_quantized(config, label)
    model = _empty_model(auto_class, config, settings._replace(base_quantization="none"), "meta", label)
    dtype = resolve_dtype(settings.compute_dtype or settings.dtype)
    device = str(resolve_device(settings.device))
    return {"quantization_config": nf4_config(model, label, dtype), "device_map": {"": device}}


def _empty_model(auto_class: Any, config: Any, settings: LoadSettings, device: str, label: str) -> PreTrainedModel:
    """A model of a configuration, on a device where that costs nothing."""
    with torch.device(device), quiet_loading():
        model: PreTrainedModel = auto_class.from_config(
            config, dtype=resolve_dtype(settings.dtype), trust_remote_code=settings.trust_remote_code
        )
    if settings.base_quantization != "none":
        check_not_quantized(config, label)
        quantize_shapes(model, label)
    return model


def _prepared(model: PreTrainedModel) -> PreTrainedModel:
    """A model in eval mode, without dropout, with faster linear layers, in place."""
    for module in model.modules():  # for architectures with dropout rates that no configuration names
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    use_onednn(model)
    multiply_whole_weights(model)
    return model.eval()
