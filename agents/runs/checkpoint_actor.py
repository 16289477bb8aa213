"""The actor inside a run's checkpoint, as a model to respond with."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedModel

from agents.flat_settings import read_settings
from agents.policies.actor import add_adapters
from agents.policies.decoding_copy import merged_copy
from agents.runs.settings import RunSettings
from llm_env.default_task import DEFAULT_MODEL
from llm_env.lm.causal_lm import CausalLM, end_token_ids, load_causal_lm
from llm_env.lm.loading import freeze, load_tokenizer
from llm_env.lm.names import LoadSettings
from llm_env.lm.registry import SharedLM
from llm_env.lm.weights import read_tensors

_ACTORS = ("actor.", "q_net.actor.")
"""What the actor's weights begin with, in a policy and in a Q-network."""


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder is a checkpoint of a run."""
    return (folder / "policy.safetensors").is_file()


def load_checkpoint_actor(folder: Path, load: LoadSettings) -> SharedLM:
    """Loads the actor of a checkpoint: its weights in the model that the run began with, LoRA adapters merged.

    Args:
        folder: The checkpoint, ``RUN/checkpoints/step_…``; the run's ``config.yaml`` names the model.
        load: dtype and device to load the model with, and whether its code from a hub may run.

    Raises:
        FileNotFoundError: the run's ``config.yaml`` is not there.
        ValueError: the checkpoint is damaged, does not fit the model, or its policy is no language model.
    """
    config = folder.parent.parent / "config.yaml"
    if not config.is_file():
        raise FileNotFoundError(f"actor={str(folder)!r}: the run's {config} is not there, which names its model.")
    settings = read_settings(RunSettings, config)
    name = settings.task.model or DEFAULT_MODEL
    weights = {
        key.removeprefix(prefix): value
        for key, value in read_tensors(folder / "policy.safetensors").items()
        for prefix in _ACTORS
        if key.startswith(prefix)
    }
    if not weights:
        raise ValueError(f"actor={str(folder)!r}: {settings.algorithm.algo}'s policy is no language model.")
    quantization = settings.task.base_quantization
    lm = load_causal_lm(name, load._replace(base_quantization=quantization), "actor")
    adapted = None
    rank = settings.algorithm.lora_rank
    if rank:  # the checkpoint's names are those of the model with its adapters in it
        alpha = settings.algorithm_arguments().get("lora_alpha")
        adapted = add_adapters(lm.model, rank, alpha)
    try:
        result = lm.model.load_state_dict(weights, strict=False)
    except RuntimeError as error:  # tensors of another shape
        reason = str(error).strip().splitlines()[-1].strip()
        raise ValueError(f"actor={str(folder)!r} does not fit model={name!r}: {reason}") from error
    # Beside adapters the checkpoint may leave the frozen weights out.
    missing = [k for k in result.missing_keys if k not in _tied(lm) and (not rank or "lora_" in k)]
    if result.unexpected_keys or missing:
        raise ValueError(
            f"actor={str(folder)!r} does not fit model={name!r}: unknown {result.unexpected_keys[:3]}, "
            f"missing {missing[:3]}."
        )
    if quantization != "none":
        lm = CausalLM(merged_copy(lm.model).to(lm.device, lm.model.dtype), name)  # type: ignore[arg-type]
    elif adapted is not None:
        merged = adapted.merge_and_unload()
        assert isinstance(merged, PreTrainedModel)
        lm = CausalLM(merged, name)
    freeze(lm.model)
    tokenizer = load_tokenizer(name, "model", load.trust_remote_code, load.special_tokens_in_text)
    return SharedLM(lm, tokenizer, end_token_ids(lm.model, tokenizer, name), load)


def _tied(lm: CausalLM) -> set[str]:
    """Names under which a tied weight stands in the state dict a second time."""
    names = {name for name, _ in lm.model.named_parameters()}
    return set(lm.model.state_dict()) - names
