"""Loading Hugging Face models and tokenizers by name, with errors that say what to do."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from llm_env.lm.names import LoadSettings, check_dtype
from llm_env.lm.runtime import use_onednn

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
    except (OSError, ValueError) as error:
        first_line = str(error).strip().splitlines()[0]
        # transformers' messages go on for many lines; the first says what is wrong.
        raise ValueError(f"{option}={name!r}: no {kind} could be loaded from there ({first_line}).") from error
    return without_dropout(config)


def load_tokenizer(name: str, option: str = "model", trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder or hub id.

    Args:
        name: Model folder or hub id.
        option: The option that the name came from, for error messages.
        trust_remote_code: Whether tokenizer code from a hub may run.

    Raises:
        FileNotFoundError: the name looks like a folder that does not exist.
        ValueError: no tokenizer can be loaded from there.
    """
    _check_name(name, "model", option)
    try:
        with quiet_loading():
            return AutoTokenizer.from_pretrained(str(Path(name).expanduser()), trust_remote_code=trust_remote_code)
    except Exception as error:  # transformers raises many kinds here
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"{option}={name!r}: no tokenizer could be loaded from there ({first_line}).") from error


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


def _refuse_random_weights(missing: Iterable[str], config: Any, name: str, kind: str, option: str) -> None:
    """Refuses a model of which some weights are not in the folder and not tied to others that are."""
    names = sorted(missing)
    if names:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise ValueError(
            f"{option}={name!r} ({_architectures(config)}) is no complete {kind}: {', '.join(names[:3])}{more} would be "
            f"random, because the folder's weights do not have them. Give {option} a folder that was saved as a {kind}."
        )


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
        num_labels: Number of labels of a classifier that is to be trained: its head may then be new and random. None: as
            many as the configuration says, and every weight must be in the folder.

    Raises:
        FileNotFoundError, ValueError: the model cannot be loaded, or weights would be left at random values.
    """
    config = load_config(name, kind, option, settings.trust_remote_code)
    if auto_class is AutoModelForCausalLM:
        refuse_classifier(config, name, option)
    # A classifier that is to be trained may have another number of labels than the folder's model.
    if num_labels is not None:
        config.num_labels = num_labels
    logging.getLogger("transformers.modeling_utils").addFilter(_NO_PADDING_ADVICE)  # the same filter is added once only
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
            )
    except (OSError, ValueError, RuntimeError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise ValueError(f"{option}={name!r}: no {kind} could be loaded from there ({first_line}).") from error
    # transformers fills missing weights at random and only logs it; that is right for a new head alone.
    if num_labels is None:
        _refuse_random_weights(loading["missing_keys"], config, name, kind, option)
    for module in model.modules():  # for architectures with dropout rates that no configuration names
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    use_onednn(model)
    model.to(resolve_device(settings.device))  # type: ignore[arg-type]
    return model.eval()
