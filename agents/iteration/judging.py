"""The first half of a round: the actor responds, the judges rank, and the responses to train on are chosen."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence

import numpy as np

from agents.console import say
from agents.evaluation.gold import load_gold
from agents.files import write_json
from agents.iteration.settings import PEOPLE, REJECTION_SAMPLING, IterationSettings
from agents.iteration.state import RoundsState, reward_name
from agents.preferences.corrections import FILE as CORRECTIONS_FILE
from agents.preferences.corrections import correction_rankings, read_corrections
from agents.preferences.corrector import load_corrector
from agents.preferences.folder import candidates_in, rank_in
from agents.preferences.judge_report import described, keep_report
from agents.preferences.judges import load_judge
from agents.preferences.players import check_player, player
from agents.preferences.records import Ranking, read_candidates, read_rankings, write_jsonl
from agents.preferences.sampling import Sampling, Source
from agents.preferences.selection import best_texts, clearest, disputed_first, lost, pairs_of
from agents.preferences.settings import CORRECTIONS
from llm_env.lm.loading import load_config
from llm_env.reward.judges.instruction import read_instruction
from llm_env.reward.judges.names import CORRECT, SERVED, asked_name, check_judge_name, is_language_judge, local_name
from llm_env.reward.models import load_text_reward, reads_texts
from llm_env.text.prompts import PromptRecord

# Seeds of a round are the run's plus a multiple of the round's number, a large prime, so that seeds of neighboring runs differ.
SAMPLING_SEED_STEP = 7919
JUDGE_SEED_STEP = 104_729


def check_sources(state: RoundsState) -> None:
    """Looks for all that the rounds will need, before anything is written or sampled.

    Raises:
        FileNotFoundError, ValueError, ImportError: a judge, the gold function, the opponent, the first preferences or the page
            is not there, or cannot be used; or a prompt has no column that a judge or the gold function needs.
    """
    settings = state.settings
    if (gold := load_gold(state.gold)) is not None:
        gold.check_prompts(state.held_out)
    for name in (*state.judges, *([settings.reward_model] if settings.reward_model else [])):
        option = "judge" if name in state.judges else "reward_model"
        if name == PEOPLE:
            from agents.local_page import check_page  # needs gradio

            check_page(settings.host, settings.port)
        elif is_language_judge(name):
            check_asked_model(name, option, settings)
            read_instruction(settings.judge_mode, settings.judge_prompt)
        elif reads_texts(reward_name(name)):
            scorer = load_text_reward(reward_name(name), option)
            scorer.check_prompts([*state.prompts, *state.held_out])
        else:
            load_config(name, "reward model", option, settings.trust_remote_code)
    if settings.corrector is not None:
        name = asked_name(settings.corrector)
        check_asked_model(name, "corrector", settings)
        read_instruction(CORRECT, settings.corrector_prompt, "corrector_prompt")
    for opponent in opponents(state):
        check_player(opponent, "opponent", state.load)
        if opponent.by is not None:
            load_judge(opponent.by, settings, state.load, 0)
    if settings.first_preferences:
        read_rankings(settings.first_preferences, "first_preferences")


def check_asked_model(name: str, option: str, settings: IterationSettings) -> None:
    """Looks for a language model that judges or corrects.

    Raises:
        FileNotFoundError, ValueError: it is not there, or cannot be used.
    """
    check_judge_name(name, option)
    if not name.startswith(SERVED):
        load_config(local_name(name), "causal language model", option, settings.trust_remote_code)


def opponents(state: RoundsState) -> list[Source]:
    """The models that play against the actor.

    Raises:
        ValueError: a name is none.
    """
    return [player(name, "opponent", state.settings.temperature, state.first) for name in state.settings.opponent]


def respond(state: RoundsState, number: int) -> None:
    """Samples responses of the current actor, and of the opponents if there are some, to the round's prompts."""
    settings = state.settings
    sampling = Sampling(
        sources=(Source(str(state.actor(number - 1)), settings.temperature), *opponents(state)),
        n_responses=settings.n_responses,
        max_prompt_length=settings.max_prompt_length,
        max_new_tokens=settings.max_new_tokens,
        seed=settings.seed + SAMPLING_SEED_STEP * number,
    )
    prompts = prompts_of_round(state.prompts, settings.prompts_per_round, number, settings.seed)
    candidates_in(state.round_folder(number), prompts, sampling, state.load, {"round": number}, state.console)


def prompts_of_round(prompts: Sequence[PromptRecord], size: int | None, number: int, seed: int) -> list[PromptRecord]:
    """Gives a round's prompts: other ones each time until all were used, then again in another order.

    Args:
        prompts: What the rounds take turns with, at least one.
        size: Prompts of a round; None: all.
        number: The round, from 1.
        seed: Seed of the orders.
    """
    size = size or len(prompts)
    orders: dict[int, list[int]] = {}  # the prompts' order in each pass over them
    chosen = []
    for place in range((number - 1) * size, number * size):
        lap, index = divmod(place, len(prompts))
        if lap not in orders:
            orders[lap] = np.random.default_rng([seed, lap]).permutation(len(prompts)).tolist()
        chosen.append(prompts[orders[lap][index]])
    return chosen


