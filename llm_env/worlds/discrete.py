"""An environment with `Discrete` actions as a world of texts, through two functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
from gymnasium import spaces

from llm_env.worlds.base import WorldError

UNREAD = "That is no action."


class DiscreteWorld(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Texts around an environment whose actions are numbers.

    A turn that cannot be read as an action costs a turn: the world answers with `unread` and the state as it is, and pays
    `unread_reward`; the environment does not move.

    Args:
        env: The environment, or its registered id.
        describe: What an observation is in words: a function of the observation and the information.
        parse: What a turn's text is as an action; None: it is none.
        unread: The answer to a turn that is no action.
        unread_reward: What such a turn is paid.

    Raises:
        ValueError: the environment's actions are not `Discrete`.
    """

    def __init__(
        self,
        env: gymnasium.Env[Any, Any] | str,
        describe: Callable[[Any, dict[str, Any]], str],
        parse: Callable[[str], int | None],
        unread: str = UNREAD,
        unread_reward: float = 0.0,
    ) -> None:
        super().__init__(gymnasium.make(env) if isinstance(env, str) else env)
        if not isinstance(self.env.action_space, spaces.Discrete):
            raise ValueError(f"DiscreteWorld is for Discrete actions; this environment has {self.env.action_space}.")
        self._actions = self.env.action_space
        self._describe = describe
        self._parse = parse
        self._unread = unread
        self._unread_reward = unread_reward
        self._shown = ""
        text = spaces.Text(1_000_000)
        self.observation_space = self.action_space = text

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Starts an episode, described in words; `options` go to the environment."""
        observation, info = self.env.reset(seed=seed, options=options)
        self._shown = self._describe(observation, info)
        return self._shown, info

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Takes the action that a text names.

        Raises:
            WorldError: `parse` gave a number that is none of the environment's actions.
        """
        number = self._parse(action)
        if number is None:
            return f"{self._unread} {self._shown}".strip(), self._unread_reward, False, False, {"unread": True}
        if isinstance(number, bool) or not self._actions.contains(number):
            raise WorldError(f"parse({action!r:.80}) gave {number}, which is none of {self._actions}.")
        observation, reward, terminated, truncated, info = self.env.step(number)
        self._shown = self._describe(observation, info)
        return self._shown, float(reward), terminated, truncated, info
