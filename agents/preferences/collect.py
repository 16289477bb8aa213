"""Responses to rank, from one or several models, and rankings of them by a judge."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from agents.checkpoint_actor import is_checkpoint, load_checkpoint_actor
from agents.preferences.records import Candidates, Ranking, Response
from llm_env.generation import continue_prompts
from llm_env.models import LoadSettings, SharedLM, load_tokenizer, shared_causal_lm
from llm_env.prompts import Prompt, PromptSet, RawPrompt, encode_prompt
from llm_env.rewards import ClassifierReward, FunctionReward, RewardModel, load_reward_model
from llm_env.texts import encode_response, response_after
from llm_env.transition import Episode

ALIKE = 0.9
TRIES = 4
GOLD = "llm_env.gold:gold_score"


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


class Judge:
    """A reward model or function that ranks.

    Args:
        name: ``gold`` for the embedded default's rule, or any name of `llm_env.rewards`.
        load: How a model is loaded.
        noise: Temperature of the ranking: 0 ranks by score; else a ranking is drawn from the Plackett-Luce model with
            worths exp(score / noise), of which Bradley-Terry is the case of two.
        seed: Of the drawing.

    Raises:
        FileNotFoundError, ValueError: it cannot be loaded, or the noise is negative.
    """

    def __init__(self, name: str, load: LoadSettings, noise: float = 0.0, seed: int = 0) -> None:
        if not math.isfinite(noise) or noise < 0:
            raise ValueError(f"noise={noise} must be a finite number, at least 0.")
        self.name = GOLD if name == "gold" else name
        is_function = ":" in self.name and not Path(self.name).exists()
        self.tokenizer = None if is_function else load_tokenizer(self.name, "judge", load.trust_remote_code)
        self.model: RewardModel = (
            FunctionReward(self.name) if self.tokenizer is None else load_reward_model(self.name, load, self.tokenizer)
        )
        self.noise = noise
        self.rng = np.random.default_rng(seed)

    def scores(self, candidates: Sequence[Candidates]) -> list[list[float]]:
        """One score for each response of each prompt."""
        episodes = [self._episode(c.prompt, r) for c in candidates for r in c.responses]
        flat = iter(self.model.score(episodes))
        return [[next(flat) for _ in c.responses] for c in candidates]

    def rank(self, candidates: Sequence[Candidates]) -> list[Ranking]:
        """Rankings from best to worst; equal scores tie."""
        return [self._ranking(c, scores) for c, scores in zip(candidates, self.scores(candidates), strict=True)]

    def _ranking(self, candidates: Candidates, scores: list[float]) -> Ranking:
        worth = np.array(scores)
        if self.noise:  # the order of Gumbel-perturbed scores is a draw from Plackett-Luce (Yellott 1977)
            worth = worth + self.noise * self.rng.gumbel(size=len(worth))
        tiers: dict[float, list[str]] = {}
        for response, value in zip(candidates.responses, worth.tolist(), strict=True):
            tiers.setdefault(value, []).append(response.id)
        ordered = tuple(tuple(tiers[value]) for value in sorted(tiers, reverse=True))
        named = None if self.noise else dict(zip([r.id for r in candidates.responses], scores, strict=True))
        return Ranking(candidates, ordered, self.name, scores=named)

    def _episode(self, raw: RawPrompt, response: Response) -> Episode:
        if self.tokenizer is None:
            text = raw if isinstance(raw, str) else raw[-1]["content"]
            prompt = Prompt(text, (0,))
            return Episode(prompt, done=True, has_end=response.finished, response_text=response.text)
        assert isinstance(self.model, ClassifierReward)
        return episode_of(raw, response, self.model)


def episode_of(raw: RawPrompt, response: Response, model: ClassifierReward) -> Episode:
    """A response that was read from a file, as the reward model reads one."""
    tokenizer = model.tokenizer
    prompt, _ = encode_prompt(raw, tokenizer, 10**6)
    text = response.text if prompt.messages else response_after(prompt.text, response.text)
    end = [int(tokenizer.eos_token_id)] if response.finished and tokenizer.eos_token_id is not None else []
    ids = [*encode_response(text, tokenizer), *end]
    return Episode(prompt, response_ids=ids, done=True, has_end=response.finished, response_text=text)
