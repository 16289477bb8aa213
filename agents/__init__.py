"""stable-baselines3 on top of `llm_env`: policy, buffer, VecEnv, and a factory that wires them.

>>> from agents import make_algorithm
>>> model = make_algorithm("ppo", env="LLMText-v0", n_envs=64)
>>> model.learn(64 * 32 * 40)
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from llm_env.lazy import lazy_names

if TYPE_CHECKING:
    from agents.algorithms.factory import make_algorithm
    from agents.algorithms.table import ALGORITHMS
    from agents.algorithms.text_ppo import TextPPO
    from agents.callbacks.adaptive_kl import AdaptiveKL
    from agents.callbacks.alarms import Alarms
    from agents.callbacks.best_gold import BestGold
    from agents.callbacks.linear_kl import LinearKL
    from agents.callbacks.mask_refresh import MaskRefresh
    from agents.callbacks.metrics import TextMetricsCallback
    from agents.callbacks.reference_refresh import ReferenceRefresh
    from agents.evaluation.compare import compare_actors
    from agents.iteration.rounds import iterate
    from agents.policies.actor_critic import LLMActorCriticPolicy
    from agents.probes.check import check_agent
    from agents.rollouts.buffer import TokenRolloutBuffer
    from agents.rollouts.vec_env import LLMTextVecEnv
    from agents.runs.checkpoint import load_checkpoint, save_checkpoint
    from agents.runs.run import TrainingRun
    from agents.runs.saved_zip import load_algorithm
    from agents.runs.settings import RunSettings
    from agents.supervised.preference.train import train_on_preferences
    from agents.supervised.reward_model.train import train_reward_model
    from agents.supervised.sft import fine_tune

_MODULES = {
    "ALGORITHMS": "agents.algorithms.table",
    "AdaptiveKL": "agents.callbacks.adaptive_kl",
    "Alarms": "agents.callbacks.alarms",
    "BestGold": "agents.callbacks.best_gold",
    "LLMActorCriticPolicy": "agents.policies.actor_critic",
    "LLMTextVecEnv": "agents.rollouts.vec_env",
    "LinearKL": "agents.callbacks.linear_kl",
    "MaskRefresh": "agents.callbacks.mask_refresh",
    "ReferenceRefresh": "agents.callbacks.reference_refresh",
    "RunSettings": "agents.runs.settings",
    "TextMetricsCallback": "agents.callbacks.metrics",
    "TextPPO": "agents.algorithms.text_ppo",
    "TokenRolloutBuffer": "agents.rollouts.buffer",
    "TrainingRun": "agents.runs.run",
    "check_agent": "agents.probes.check",
    "compare_actors": "agents.evaluation.compare",
    "fine_tune": "agents.supervised.sft",
    "iterate": "agents.iteration.rounds",
    "load_algorithm": "agents.runs.saved_zip",
    "load_checkpoint": "agents.runs.checkpoint",
    "make_algorithm": "agents.algorithms.factory",
    "save_checkpoint": "agents.runs.checkpoint",
    "train_on_preferences": "agents.supervised.preference.train",
    "train_reward_model": "agents.supervised.reward_model.train",
}
"""Where each public name is; it is loaded at its first use, so that importing the package is quick."""

__all__ = [
    "ALGORITHMS",
    "AdaptiveKL",
    "Alarms",
    "BestGold",
    "LLMActorCriticPolicy",
    "LLMTextVecEnv",
    "LinearKL",
    "MaskRefresh",
    "ReferenceRefresh",
    "RunSettings",
    "TextMetricsCallback",
    "TextPPO",
    "TokenRolloutBuffer",
    "TrainingRun",
    "check_agent",
    "compare_actors",
    "fine_tune",
    "iterate",
    "load_algorithm",
    "load_checkpoint",
    "make_algorithm",
    "save_checkpoint",
    "train_on_preferences",
    "train_reward_model",
]

# Where bitsandbytes is installed peft imports it, and on a CPU it warns of a kernel for 4-bit weights, which nothing here uses.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

__getattr__, __dir__ = lazy_names(__name__, _MODULES)
