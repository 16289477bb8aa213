"""Other people's environments as worlds: each as its package has it where that is installed, and its interface by hand."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from agents import make_algorithm
from llm_env.episode import Episode
from llm_env.worlds.base import WorldError
from llm_env.worlds.gem import GemWorld
from llm_env.worlds.global_random import OwnGlobalRandom
from llm_env.worlds.openenv import OpenEnvWorld
from llm_env.worlds.skyrl import SkyRLWorld
from llm_env.worlds.textarena import TextArenaWorld

SIZES = {"max_turns": 2, "max_turn_tokens": 6, "max_new_tokens": 12, "max_world_tokens": 64, "max_prompt_length": 256}


class GlobalDice:
    """Of GEM's interface: seeded through the global generators."""

    def reset(self, seed: int | None = None) -> tuple[str, dict[str, Any]]:
        random.seed(seed)
        np.random.seed(seed)
        return f"Rolled {random.randint(1, 6)}.", {"suffix": "Guess the next."}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        rolled = int(np.random.randint(1, 7))
        others = [random.randint(1, 6) for _ in range(8)]
        return f"Rolled {rolled}, then {others}.", float(str(rolled) in action), True, False, {}


class TwoMoves:
    """Of TextArena's interface: the second move ends the game."""

    def reset(self, num_players: int, seed: int | None = None) -> None:
        assert num_players == 1
        self.moves, self.player, self.new = 0, 0, [(-1, "Say a.", 0)]

    def get_observation(self) -> tuple[int, list[tuple[int, str, int]]]:
        new, self.new = self.new, []
        return self.player, new

    def step(self, action: str) -> tuple[bool, dict[str, Any]]:
        self.moves += 1
        self.new = [(0, action, 1), (-1, "Once more.", 4)]
        return self.moves == 2, {"reason": "Two moves were made."} if self.moves == 2 else {}

    def close(self) -> tuple[dict[int, float], dict[int, dict[str, Any]]]:
        return {0: 0.5}, {0: {"turn_count": self.moves}}


class Wrapped:
    """Of TextArena's wrappers' interface: says all over again at each observation."""

    def __init__(self, env: TwoMoves) -> None:
        self.env = env

    def reset(self, num_players: int, seed: int | None = None) -> None:
        self.env.reset(num_players, seed)

    def step(self, action: str) -> tuple[bool, dict[str, Any]]:
        return self.env.step(f"[{action}]")

    def close(self) -> Any:
        return self.env.close()

    def get_observation(self) -> tuple[int, str]:
        raise AssertionError("the innermost is asked")


def test_a_gem_environment_says_its_suffix_too() -> None:
    world = GemWorld(GlobalDice())
    text, _ = world.reset(seed=1)
    assert text.startswith("Rolled ")
    assert text.endswith(".\nGuess the next.")
    assert world.step("123456")[1:4] == (1.0, True, False)


def test_worlds_with_global_randomness_do_not_disturb_each_other_or_anybody() -> None:
    alone = GemWorld(GlobalDice())
    expected = [alone.reset(seed=5), alone.step("")]
    one, other = GemWorld(GlobalDice()), GemWorld(GlobalDice())
    random.seed(0)
    np.random.seed(0)
    mine = (random.random(), np.random.rand())
    random.seed(0)
    np.random.seed(0)
    got = [one.reset(seed=5)]
    other.reset(seed=6)
    got.append(one.step(""))
    assert got == expected
    assert (random.random(), np.random.rand()) == mine


def test_the_global_generators_come_back_after_an_error() -> None:
    stream = OwnGlobalRandom()
    before = random.getstate()
    with contextlib.suppress(RuntimeError), stream.use():
        random.seed(3)
        raise RuntimeError
    assert random.getstate() == before


@pytest.mark.parametrize("make", [TwoMoves, lambda: Wrapped(TwoMoves())])
def test_a_textarena_game_gives_what_is_new_and_pays_at_its_end(make: Callable[[], Any]) -> None:
    world = TextArenaWorld(make())
    assert world.reset(seed=0) == ("Say a.", {})
    assert world.step("a") == ("Once more.", 0.0, False, False, {})
    assert world.step("a") == ("Two moves were made.", 0.5, True, False, {"turn_count": 2})


def test_a_textarena_game_of_several_players_is_refused() -> None:
    game = TwoMoves()
    world = TextArenaWorld(game)
    world.reset(seed=0)
    game.player = 1
    with pytest.raises(WorldError, match="waits for player 1"):
        world.step("a")


def test_an_openenv_client_is_asked_through_two_functions() -> None:
    class Client:
        def reset(self, **asked: Any) -> SimpleNamespace:
            self.asked = asked
            return SimpleNamespace(observation={"text": f"Topic: {asked['topic']}"})

        def step(self, action: dict[str, str]) -> SimpleNamespace:
            done = action["say"] == "bye"
            return SimpleNamespace(observation={"text": "ok"}, reward=1.0 if done else None, done=done)

        def close(self) -> None:
            self.closed = True

    client = Client()
    world = OpenEnvWorld(lambda: client, lambda text: {"say": text}, lambda observation: observation["text"])
    assert world.reset(seed=4, options={"row": {"topic": "tea"}})[0] == "Topic: tea"
    assert client.asked == {"seed": 4, "topic": "tea"}
    assert world.step("hello") == ("ok", 0.0, False, False, {})
    assert world.step("bye")[1:3] == (1.0, True)
    world.close()
    assert client.closed


def trained(world: str, **world_kwargs: Any) -> list[Episode]:
    """The last rollout's episodes of a stock PPO that makes two updates in a world."""
    model: Any = make_algorithm(
        "ppo", n_envs=4, seed=0, env_kwargs={"world": world, "world_kwargs": world_kwargs, **SIZES}, critic="head"
    )
    model.learn(2 * 4 * model.n_steps)
    assert model._n_updates == 2 * model.n_epochs
    return [s.episode for s in model.rollout_buffer.segments]


@pytest.mark.parametrize(
    ("package", "world", "name"),
    [
        ("gem", "llm_env.worlds.gem:GemWorld", "game:GuessTheNumber-v0-easy"),
        ("textarena", "llm_env.worlds.textarena:TextArenaWorld", "GuessTheNumber-v0"),
    ],
)
def test_an_unmodified_game_trains(package: str, world: str, name: str) -> None:
    pytest.importorskip(package, reason=f"{package} is not installed")
    episodes = trained(world, name=name)
    assert all(episode.turns and episode.end in ("world", "turn_cap", "response_cap") for episode in episodes)
    assert any(turn.reply for episode in episodes for turn in episode.turns)


def test_an_environment_of_skyrl_gym_is_played() -> None:
    pytest.importorskip("skyrl_gym", reason="pip install skyrl-gym")
    world = SkyRLWorld("gsm8k")
    row = {"prompt": "What is 1 + 1?", "reward_spec": {"method": "rule", "ground_truth": "2"}}
    text, _ = world.reset(seed=0, options={"row": row})
    assert text == [{"role": "user", "content": "What is 1 + 1?"}]
    assert world.step("It is\n#### 2")[1:3] == (1.0, True)
    with pytest.raises(WorldError, match="give prompts"):
        world.reset(seed=0)
