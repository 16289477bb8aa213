"""Small algorithms for tests: made, trained for some rollouts, or with a rollout collected."""

from __future__ import annotations

from typing import Any

import torch
from stable_baselines3.common.callbacks import BaseCallback

from agents import TextMetricsCallback, make_algorithm

SMALL: dict[str, Any] = {"max_new_tokens": 6, "max_prompt_length": 12}


def made(env: dict[str, Any] | None = None, algo: str = "ppo", **settings: Any) -> Any:
    return make_algorithm(algo, n_envs=8, seed=0, env_kwargs={**SMALL, **(env or {})}, **settings)


def trained(rollouts: int, callbacks: list[BaseCallback] | None = None, **settings: Any) -> Any:
    model = made(**settings)
    model.learn(8 * 6 * rollouts, callback=callbacks or [TextMetricsCallback()], log_interval=None)
    return model


def filled(env: dict[str, Any] | None = None, **settings: Any) -> Any:
    """An algorithm whose policy has moved a little, with a full buffer."""
    model = made(env, **settings)
    with torch.no_grad():
        for parameter in model.policy.actor.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    _, callback = model._setup_learn(48, None)
    model.collect_rollouts(model.env, callback, model.rollout_buffer, 6)
    return model


def weights_of(model: Any) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])
