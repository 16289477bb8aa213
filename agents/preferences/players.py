"""Players: models that answer the same prompts, each once, to be compared; by name, best of n among them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from agents.preferences.judge import RewardJudge
from agents.preferences.records import Response
from agents.preferences.sampling import SEED_STEP, Source, draw_responses, load_source
from agents.runs.checkpoint_actor import is_checkpoint
from llm_env.default_task import DEFAULT_MODEL, DEFAULT_REWARD_MODEL
from llm_env.lm.loading import load_config
from llm_env.lm.names import LoadSettings
from llm_env.text.prompts import PromptRecord, PromptSet

EMBEDDED = "the embedded actor"
_BEST_OF = re.compile(r"best_of:(?P<n>[^:?]*)(?::(?P<model>[^?]+))?(?:\?by=(?P<by>.+))?")


def player(name: str | None, option: str, temperature: float = 1.0, default: str = DEFAULT_MODEL) -> Source:
    """Reads a player's name.

    Args:
        name: A model folder, a hub id, a checkpoint of a run, or ``best_of:N:MODEL?by=REWARD``; without a model the default
            plays, without a reward model the embedded one chooses, if the embedded actor plays. None: the default.
        option: The option that it came from, for error messages.
        temperature: At which it samples.
        default: The model that plays where none is named.

    Raises:
        ValueError: it is no such name.
    """
    if name is None:
        return Source(EMBEDDED if default == DEFAULT_MODEL else default, temperature, default)
    if not name.startswith("best_of:"):
        return Source(name, temperature)
    match = _BEST_OF.fullmatch(name)
    if match is None or not match["n"].isdecimal() or int(match["n"]) < 2:
        raise ValueError(
            f"{option}={name!r} must be best_of:N, best_of:N:MODEL or best_of:N:MODEL?by=REWARD, N 2 or more."
        )
    model = match["model"] or default
    by = match["by"] or (DEFAULT_REWARD_MODEL if model == DEFAULT_MODEL else None)
    if by is None:
        raise ValueError(f"{option}={name!r}: say which reward model chooses: {name}?by=REWARD.")
    return Source(name, temperature, model, int(match["n"]), by)


def check_player(player: Source, option: str, load: LoadSettings) -> None:
    """Looks for a player's model, before anything is written.

    Raises:
        FileNotFoundError, ValueError: it is not there.
    """
    if not is_checkpoint(Path(player.model_name)):
        load_config(player.model_name, "causal language model", option, load.trust_remote_code)


@dataclass(frozen=True)
class Games:
    """How players respond.

    Attributes:
        max_prompt_length: Tokens of a prompt; longer prompts are cut on the left.
        max_new_tokens: Length cap of a response, in tokens.
        seed: Seed of the sampling.
    """

    max_prompt_length: int
    max_new_tokens: int
    seed: int


def answers(
    player: Source,
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
        records: The prompts, of which each gets one response.
        games: How it responds.
        load: How models are loaded.
        first: Number of the first prompt among all, so that later prompts draw other responses.

    Raises:
        FileNotFoundError, ValueError: the model or the reward model that chooses cannot be loaded.
    """
    model = load_source(player.model_name, load)
    prompts = PromptSet(list(records), model.tokenizer, games.max_prompt_length).prompts
    judge = None if player.by is None else RewardJudge(player.by, load)
    seed = games.seed + SEED_STEP * (first * 64 + place)
    responses, _ = draw_responses(model, player, records, prompts, games.max_new_tokens, seed, judge)
    return [dataclasses.replace(r, id=f"r{place}") for r in responses]
