"""An actor that answers, with what its run knows of each token: the KL to its reference, and its critic's value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from agents.flat_settings import read_settings
from agents.policies.critic import Critic, CriticSource, HeadCritic, make_critic
from agents.preferences.sampling import load_source
from agents.runs.checkpoint import damage, list_checkpoints
from agents.runs.checkpoint_actor import is_checkpoint
from agents.runs.settings import RunSettings
from llm_env.default_task import DEFAULT_MODEL, DEFAULT_REWARD_MODEL
from llm_env.lm.generate import continue_prompts, prompt_room
from llm_env.lm.names import LoadSettings
from llm_env.lm.packed_attention import packed_states
from llm_env.lm.packing import pack
from llm_env.lm.registry import SharedLM
from llm_env.lm.sequence_log_probs import sequence_log_probs
from llm_env.lm.weights import read_tensors
from llm_env.rendering import token_texts
from llm_env.text.prompts import Message, RawPrompt, encode_prompt

_CRITIC = "critic."


@dataclass(frozen=True)
class Token:
    """A token of an answer.

    Attributes:
        text: What it adds to the text.
        kl: log π - log π_ref, in nats; None where there is no reference.
        value: V before it, in score; None where there is no critic.
    """

    text: str
    kl: float | None = None
    value: float | None = None


@dataclass(frozen=True)
class Answer:
    """An answer.

    Attributes:
        actor: The name of who gave it.
        text: What it says, without special tokens.
        finished: Whether it ended by itself; False where it was cut off at the length cap.
        tokens: The text in pieces, a token each, with its KL and value where they are known.
    """

    actor: str
    text: str
    finished: bool
    tokens: tuple[Token, ...] = ()


@dataclass(frozen=True)
class SpeakerSettings:
    """How actors answer.

    Attributes:
        temperature: Divides the logits.
        max_prompt_length: Tokens of a conversation that are read, the last ones.
        max_new_tokens: Length cap of an answer, in tokens.
        load: How models are loaded.
        reference: Model folder or hub id of the reference. None: the run's.
    """

    temperature: float
    max_prompt_length: int
    max_new_tokens: int
    load: LoadSettings
    reference: str | None = None


@dataclass(frozen=True)
class Place:
    """Where an actor is.

    Attributes:
        actor: Model folder, hub id or checkpoint.
        run: The folder of the run that it belongs to; None: it is in none.
    """

    actor: str
    run: Path | None


def find_actor(name: str | None, option: str) -> Place:
    """Finds the actor that a name means, and its run.

    Args:
        name: A run's folder (its actor, or while it has none its newest checkpoint), a model folder, a hub id, or a checkpoint.
            None: the embedded actor.
        option: The option that it came from, for error messages.

    Raises:
        FileNotFoundError: a run's folder has neither an actor nor a checkpoint that is whole.
    """
    path = Path(name or DEFAULT_MODEL)
    if is_checkpoint(path):
        return Place(str(path), path.parent.parent)
    if (path / "config.yaml").is_file() and not (path / "config.json").is_file():
        if (path / "actor").is_dir():
            return Place(str(path / "actor"), path)
        checkpoint = newest_checkpoint(path)
        if checkpoint is None:
            raise FileNotFoundError(f"{option}={name!r}: the run has no actor yet, and no checkpoint that is whole.")
        return Place(str(checkpoint), path)
    return Place(
        str(path) if path.is_dir() else str(name), path.parent if (path.parent / "config.yaml").is_file() else None
    )


def newest_checkpoint(run: Path) -> Path | None:
    """The newest checkpoint of a run that is whole; None: there is none."""
    return next((c for c in reversed(list_checkpoints(run / "checkpoints")) if damage(c) is None), None)


class Speaker:
    """An actor that answers.

    Args:
        name: What the user called it.
        place: Where it is.
        settings: How it answers.

    Attributes:
        notes: Why tokens have no KL or no value, in sentences; empty where they have both.
        has_template: Whether it reads conversations. Without a chat template it reads the last message only, as plain text.

    Raises:
        FileNotFoundError, ValueError: the actor or the reference cannot be loaded, or they have other vocabularies.
    """

    def __init__(self, name: str, place: Place, settings: SpeakerSettings) -> None:
        self.name = name
        self.settings = settings
        self.model: SharedLM = load_source(place.actor, settings.load, "actor")
        self.room = prompt_room(
            self.model.lm, settings.max_prompt_length, settings.max_new_tokens
        )  # tokens of a conversation
        self.has_template = self.model.tokenizer.chat_template is not None
        self.notes: list[str] = []
        run = _run_settings(place.run)
        self.reference = self._load_reference(run)
        self.critic = self._load_critic(place, run)

    def prompt(self, messages: Sequence[Message]) -> RawPrompt:
        """What the actor is asked: the messages, or without a chat template the last one's text."""
        return [dict(m) for m in messages] if self.has_template else messages[-1]["content"]

    def answer(self, messages: Sequence[Message], seed: int) -> Answer:
        """Answers the last message.

        Raises:
            ValueError: the chat template refuses the messages.
            FloatingPointError: the model's logits are NaN.
        """
        s, tokenizer = self.settings, self.model.tokenizer
        prompt, _ = encode_prompt(self.prompt(messages), tokenizer, self.room)
        with self.model.frozen() as lm:
            (ids,) = continue_prompts(lm, [prompt], self.model.eos_ids, s.max_new_tokens, seed, s.temperature)
        size = len(tokenizer)  # a model's vocabulary may be padded beyond its tokenizer's
        text = str(tokenizer.decode([t for t in ids if t < size], skip_special_tokens=True))
        return Answer(self.name, text, ids[-1] in self.model.eos_ids, self._tokens(list(prompt.ids), ids))

    @torch.no_grad()
    def _tokens(self, prompt: list[int], response: list[int]) -> tuple[Token, ...]:
        """The response's tokens with their KL and value."""
        sequence, start = [*prompt, *response], len(prompt)
        kls: list[float | None] = [None] * len(response)
        values: list[float | None] = [None] * len(response)
        with self.model.frozen() as lm:
            if self.reference is not None:
                with self.reference.frozen() as reference:
                    both = [
                        sequence_log_probs(m, [sequence], [start], self.settings.temperature) for m in (lm, reference)
                    ]
                kls = (both[0][0] - both[1][0]).tolist()
            if self.critic is not None:
                batch = pack([sequence], [start], lm.device)
                hidden = None if self.critic.reads_text else packed_states(lm.trunk, batch)[batch.index]
                values = self.critic(batch, hidden).tolist()
        return tuple(Token(*parts) for parts in zip(self._texts(response), kls, values, strict=True))

    def _texts(self, response: list[int]) -> list[str]:
        """What each token adds to the text before it; see `llm_env.rendering.token_texts`."""
        tokenizer = self.model.tokenizer

        def decode(ids: Sequence[int]) -> str:
            return str(tokenizer.decode([t for t in ids if t < len(tokenizer)]))

        return token_texts(response, self.model.eos_ids, decode)

    def _load_reference(self, run: RunSettings | None) -> SharedLM | None:
        name = self.settings.reference or (None if run is None else run.task.model or DEFAULT_MODEL)
        if name is None:
            self.notes.append(f"{self.name} is in no run's folder: no reference, so no KL. Give --reference.")
            return None
        reference = load_source(name, self.settings.load, "reference")
        if reference.lm.vocab_size != self.model.lm.vocab_size:
            raise ValueError(
                f"reference={name!r} has {reference.lm.vocab_size} tokens, {self.name!r} has {self.model.lm.vocab_size}. "
                "Give the model that it was trained from."
            )
        return reference

    def _load_critic(self, place: Place, run: RunSettings | None) -> Critic | None:
        folder = Path(place.actor) if is_checkpoint(Path(place.actor)) else None
        if place.run is not None and folder is None:
            folder = newest_checkpoint(place.run)
        if run is None or folder is None:
            self.notes.append(f"{self.name} has no checkpoint: no critic, so no values.")
            return None
        prefix = len(_CRITIC)
        tensors = {
            k[prefix:]: v for k, v in read_tensors(folder / "policy.safetensors").items() if k.startswith(_CRITIC)
        }
        if not tensors:
            self.notes.append(f"{self.name} was trained without a critic ({run.algorithm.algo}): no values.")
            return None
        critic = _critic_for(tensors, run, self.model)
        try:
            critic.load_state_dict(tensors)
        except RuntimeError as error:  # tensors of other names or shapes
            raise ValueError(f"{folder}: the critic there is not the one that {place.run}/config.yaml says.") from error
        return critic.to(self.model.lm.device).eval()


def _run_settings(run: Path | None) -> RunSettings | None:
    """The settings of a run; None where there is no run, or the folder is that of another command."""
    if run is None or not (run / "checkpoints").is_dir():
        return None
    return read_settings(RunSettings, run / "config.yaml")


def _critic_for(tensors: dict[str, Any], run: RunSettings, model: SharedLM) -> Critic:
    """A critic of the kind that a run trained, with its first weights."""
    lm, arguments = model.lm, run.algorithm_arguments()
    if set(tensors) == {"weight", "bias"}:
        return HeadCritic(lm.hidden_size)
    task = run.task
    embedded = task.model is None and task.reward_model is None
    reward_model = DEFAULT_REWARD_MODEL if embedded else (task.reward_model or (None,))[0]
    layers = arguments.get("critic_layers") or 1
    name, trust = task.model or DEFAULT_MODEL, task.trust_remote_code
    source = CriticSource(
        name, lm.hidden_size, reward_model, trust, lm.trunk, layers, task.reward_shift, task.reward_scale
    )
    # What it was by default shows in its head: that of a reward model has no bias.
    kind = arguments.get("critic") or ("actor" if "head.bias" in tensors else "reward_model")
    return make_critic(str(kind), source)
