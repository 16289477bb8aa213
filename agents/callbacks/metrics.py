"""The metrics of a language task, in stable-baselines3's logger."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from sb3_contrib import ARS
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from agents.callbacks.constant_scores import ConstantScores
from agents.distributed import ranks
from agents.diversity import repetition
from agents.rollouts.vec_env import text_env
from llm_env.episode import ENDS
from llm_env.reward.models import load_text_reward
from llm_env.reward.scores import RewardFunction, TextReward

logger = logging.getLogger(__name__)
GoldFunction = TextReward | RewardFunction
"""A score that nobody trains on: a function, as for rewards, or a reward model that reads texts."""
OF_STATISTICS = ("kl", "response_length", "rm_score", "reward_parts", "has_end", "turns", "end")
"""What the log's ``rollout/`` values are made from, of an episode's information."""


def episode_statistics(infos: list[dict[str, Any]]) -> dict[str, float]:
    """Computes the log's ``rollout/`` values; see docs/metrics.md.

    Args:
        infos: Of each ended episode the last step's information dictionary, or `OF_STATISTICS` of it, with its ``repetition``
            and its ``gold_score``.

    Returns:
        Values by their names in the log; none where no episode ended.
    """
    if not infos:
        return {}
    kl = np.array([info["kl"] for info in infos])
    length = np.array([info["response_length"] for info in infos])
    score = np.array([info["rm_score"] for info in infos])
    parts = [info["reward_parts"] for info in infos if "reward_parts" in info]
    values = {
        "rollout/rm_score": float(score.mean()),
        "rollout/rm_score_std": float(score.std()),
        "rollout/kl": float(kl.mean()),
        "rollout/kl_per_token": float(kl.sum() / length.sum()),
        "rollout/eos_rate": float(np.mean([info["has_end"] for info in infos])),
        "rollout/response_length": float(length.mean()),
        **{f"rollout/reward/{name}": value for name, value in mean_of_parts(parts).items()},
    }
    if "turns" in infos[0]:  # of a world
        values["rollout/turns"] = float(np.mean([info["turns"] for info in infos]))
        for end in ENDS[2:]:  # end tokens and stop strings end turns there, no episode
            values[f"rollout/end/{end}"] = float(np.mean([info["end"] == end for info in infos]))
    if "repetition" in infos[0]:
        values["rollout/repetition"] = float(np.mean([info["repetition"] for info in infos]))
    if "gold_score" in infos[0]:
        gold = np.array([info["gold_score"] for info in infos])
        values["rollout/gold_score"], values["rollout/gold_score_std"] = float(gold.mean()), float(gold.std())
    return values


def mean_of_parts(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean score of each of several reward models, by its short name; empty where there is one alone."""
    return {name: float(np.mean([part[name] for part in parts])) for name in (parts[0] if parts else ())}


