"""Loading Hugging Face models and tokenizers, once per process, with errors that say what to do.

`gymnasium.make` deep-copies its keyword arguments, so an environment is made from names; this module turns a name
into a loaded model, and hands the same one to everybody who asks for the same name, dtype and device. Shared models
are frozen: in eval mode and without gradients.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import math
import threading
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer
from transformers.utils import logging as transformers_logging

from llm_env.linear import use_onednn

ASSETS = Path(__file__).parent / "assets"
DEFAULT_MODEL = str(ASSETS / "actor")
DEFAULT_REWARD_MODEL = str(ASSETS / "reward_model")
DEFAULT_PROMPTS = str(ASSETS / "prompts.jsonl")
DEFAULT_HELDOUT_PROMPTS = str(ASSETS / "heldout_prompts.jsonl")

_DTYPES = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
}
_lock = threading.RLock()
_shared: dict[tuple[Any, ...], Any] = {}


class _NoPaddingAdvice(logging.Filter):
    """Drops transformers' advice to pass an attention mask: behind right padding, causality is the mask."""

    def filter(self, record: logging.LogRecord) -> bool:
        return "We strongly recommend passing in an `attention_mask`" not in record.getMessage()


logging.getLogger("transformers.modeling_utils").addFilter(_NoPaddingAdvice())


class LoadSettings(NamedTuple):
    """How a model is loaded: everything that makes two handles different, besides the name."""

    dtype: str = "float32"
    device: str = "auto"
    trust_remote_code: bool = False


def resolve_dtype(name: str) -> torch.dtype:
    """``"float32"``, ``"bfloat16"`` or ``"float16"`` (or fp32, bf16, fp16) as a torch dtype.

    Raises:
        ValueError: for any other name.
    """
    if name not in _DTYPES:
        raise ValueError(f"dtype={name!r} is not known; use one of {', '.join(_DTYPES)}.")
    return _DTYPES[name]


def autocast(device: torch.device, mixed_precision: str) -> contextlib.AbstractContextManager[Any]:
    """Autocast to bf16 on a device for ``"bf16"``; nothing for ``"no"``."""
    return torch.autocast(device.type, torch.bfloat16, enabled=mixed_precision == "bf16")


def check_mixed_precision(value: str) -> None:
    """Refuses what is not a precision.

    Raises:
        ValueError: it is neither ``"no"`` nor ``"bf16"``.
    """
    if value not in ("no", "bf16"):
        raise ValueError(f"mixed_precision={value!r} is not known; use 'no' or 'bf16'.")


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
        if bars:
            transformers_logging.enable_progress_bar()


def _check_name(name: str, kind: str, option: str) -> None:
    """Refuses names that look like folders and are none, before anything is asked of a hub."""
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ValueError(f"{option}={name!r}: the folder holds no {kind} (there is no config.json in it).")
    elif path.is_file() or name.startswith(("/", "./", "../", "~")) or name.count("/") > 1:
        raise FileNotFoundError(f"{option}={name!r}: there is no such folder. Give a model folder or a hub id.")


def load_config(name: str, kind: str, option: str, trust_remote_code: bool = False) -> Any:
    """A model's configuration, with dropout off.

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
        raise ValueError(f"{option}={name!r}: no {kind} could be loaded from there ({first_line}).") from error
    return without_dropout(config)


def load_tokenizer(name: str, option: str = "model", trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder or hub id.

    Raises:
        FileNotFoundError, ValueError: as `load_config`.
    """
    _check_name(name, "model", option)
    try:
        with quiet_loading():
            return AutoTokenizer.from_pretrained(str(Path(name).expanduser()), trust_remote_code=trust_remote_code)
    except Exception as error:  # transformers raises many kinds here
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"{option}={name!r}: no tokenizer could be loaded from there ({first_line}).") from error


