"""Gymnasium's FrozenLake, unmodified, played by a language model: it learns to cross from nothing but the outcome.

    python examples/frozen_lake.py                        about a minute on one CPU core

Two functions make any environment with `Discrete` actions one of texts: `describe` says in words what an observation is,
`parse` what a turn's text means. The model is a random one of 22,000 weights whose tokens are digits and a few words, so that
all it knows in the end is what PPO taught it. `--world` of scripts/train.py takes `lake` as well, with your own model.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import gymnasium as gym

from agents import TextMetricsCallback, make_algorithm
from agents.probes.tasks import write_model
from llm_env.rollout import respond
from llm_env.worlds.discrete import DiscreteWorld

GAMES, ROLLOUTS = 128, 50


def describe(observation: Any, info: dict[str, Any]) -> str:
    """The field that the player stands on, row by row from 00, the start, to 15, the goal."""
    return f"{observation:02d}"


def parse(text: str) -> int | None:
    """0 left, 1 down, 2 right, 3 up, and again from 4 on; another text is no move."""
    return int(text) % 4 if text in set("0123456789") else None


def lake() -> DiscreteWorld:
    """The world: 4 x 4 fields with four holes, 1 for reaching the goal."""
    return DiscreteWorld(gym.make("FrozenLake-v1", is_slippery=False), describe, parse, unread="")


class Progress(TextMetricsCallback):
    """Prints how many games reached the goal, a line for each rollout, and keeps the numbers."""

    def after_iteration(self) -> None:
        """See `TextMetricsCallback`."""
        crossed = self.last["rollout/rm_score"]
        self.crossed = [*getattr(self, "crossed", []), crossed]
        print(f"rollout {len(self.crossed):2d}: {crossed:4.0%} of {GAMES} games crossed the lake")


def main(rollouts: int = ROLLOUTS, seed: int = 0) -> list[float]:
    """Trains, prints three games, and returns the share of games that reached the goal, for each rollout."""
    with tempfile.TemporaryDirectory() as folder:
        task = {
            "model": write_model(Path(folder) / "model"),
            "world": lake,
            "kl_coef": 0.0,  # there is nothing in a random model to stay near to
            "max_turns": 16,
            "max_turn_tokens": 1,
            "max_new_tokens": 16,
            "max_prompt_length": 8,
            "max_world_tokens": 4,
        }
        settings: dict[str, Any] = {
            "critic": "detached_head",
            "learning_rate": lambda left: 3e-3 * left,
            "ent_coef": 0.02,
            # While hardly a game is won, whitening would make large advantages of nothing but noise.
            "normalize_advantage": False,
        }
        model: Any = make_algorithm("ppo", n_envs=GAMES, env_kwargs=task, seed=seed, **settings)
        progress = Progress()
        model.learn(rollouts * model.n_steps * GAMES, callback=progress, log_interval=None)
        for game in respond(model.policy.lm, model.env.unwrapped.task, [None] * 3, seed=seed):
            fields = [game.prompt.text, *(turn.reply for turn in game.turns)]
            print(" -> ".join(fields), "" if game.world_return else "(not crossed)")
    return progress.crossed


if __name__ == "__main__":
    main()
