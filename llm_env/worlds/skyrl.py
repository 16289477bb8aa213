"""Environments of SkyRL-gym (https://github.com/NovaSky-AI/SkyRL, the package ``skyrl-gym``) as worlds."""

from __future__ import annotations

from typing import Any

from llm_env.worlds.base import WorldError


class SkyRLWorld:
    """An environment of SkyRL-gym: chat messages in, chat messages out.

    ``world="llm_env.worlds.skyrl:SkyRLWorld"``, ``world_kwargs={"name": "gsm8k"}``, and `prompts` whose records have what the
    environment calls its extras (for ``gsm8k``: ``reward_spec``, with the right answer as ``ground_truth``).

    Args:
        name: Its id in SkyRL-gym, as for ``skyrl_gym.make``.
        settings: Further arguments of ``skyrl_gym.make``.
    """

    def __init__(self, name: str, **settings: Any) -> None:
        self._name, self._settings = name, settings
        self._env: Any = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[list[dict[str, str]], dict[str, Any]]:
        """Makes the environment anew with the record's fields as its extras, and starts it with the record's prompt.

        Raises:
            WorldError: there is no record.
        """
        import skyrl_gym

        row = dict((options or {}).get("row") or {})
        prompt = row.pop("prompt", None)
        if prompt is None:
            raise WorldError(f"{self._name} of SkyRL-gym starts from a record: give prompts.")
        self.close()
        self._env = skyrl_gym.make(self._name, extras=row, **self._settings)
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        seen, info = self._env.init(messages)
        return list(seen), info

    def step(self, action: str) -> tuple[list[dict[str, str]], float, bool, bool, dict[str, Any]]:
        """Hands the environment a turn."""
        out = self._env.step(action)
        return list(out["observations"]), float(out["reward"]), bool(out["done"]), False, out.get("metadata") or {}

    def close(self) -> None:
        """Closes the environment."""
        if self._env is not None:
            self._env.close()
            self._env = None
