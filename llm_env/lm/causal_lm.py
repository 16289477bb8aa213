"""A causal LM split where token-level RL needs it split: trunk, then LM head on the positions that are scored."""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from llm_env.lm.loading import lacks_weights, load_weights
from llm_env.lm.names import LoadSettings


def end_token_ids(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str, option: str = "model"
) -> frozenset[int]:
    """The tokens that end a response: those of the model's generation config, and that of the tokenizer.

    Args:
        model: Its ``generation_config`` may name one end token or several.
        tokenizer: The tokenizer saved beside it.
        name: Model folder or hub id, for error messages.
        option: The option that the name came from, for error messages.

    Raises:
        ValueError: there is none, so no response could ever end.
    """
    ids: set[int] = set()
    # A generation config names one end token, a list of them, or none; chat models often end turns with a second one.
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
            f"{option}={name!r}: neither the tokenizer nor the generation config names an end token, so no response "
            "could end. Set tokenizer.eos_token and save the folder again."
        )
    return frozenset(ids)


def attention_span(config: Any) -> float:
    """How many tokens back a decoder's attention sees.

    Returns:
        Infinity for full attention, the window for sliding-window attention (the smallest of all layers), and 0 for a
        model whose cache is not one of keys and values, such as a state-space model.
    """
    try:
        layers = DynamicCache(config=config.get_text_config()).layers
    except Exception:  # a configuration that transformers has no cache for
        return 0
    span = math.inf
    for layer in layers:
        if type(layer) is DynamicSlidingWindowLayer:
            span = min(span, layer.sliding_window)
        # The exact class: a subclass may hold something else than keys and values of all tokens.
        elif type(layer) is not DynamicLayer:
            return 0
    return span


class CausalLM:
    """A causal LM, split where token-level RL needs it split: trunk, then LM head on the positions that are scored.

    Works with any decoder-only `AutoModelForCausalLM` whose logits are its output embedding of the trunk's last
    hidden state, with the usual after-treatments (soft-capping, scaling); construction checks that on four tokens.

    Args:
        model: The transformers model; it is not copied.
        name: Model folder or hub id, for error messages.
        option: The option that the name came from, for error messages.

    Attributes:
        vocab_size: Number of logits V, which may be larger than the tokenizer's vocabulary.
        hidden_size: Width H of the hidden states that the LM head reads.

    Raises:
        ValueError: trunk and head do not reproduce the model's own logits.
    """

    def __init__(self, model: PreTrainedModel, name: str, option: str = "model") -> None:
        self.model = model
        self.name = name
        self.trunk: nn.Module = model.base_model  # transformers' name for a model without its head
        self.config = model.config.get_text_config()  # of a multimodal model, its language part's
        # Asked once: a walk through the model each time is most of what the environment's step would cost.
        self.vocab_size, self.hidden_size = (int(n) for n in model.get_output_embeddings().weight.shape)
        self._takes_positions = "position_ids" in inspect.signature(self.trunk.forward).parameters
        self._check_split(option)

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.model.device

    @property
    def max_positions(self) -> int | None:
        """Longest sequence, in tokens, that the position embedding allows; None where there is no such limit."""
        return getattr(self.config, "max_position_embeddings", None)

    def hidden(self, input_ids: Tensor, **kwargs: Any) -> Any:
        """The trunk's output, of which `last_hidden_state` has shape (B, T, H).

        Args:
            input_ids: Right-padded ids, shape (B, T); causality keeps the padding away from real tokens.
            kwargs: Further arguments of the trunk; position ids are left out where it takes none.
        """
        if not self._takes_positions:
            kwargs.pop("position_ids", None)
        return self.trunk(input_ids=input_ids, **kwargs)

    def logits(self, hidden: Tensor) -> Tensor:
        """LM head on hidden states (..., H); returns logits (..., V) in the model's dtype."""
        # Some architectures treat logits after the head: Cohere scales, Granite divides, Gemma 2 caps them.
        logits = self.model.get_output_embeddings()(hidden)
        if (scale := getattr(self.config, "logit_scale", None)) is not None:
            logits = logits * scale
        if (divisor := getattr(self.config, "logits_scaling", None)) is not None:
            logits = logits / divisor
        if (cap := getattr(self.config, "final_logit_softcapping", None)) is not None:
            logits = torch.tanh(logits / cap) * cap
        return logits

    @torch.no_grad()
    def _check_split(self, option: str) -> None:
        """Compares the logits of trunk and head with the model's logits on four tokens."""
        if lacks_weights(self.model):
            return
        ids = torch.arange(4, device=self.device)[None] % self.vocab_size
        was_training = self.model.training
        self.model.eval()
        whole = self.model(input_ids=ids, use_cache=False).logits.float()  # (1, 4, V)
        split = self.logits(self.hidden(ids, use_cache=False).last_hidden_state).float()
        self.model.train(was_training)
        # Two percent of the largest logit: bfloat16 keeps two to three digits.
        tolerance = 1e-3 if whole.abs().max() == 0 else float(whole.abs().max()) * 2e-2
        if whole.shape != split.shape or float((whole - split).abs().max()) > tolerance:
            raise ValueError(
                f"{option}={self.name!r} ({type(self.model).__name__}): its logits are not its output embedding of the "
                "trunk's last hidden state, so single positions cannot be scored; this architecture is not supported."
            )


def load_causal_lm(name: str, settings: LoadSettings, option: str = "model") -> CausalLM:
    """Loads a causal LM that belongs to the caller alone; see `llm_env.lm.registry.shared_causal_lm` for shared ones.

    Args:
        name: Model folder or hub id.
        settings: dtype, device and whether remote code may run.
        option: The option that the name came from, for error messages.

    Raises:
        FileNotFoundError, ValueError: it cannot be loaded, is no causal LM, or cannot be split into trunk and head.
    """
    return CausalLM(load_weights(AutoModelForCausalLM, name, "causal language model", option, settings), name, option)
