"""The arena: after each round the actor plays against its opponents and its predecessor, and all get strengths.

Luo et al. 2024, "Arena Learning" (https://arxiv.org/abs/2407.10627): a model battles others, learns where it lost, by SFT, DPO
and PPO in turn, and its strength is told on Elo's scale. Here each player responds once to each held-out prompt; the judge of
the rounds ranks the responses to a prompt, and the gold function, where there is one, does too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agents.console import say
from agents.evaluation.settings import SAMPLE_SEED
from agents.evaluation.strengths import Game, elo, elo_intervals, score_matrix
from agents.files import write_json, write_text
from agents.iteration.judging import opponents
from agents.iteration.settings import PEOPLE
from agents.iteration.state import RoundsState, reward_name
from agents.preferences.ab import shuffled
from agents.preferences.judges import load_judge
from agents.preferences.players import Games, answers
from agents.preferences.records import Candidates, Ranking, Response, write_jsonl
from agents.preferences.sampling import Source
from llm_env.text.prompts import PromptRecord
from llm_env.text.records import read_records

START_ELO = 1000
"""Points of the model that the rounds begin with, with which the others are compared."""


def play(state: RoundsState, number: int) -> None:
    """Lets a round's actor play, and writes the strengths of all players so far to ``arena.json`` and ``arena.md``.

    Raises:
        FileNotFoundError, ValueError, RewardModelError: a model cannot be loaded, or a judge fails.
    """
    folder = state.folder / "arena"
    folder.mkdir(exist_ok=True)
    records = shuffled(state.held_out, 0, state.settings.n_eval)
    names = [*state.settings.opponent, *(round_name(state, n) for n in range(number + 1))]
    first = len(state.settings.opponent)
    # the opponents, the actor of the round before, and this one's
    playing = [*range(first), *range(first + max(0, number - 1), first + number + 1)]
    responses = {place: _responses(state, place, number, records) for place in playing}
    candidates = [
        Candidates(f"p{i}", record.prompt, tuple(responses[place][i] for place in playing), record.columns)
        for i, record in enumerate(records)
    ]
    report: list[dict[str, Any]] = []
    for place, name in enumerate(judges(state)):
        judge = load_judge(name, state.settings, state.load, state.settings.seed + place, state.console)
        path = folder / f"round_{number}_judge_{place}.jsonl"
        write_jsonl(path, [{"id": r.candidates.id, "games": games_of(r)} for r in judge.rank(candidates, folder)])
        report.append(
            {"judge": judge.name, "players": strengths(_all_games(folder, number, place, len(records)), names, first)}
        )
    write_json(state.folder / "arena.json", report)
    write_text(state.folder / "arena.md", arena_table(report))
    own = report[0]["players"][first + number]
    say(state.console, f"strength {own['elo']:.0f} ({own['low']:.0f} to {own['high']:.0f})")


def judges(state: RoundsState) -> list[str]:
    """Who ranks in the arena: the rounds' first judge that is not people, else what scores the evaluations; and gold."""
    from agents.iteration.evaluate import scorer_name

    automatic = [reward_name(j) for j in state.judges if j != PEOPLE]
    first = automatic[0] if automatic else scorer_name(state)
    return list(dict.fromkeys([first, *([state.gold] if state.gold is not None else [])]))


def round_name(state: RoundsState, number: int) -> str:
    """How a round's actor is called in the table."""
    return f"round {number}: {state.settings.of_round(number).method}" if number else "start"


def games_of(ranking: Ranking) -> list[Game]:
    """The games of each two ranked responses, by the numbers of their players, which stand in the ids."""
    ranks = {int(name.removeprefix("r")): rank for name, rank in ranking.ranks().items()}
    players = sorted(ranks)
    return [
        (i, j, 0.5 if ranks[i] == ranks[j] else float(ranks[i] < ranks[j])) for i in players for j in players if i < j
    ]


def strengths(by_prompt: Sequence[Sequence[Game]], names: Sequence[str], anchor: int) -> list[dict[str, Any]]:
    """Each player's name, strength in Elo points with its 95 % interval, games and points.

    Args:
        by_prompt: The games on each prompt.
        names: The players' names.
        anchor: The player who has `START_ELO` points.
    """
    points = score_matrix([game for games in by_prompt for game in games], len(names))
    values, intervals = elo(points, anchor), elo_intervals(by_prompt, len(names), anchor)
    played = points + points.T
    return [
        {
            "player": name,
            "elo": START_ELO + float(values[i]),
            "low": START_ELO + float(intervals[i, 0]),
            "high": START_ELO + float(intervals[i, 1]),
            "games": int(played[i].sum()),
            "points": float(points[i].sum()),
        }
        for i, name in enumerate(names)
    ]


def arena_table(report: Sequence[dict[str, Any]]) -> str:
    """Markdown: for each judge the players, and their strengths."""
    lines = []
    for by_judge in report:
        lines.append(
            f"Strengths by {by_judge['judge']} (Elo, start = {START_ELO}; 95 % interval by bootstrap over prompts)\n"
        )
        lines += ["| player | strength | games | points |", "|---|---|---|---|"]
        lines += [
            f"| {p['player'].replace('|', '/')} | {p['elo']:.0f} ({p['low']:.0f} to {p['high']:.0f}) | {p['games']} | "
            f"{p['points']:g} |"
            for p in by_judge["players"]
        ]
        lines.append("")
    return "\n".join(lines)


def _responses(state: RoundsState, place: int, number: int, records: Sequence[PromptRecord]) -> list[Response]:
    """A player's responses to the held-out prompts: those in ``arena/responses_PLACE.jsonl``, or new ones.

    Args:
        state: Settings and folder of the rounds.
        place: The player's number: the opponents, then the actors of the rounds.
        number: The round that is played after.
        records: The held-out prompts, the same ones after each round.
    """
    path = state.folder / "arena" / f"responses_{place}.jsonl"
    if path.is_file():
        return [Response(f"r{place}", r["text"], r["finished"], r["source"]) for _, r in read_records(path, "arena")]
    settings, rivals = state.settings, opponents(state)
    own = place - len(rivals)
    player = rivals[place] if own < 0 else Source(str(state.actor(own)), settings.temperature)
    games = Games(settings.max_prompt_length, settings.max_new_tokens, SAMPLE_SEED)
    given = answers(player, place, records, games, state.load)
    write_jsonl(path, [dataclasses.asdict(r) for r in given])
    return given


def _all_games(folder: Path, number: int, judge: int, prompts: int) -> list[list[Game]]:
    """The games on each prompt in all rounds up to one; the opponents' games with each other, in each round, count once."""
    by_prompt: list[dict[tuple[int, int], float]] = [{} for _ in range(prompts)]
    for n in range(number + 1):
        for _, record in read_records(folder / f"round_{n}_judge_{judge}.jsonl", "arena"):
            for i, j, result in record["games"]:
                by_prompt[int(record["id"][1:])][i, j] = result
    return [[(i, j, result) for (i, j), result in games.items()] for games in by_prompt]
