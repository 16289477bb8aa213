"""`GRPO`: PPO whose loss may say what group methods publish and stock `PPO.train` cannot."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv

from agents.algorithms.losses import LOSS_AGGREGATIONS, aggregate, clipped_surrogate, k3_penalty
from agents.rollouts.buffer import TokenRolloutBuffer
from agents.rollouts.vec_env import text_env
from llm_env.lm.packing import PackedBatch


class GRPO(PPO):
    """Group-relative policy optimisation (Shao et al. 2024, https://arxiv.org/abs/2402.03300), with DAPO's options.

    Collecting, optimizer, schedules, saving and logging are PPO's. Three things are not in PPO's loss and are here: the KL
    to the reference as a term of the loss (k3, weighted with the environment's `kl_coef`), a clip range of its own above
    1, and how the tokens' losses are averaged. There is no critic and no entropy bonus. With all three as PPO has them, an
    update equals PPO's.

    Args:
        args: PPO's.
        kl_in_loss: The KL penalty is a term of the loss. False: it is in the reward, as PPO's, and the loss has none. The
            buffer must agree: `make_algorithm` gives it `kl_in_reward` and `kl_in_loss`.
        clip_range_high: ε above 1 (DAPO's "clip-higher"); None: as `clip_range`.
        loss_aggregation: ``sequence``, ``token`` or ``constant``; see `agents.algorithms.losses.aggregate`.
        max_resamples: DAPO's dynamic sampling: further rollouts that may be collected before an update, until as many
            groups whose scores differ are there as one rollout has groups; groups without spread are dropped. 0: none are
            collected nor dropped.
        kwargs: PPO's.

    Raises:
        ValueError: a setting breaks its rule.
    """

    rollout_buffer: TokenRolloutBuffer

    def __init__(
        self,
        *args: Any,
        kl_in_loss: bool = True,
        clip_range_high: float | None = None,
        loss_aggregation: str = "sequence",
        max_resamples: int = 0,
        **kwargs: Any,
    ) -> None:
        if loss_aggregation not in LOSS_AGGREGATIONS:
            raise ValueError(
                f"loss_aggregation={loss_aggregation!r} is not known; use one of {', '.join(LOSS_AGGREGATIONS)}."
            )
        if clip_range_high is not None and clip_range_high <= 0:
            raise ValueError(f"clip_range_high={clip_range_high} must be above 0, or None for clip_range.")
        if max_resamples < 0:
            raise ValueError(f"max_resamples={max_resamples} must be at least 0.")
        self.kl_in_loss = kl_in_loss
        self.clip_range_high = clip_range_high
        self.loss_aggregation = loss_aggregation
        self.max_resamples = max_resamples
        super().__init__(*args, **kwargs)

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """PPO's; with `max_resamples`, again until there are enough groups with spread. To callbacks it is one rollout."""
        if not self.max_resamples:
            return super().collect_rollouts(env, callback, rollout_buffer, n_rollout_steps)
        assert isinstance(rollout_buffer, TokenRolloutBuffer)
        for attempt in range(self.max_resamples + 1):
            part = _PartOfRollout(callback, first=attempt == 0)
            if not super().collect_rollouts(env, part, rollout_buffer, n_rollout_steps):
                return False
            if rollout_buffer.keep_groups_with_spread():
                break
        rollout_buffer.take_kept_groups()
        self.logger.record("rollout/resamples", attempt)
        self.logger.record("rollout/groups_with_spread", rollout_buffer.n_groups)
        callback.on_rollout_end()
        return True

    def train(self) -> None:
        """Updates the policy with the rollout in the buffer."""
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        clip_low = self.clip_range(self._current_progress_remaining)  # type: ignore[operator]
        clip_high = clip_low if self.clip_range_high is None else self.clip_range_high
        task = text_env(self.env).task
        kl_coef = task.kl_coef if self.kl_in_loss else 0.0
        logs: dict[str, list[float]] = {name: [] for name in ("policy_gradient_loss", "clip_fraction", "entropy_loss")}
        if self.kl_in_loss:
            logs["kl_loss"] = []
        go_on = True
        approx_kls: list[float] = []
        loss = torch.zeros(())
        for _ in range(self.n_epochs):
            approx_kls = []
            for data in self.rollout_buffer.get(self.batch_size):
                batch = data.observations
                assert isinstance(batch, PackedBatch)
                _, log_prob, entropy = self.policy.evaluate_actions(batch, data.actions)  # type: ignore[arg-type]
                advantages = data.advantages
                if self.normalize_advantage:
                    advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
                surrogate = clipped_surrogate(log_prob, data.old_log_prob, advantages, clip_low, clip_high)
                per_token = surrogate
                if self.kl_in_loss:
                    assert batch.ref_log_probs is not None
                    penalty = k3_penalty(log_prob, batch.ref_log_probs)
                    per_token = surrogate + kl_coef * penalty
                    logs["kl_loss"].append(penalty.mean().item())
                loss = aggregate(per_token, batch.counts, self.loss_aggregation, task.settings.max_new_tokens)

                with torch.no_grad():
                    log_ratio = log_prob - data.old_log_prob
                    ratio = log_ratio.exp()
                    approx_kl = ((ratio - 1) - log_ratio).mean().item()
                    outside = (ratio < 1 - clip_low) | (ratio > 1 + clip_high)
                approx_kls.append(approx_kl)
                logs["clip_fraction"].append(outside.float().mean().item())
                logs["policy_gradient_loss"].append(surrogate.mean().item())
                logs["entropy_loss"].append(-entropy.mean().item())
                if self.target_kl is not None and approx_kl > 1.5 * self.target_kl:
                    go_on = False
                    break
                self.policy.optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)
                self.policy.optimizer.step()
            self._n_updates += 1
            if not go_on:
                break
        for name, values in logs.items():
            self.logger.record(f"train/{name}", np.mean(values))
        self.logger.record("train/approx_kl", np.mean(approx_kls))
        self.logger.record("train/loss", loss.item())
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("train/clip_range", clip_low)
        if self.clip_range_high is not None:
            self.logger.record("train/clip_range_high", clip_high)


class _PartOfRollout(BaseCallback):
    """Passes a callback the steps of a rollout that is collected in parts, its start once, and no part's end."""

    def __init__(self, inner: BaseCallback, first: bool) -> None:
        super().__init__()
        self.inner = inner
        self.first = first

    def on_rollout_start(self) -> None:
        if self.first:
            self.inner.on_rollout_start()

    def update_locals(self, locals_: dict[str, Any]) -> None:
        self.inner.update_locals(locals_)

    def on_step(self) -> bool:
        return self.inner.on_step()

    def _on_step(self) -> bool:
        return True

    def on_rollout_end(self) -> None:
        """Nothing yet."""
