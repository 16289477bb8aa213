"""What any of the policies can be asked for when it is trained: responses to prompts, and a folder that holds it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agents.policies.recurrent import RecurrentTextPolicy, load_recurrent_actor
from llm_env.episode import Episode
from llm_env.lm.causal_lm import CausalLM, load_causal_lm
from llm_env.lm.loading import quiet_loading
from llm_env.rollout import respond
from llm_env.task import TextTask
from llm_env.text.prompts import Prompt

Actor = CausalLM | RecurrentTextPolicy


def respond_with(
    policy: Any, task: TextTask, prompts: Sequence[Prompt], seed: int, deterministic: bool = False
) -> list[Episode]:
    """One scored response of a policy to each prompt, under the task's masks if it is a masked one; see `respond`."""
    if isinstance(policy, RecurrentTextPolicy):
        return policy.respond(task, list(prompts), seed, deterministic)
    mask = getattr(policy, "mask_model", "none")
    half = policy.mixed_precision == "bf16"
    return respond(policy.lm, task, prompts, seed, deterministic=deterministic, mixed_precision=half, mask=mask)


def save_actor(policy: Any, task: TextTask, folder: Path) -> None:
    """Writes a trained actor: a folder for `from_pretrained`, or what `load_actor` reads if it is no language model."""
    if isinstance(policy, RecurrentTextPolicy):
        policy.save_actor(folder)
        return
    with quiet_loading():
        policy.merged_actor().save_pretrained(folder)
    task.tokenizer.save_pretrained(folder)


def load_actor(folder: Path, task: TextTask) -> Actor:
    """The actor in a folder.

    Raises:
        FileNotFoundError, ValueError: it cannot be loaded, or does not fit the task's vocabulary.
    """
    if (folder / "policy.json").is_file():
        return load_recurrent_actor(folder, task)
    actor = load_causal_lm(str(folder), task.settings.load, option="actor")
    if actor.vocab_size != task.vocab_size:
        raise ValueError(
            f"actor={str(folder)!r} has {actor.vocab_size} tokens, its reference {task.settings.model!r} has "
            f"{task.vocab_size}. Give the model that it was trained from: --model."
        )
    return actor


def actor_respond(
    actor: Actor,
    task: TextTask,
    prompts: Sequence[Prompt],
    seed: int,
    deterministic: bool = False,
    mask: str = "none",
) -> list[Episode]:
    """One scored response of a loaded actor to each prompt."""
    if isinstance(actor, RecurrentTextPolicy):
        return actor.respond(task, list(prompts), seed, deterministic)
    return respond(actor, task, prompts, seed, deterministic=deterministic, mask=mask)
