"""Samples responses to rank, from one or several models."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from agents.preferences.judge import RewardJudge
from agents.preferences.records import Candidates, Response
from agents.preferences.settings import COLLECTION_RULES
from agents.runs.checkpoint_actor import is_checkpoint, load_checkpoint_actor
from llm_env.lm.generate import continue_prompts, prompt_room
from llm_env.lm.names import LoadSettings
from llm_env.lm.registry import SharedLM, shared_causal_lm
from llm_env.text.prompts import Prompt, PromptRecord, PromptSet, RawPrompt, read_prompts

ALIKE = 0.9
"""Share of words in common, in order, from which on two responses count as near-duplicates."""
TRIES = 4
"""How often a near-duplicate is drawn anew, the first draw counted."""
CHUNK = 128
"""Prompts that are responded to at a time, between two writes to the disk."""
SEED_STEP = 1_000_003
"""Distance of the seeds of two draws, a prime, so that runs with neighboring seeds share none."""
BEST_OF_STEP = 15_485_863_000_003
"""Distance of the seeds of the responses that best of n samples for one; beyond what a run's draws come to."""


@dataclass(frozen=True)
class Source:
    """A model that responds, at a temperature.

    Attributes:
        name: Model folder, hub id, or a checkpoint of a run; for best of n another name, and `model` says which it is.
        temperature: Sampling temperature, above 0.
        model: Model folder, hub id, or a checkpoint of a run. None: the name.
        best_of: Responses that it samples for each that it gives: the one that `by` scores highest.
        by: Reward model or function that chooses, as `RewardJudge` takes it; needed where `best_of` is above 1.
    """

    name: str
    temperature: float = 1.0
    model: str | None = None
    best_of: int = 1
    by: str | None = None

    @property
    def model_name(self) -> str:
        """Model folder, hub id, or a checkpoint of a run."""
        return self.model or self.name

    def __str__(self) -> str:
        return f"{self.name} at {self.temperature:g}"


@dataclass(frozen=True)
class Sampling:
    """How responses are sampled.

    Attributes:
        sources: The models that respond; they take turns.
        n_responses: Responses to each prompt, at least 2.
        max_prompt_length: Tokens of a prompt; longer prompts are cut on the left.
        max_new_tokens: Length cap of a response, in tokens.
        seed: Seed of the sampling.
    """

    sources: tuple[Source, ...]
    n_responses: int
    max_prompt_length: int
    max_new_tokens: int
    seed: int

    def check(self) -> None:
        """Checks that there is something to rank.

        Raises:
            ValueError: there are fewer than two responses to a prompt, or no source.
        """
        for name in ("n_responses", "max_prompt_length", "max_new_tokens"):
            COLLECTION_RULES[name].check(name, getattr(self, name))
        if not self.sources:
            raise ValueError("At least one actor is needed.")


@dataclass(frozen=True)
class Collected:
    """The responses to a chunk of prompts.

    Attributes:
        candidates: The prompts with their responses; a prompt with fewer than two different responses is left out.
        tokens: Response tokens generated, those of near-duplicates that were dropped among them.
    """

    candidates: list[Candidates]
    tokens: int


def load_source(name: str, load: LoadSettings, option: str = "actors") -> SharedLM:
    """Loads a model folder, a hub id, or a checkpoint of a run (``RUN/checkpoints/step_…``).

    Args:
        name: Model folder, hub id, or the folder of a checkpoint.
        load: dtype and device, and whether code from a hub may run.
        option: The option that the name came from, for error messages.

    Raises:
        FileNotFoundError, ValueError: it cannot be loaded.
    """
    if is_checkpoint(Path(name)):
        return load_checkpoint_actor(Path(name), load)
    return shared_causal_lm(name, load, option)


def near_duplicate(one: str, other: str, alike: float = ALIKE) -> bool:
    """Whether two texts have at least the share `alike` of their words in common, in order (`difflib`'s ratio)."""
    a, b = one.lower().split(), other.lower().split()
    if a == b:
        return True
    matcher = difflib.SequenceMatcher(None, a, b, autojunk=False)
    return matcher.quick_ratio() >= alike and matcher.ratio() >= alike  # quick_ratio is an upper bound, and cheap


