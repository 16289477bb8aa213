"""The learning rate over a run."""

from __future__ import annotations

from sb3_contrib import ARS
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.utils import LinearSchedule


def fall_linearly(model: BaseAlgorithm, total_timesteps: int) -> None:
    """Has the learning rate fall in a straight line over a run, so that the first update has all of it and the last one learns.

    SB3 asks a schedule after it has counted a rollout's steps: the updates of a run of n rollouts would have the rates
    (n-1)/n, …, 1/n, 0 times the first, and the last rollout would teach nothing. Moved by a rollout, they are n/n, …, 1/n
    times the first, as in transformers and TRL; a run of a single rollout has the whole rate. ARS asks before.

    Args:
        model: The algorithm, not trained yet, whose learning rate is a number.
        total_timesteps: Length of the run, in environment steps.
    """
    if isinstance(model, OnPolicyAlgorithm):
        steps = model.n_steps
    elif isinstance(model, OffPolicyAlgorithm):
        steps = model.train_freq.frequency  # type: ignore[union-attr]  # a TrainFreq since the constructor
    else:
        assert isinstance(model, ARS)
        steps = 0
    rate = model.learning_rate
    assert isinstance(rate, float)
    # A run shorter than a rollout has one update too.
    move = rate * min(1.0, steps * model.n_envs / total_timesteps)
    model.learning_rate = LinearSchedule(rate + move, move, 1.0)
    model._setup_lr_schedule()
