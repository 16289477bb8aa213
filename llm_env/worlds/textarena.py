"""Games of TextArena (https://github.com/LeonGuertler/TextArena, the package ``textarena``) for one player as worlds."""

from __future__ import annotations

from typing import Any

from llm_env.worlds.base import WorldError
from llm_env.worlds.global_random import OwnGlobalRandom


class TextArenaWorld:
    """A game for one player; what it pays comes once, at its end.

    ``world="llm_env.worlds.textarena:TextArenaWorld"``, ``world_kwargs={"name": "GuessTheNumber-v0"}``.

    Args:
        name: Its id in TextArena, as for ``textarena.make``; or a game.
        settings: Arguments of ``textarena.make``.
    """

    def __init__(self, name: Any, **settings: Any) -> None:
        self._random = OwnGlobalRandom()
        if isinstance(name, str):
            import textarena

            with self._random.use():
                name = textarena.make(name, **settings)
        self.game = name
        # The innermost gives the messages that are new; the wrappers around it say all over again.
        self._source = name
        while "env" in vars(self._source):
            self._source = self._source.env

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Starts a game."""
        with self._random.use():
            self.game.reset(num_players=1, seed=seed)
            return self._seen(), {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Makes a move; ``info`` has what the game says of the player at its end."""
        with self._random.use():
            done, info = self.game.step(action)
            if not done:
                return self._seen(), 0.0, False, False, info
            rewards, of_players = self.game.close()
        return str(info.get("reason", "")), float((rewards or {}).get(0, 0)), True, False, of_players.get(0, {})

    def _seen(self) -> str:
        """What the player has not seen yet, without what the player wrote.

        Raises:
            WorldError: it is another player's move.
        """
        player, messages = self._source.get_observation()
        if player != 0:
            raise WorldError(f"{type(self._source).__name__} waits for player {player}; a world has one player.")
        return "\n".join(text for sender, text, _ in messages if sender != 0)
