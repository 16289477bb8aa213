"""The causal LM that a policy trains: loading it, LoRA adapters, a copy to decode with, the merged result."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from gymnasium import spaces
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from agents.distributed import ranks
from agents.policies.decoding_copy import DecodingCopy, empty_copy, merged_copy
from agents.policies.sampled_actions import CarriesLogProbs
from agents.shards import device_of_shards, wholes_on_first
from llm_env.default_task import DEFAULT_MODEL
from llm_env.episode import Episode
from llm_env.extras import require
from llm_env.lm.causal_lm import CausalLM, load_causal_lm
from llm_env.lm.decoding import CachedDecoder
from llm_env.lm.loading import quiet_loading
from llm_env.lm.names import LoadSettings
from llm_env.lm.registry import shared_causal_lm
from llm_env.rollout import respond
from llm_env.task import TextTask
from llm_env.text.prompts import Prompt

if TYPE_CHECKING:
    from peft import LoraConfig


class Actor:
    """A causal LM to train, with or without LoRA adapters, and the decoder that acts with it.

    It is no torch module: the policy registers `lm.model`, and PEFT's wrapper would hold the same weights a second time.

    Args:
        model: Folder or hub id. None: the embedded default.
        action_space: The environment's: a token for each action.
        max_length: Longest text to decode, in tokens.
        lora_rank: Rank r of LoRA adapters on all linear layers; 0 trains all weights.
        lora_alpha: LoRA's α; None: 2r.
        base_quantization: ``nf4`` has the weights below the adapters in 4 bits.
        reference_load: With LoRA: `LoadSettings` of the environment's reference as a tuple. The adapters are put into that
            very model, unless another policy's are there already. None: a model of the policy's own.
        mixed_precision: ``bf16`` decodes with a copy of the weights in bfloat16; quantized ones decode themselves.
        use_cache: False decodes without a key-value cache.
        trust_remote_code: Whether model code from a hub may run.

    Raises:
        FileNotFoundError, ValueError: the model cannot be loaded, or has another number of tokens than there are actions.
    """

    def __init__(
        self,
        model: str | None,
        action_space: spaces.Space[Any],
        max_length: int,
        lora_rank: int = 0,
        lora_alpha: float | None = None,
        base_quantization: str = "none",
        reference_load: tuple[Any, ...] | None = None,
        mixed_precision: str = "no",
        use_cache: bool = True,
        trust_remote_code: bool = False,
    ) -> None:
        name = model or DEFAULT_MODEL
        lm: CausalLM | None = None
        # With LoRA the environment's own reference takes the adapters in, if no other policy's are there yet; an actor in
        # shards would leave it in shards too.
        if lora_rank and reference_load is not None and not ranks().shards:
            shared = shared_causal_lm(name, LoadSettings(*reference_load))
            lm = shared.lm if shared.lend(self) else None
        # A model of its own starts in float32 on the CPU; the policy moves it to its device.
        own = LoadSettings("float32", "cpu", trust_remote_code).as_base(base_quantization, mixed_precision)
        self.lm = lm or load_causal_lm(name, own)
        check_vocabulary(self.lm, action_space)
        self._is_quantized = base_quantization != "none"
        self._adapted: Any = None
        """PEFT's wrapper around the model, where there are adapters."""
        if lora_rank:
            self._adapted = add_adapters(self.lm.model, lora_rank, lora_alpha)
        # Until the first use of `decoder`, decoding is from the trained weights themselves.
        self._half = mixed_precision == "bf16" and not self._is_quantized  # a copy would be four times its size
        self._copy: DecodingCopy | None = None
        self._decoder = CachedDecoder(self.lm, max_length, use_cache=use_cache)
        self._in_shards = False
        self._is_stale = False
        """Whether the weights in shards are ahead of the copy that decodes."""

    @property
    def decoder(self) -> CachedDecoder:
        """What decodes; ``decoder.lm`` has the head that goes with its hidden states.

        In mixed precision that is a bfloat16 copy, made at the first use, when the policy is on its device: under autocast
        every decoding step would cast all weights anew. Of weights in shards it is a copy too, as old as `refresh`.
        """
        if not self._in_shards and self._half and (self._copy is None or self._copy.device != self.lm.device):
            self._copy = DecodingCopy(self.lm)
            # The new decoder starts empty; `refresh` rounds the weights again after each `clear`.
            old = self._decoder
            self._decoder = CachedDecoder(self._copy, old.max_length, old.use_cache, refresh=self._copy.update)
        return self._decoder

    def forget(self) -> None:
        """Drops the decoder's cache; to be called whenever the weights change."""
        self._decoder.clear()
        self._is_stale = self._in_shards

    def cut_into_shards(self, cut: Callable[[], None]) -> None:
        """Has the weights cut into shards, and decodes with a whole copy from then on.

        Args:
            cut: Cuts the policy that the actor is part of; see `agents.shards.shard`.
        """
        dtype = torch.bfloat16 if self._half else torch.float32
        model = empty_copy(self.lm.model, dtype, device_of_shards())  # what is in shards cannot be copied
        cut()
        self._copy = DecodingCopy(self.lm, dtype, model)
        self._decoder = CachedDecoder(self._copy, self._decoder.max_length, self._decoder.use_cache)
        self._in_shards = True

    def refresh(self) -> None:
        """Brings the copy of weights in shards up to date, where they have changed; all ranks must ask."""
        if self._is_stale:
            assert self._copy is not None
            self._copy.update()
            self._decoder.clear()
            self._is_stale = False

    @property
    def whole(self) -> CausalLM:
        """The model; of one in shards the copy that decodes, as old as `refresh`."""
        if not self._in_shards:
            return self.lm
        assert self._copy is not None
        return self._copy

    def merged(self) -> PreTrainedModel:
        """An ordinary causal LM: the model itself, or a copy with the adapters merged in.

        Of one in shards it is the copy that decodes, or where that is rounded, another; all ranks must ask.
        """
        if self._in_shards:
            assert self._copy is not None
            if self._half:
                return self._copy.in_float32()
            self.refresh()
            return self._copy.model
        if self._adapted is None:
            return self.lm.model
        if self._is_quantized:  # put together again, and not rounded a second time
            return merged_copy(self.lm.model)
        # On a copy: merging in place would change the shared base weights, and with them the reference.
        merged_model = copy.deepcopy(self._adapted).merge_and_unload()
        assert isinstance(merged_model, PreTrainedModel)
        return merged_model

    def save_adapter(self, folder: Path | None) -> None:
        """Writes the LoRA adapters alone; see the function `save_adapter`. None: only helps rank 0 to do so, in shards."""
        assert self._adapted is not None, "without lora_rank there are no adapters"
        weights = None
        if self._in_shards:
            weights = wholes_on_first({n: t for n, t in self._adapted.state_dict().items() if "lora_" in n})
        if folder is not None:
            save_adapter(self._adapted, self.lm.name, folder, weights)