def collect_responses(
    prompts: Sequence[RawPrompt | PromptRecord],
    sampling: Sampling,
    load: LoadSettings,
    first: int = 0,
    chunk: int = CHUNK,
) -> Iterator[Collected]:
    """Samples responses to prompts; near-duplicates are drawn anew `TRIES` - 1 times, then left out.

    What a prompt gets does not depend on where a run was interrupted: seeds follow from the prompt's chunk.

    Args:
        prompts: The prompts to respond to.
        sampling: The models that respond, and how.
        load: How models are loaded.
        first: Number of prompts at the start that have their responses already; a multiple of `chunk`, or all.
        chunk: Prompts at a time.

    Yields:
        The responses to each chunk.

    Raises:
        FileNotFoundError, ValueError: a source cannot be loaded, or a number is out of range.
    """
    sampling.check()
    records = read_prompts(prompts)
    models = {s.name: load_source(s.model_name, load) for s in sampling.sources}
    for model in models.values():
        if prompt_room(model.lm, sampling.max_prompt_length, sampling.max_new_tokens) < sampling.max_prompt_length:
            raise ValueError(
                f"max_prompt_length={sampling.max_prompt_length} + max_new_tokens={sampling.max_new_tokens}, but "
                f"model={model.lm.name!r} can read {model.lm.max_positions} tokens. Lower one of them."
            )
    judges = {s.name: RewardJudge(s.by, load) for s in sampling.sources if s.by is not None}
    encoded = {name: PromptSet(records, model.tokenizer, sampling.max_prompt_length) for name, model in models.items()}
    for start in range(first, len(prompts), chunk):
        members = range(start, min(start + chunk, len(prompts)))
        responses: dict[int, list[Response]] = {i: [] for i in members}
        tokens = 0
        for attempt in range(TRIES):
            for number in range(sampling.n_responses):
                # at first each round adds one response; later rounds fill what near-duplicates left open
                wanted_count = sampling.n_responses if attempt else number + 1
                wanted = [i for i in members if len(responses[i]) < wanted_count]
                if not wanted:
                    continue
                source = sampling.sources[(number + attempt) % len(sampling.sources)]
                draw = (start * TRIES + attempt) * sampling.n_responses + number
                given, count = draw_responses(
                    models[source.name],
                    source,
                    [records[i] for i in wanted],
                    [encoded[source.name][i] for i in wanted],
                    sampling.max_new_tokens,
                    sampling.seed + SEED_STEP * draw,
                    judges.get(source.name),
                )
                tokens += count
                for i, response in zip(wanted, given, strict=True):
                    _add_unless_alike(responses[i], response)
            if all(len(r) >= sampling.n_responses for r in responses.values()):
                break
        enough = [i for i in members if len(responses[i]) >= 2]
        yield Collected(
            [
                Candidates(f"p{i}", records[i].prompt, tuple(responses[i][: sampling.n_responses]), records[i].columns)
                for i in enough
            ],
            tokens,
        )


def draw_responses(
    model: SharedLM,
    source: Source,
    records: Sequence[PromptRecord],
    prompts: Sequence[Prompt],
    max_new_tokens: int,
    seed: int,
    judge: RewardJudge | None = None,
) -> tuple[list[Response], int]:
    """A source's response to each prompt, and how many tokens were generated for them; ids of responses are left empty.

    Args:
        model: The source's model.
        source: Who responds.
        records: The prompts, as the judge reads them.
        prompts: The same, in the model's tokens.
        max_new_tokens: Length cap of a response.
        seed: Seed of the sampling.
        judge: Chooses, for best of n.
    """
    size = len(model.tokenizer)  # a model's vocabulary may be padded beyond its tokenizer's
    tries: list[list[Response]] = [[] for _ in prompts]
    tokens = 0
    for number in range(source.best_of):
        # torch takes seeds below 2^63
        own_seed = (seed + BEST_OF_STEP * number) % 2**63
        with model.frozen() as lm:
            ids = continue_prompts(lm, prompts, model.eos_ids, max_new_tokens, own_seed, source.temperature)
        for own, response_ids in zip(tries, ids, strict=True):
            tokens += len(response_ids)
            text = str(model.tokenizer.decode([t for t in response_ids if t < size], skip_special_tokens=True))
            own.append(Response("", text, response_ids[-1] in model.eos_ids, str(source)))
    if judge is None:
        return [own[0] for own in tries], tokens
    scores = judge.scores(
        [Candidates("", r.prompt, tuple(own), r.columns) for r, own in zip(records, tries, strict=True)]
    )
    # of equal scores the first
    return [own[max(range(len(own)), key=s.__getitem__)] for own, s in zip(tries, scores, strict=True)], tokens


def _add_unless_alike(responses: list[Response], response: Response) -> None:
    """Adds a response to a prompt's others, where it is not empty and unlike each of them."""
    if response.text.strip() and not any(near_duplicate(response.text, r.text) for r in responses):
        responses.append(dataclasses.replace(response, id=f"r{len(responses)}"))
