"""The adaptive coefficient moves β as its paper says, and holds its target."""

from __future__ import annotations

import numpy as np
import pytest
from stable_baselines3.common.callbacks import BaseCallback

from agents import TextMetricsCallback, make_algorithm
from agents.callbacks.adaptive_kl import AdaptiveKL, adapted_kl_coef
from agents.rollouts.vec_env import text_env
from tests.agents.small_runs import trained


def test_adaptive_kl_by_hand() -> None:
    assert adapted_kl_coef(0.1, kl=6.0, target=4.0, gain=0.1) == pytest.approx(0.1 * 1.02)  # clipped at 0.2
    assert adapted_kl_coef(0.1, kl=4.4, target=4.0, gain=0.1) == pytest.approx(0.1 * 1.01)
    assert adapted_kl_coef(0.1, kl=1.0, target=4.0, gain=1.0) == pytest.approx(0.08)
    assert adapted_kl_coef(0.1, kl=4.0, target=4.0, gain=1.0) == 0.1


def test_beta_moves_after_the_rollout_whose_rewards_it_paid() -> None:
    metrics = TextMetricsCallback()
    seen: list[tuple[float, float]] = []

    class Look(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_end(self) -> None:
            seen.append((metrics.last["rollout/kl"], text_env(self.training_env).task.kl.coef))

    trained(4, [metrics, Look(), AdaptiveKL(metrics, target=0.5, gain=1.0)], learning_rate=1e-2)
    betas = [beta for _, beta in seen]
    assert betas[0] == 0.05
    for (kl, beta), after in zip(seen, betas[1:], strict=False):
        assert after == pytest.approx(adapted_kl_coef(beta, kl, 0.5, 1.0))
    assert len(set(betas)) > 2


@pytest.mark.slow
def test_adaptive_kl_holds_its_target_within_a_fifth() -> None:
    seen: list[float] = []

    class Look(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_end(self) -> None:
            seen.append(metrics.last["rollout/kl"])

    metrics = TextMetricsCallback()
    model = make_algorithm("ppo", n_envs=64, seed=1, env_kwargs={"kl_coef": 0.1})
    model.learn(64 * 32 * 44, callback=[metrics, Look(), AdaptiveKL(metrics, 6.0, 0.2)], log_interval=None)
    assert np.mean(seen[-16:]) == pytest.approx(6.0, rel=0.2)
    assert text_env(model.env).task.kl.coef < 0.09  # which 0.1 would not have done


@pytest.mark.parametrize(
    ("target", "gain", "message"), [(0, 0.1, "kl_target=0"), (4, 0, "kl_gain=0"), (4, 5, "below 5")]
)
def test_adaptive_kl_refuses(target: float, gain: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AdaptiveKL(TextMetricsCallback(), target, gain)
