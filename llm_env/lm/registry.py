"""Frozen models that all users in this process share, loaded once.

`gymnasium.make` deep-copies its keyword arguments, so an environment is made from names. The registry turns a name into a
loaded model, and hands the same one to everybody who asks for the same name, dtype and device. Shared models are frozen:
in eval mode and without gradients.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from llm_env.extras import require
from llm_env.lm.causal_lm import CausalLM, end_token_ids, load_causal_lm
from llm_env.lm.loading import freeze, load_tokenizer
from llm_env.lm.names import LoadSettings

_lock = threading.RLock()
_shared: dict[tuple[Any, ...], Any] = {}


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
    BaseTunerLayer = require("peft.tuners.tuners_utils", "lora").BaseTunerLayer  # noqa: N806
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
