"""Clients of OpenEnv (https://github.com/huggingface/OpenEnv, the package ``openenv``) as worlds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llm_env.reward.user_code import import_function


class OpenEnvWorld:
    """An environment behind OpenEnv's client, through two functions; the record's fields go to its ``reset``.

    Args:
        client: A synchronous client (``SomeEnv(base_url=…).sync()``), or a function that makes one, also by name
            (``package.module:function``).
        action: From a turn's text to the environment's action, also by name.
        observe: From an observation to a text or chat messages, also by name.
    """

    def __init__(self, client: Any, action: str | Callable[[str], Any], observe: str | Callable[[Any], Any]) -> None:
        client = import_function(client, "client") if isinstance(client, str) else client
        self._client = client() if callable(client) else client
        self._action = import_function(action, "action") if isinstance(action, str) else action
        self._observe = import_function(observe, "observe") if isinstance(observe, str) else observe

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Starts an episode."""
        result = self._client.reset(seed=seed, **((options or {}).get("row") or {}))
        return self._observe(result.observation), {}

    def step(self, action: str) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Hands the environment a turn."""
        result = self._client.step(self._action(action))
        return self._observe(result.observation), float(result.reward or 0.0), bool(result.done), False, {}

    def close(self) -> None:
        """Closes the connection."""
        self._client.close()