class TextMetricsCallback(BaseCallback):
    """Logs the language task's metrics, and writes one row of the log per iteration with all that belongs to it.

    SB3 writes its log between collecting and training: the row has the previous update's ``train/*``, and the last
    update's is never written. Pass ``log_interval=None`` to `learn` and this callback writes after the update.

    An iteration is a rollout and its update. An algorithm that collects a few steps at a time has no such rollouts: there an
    iteration goes on until `n_envs` times `max_new_tokens` tokens were generated.

    Args:
        gold: A function of (prompts, responses), and of the columns that it names, that nobody trains on; its mean is logged as
            ``rollout/gold_score``. None: no such value is logged.
        verbose: 1 prints a line for each iteration.

    Attributes:
        tokens: Tokens generated for training up to the last written row.
        iteration: Rows written so far.
        tokens_per_second: Speed of the last written iteration, training included.
    """

    def __init__(self, gold: GoldFunction | None = None, verbose: int = 0) -> None:
        super().__init__(verbose)
        self.gold = None if gold is None else load_text_reward(gold, "gold")
        self.tokens = 0
        self.iteration = 0
        self.tokens_per_second = 0.0
        self.last: dict[str, float] = {}
        """The latest iteration's `rollout/*` numbers."""
        self.episodes: list[dict[str, Any]] = []
        """The latest iteration's ended episodes, as info dictionaries."""
        self._of_all: list[dict[str, Any]] = []
        """The same of all processes, as far as statistics look at them."""
        self.constant_scores = ConstantScores()
        """Says it once if all scores are equal for several iterations."""
        self._pending = False
        """Whether a rollout was collected whose row is not written yet."""
        self._generated_before = 0
        """What `_generated` returned at the start of this iteration."""
        self._started = 0.0
        """When this iteration began, on `time.perf_counter`'s clock."""

    def _on_training_start(self) -> None:
        self._steps_before, self._tokens_before = self.model.num_timesteps, text_env(self.training_env).generated_tokens
        self._begin()

    def _on_rollout_start(self) -> None:
        # The update of the rollout before is over by now, and its values are in the logger.
        if self.row_is_due:
            self._write()
            self._begin()

    def _on_step(self) -> bool:
        if isinstance(self.model, ARS):  # it counts a step of all slots once for each slot
            env = text_env(self.training_env)
            self.model.num_timesteps = self._steps_before + env.generated_tokens - self._tokens_before
        return True

    def _on_rollout_end(self) -> None:
        env = text_env(self.training_env)
        self.episodes += env.ended
        env.ended.clear()
        own = [
            {name: info[name] for name in OF_STATISTICS if name in info} | {"repetition": repetition(info["response"])}
            for info in self.episodes
        ]
        if self.gold is not None and self.episodes:
            prompts, responses = [[i[name] for i in self.episodes] for name in ("prompt", "response")]
            scores = self.gold.score_texts(prompts, responses, [i["columns"] for i in self.episodes])
            own = [{**info, "gold_score": score} for info, score in zip(own, scores, strict=True)]
        self._of_all = [info for part in ranks().everyone(own) for info in part]
        self.last = episode_statistics(self._of_all)
        engine: dict[str, float] = getattr(self.model.policy, "engine_metrics", dict)()
        for name, value in {**self.last, **engine}.items():
            self.logger.record(name, value)
        self.logger.record("rollout/tokens", self.total_tokens)
        self.logger.record("train/kl_coef", env.task.kl.coef)
        self._pending = True

    def _on_training_end(self) -> None:
        self._write()

    @property
    def responses(self) -> int:
        """Responses that the latest iteration's numbers are means of, those of all processes."""
        return len(self._of_all)

    @property
    def total_tokens(self) -> int:
        """Tokens generated so far, those of the iteration under way and of a resumed run's first part included.

        They are all processes' together, which ask for it together.
        """
        return self.tokens + ranks().total(self._generated() - self._generated_before)

    @property
    def row_is_due(self) -> bool:
        """Whether what was collected and trained on makes an iteration whose row is not written yet."""
        return self._pending and self._is_whole()

    def _begin(self) -> None:
        """Starts an iteration."""
        env = text_env(self.training_env)
        env.ended.clear()
        self.episodes = []
        self._generated_before = self._generated()
        self._started = time.perf_counter()

    def _generated(self) -> int:
        """Counts the tokens that this process generated for training, those of earlier iterations included."""
        return text_env(self.training_env).generated_tokens

    def _is_whole(self) -> bool:
        """Whether what was collected makes an iteration."""
        if isinstance(self.model, OnPolicyAlgorithm):
            return True
        env = text_env(self.training_env)
        return self._generated() - self._generated_before >= env.num_envs * env.task.settings.max_new_tokens

    def _write(self) -> None:
        """Writes the row of the iteration that has just been trained on."""
        if not self._pending:
            return
        self._pending = False
        self.iteration += 1
        generated = ranks().total(self._generated() - self._generated_before)
        self.tokens += generated
        if message := self.constant_scores.see([info["rm_score"] for info in self._of_all]):
            logger.warning("%s", message)
        self.tokens_per_second = generated / (time.perf_counter() - self._started)
        self.logger.record("time/tokens_per_second", self.tokens_per_second)
        if self.verbose:
            score, kl = (self.last.get(f"rollout/{name}", float("nan")) for name in ("rm_score", "kl"))
            speed = f"{self.tokens_per_second:,.0f} tokens/s"
            print(f"iteration {self.iteration:4d}  score {score:6.2f}  KL {kl:5.2f} nats  {speed}", flush=True)
        self.before_row()
        if isinstance(self.model, OnPolicyAlgorithm):
            self.model.dump_logs(self.iteration)
        else:
            self.logger.record("time/iterations", self.iteration, exclude="tensorboard")
            self.model.dump_logs()  # type: ignore[attr-defined]
        self.after_iteration()

    def before_row(self) -> None:
        """Called when an iteration's numbers are recorded, before its row is written; for subclasses with more of them."""

    def after_iteration(self) -> None:
        """Called once the iteration's row is written; for subclasses."""
