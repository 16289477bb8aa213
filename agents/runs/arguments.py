"""What `make_algorithm` is given by a run's settings."""

from __future__ import annotations

from typing import Any

from agents.algorithms.table import algorithm, checked_settings
from agents.runs.settings import RunSettings


def algorithm_settings(settings: RunSettings) -> dict[str, Any]:
    """Gives the algorithm's own arguments.

    Raises:
        ValueError, TypeError: an unknown algorithm, a setting that it does not have, or a combination that it excludes.
    """
    return checked_settings(settings.algorithm.algo, settings.algorithm_arguments())


def check_length(settings: RunSettings) -> None:
    """Refuses a run of random search that is over before its first iteration.

    Raises:
        ValueError: it is; the least number of steps is named.
    """
    if settings.algorithm.algo != "ars":
        return
    # An iteration tries each direction forwards and backwards, each with responses in all slots.
    training = settings.training
    n_delta = int(settings.algorithm_arguments().get("n_delta", algorithm("ars").defaults["n_delta"]))
    least = 2 * n_delta * training.n_envs * settings.task.max_new_tokens
    if training.total_timesteps < least:
        raise ValueError(
            f"total_timesteps={training.total_timesteps} is less than one iteration of ars: "
            f"2 x n_delta x n_envs x max_new_tokens = {least}."
        )
