"""Environments of GEM (https://github.com/axon-rl/gem, the package ``gem-llm``) as worlds."""

from __future__ import annotations

from typing import Any

from llm_env.worlds.global_random import OwnGlobalRandom


class GemWorld:
    """An environment of GEM, whose texts and actions are strings already; it takes no record.

    ``world="llm_env.worlds.gem:GemWorld"``, ``world_kwargs={"name": "game:GuessTheNumber-v0"}``.

    Args:
        name: Its id in GEM, as for ``gem.make``; or an environment.
        settings: Arguments of ``gem.make``.
    """

    def __init__(self, name: Any, **settings: Any) -> None:
        self._random = OwnGlobalRandom()
        if isinstance(name, str):
            import gem

            with self._random.use():
                name = gem.make(name, **settings)
        self.env = name

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Starts an episode."""
        with self._random.use():
            text, info = self.env.reset(seed=seed)
        return _with_suffix(text, info), info

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Hands the environment a turn."""
        with self._random.use():
            text, reward, terminated, truncated, info = self.env.step(action)
        return _with_suffix(text, info), float(reward), bool(terminated), bool(truncated), info


def _with_suffix(text: str, info: dict[str, Any]) -> str:
    """The text, with what GEM's wrappers would put behind it."""
    suffix = info.get("suffix")
    return f"{text}\n{suffix}" if suffix else text
