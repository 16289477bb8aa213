"""Frozen models that all users in this process share: each folder or hub id is loaded once.

`gymnasium.make` deep-copies its keyword arguments, so an environment is made from names. `MODELS` turns a name into a
loaded model, and hands the same one to everybody who asks for the same name, dtype and device. For a local folder it also
compares the sizes and times of the files, so a folder that was written again is loaded again. Shared models are frozen:
they are in eval mode and have no gradients.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypeVar

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from llm_env.extras import require
from llm_env.lm.causal_lm import CausalLM, end_token_ids, load_causal_lm
from llm_env.lm.loading import freeze, load_tokenizer, resolve_device
from llm_env.lm.names import LoadSettings
from llm_env.lm.placement import at_hand

T = TypeVar("T")
Fingerprint: TypeAlias = tuple[tuple[str, int, int], ...]
"""(file name, size in bytes, time of the last change in nanoseconds) of each file in a folder, sorted by name."""


class ModelKey(NamedTuple):
    """What makes two loaded models different.

    Attributes:
        kind: Which loader made the model: ``"causal_lm"`` or ``"reward_model"``.
        name: Model folder or hub id, as the user wrote it.
        settings: dtype, device and whether remote code may run.
        fingerprint: State of the folder when it was loaded; None for a hub id.
    """

    kind: str
    name: str
    settings: LoadSettings
    fingerprint: Fingerprint | None


def folder_fingerprint(name: str) -> Fingerprint | None:
    """Names, sizes and times of the files in a model folder; None where the name is not a folder, but a hub id.

    Subfolders are not looked at: `from_pretrained` reads the files beside ``config.json``.
    """
    path = Path(name).expanduser()
    if not path.is_dir():
        return None
    states = [(file.name, file.stat()) for file in path.iterdir() if file.is_file()]
    return tuple(sorted((file_name, state.st_size, state.st_mtime_ns) for file_name, state in states))


class ModelRegistry:
    """Loaded models of this process by `ModelKey`. Thread-safe: a second user waits while the first one loads."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._models: dict[ModelKey, Any] = {}

    def __len__(self) -> int:
        return len(self._models)

    def get(self, kind: str, name: str, settings: LoadSettings, load: Callable[[], T], fresh: bool = False) -> T:
        """The model of that kind, name and settings, as the folder is now.

        Args:
            kind: Which loader this is; two loaders may read the same folder.
            name: Model folder or hub id.
            settings: dtype, device and whether remote code may run.
            load: Loads the model; called if no user has asked for it yet, or the folder has changed since.
            fresh: Load it in any case, and hand out the new one from now on.
        """
        with self._lock:
            # Under the lock while it loads: two threads that ask for one model must not both load it.
            key = ModelKey(kind, name, settings, folder_fingerprint(name))
            if fresh or key not in self._models:
                # Entries of an earlier state of the folder go first: their memory is free for the new model, once those
                # who use the old one are gone.
                self._drop(lambda old: old[:2] == key[:2] and (old.fingerprint != key.fingerprint or old == key))
                self._models[key] = load()
            return self._models[key]

    def clear(self, name: str | None = None) -> None:
        """Drops the models of that name, or all of them, so that their memory is freed once nobody uses them.

        Args:
            name: Model folder or hub id, as it was asked for; None: every model.
        """
        with self._lock:
            self._drop(lambda key: name is None or key.name == name)

    @contextlib.contextmanager
    def apart(self) -> Iterator[None]:
        """An empty registry for the duration of a `with` block; what was there is there again afterwards, and alone."""
        with self._lock:
            before, self._models = self._models, {}
            try:
                yield
            finally:
                self._models = before

    def all(self) -> list[Any]:
        """All models, as their loaders gave them."""
        return list(self._models.values())

    def _drop(self, condition: Callable[[ModelKey], bool]) -> None:
        for key in [key for key in self._models if condition(key)]:
            del self._models[key]


MODELS = ModelRegistry()
"""The registry of this process."""


@dataclass
class SharedLM:
    """A frozen causal LM that several users in this process share, with its tokenizer.

    One LoRA policy may put its adapters into this very model (`lend`), which saves a second copy of the weights. The
    frozen model is then the same weights with the adapters off, so every use of it goes through `frozen`.

    Attributes:
        lm: The model.
        tokenizer: The tokenizer saved beside it.
        eos_ids: Tokens that end a response.
        settings: How the model was loaded.
    """

    lm: CausalLM
    tokenizer: PreTrainedTokenizerBase
    eos_ids: frozenset[int]
    settings: LoadSettings
    _adapter_owner: weakref.ref[Any] | None = field(default=None, repr=False)

    def lend(self, owner: Any) -> bool:
        """Reserves the model for the adapters of one policy.

        Args:
            owner: The policy. The model keeps a weak reference to it only.

        Returns:
            False where another policy has put its adapters in already; True otherwise.
        """
        if self._adapter_owner is not None:
            return False
        self._adapter_owner = weakref.ref(owner)
        return True

    @property
    def abandoned(self) -> bool:
        """Whether a policy that no longer exists left its adapters inside.

        Such a model still serves those who hold it, through `frozen`, but it cannot take other adapters.
        """
        return self._adapter_owner is not None and self._adapter_owner() is None

    @contextlib.contextmanager
    def at_hand(self) -> Iterator[None]:
        """The model on its device for the duration of a `with` block, where `LoadSettings.offload` has it elsewhere."""
        if not self.settings.offload:
            yield
            return
        with at_hand(self.lm.model, resolve_device(self.settings.device)):
            yield

    @contextlib.contextmanager
    def frozen(self) -> Iterator[CausalLM]:
        """The frozen model for the duration of a `with` block: on its device, adapters off, no gradients."""
        with torch.no_grad(), self.at_hand():
            # Nobody's adapters are inside: the model is the frozen one as it stands.
            if self._adapter_owner is None:
                yield self.lm
                return
            with adapters_off(self.lm.model):
                yield self.lm


@contextlib.contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """Switches every LoRA layer inside a model off for the duration of a `with` block, and eval mode on."""
    BaseTunerLayer = require("peft.tuners.tuners_utils", "lora").BaseTunerLayer  # noqa: N806
    # PEFT's own `disable_adapter` belongs to its wrapper, which only the policy has; so layer by layer.
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


def shared_causal_lm(name: str, settings: LoadSettings, option: str = "model") -> SharedLM:
    """The frozen causal LM of that name, dtype and device that this process shares; loaded at the first call.

    Args:
        name: Model folder or hub id.
        settings: dtype, device and whether remote code may run.
        option: The option that the name came from, for error messages.

    Raises:
        FileNotFoundError, ValueError: the model cannot be loaded, or has no end token.
    """

    def load() -> SharedLM:
        lm = load_causal_lm(name, settings.at_rest, option)
        freeze(lm.model)
        tokenizer = load_tokenizer(name, option, settings.trust_remote_code, settings.special_tokens_in_text)
        return SharedLM(lm, tokenizer, end_token_ids(lm.model, tokenizer, name, option), settings)

    shared = MODELS.get("causal_lm", name, settings, load)
    # Adapters of a policy that is gone stay in the old copy; whoever comes now gets a clean one.
    if shared.abandoned:
        shared = MODELS.get("causal_lm", name, settings, load, fresh=True)
    return shared
