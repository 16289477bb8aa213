"""The actor inside a run's checkpoint, as a model to respond with."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file
from transformers import PreTrainedModel

from agents.policies.actor import adapter_config
from agents.runs.settings import RunSettings
from llm_env.default_task import DEFAULT_MODEL
from llm_env.extras import require
from llm_env.lm.causal_lm import CausalLM, end_token_ids, load_causal_lm
from llm_env.lm.loading import freeze, load_tokenizer
from llm_env.lm.names import LoadSettings
from llm_env.lm.registry import SharedLM

_ACTOR = "actor."


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder is a checkpoint of a run."""
    return (folder / "policy.safetensors").is_file()


def load_checkpoint_actor(folder: Path, load: LoadSettings) -> SharedLM:
    """The actor's weights of a checkpoint, LoRA adapters merged, in the model that the run began with.

    Args:
        folder: ``RUN/checkpoints/step_…``.
        load: How the model is loaded.

    Raises:
        FileNotFoundError, ValueError: the run's settings are not there, or its policy is no language model.
    """
    config = folder.parent.parent / "config.yaml"
    if not config.is_file():
        raise FileNotFoundError(f"actor={str(folder)!r}: the run's {config} is not there, which names its model.")
    settings = RunSettings.read(config)
    name = settings.model or DEFAULT_MODEL
    weights = {
        key.removeprefix(_ACTOR): value
        for key, value in load_file(folder / "policy.safetensors").items()
        if key.startswith(_ACTOR)
    }
    if not weights:
        raise ValueError(f"actor={str(folder)!r}: {settings.algo}'s policy is no language model.")
    lm = load_causal_lm(name, load, "actor")
    adapted = None
    if settings.lora_rank:
        alpha = settings.algorithm_arguments().get("lora_alpha")
        adapted = require("peft", "lora").get_peft_model(lm.model, adapter_config(lm.model, settings.lora_rank, alpha))
    result = lm.model.load_state_dict(weights, strict=False)
    if result.unexpected_keys or (not settings.lora_rank and set(result.missing_keys) - _tied(lm)):
        raise ValueError(
            f"actor={str(folder)!r} does not fit model={name!r}: unknown {result.unexpected_keys[:3]}, "
            f"missing {result.missing_keys[:3]}."
        )
    if adapted is not None:
        merged = adapted.merge_and_unload()
        assert isinstance(merged, PreTrainedModel)
        lm = CausalLM(merged, name)
    freeze(lm.model)
    tokenizer = load_tokenizer(name, trust_remote_code=load.trust_remote_code)
    return SharedLM(lm, tokenizer, end_token_ids(lm.model, tokenizer, name), load)


def _tied(lm: CausalLM) -> set[str]:
    """Names under which a tied weight is found a second time."""
    names = {name for name, _ in lm.model.named_parameters()}
    return set(lm.model.state_dict()) - names
