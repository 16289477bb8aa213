"""Worlds by name: registered Gymnasium environments, and factories."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import gymnasium
from gymnasium import spaces

from llm_env.reward.user_code import described, import_function, import_module, told
from llm_env.worlds.base import TextWorld, WorldError, WorldSource

ADAPTER = "llm_env.worlds.discrete.DiscreteWorld"


def world_name(source: WorldSource) -> str:
    """A world as error messages call it."""
    if isinstance(source, str):
        return f"world={source!r}"
    named = source if hasattr(source, "__qualname__") else type(source)
    return f"world={named.__module__}:{named.__qualname__}"


def world_maker(source: WorldSource, kwargs: Mapping[str, Any] | None = None) -> Callable[[], TextWorld]:
    """A function that makes a world; each slot has one of its own.

    Args:
        source: A registered Gymnasium id (``"MyTexts-v0"``, ``"my_module:MyTexts-v0"``), a factory's name
            (``"package.module:factory"``), or a factory.
        kwargs: Arguments of the environment or factory.

    Raises:
        ValueError: no environment is registered under such a name, or there is no such factory.
    """
    arguments = dict(kwargs or {})
    if not isinstance(source, str):
        return lambda: _made(source, source, arguments)
    if _is_factory(source):
        factory = import_function(source, "world")
        return lambda: _made(source, factory, arguments)
    module, _, environment = source.rpartition(":")
    if module:  # it registers the environment when it is imported
        import_module(module, source, "world")
    try:
        spec = gymnasium.spec(environment)
    except gymnasium.error.Error as error:
        raise ValueError(
            f"world={source!r} is neither a registered Gymnasium environment nor package.module:factory ({described(error)})."
        ) from error
    # The checker of environments is for spaces: texts are checked here, at every step.
    return lambda: _made(source, lambda **given: gymnasium.make(spec, disable_env_checker=True, **given), arguments)


def _is_factory(name: str) -> bool:
    """Whether a name is ``package.module:factory``; an id such as ``module:Name-v0`` is no Python name behind the colon."""
    module, colon, attribute = name.partition(":")
    return bool(module and colon) and attribute.isidentifier() and name not in gymnasium.registry


def _made(source: WorldSource, factory: Callable[..., Any], arguments: Mapping[str, Any]) -> TextWorld:
    """Calls a factory, and makes sure that what it returns can be a world.

    Raises:
        WorldError: it failed, or returned something without `reset` and `step`, or with actions that are no texts.
    """
    name = world_name(source)
    try:
        world = factory(**arguments)
    except Exception as error:
        raise WorldError(f"{name} cannot be made: {told(error)}.") from error
    for method in ("reset", "step"):
        if not callable(getattr(world, method, None)):
            raise WorldError(f"{name} made a {type(world).__name__}, which has no {method}.")
    space = getattr(world, "action_space", None)
    if isinstance(space, spaces.Discrete | spaces.Box | spaces.MultiDiscrete | spaces.MultiBinary):
        raise WorldError(
            f"{name} has actions that are no texts ({space}). Give it texts by two functions: {ADAPTER}(env, describe, parse)."
        )
    return world  # type: ignore[no-any-return]