def load_weights(
    auto_class: Any, name: str, kind: str, option: str, settings: LoadSettings, num_labels: int | None = None
) -> PreTrainedModel:
    """A model on its device, in eval mode, dropout off, from safetensors only.

    Args:
        auto_class: A transformers `AutoModelFor…` class.
        name: Model folder or hub id.
        kind: What it is, for error messages.
        option: The option that the name came from, for error messages.
        settings: dtype, device, trust_remote_code.
        num_labels: Of a classifier that is to be trained; None: the configuration's.

    Raises:
        FileNotFoundError, ValueError: the model cannot be loaded.
    """
    config = load_config(name, kind, option, settings.trust_remote_code)
    if num_labels is not None:
        config.num_labels = num_labels
    try:
        with quiet_loading():
            model: PreTrainedModel = auto_class.from_pretrained(
                str(Path(name).expanduser()),
                config=config,
                dtype=resolve_dtype(settings.dtype),
                trust_remote_code=settings.trust_remote_code,
                use_safetensors=True,
            )
    except (OSError, ValueError, RuntimeError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise ValueError(f"{option}={name!r}: no {kind} could be loaded from there ({first_line}).") from error
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    use_onednn(model)
    model.to(resolve_device(settings.device))  # type: ignore[arg-type]
    return model.eval()


def end_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> frozenset[int]:
    """The tokens that end a response: the generation config's and the tokenizer's.

    Raises:
        ValueError: there is none, so no response could ever end.
    """
    ids: set[int] = set()
    generation = getattr(model, "generation_config", None)
    from_generation = getattr(generation, "eos_token_id", None)
    if isinstance(from_generation, int):
        ids.add(from_generation)
    elif from_generation is not None:
        ids.update(int(i) for i in from_generation)
    if tokenizer.eos_token_id is not None:
        ids.add(int(tokenizer.eos_token_id))
    if not ids:
        raise ValueError(
            f"model={name!r}: neither the tokenizer nor the generation config names an end token, so no response "
            "could end. Set tokenizer.eos_token and save the folder again."
        )
    return frozenset(ids)


def attention_span(config: Any) -> float:
    """How many tokens back a decoder's plain attention sees: its sliding window, or infinity; 0 for other caches."""
    try:
        layers = DynamicCache(config=config.get_text_config()).layers
    except Exception:  # a configuration that transformers has no cache for
        return 0
    span = math.inf
    for layer in layers:
        if type(layer) is DynamicSlidingWindowLayer:
            span = min(span, layer.sliding_window)
        elif type(layer) is not DynamicLayer:
            return 0
    return span


class CausalLM:
    """A causal LM, split where token-level RL needs it split: trunk, then LM head on the positions that are scored.

    Works with any decoder-only `AutoModelForCausalLM` whose logits are its output embedding of the trunk's last
    hidden state, with the usual after-treatments (soft-capping, scaling); construction checks that on four tokens.

    Args:
        model: The transformers model. It is not copied.
        name: What to call it in errors.

    Raises:
        ValueError: trunk and head do not reproduce the model's own logits.
    """

    def __init__(self, model: PreTrainedModel, name: str) -> None:
        self.model = model
        self.name = name
        self.trunk: nn.Module = model.base_model
        self.config = model.config.get_text_config()
        self._takes_positions = "position_ids" in inspect.signature(self.trunk.forward).parameters
        self._check_split()

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return self.model.device

    @property
    def vocab_size(self) -> int:
        """Number of logits V, which may be larger than the tokenizer's vocabulary."""
        return int(self.model.get_output_embeddings().weight.shape[0])

    @property
    def max_positions(self) -> int | None:
        """Longest sequence, in tokens, that the position embedding allows; None where there is no such limit."""
        return getattr(self.config, "max_position_embeddings", None)

    def hidden(self, input_ids: Tensor, **kwargs: Any) -> Any:
        """The trunk's output for right-padded ids (B, T); causality keeps the padding away from real tokens."""
        if not self._takes_positions:
            kwargs.pop("position_ids", None)
        return self.trunk(input_ids=input_ids, **kwargs)

    def logits(self, hidden: Tensor) -> Tensor:
        """LM head and its after-treatment on hidden states (..., H); returns (..., V) in the model's dtype."""
        logits = self.model.get_output_embeddings()(hidden)
        if (scale := getattr(self.config, "logit_scale", None)) is not None:
            logits = logits * scale
        if (divisor := getattr(self.config, "logits_scaling", None)) is not None:
            logits = logits / divisor
        if (cap := getattr(self.config, "final_logit_softcapping", None)) is not None:
            logits = torch.tanh(logits / cap) * cap
        return logits

    @torch.no_grad()
    def _check_split(self) -> None:
        ids = torch.arange(4, device=self.device)[None] % self.vocab_size
        was_training = self.model.training
        self.model.eval()
        own = self.model(input_ids=ids, use_cache=False).logits.float()
        split = self.logits(self.hidden(ids, use_cache=False).last_hidden_state).float()
        self.model.train(was_training)
        tolerance = 1e-3 if own.abs().max() == 0 else float(own.abs().max()) * 2e-2
        if own.shape != split.shape or float((own - split).abs().max()) > tolerance:
            raise ValueError(
                f"model={self.name!r} ({type(self.model).__name__}): its logits are not its output embedding of the "
                "trunk's last hidden state, so single positions cannot be scored; this architecture is not supported."
            )


@dataclass
class SharedLM:
    """A frozen causal LM that several users in this process share, with its tokenizer.

    A LoRA policy may put its adapters into this very model (`lend`): the frozen model is then the same weights with
    the adapters off, and every use of the frozen model goes through `frozen`.
    """

    lm: CausalLM
    tokenizer: PreTrainedTokenizerBase
    eos_ids: frozenset[int]
    settings: LoadSettings
    _borrower: weakref.ref[Any] | None = field(default=None, repr=False)

    def lend(self, borrower: Any) -> bool:
        """Reserves the model for one policy's adapters; False where another policy has put some in it."""
        if self._borrower is not None:
            return False
        self._borrower = weakref.ref(borrower)
        return True

    @property
    def abandoned(self) -> bool:
        """Whether a policy that is gone left its adapters inside: right for those who hold it, no use to others."""
        return self._borrower is not None and self._borrower() is None

    @contextlib.contextmanager
    def frozen(self) -> Iterator[CausalLM]:
        """The frozen model, with any adapters off, without gradients."""
        with torch.no_grad():
            if self._borrower is None:
                yield self.lm
                return
            with adapters_off(self.lm.model):
                yield self.lm


@contextlib.contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """Switches every LoRA layer inside a model off for the duration of a `with` block, and eval mode on."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [m for m in model.modules() if isinstance(m, BaseTunerLayer)]
    before = [layer._disable_adapters for layer in layers]
    was_training = model.training
    model.eval()
    for layer in layers:
        layer._disable_adapters = True  # enable_adapters() would also touch requires_grad
    try:
        yield
    finally:
        for layer, disabled in zip(layers, before, strict=True):
            layer._disable_adapters = disabled
        model.train(was_training)


def load_causal_lm(name: str, settings: LoadSettings, option: str = "model") -> CausalLM:
    """A causal LM of one's own, not shared.

    Raises:
        FileNotFoundError, ValueError: it cannot be loaded or split.
    """
    return CausalLM(load_weights(AutoModelForCausalLM, name, "causal language model", option, settings), name)


def shared_causal_lm(name: str, settings: LoadSettings) -> SharedLM:
    """The process-wide frozen causal LM of that name, dtype and device; loaded at the first call.

    Raises:
        FileNotFoundError, ValueError: it cannot be loaded, or has no end token.
    """

    def load() -> SharedLM:
        lm = load_causal_lm(name, settings)
        freeze(lm.model)
        tokenizer = load_tokenizer(name, trust_remote_code=settings.trust_remote_code)
        return SharedLM(lm, tokenizer, end_token_ids(lm.model, tokenizer, name), settings)

    key = ("causal_lm", name, settings)
    handle: SharedLM = shared(key, load)
    if handle.abandoned:
        with _lock:
            _shared.pop(key, None)
        handle = shared(key, load)
    return handle


def shared(key: tuple[Any, ...], load: Any) -> Any:
    """What `load` returned when `key` was first asked for in this process."""
    with _lock:
        if key not in _shared:
            _shared[key] = load()
        return _shared[key]


def forget_shared_model(kind: str, name: str) -> None:
    """Drops shared models of that kind and name: their folder has changed."""
    with _lock:
        for key in [k for k in _shared if k[:2] == (kind, name)]:
            del _shared[key]


def forget_shared_models() -> None:
    """Drops this process's references to shared models, so that their memory is freed once nobody uses them."""
    with _lock:
        _shared.clear()
