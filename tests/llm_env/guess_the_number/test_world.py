from __future__ import annotations

import json
from collections.abc import Callable

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import llm_env
from llm_env.guess_the_number import ASSETS, game_settings
from llm_env.guess_the_number.world import GuessTheNumber, best_play, listening_play, random_play
from llm_env.rollout import respond
from llm_env.settings import task_settings
from llm_env.task import TextTask


def binary_search(world: GuessTheNumber, number: int) -> tuple[bool, int]:
    """The best player; whether the number was found, and the guesses made."""
    world.reset(seed=0, options={"row": {"number": number}})
    low, high = 1, world.largest
    while True:
        guess = (low + high) // 2
        answer, _, done, _, info = world.step(str(guess))
        if done:
            return info["found"], info["guesses"]
        low, high = (guess + 1, high) if answer == "higher" else (low, guess - 1)


def test_the_best_play_is_binary_search() -> None:
    played = [binary_search(GuessTheNumber(), number) for number in range(1, 16)]
    found, guesses = best_play(15, 4)
    assert found == 1.0 == np.mean([f for f, _ in played])
    assert guesses == pytest.approx(49 / 15) == np.mean([g for _, g in played])  # 1 + 2·2 + 4·3 + 8·4 = 49


def test_with_too_few_guesses_it_finds_as_many_as_it_can_tell_apart() -> None:
    assert best_play(15, 3)[0] == pytest.approx(7 / 15)
    assert best_play(3, 1) == (pytest.approx(1 / 3), 1.0)
    assert best_play(2, 2) == (1.0, 1.5)


@pytest.mark.parametrize(("listens", "play"), [(False, random_play), (True, listening_play)])
def test_the_players_reach_what_is_computed(listens: bool, play: Callable[[int, int], tuple[float, float]]) -> None:
    world, rng = GuessTheNumber(), np.random.default_rng(0)
    found, made = [], []
    for seed in range(4000):
        world.reset(seed=seed)
        done, low, high = False, 1, 15
        while not done:
            guess = int(rng.integers(low, high + 1))
            answer, reward, done, _, info = world.step(str(guess))
            if listens:
                low, high = (guess + 1, high) if answer == "higher" else (low, guess - 1)
        found.append(reward)
        made.append(info["guesses"])
    assert np.mean(found) == pytest.approx(play(15, 4)[0], abs=0.025)
    assert np.mean(made) == pytest.approx(play(15, 4)[1], abs=0.06)


@pytest.mark.parametrize("text", ["", "0", "32", "-3", "3.5", "seven", "1 2", "٣", "9" * 5000])
def test_what_is_no_guess_costs_one(text: str) -> None:
    world = GuessTheNumber(guesses=2)
    world.reset(seed=0)
    assert world.step(text) == ("what?", 0.0, False, False, {"guesses": 1, "found": False})
    assert world.step(text)[2]


def test_it_is_a_gymnasium_environment() -> None:
    check_env(gymnasium.make(llm_env.GUESS_ID).unwrapped, skip_render_check=True)


@pytest.mark.parametrize("number", [0, 32, True, "7", 2.0])
def test_a_record_names_a_number_of_the_range(number: object) -> None:
    with pytest.raises(ValueError, match="must be a whole number from 1 to 15"):
        GuessTheNumber().reset(options={"row": {"number": number}})


def test_the_embedded_model_plays_at_random() -> None:
    """It has learned from both players, and the half that listens is hard to learn: it plays a little better than at random."""
    task = TextTask(task_settings(game_settings()))
    games = respond(task.model.lm, task, [None] * 300, seed=1)
    built = json.loads((ASSETS / "build.json").read_text())
    assert random_play(15, 4)[0] < built["found"] < (random_play(15, 4)[0] + listening_play(15, 4)[0]) / 2
    assert np.mean([game.world_return for game in games]) == pytest.approx(built["found"], abs=0.08)
    assert sum(turn.reply == "what?" for game in games for turn in game.turns) < 20
