"""Writes a run's trained model to folders inside the run's, each with its model card; rank 0 writes, all ranks must ask."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from transformers import PreTrainedTokenizerBase

from agents.distributed import ranks
from agents.files import write_text
from agents.policies.actor_critic import LLMActorCriticPolicy
from agents.policies.text_policy import TextPolicy
from agents.runs.ending import Ending, write_ending
from agents.runs.folder import RunFolder
from agents.runs.settings import RunSettings


def write_actor(
    folder: RunFolder,
    name: str,
    policy: TextPolicy,
    tokenizer: PreTrainedTokenizerBase,
    settings: RunSettings,
    ending: Ending | None = None,
) -> None:
    """Writes the actor.

    Args:
        folder: The run's folder.
        name: The actor's folder in it: ``actor`` or ``best``.
        policy: Has the actor.
        tokenizer: The actor's.
        settings: The run's.
        ending: What ended the run, where its steps were not used up.
    """

    def write(path: Path) -> None:
        policy.save_actor(path, tokenizer)
        write_text(path / "README.md", folder.card(settings, ending=ending))

    if ranks().first:
        folder.save_model(name, write)
        write_ending(folder.path / name, ending)
    elif ranks().shards:
        cast(LLMActorCriticPolicy, policy).merged_actor()  # rank 0 needs every rank's part


def write_adapter(
    folder: RunFolder, policy: LLMActorCriticPolicy, settings: RunSettings, ending: Ending | None = None
) -> None:
    """Writes the LoRA adapters to ``adapter/``; see `write_actor`."""

    def write(path: Path) -> None:
        policy.save_adapter(path)
        write_text(path / "README.md", folder.card(settings, "peft", ending))

    if ranks().first:
        folder.save_model("adapter", write)
    elif ranks().shards:
        policy.save_adapter(None)
