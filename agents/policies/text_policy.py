"""What every policy on text can be asked for, whatever it is made of; and actors that were loaded from a folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from transformers import PreTrainedTokenizerBase

from agents.policies.recurrent import load_recurrent_actor
from llm_env.episode import Episode
from llm_env.lm.causal_lm import CausalLM, load_causal_lm
from llm_env.rollout import respond
from llm_env.task import TextTask
from llm_env.text.prompts import Prompt


class Responder(Protocol):
    """What responds to prompts."""

    def respond(
        self, task: TextTask, prompts: Sequence[Prompt | None], seed: int, deterministic: bool = False
    ) -> list[Episode]:
        """One scored response to each prompt; the sampler's state outside is untouched.

        Args:
            task: Sizes, temperature, reference and reward model.
            prompts: What to respond to.
            seed: Seed of the sampling; the same gives the same responses.
            deterministic: Take the likeliest token instead of sampling.
        """


class TextPolicy(Responder, Protocol):
    """A policy that is trained: it responds, and can be saved as an actor."""

    def save_actor(self, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        """Writes the trained actor to a folder: for `from_pretrained`, or what `load_actor` reads."""


@dataclass(frozen=True)
class LoadedActor:
    """A causal LM that responds.

    Attributes:
        lm: The model, in eval mode.
        mask: Whose top-k and top-p restrict its responses: ``none``, ``reference`` or ``actor``; see `llm_env.rollout.respond`.
    """

    lm: CausalLM
    mask: str = "none"

    def respond(
        self, task: TextTask, prompts: Sequence[Prompt | None], seed: int, deterministic: bool = False
    ) -> list[Episode]:
        """See `Responder.respond`."""
        return respond(self.lm, task, prompts, seed, deterministic=deterministic, mask=self.mask)


def load_actor(folder: Path, task: TextTask, mask: str = "none") -> Responder:
    """The actor in a folder.

    Args:
        folder: What `TextPolicy.save_actor` wrote.
        task: Where it will respond.
        mask: Whose top-k and top-p restrict its responses; see `LoadedActor`.

    Returns:
        A `LoadedActor`, or a policy that is no language model.

    Raises:
        FileNotFoundError, ValueError: it cannot be loaded, or does not fit the task's vocabulary.
    """
    # What `RecurrentTextPolicy` writes in place of a model's config.json.
    if (folder / "policy.json").is_file():
        return load_recurrent_actor(folder, task)
    lm = load_causal_lm(str(folder), task.settings.load, option="actor")
    # Another number of tokens means another model family: its ids would be other words in the reference.
    if lm.vocab_size != task.vocab_size:
        raise ValueError(
            f"actor={str(folder)!r} has {lm.vocab_size} tokens, its reference {task.settings.model!r} has "
            f"{task.vocab_size}. Give the model that it was trained from: --model."
        )
    return LoadedActor(lm, mask)