class PlainActor(CarriesLogProbs, nn.Module):
    """What policies share whose actor is a causal LM as it stands, without adapters or a rounded copy to decode with."""

    lm: CausalLM
    _decoder: CachedDecoder

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """Loads weights, and drops the cache."""
        self._decoder.clear()
        return super().load_state_dict(state_dict, strict=strict, assign=assign)

    def merged_actor(self) -> PreTrainedModel:
        """The actor as an ordinary causal LM."""
        return self.lm.model

    def respond(
        self, task: TextTask, prompts: Sequence[Prompt | None], seed: int, deterministic: bool = False
    ) -> list[Episode]:
        """Writes one scored response to each prompt; see `agents.policies.text_policy.Responder.respond`."""
        return respond(self.lm, task, prompts, seed, deterministic=deterministic)

    def save_actor(self, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        """Writes the actor and its tokenizer to a folder for `from_pretrained`."""
        save_language_model(self.lm.model, tokenizer, folder)


def load_actor_network(model: str | None, action_space: spaces.Space[Any], trust_remote_code: bool) -> CausalLM:
    """A causal LM in float32 on the CPU, with a token for each action.

    Args:
        model: Folder or hub id. None: the embedded default.
        action_space: The environment's: one action for each of the model's tokens.
        trust_remote_code: Whether model code from a hub may run.

    Raises:
        FileNotFoundError, ValueError: it cannot be loaded, or has another number of tokens.
    """
    lm = load_causal_lm(model or DEFAULT_MODEL, LoadSettings("float32", "cpu", trust_remote_code))
    check_vocabulary(lm, action_space)
    return lm


def check_vocabulary(lm: CausalLM, action_space: spaces.Space[Any]) -> None:
    """Refuses a model that has another number of tokens than the environment has actions.

    Raises:
        ValueError: the numbers differ; both are named.
    """
    if not isinstance(action_space, spaces.Discrete) or int(action_space.n) != lm.vocab_size:
        raise ValueError(
            f"The environment has {getattr(action_space, 'n', action_space)} actions, model={lm.name!r} has "
            f"{lm.vocab_size} tokens. Give the policy the environment's model: policy_kwargs={{'model': …}}."
        )


def adapter_config(model: nn.Module, rank: int, alpha: float | None = None, task_type: str = "CAUSAL_LM") -> LoraConfig:
    """LoRA adapters on all linear layers.

    Args:
        model: The model that they will be put into.
        rank: LoRA's r, the width of the adapters' inner layer; at least 1.
        alpha: LoRA's α; None: 2r.
        task_type: PEFT's name of the kind of model.

    Raises:
        ImportError: PEFT is not installed.
    """
    return require("peft", "lora").LoraConfig(  # type: ignore[no-any-return]
        r=rank,
        lora_alpha=2 * rank if alpha is None else alpha,  # type: ignore[arg-type]  # any number will do
        lora_dropout=0.0,  # as all dropout here: it would bias PPO's ratio
        target_modules="all-linear",
        fan_in_fan_out=any(isinstance(m, Conv1D) for m in model.modules()),  # GPT-2's layers store W transposed
        task_type=task_type,
    )


def save_language_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Writes a causal LM and its tokenizer to a folder for `from_pretrained`."""
    with quiet_loading():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def add_adapters(model: PreTrainedModel, rank: int, alpha: float | None = None) -> Any:
    """Puts LoRA adapters into a causal LM, in place, and freezes its own weights; returns PEFT's wrapper around it."""
    return require("peft", "lora").get_peft_model(model, adapter_config(model, rank, alpha))


def save_adapter(adapted: Any, base: str, folder: Path, weights: dict[str, Tensor] | None = None) -> None:
    """Writes LoRA adapters to a folder, for `peft.PeftModel.from_pretrained(base_model, folder)`.

    Args:
        adapted: PEFT's wrapper around the model.
        base: Folder or hub id of the model that the adapters belong to, which the folder's configuration names.
        folder: Folder to write to.
        weights: The adapters by their names in the wrapper; None: as they are in it.
    """
    config = adapted.peft_config["default"]
    config.base_model_name_or_path = base
    # Not "auto", which asks the hub about the base model.
    adapted.save_pretrained(folder, selected_adapters=["default"], save_embedding_layers=False, state_dict=weights)
