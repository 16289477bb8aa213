"""Responses to rank, from one or several models, and rankings of them by a judge."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from agents.preferences.records import Candidates, Response
from agents.runs.checkpoint_actor import is_checkpoint, load_checkpoint_actor
from llm_env.lm.generate import continue_prompts
from llm_env.lm.names import LoadSettings
from llm_env.lm.registry import SharedLM, shared_causal_lm
from llm_env.text.prompts import PromptSet, RawPrompt

ALIKE = 0.9
TRIES = 4


@dataclass(frozen=True)
class Source:
    """A model that responds, at a temperature."""

    name: str
    temperature: float = 1.0

    def __str__(self) -> str:
        return f"{self.name} at {self.temperature:g}"


@dataclass(frozen=True)
class Collected:
    """What was sampled for some prompts.

    Attributes:
        candidates: A prompt with fewer than two different responses makes none.
        tokens: Response tokens generated, those of near-duplicates that were dropped among them.
    """

    candidates: list[Candidates]
    tokens: int


def load_source(name: str, load: LoadSettings) -> SharedLM:
    """A model folder, a hub id, or a checkpoint of a run (``RUN/checkpoints/step_…``).

    Raises:
        FileNotFoundError, ValueError: it cannot be loaded.
    """
    if is_checkpoint(Path(name)):
        return load_checkpoint_actor(Path(name), load)
    return shared_causal_lm(name, load)


def near_duplicate(one: str, other: str, alike: float = ALIKE) -> bool:
    """Whether two texts have at least that share of their words in common, in order (`difflib`'s ratio)."""
    a, b = one.lower().split(), other.lower().split()
    if a == b:
        return True
    matcher = difflib.SequenceMatcher(None, a, b, autojunk=False)
    return matcher.quick_ratio() >= alike and matcher.ratio() >= alike


def collect_responses(
    prompts: Sequence[RawPrompt],
    sources: Sequence[Source],
    load: LoadSettings,
    n_responses: int,
    max_prompt_length: int,
    max_new_tokens: int,
    seed: int,
    first: int = 0,
    chunk: int = 128,
) -> Iterator[Collected]:
    """Samples responses; the sources take turns; near-duplicates are drawn anew a few times, then left out.

    Args:
        prompts: What to respond to.
        sources: Who responds.
        load: How models are loaded.
        n_responses: K, at least 2.
        max_prompt_length: In tokens; longer prompts are cut on the left.
        max_new_tokens: Length cap of a response.
        seed: Of the sampling; what a prompt gets does not depend on where a run was interrupted.
        first: Prompts to pass over, which are there already; a multiple of `chunk`, or all.
        chunk: Prompts at a time.

    Yields:
        Each chunk's.

    Raises:
        FileNotFoundError, ValueError: a source cannot be loaded, or a number is out of range.
    """
    if n_responses < 2:
        raise ValueError(f"n_responses={n_responses} must be at least 2: one response cannot be ranked.")
    if not sources:
        raise ValueError("At least one actor is needed.")
    models = {s.name: load_source(s.name, load) for s in sources}
    sets = {name: PromptSet(prompts, model.tokenizer, max_prompt_length) for name, model in models.items()}
    for start in range(first, len(prompts), chunk):
        members = range(start, min(start + chunk, len(prompts)))
        found: dict[int, list[Response]] = {i: [] for i in members}
        tokens = 0
        for attempt in range(TRIES):
            for number in range(n_responses):
                wanted = [i for i in members if len(found[i]) < (n_responses if attempt else number + 1)]
                source = sources[(number + attempt) % len(sources)]
                if wanted:
                    own_seed = seed + 1_000_003 * (start * TRIES * n_responses + attempt * n_responses + number)
                    tokens += _sample(
                        models[source.name], source, sets[source.name], wanted, found, max_new_tokens, own_seed
                    )
            if all(len(r) >= n_responses for r in found.values()):
                break
        enough = [i for i in members if len(found[i]) >= 2]
        yield Collected([Candidates(f"p{i}", prompts[i], tuple(found[i][:n_responses])) for i in enough], tokens)


def _sample(
    model: SharedLM,
    source: Source,
    prompts: PromptSet,
    wanted: list[int],
    found: dict[int, list[Response]],
    max_new_tokens: int,
    seed: int,
) -> int:
    """Adds one response to each prompt wanted, where it is unlike those that are there; returns the tokens generated."""
    with model.frozen() as lm:
        responses = continue_prompts(
            lm, [prompts[i] for i in wanted], model.eos_ids, max_new_tokens, seed % 2**63, source.temperature
        )
    size = len(model.tokenizer)
    for i, ids in zip(wanted, responses, strict=True):
        text = str(model.tokenizer.decode([t for t in ids if t < size], skip_special_tokens=True))
        if text.strip() and not any(near_duplicate(text, r.text) for r in found[i]):
            found[i].append(Response(f"r{len(found[i])}", text, ids[-1] in model.eos_ids, str(source)))
    return sum(map(len, responses))
