"""How β moves over a run: what its settings ask for."""

from __future__ import annotations

from stable_baselines3.common.callbacks import BaseCallback

from agents.callbacks.adaptive_kl import AdaptiveKL
from agents.callbacks.linear_kl import LinearKL
from agents.callbacks.metrics import TextMetricsCallback
from agents.runs.settings import RunSettings


def beta_callbacks(settings: RunSettings, metrics: TextMetricsCallback) -> list[BaseCallback]:
    """Makes the callback that moves β between rollouts, if the settings name one.

    Args:
        settings: The run's.
        metrics: The callback that measures the KL, which is called before.
    """
    training = settings.training
    if training.kl_coef_end is not None:
        return [LinearKL(settings.task.kl_coef, training.kl_coef_end)]
    if training.kl_target is not None:
        return [AdaptiveKL(metrics, training.kl_target, training.kl_gain)]
    return []
