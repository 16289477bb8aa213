"""The learning rate over a run."""

from __future__ import annotations

import warnings

from sb3_contrib import ARS
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.utils import LinearSchedule


def keep_rate_of_a_single_rollout(model: BaseAlgorithm, total_timesteps: int) -> None:
    """Makes a linear learning rate constant where the run is a single rollout, and says so.

    SB3 asks a schedule after it has counted a rollout's steps, so the last update always has the schedule's end, rate 0. In a
    run of n rollouts the updates have the rates (n-1)/n, …, 1/n, 0 times the first; with n = 1 nothing would be learned. ARS
    asks before, and has no such update.

    Args:
        model: The algorithm, not trained yet.
        total_timesteps: Length of the run.
    """
    if isinstance(model, OnPolicyAlgorithm):
        steps = model.n_steps
    elif isinstance(model, OffPolicyAlgorithm):
        steps = model.train_freq.frequency  # type: ignore[union-attr]  # a TrainFreq since the constructor
    else:
        assert isinstance(model, ARS)
        return
    schedule = model.learning_rate
    if isinstance(schedule, LinearSchedule) and steps * model.n_envs >= total_timesteps:
        model.learning_rate = schedule.start
        model._setup_lr_schedule()
        warnings.warn(
            f"total_timesteps={total_timesteps} is one rollout ({steps} steps x {model.n_envs} slots), whose update would have "
            f"the learning rate at the linear schedule's end, 0: it stays at {schedule.start:g}.",
            stacklevel=2,
        )
