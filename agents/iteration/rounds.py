"""The rounds: sample with the current actor, rank, choose, train, evaluate, again.

Each step notes in ``round_N/steps.json`` that it is done (`agents.iteration.state`). A step that was interrupted goes on, or
starts again from the same seeds, so that an interrupted run ends with the same result.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from rich.console import Console

from agents.figures import can_draw
from agents.files import write_json, write_text
from agents.iteration.arena import play
from agents.iteration.evaluate import evaluate
from agents.iteration.judging import check_sources, rank, respond, select
from agents.iteration.report import draw_rounds, rounds_table
from agents.iteration.settings import IterationSettings
from agents.iteration.state import RoundsState
from agents.iteration.training import check_training, train, train_judge, train_with_algorithm
from agents.output_folder import check_output_folder, locked
from llm_env.lm.registry import MODELS


def iterate(settings: IterationSettings, console: Console | None = None) -> list[dict[str, Any]]:
    """Runs the rounds that are missing, and writes the table, the picture and the last actor.

    Args:
        settings: What to do, and the folder to do it in.
        console: Where to print. None: nowhere.

    Returns:
        One evaluation a round, the starting model's first.

    Raises:
        FileNotFoundError, ValueError: something cannot be loaded, a setting breaks its rule, or the folder holds rounds with
            other settings.
    """
    # As it is now: a judge or gold function may change the current folder.
    settings = dataclasses.replace(settings, output_dir=settings.output_dir.absolute())
    settings.check()
    check_training(settings)
    check_output_folder(settings.output_dir)
    state = RoundsState(settings, console or Console(quiet=True))
    state.check_folder()
    check_sources(state)
    with locked(settings.output_dir):
        state.keep_settings()
        return _iterate(state)


def _iterate(state: RoundsState) -> list[dict[str, Any]]:
    settings = state.settings
    state.step(0, "evaluation", evaluate)
    if settings.opponent:
        state.step(0, "arena", play)
    evaluations = [state.evaluation(0)]
    for number in range(1, settings.rounds + 1):
        run_round(state, number)
        evaluations.append(state.evaluation(number))
    report = [e for e in evaluations if e is not None]
    write_json(state.folder / "rounds.json", report)
    write_text(state.folder / "rounds.md", rounds_table(report))
    if can_draw():
        draw_rounds(report, state.folder / "rounds.png", " ".join(settings.schedule) or settings.method)
    state.keep_actor()
    return report


def run_round(state: RoundsState, number: int) -> None:
    """Runs the steps of a round that are missing.

    Args:
        state: Settings and folder of the rounds.
        number: The round, from 1.
    """
    settings = state.settings.of_round(number)
    state.round_folder(number).mkdir(exist_ok=True)
    if "training" not in state.steps_done(number):
        name = f": {settings.method}" if state.settings.schedule else ""
        state.console.rule(f"round {number} of {settings.rounds}{name}", align="left")
    if settings.is_algorithm and not settings.trains_reward_model:
        state.step(number, "training", train_with_algorithm)  # it generates and scores for itself
    elif settings.is_algorithm:
        state.step(number, "responses", respond)
        state.step(number, "rankings", rank)
        state.step(number, "reward model", train_judge)
        state.step(number, "training", train_with_algorithm)
    else:
        state.step(number, "responses", respond)
        state.step(number, "rankings", rank)
        state.step(number, "selection", select)
        state.step(number, "training", train)
    if number % settings.evaluate_every == 0 or number == settings.rounds:
        state.step(number, "evaluation", evaluate)
    if settings.opponent:
        state.step(number, "arena", play)
    # The actor of the round before is not needed any more; without this each round would add a model to the memory.
    MODELS.clear(str(state.actor(number - 1)))
