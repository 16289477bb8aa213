"""Players: models that answer the same prompts, each once, to be compared; by name, best of n among them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from agents.preferences.judge import RewardJudge
from agents.preferences.records import Candidates, Response
from agents.preferences.sampling import SEED_STEP, load_source
from agents.runs.checkpoint_actor import is_checkpoint
from llm_env.default_task import DEFAULT_MODEL, DEFAULT_REWARD_MODEL
from llm_env.lm.generate import continue_prompts
from llm_env.lm.loading import load_config
from llm_env.lm.names import LoadSettings
from llm_env.text.prompts import PromptRecord, PromptSet

EMBEDDED = "the embedded actor"
_BEST_OF = re.compile(r"best_of:(?P<n>[^:?]*)(?::(?P<model>[^?]+))?(?:\?by=(?P<by>.+))?")


@dataclass(frozen=True)
class Player:
    """A model that plays.

    Attributes:
        name: Its name, as it was given.
        model: Model folder, hub id, or a checkpoint of a run.
        best_of: Responses that it samples to a prompt, of which the one is kept that `by` scores highest.
        by: The reward model that chooses; None where there is one response.
    """

    name: str
    model: str
    best_of: int = 1
    by: str | None = None


def player(name: str | None, option: str, default: str = DEFAULT_MODEL) -> Player:
    """Reads a player's name.

    Args:
        name: A model folder, a hub id, a checkpoint of a run, or ``best_of:N:MODEL?by=REWARD``; without a model the default
            plays, without a reward model the embedded one chooses, if the embedded actor plays. None: the default.
        option: The option that it came from, for error messages.
        default: The model that plays where none is named.

    Raises:
        ValueError: it is no such name.
    """
    if name is None:
        return Player(EMBEDDED if default == DEFAULT_MODEL else default, default)
    if not name.startswith("best_of:"):
        return Player(name, name)
    match = _BEST_OF.fullmatch(name)
    if match is None or not match["n"].isdecimal() or int(match["n"]) < 2:
        raise ValueError(
            f"{option}={name!r} must be best_of:N, best_of:N:MODEL or best_of:N:MODEL?by=REWARD, N 2 or more."
        )
    model = match["model"] or default
    by = match["by"] or (DEFAULT_REWARD_MODEL if model == DEFAULT_MODEL else None)
    if by is None:
        raise ValueError(f"{option}={name!r}: say which reward model chooses: {name}?by=REWARD.")
    return Player(name, model, int(match["n"]), by)


def check_player(player: Player, option: str, load: LoadSettings) -> None:
    """Looks for a player's model, before anything is written.

    Raises:
        FileNotFoundError, ValueError: it is not there.
    """
    if not is_checkpoint(Path(player.model)):
        load_config(player.model, "causal language model", option, load.trust_remote_code)


@dataclass(frozen=True)
class Games:
    """How players respond.

    Attributes:
        temperatures: Sampling temperature of each player.
        max_prompt_length: Tokens of a prompt; longer prompts are cut on the left.
        max_new_tokens: Length cap of a response, in tokens.
        seed: Seed of the sampling.
    """

    temperatures: tuple[float, ...]
    max_prompt_length: int
    max_new_tokens: int
    seed: int


def answers(
    player: Player,
    place: int,
    records: Sequence[PromptRecord],
    games: Games,
    load: LoadSettings,
    first: int = 0,
) -> list[Response]:
    """A player's response to each prompt.

    Args:
        player: Who responds.
        place: The player's number, from 0, which makes its draws its own, and its responses' id.
        records: The prompts.
        games: How it responds.
        load: How models are loaded.
        first: Number of the first prompt among all, so that later prompts draw other responses.

    Raises:
        FileNotFoundError, ValueError: the model or the reward model that chooses cannot be loaded.
    """
    model = load_source(player.model, load)
    prompts = list(PromptSet(list(records), model.tokenizer, games.max_prompt_length).prompts)
    temperature, size = games.temperatures[place], len(model.tokenizer)
    tries: list[list[Response]] = [[] for _ in prompts]
    for number in range(player.best_of):
        draw = (first * 64 + place) * 4096 + number
        seed = (games.seed + SEED_STEP * draw) % 2**63  # torch takes seeds below 2^63
        with model.frozen() as lm:
            ids = continue_prompts(lm, prompts, model.eos_ids, games.max_new_tokens, seed, temperature)
        for own, response_ids in zip(tries, ids, strict=True):
            # a model's vocabulary may be padded beyond its tokenizer's
            text = str(model.tokenizer.decode([t for t in response_ids if t < size], skip_special_tokens=True))
            own.append(Response(f"r{place}", text, response_ids[-1] in model.eos_ids, player.name))
    if player.by is None:
        return [own[0] for own in tries]
    return _best(tries, records, RewardJudge(player.by, load))


def _best(tries: list[list[Response]], records: Sequence[PromptRecord], judge: RewardJudge) -> list[Response]:
    """The response to each prompt that the reward model scores highest; of equal scores the first."""
    scores = judge.scores(
        [Candidates("", r.prompt, tuple(own), r.columns) for r, own in zip(records, tries, strict=True)]
    )
    return [own[max(range(len(own)), key=s.__getitem__)] for own, s in zip(tries, scores, strict=True)]
