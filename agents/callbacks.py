"""Callbacks: the metrics of a language task, in stable-baselines3's logger."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from agents.vec_env import LLMTextVecEnv

GoldFunction = Callable[[list[str], list[str]], list[float]]


def text_env(env: VecEnv | None) -> LLMTextVecEnv:
    """The `LLMTextVecEnv` inside an algorithm's environment.

    Raises:
        TypeError: there is none.
    """
    base = env.unwrapped if env is not None else None
    if not isinstance(base, LLMTextVecEnv):
        raise TypeError(f"This callback needs an LLMTextVecEnv; the algorithm's environment is {type(base).__name__}.")
    return base


def episode_statistics(infos: list[dict[str, Any]]) -> dict[str, float]:
    """Means over ended episodes; see the README's table of metrics."""
    if not infos:
        return {}
    kl = np.array([info["kl"] for info in infos])
    length = np.array([info["response_length"] for info in infos])
    score = np.array([info["rm_score"] for info in infos])
    return {
        "rollout/rm_score": float(score.mean()),
        "rollout/rm_score_std": float(score.std()),
        "rollout/kl": float(kl.mean()),
        "rollout/kl_per_token": float(kl.sum() / length.sum()),
        "rollout/eos_rate": float(np.mean([info["has_end"] for info in infos])),
        "rollout/response_length": float(length.mean()),
    }


class TextMetricsCallback(BaseCallback):
    """Logs the language task's metrics, and one row of the log per iteration with all that belongs to it.

    SB3 writes its log between collecting and training: the row has the previous update's ``train/*``, and the last
    update's is never written. Pass ``log_interval=None`` to `learn` and this callback writes after the update.

    Args:
        gold: A function of (prompts, responses) logged as ``rollout/gold_score``, which nobody trains on.
        verbose: SB3's.
    """

    model: OnPolicyAlgorithm

    def __init__(self, gold: GoldFunction | None = None, verbose: int = 0) -> None:
        super().__init__(verbose)
        self.gold = gold
        self.tokens = 0
        self.iteration = 0
        self.tokens_per_second = 0.0
        self.last: dict[str, float] = {}
        """The latest iteration's `rollout/*` numbers."""
        self.episodes: list[dict[str, Any]] = []
        """The latest rollout's ended episodes, as info dictionaries."""
        self._pending = False
        self._rollout_tokens = 0
        self._started = 0.0

    def _on_rollout_start(self) -> None:
        self._write()
        self.episodes = []
        self._started = time.perf_counter()

    def _on_step(self) -> bool:
        self.episodes.extend(
            info for info, done in zip(self.locals["infos"], self.locals["dones"], strict=True) if done
        )
        return True

    def _on_rollout_end(self) -> None:
        env = text_env(self.training_env)
        self.last = episode_statistics(self.episodes)
        if self.gold is not None and self.episodes:
            scores = self.gold([i["prompt"] for i in self.episodes], [i["response"] for i in self.episodes])
            self.last["rollout/gold_score"] = float(np.mean(scores))
        self._rollout_tokens = self.model.rollout_buffer.values.size
        self.tokens += self._rollout_tokens
        for name, value in self.last.items():
            self.logger.record(name, value)
        self.logger.record("rollout/tokens", self.tokens)
        self.logger.record("train/kl_coef", env.task.kl_coef)
        self._pending = True

    def _on_training_end(self) -> None:
        self._write()

    def _write(self) -> None:
        """Writes the row of the iteration that has just been trained on."""
        if not self._pending:
            return
        self._pending = False
        self.iteration += 1
        self.tokens_per_second = self._rollout_tokens / (time.perf_counter() - self._started)
        self.logger.record("time/tokens_per_second", self.tokens_per_second)
        self.model.dump_logs(self.iteration)
        self.after_iteration()

    def after_iteration(self) -> None:
        """Called once the iteration's row is written; for subclasses."""