def rank(state: RoundsState, number: int) -> None:
    """Has each judge rank the round's responses; people do so on a page, and the round waits for them."""
    settings, folder = state.settings, state.round_folder(number)
    candidates = read_candidates(folder / "responses.jsonl")
    for place, name in enumerate(state.judges):
        if name == PEOPLE:
            from agents.preferences.page import serve  # needs gradio

            path = folder / (CORRECTIONS_FILE if settings.page == CORRECTIONS else "rankings.jsonl")
            page = settings.host, settings.port, state.console, settings.page
            serve(candidates, path, (), *page, until=operator.attrgetter("complete"))
        else:
            seed = settings.seed + JUDGE_SEED_STEP * number + place
            judge = load_judge(name, settings, state.load, seed, state.console)
            rank_in(folder, candidates, judge)
            report = judge.report(candidates, folder)
            keep_report(folder, report)
            for line in described(report):
                say(state.console, line)
    if settings.corrector is not None:
        load_corrector(settings, state.load, state.console).correct_in(folder, candidates)


def select(state: RoundsState, number: int) -> None:
    """Chooses what to train on, by the settings `select` and `pairs`: texts for rejection sampling, else pairs.

    Raises:
        ValueError: nothing is left.
    """
    settings, folder = state.settings.of_round(number), state.round_folder(number)
    rankings, counts = chosen(state, number, settings.select)
    # What is trained on as it is: corrections, and before the first round rankings that were there.
    first = correction_rankings(read_corrections(folder / CORRECTIONS_FILE))
    if first:
        counts["corrections"] = len(first)
    if settings.first_preferences and number == 1:
        first = [*read_rankings(settings.first_preferences, "first_preferences"), *first]
    records = (
        text_records(rankings, first, counts)
        if settings.method == REJECTION_SAMPLING
        else pair_records(settings, rankings, first, counts)
    )
    if not records:
        raise ValueError(f"Round {number}: nothing is left to train on ({counts}). Select less strictly.")
    write_jsonl(folder / "train.jsonl", records)
    write_json(folder / "selection.json", counts, indent=None)
    say(state.console, f"chosen: {', '.join(f'{v:,} {k}' for k, v in counts.items())}")


def chosen(state: RoundsState, number: int, select: Sequence[str]) -> tuple[list[Ranking], dict[str, int]]:
    """A round's rankings, as far as they were lost or are disputed where `select` says so; and what each choice leaves.

    Args:
        state: Settings and folder of the rounds.
        number: Number of the round, from 1.
        select: Names of `SELECTIONS`; ``margin`` is about pairs, and left to others.
    """
    path = state.round_folder(number) / "rankings.jsonl"
    rankings = read_rankings(path) if path.is_file() else []  # people may have corrected, and ranked nothing
    counts = {"rankings": len(rankings)}  # for the console and selection.json
    for name in select:
        if name == "lost":
            rankings = lost(rankings, str(state.actor(number - 1)))
        elif name == "disputed":
            ordered = disputed_first(rankings)
            rankings = ordered[: math.ceil(len(ordered) * state.settings.select_share)]
        counts[name] = len(rankings)
    return rankings, counts


def text_records(rankings: list[Ranking], first: list[Ranking], counts: dict[str, int]) -> list[dict[str, object]]:
    """The best response to each prompt, as records of texts to fine-tune on.

    Args:
        rankings: The round's rankings.
        first: Rankings that were there before the first round, and corrections.
        counts: Gets the number of texts.
    """
    texts = best_texts([*first, *rankings])
    counts["texts"] = len(texts)
    return [{"prompt": t.prompt, "response": t.response, "finished": t.finished} for t in texts]


def pair_records(
    settings: IterationSettings, rankings: list[Ranking], first: list[Ranking], counts: dict[str, int]
) -> list[dict[str, object]]:
    """Pairs of a preferred and another response, as records.

    Args:
        settings: The round's; `pairs`, `select` and `select_share` are read.
        rankings: The round's rankings.
        first: Rankings that were there before the first round, and corrections; all their pairs are taken.
        counts: Gets the numbers of pairs.
    """
    pairs = pairs_of(rankings, settings.pairs)
    counts["pairs"] = len(pairs)
    if "margin" in settings.select:
        pairs = clearest(pairs, settings.select_share)
        counts["margin"] = len(pairs)
    if first:
        first_pairs = pairs_of(first, "all")
        counts["given"] = len(first_pairs)
        pairs = [*first_pairs, *pairs]
    return [pair.to_json() for pair in pairs]
