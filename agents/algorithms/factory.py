"""`make_algorithm`: a stock algorithm of stable-baselines3 or sb3-contrib, wired for language."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper

from agents.algorithms.table import (
    BUFFER_SETTINGS,
    KL_PLACES,
    Algorithm,
    algorithm,
    check_masks,
    checked_settings,
    settings_of,
)
from agents.policies.actor_critic import LLMActorCriticPolicy
from agents.policies.critic import CRITICS
from agents.policies.maskable import MaskableLLMPolicy
from agents.policies.q_network import LLMQPolicy
from agents.policies.random_search import LLMSearchPolicy
from agents.policies.recurrent import RecurrentTextPolicy
from agents.rollouts.buffer import TokenRolloutBuffer
from agents.rollouts.maskable import MaskableTokenRolloutBuffer
from agents.rollouts.replay import TokenReplayBuffer
from agents.rollouts.vec_env import LLMTextVecEnv
from llm_env import ENV_ID
from llm_env.default_task import DEFAULT_MODEL, DEFAULT_REWARD_MODEL
from llm_env.lm.runtime import reuse_freed_memory
from llm_env.reward.models import ClassifierReward, scalar_head
from llm_env.settings import task_settings
from llm_env.task import TextTask

MINI_BATCHES = 4  # mini-batches of a rollout, unless batch_size says otherwise
Settings = dict[str, Any]


def make_algorithm(
    name: str,
    env: str | VecEnv | gymnasium.Env[Any, Any] = ENV_ID,
    *,
    n_envs: int = 64,
    rounds: int = 1,
    episodes: str | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    **settings: Any,
) -> BaseAlgorithm:
    """A stock algorithm with the policy, the buffer and the `LLMTextVecEnv` that it needs for language.

    On a CPU, the process is told to keep freed memory for its next step; see `llm_env.lm.runtime.reuse_freed_memory`.

    Args:
        name: A row of `agents.algorithms.table.ALGORITHMS`: ``"ppo"``, ``"a2c"``, ``"trpo"``, ``"maskable_ppo"``,
            ``"recurrent_ppo"``, ``"dqn"``, ``"qr_dqn"``, ``"ars"``, ``"grpo"``, ``"dr_grpo"``, ``"rloo"``, ``"remax"``,
            ``"reinforce_pp"``.
        env: ``"LLMText-v0"``, made with `n_envs`, `episodes` and `env_kwargs`; or an environment that exists already: an
            `LLMTextVecEnv`, or what `gymnasium.make("LLMText-v0")` returned, whose settings are then taken over.
        n_envs: Slots, which is episodes per rollout and round where they are synchronous.
        rounds: Rounds of `max_new_tokens` steps in a rollout, unless `n_steps` is given.
        episodes: ``"synchronous"`` or ``"continuous"``; see `LLMTextVecEnv`. None: synchronous, and continuous for
            algorithms that do not learn from `TokenRolloutBuffer`.
        env_kwargs: See `llm_env.settings.TaskSettings`.
        settings: The algorithm's own arguments (``learning_rate``, ``n_epochs``, ``batch_size`` in tokens, …), and the
            policy's; `agents.algorithms.table.settings_of(name)` lists them all.

    Returns:
        An instance of the library's own class (`agents.algorithms.grpo.GRPO` for grpo and dr_grpo).

    Raises:
        ValueError: an unknown algorithm, settings that do not go together, or a combination that the README's table of
            algorithms excludes. The last is found before anything is loaded.
        TypeError: an unknown setting; a near one is suggested.
    """
    row = algorithm(name)
    merged = {**row.defaults, **checked_settings(name, settings)}
    venv = _environment(name, row, env, n_envs, episodes, dict(env_kwargs or {}), merged)
    base = venv.unwrapped if isinstance(venv, VecEnvWrapper) else venv
    if not isinstance(base, LLMTextVecEnv):
        raise TypeError(f"env must be {ENV_ID!r}, an LLMTextVecEnv or an LLMTextEnv; got {type(base).__name__}.")
    check_masks(name, base.task.masks.active)
    policy_kwargs = dict(merged.pop("policy_kwargs", {}) or {})
    policy_kwargs.update({key: merged.pop(key) for key in row.policy_settings if key in merged})
    if _device_type(merged.get("device", "auto")) == "cpu":
        reuse_freed_memory()
    wire = {"recurrent": _recurrent, "value-based": _value_based, "black box": _black_box}.get(row.family, _on_policy)
    policy, arguments = wire(name, row, base, policy_kwargs, merged, rounds)
    with warnings.catch_warnings():
        # Of a rest of a few transitions; TokenRolloutBuffer deals out mini-batches of nearly equal size.
        warnings.filterwarnings("ignore", "You have specified a mini-batch size")
        model = row.cls(policy, venv, **arguments)
    if isinstance(model.policy, MaskableLLMPolicy) and model.policy.mask_refresh:
        model.policy.take_masks_from_actor(base)
    return model


def _environment(
    name: str, row: Algorithm, env: Any, n_envs: int, episodes: str | None, env_kwargs: Settings, merged: Settings
) -> VecEnv:
    """The `LLMTextVecEnv` that an algorithm needs, or the one given, checked."""
    group_size = int(merged.pop("group_size", 1))
    rollouts = row.family in ("on-policy", "masked", "critic-free")
    if isinstance(env, VecEnv):
        if env_kwargs:
            raise ValueError("env_kwargs go with env='LLMText-v0'; this environment exists already.")
        base = env.unwrapped if isinstance(env, VecEnvWrapper) else env
        if isinstance(base, LLMTextVecEnv):
            _check_environment(name, row, base, group_size, rollouts)
        return env
    if isinstance(env, str | Path):
        if str(env).rpartition(":")[2] != ENV_ID:
            raise ValueError(f"env={env!r} is not known; it is {ENV_ID!r} or an environment.")
    else:
        spec = getattr(env, "spec", None)
        if spec is None or spec.id != ENV_ID:
            raise TypeError(f"env must be {ENV_ID!r}, an LLMTextVecEnv or an LLMTextEnv; got {type(env).__name__}.")
        env_kwargs = {**{k: v for k, v in spec.kwargs.items() if k != "render_mode"}, **env_kwargs}
    if "mixed_precision" in merged:  # the frozen models compute as the actor does
        env_kwargs.setdefault("mixed_precision", merged["mixed_precision"])
    rules = task_settings(env_kwargs)
    check_masks(name, rules.has_masks)
    checked_settings(name, {"mixed_precision": rules.mixed_precision})
    if episodes is None:
        episodes = "synchronous" if rollouts else "continuous"
    if episodes == "synchronous" and not rollouts:
        raise ValueError(f"{name} takes episodes='continuous': its own buffer would learn from idle slots.")
    if episodes == "continuous" and row.whole_episodes:
        raise ValueError(f"{name} needs episodes='synchronous': its baseline is for whole responses.")
    if n_envs % group_size:
        raise ValueError(f"n_envs={n_envs} must be a multiple of group_size={group_size}.")
    return LLMTextVecEnv(
        n_envs,
        episodes=episodes,
        scoring="deferred" if rollouts else "step",
        group_size=group_size,
        pay_policy_kl=row.family != "value-based",
        **env_kwargs,
    )


def _check_environment(name: str, row: Algorithm, venv: LLMTextVecEnv, group_size: int, rollouts: bool) -> None:
    """Refuses an environment that exists already and does not fit."""
    if row.whole_episodes and (venv.episodes, venv.scoring) != ("synchronous", "deferred"):
        raise ValueError(f"{name} needs LLMTextVecEnv(episodes='synchronous', scoring='deferred', …).")
    if group_size != venv.group_size:
        raise ValueError(f"group_size={group_size}, but the environment's is {venv.group_size}; make them equal.")
    if not rollouts and (venv.episodes, venv.scoring) != ("continuous", "step"):
        raise ValueError(f"{name} needs LLMTextVecEnv(episodes='continuous', scoring='step', …).")
    if row.family == "value-based" and venv.pay_policy_kl:
        raise ValueError(
            f"{name} needs LLMTextVecEnv(pay_policy_kl=False, …): its backup has the policy's part of the KL."
        )


Wiring = tuple[Any, Settings]


def _on_policy(
    name: str, row: Algorithm, base: LLMTextVecEnv, policy_kwargs: Settings, merged: Settings, rounds: int
) -> Wiring:
    task = base.task
    rollout_buffer_kwargs = {"whiten_advantages": not merged.get("normalize_advantage", True), **row.buffer}
    if "group_size" in row.defaults:
        rollout_buffer_kwargs["group_size"] = base.group_size
    rollout_buffer_kwargs.update({key: merged.pop(key) for key in BUFFER_SETTINGS if key in merged})
    _place_kl(name, task, merged, rollout_buffer_kwargs, policy_kwargs)
    rollout_buffer_kwargs.update(merged.pop("rollout_buffer_kwargs", {}) or {})
    cap = task.settings.max_new_tokens
    n_steps = merged.setdefault("n_steps", cap * rounds)
    if base.episodes == "synchronous" and n_steps % cap:
        raise ValueError(
            f"n_steps={n_steps} must be a multiple of max_new_tokens={cap}, so that a rollout is whole episodes; "
            "or take episodes='continuous'."
        )
    tokens = n_steps * base.num_envs
    if "batch_size" in settings_of(name):
        merged.setdefault("batch_size", max(cap, -(-tokens // MINI_BATCHES)))
    batch_size = merged.get("batch_size", tokens)
    if batch_size < cap:
        raise ValueError(
            f"batch_size={batch_size} tokens must be at least max_new_tokens={cap}: responses are not torn apart."
        )
    if name == "trpo":
        policy_kwargs.setdefault("second_derivatives", True)
    masked = row.family == "masked"
    return MaskableLLMPolicy if masked else LLMActorCriticPolicy, {
        "policy_kwargs": policy_settings(task, policy_kwargs, merged),
        "rollout_buffer_class": MaskableTokenRolloutBuffer if masked else TokenRolloutBuffer,
        "rollout_buffer_kwargs": rollout_buffer_kwargs,
        **merged,
    }


def _place_kl(name: str, task: TextTask, merged: Settings, buffer_kwargs: Settings, policy_kwargs: Settings) -> None:
    """Wires the KL penalty into the reward, the loss or both."""
    estimator = task.settings.kl_estimator
    if merged.get("kl_in_loss"):  # GRPO's own
        if estimator != "k1":
            raise ValueError(
                f"{name}'s loss has k3 as its KL term; kl_estimator={estimator!r} goes with kl_in_loss=False."
            )
        buffer_kwargs.update(kl_in_reward=False, kl_in_loss=True)
    place = merged.pop("kl_in", "reward")
    if place not in KL_PLACES:
        raise ValueError(f"kl_in={place!r} is not known; use one of {', '.join(KL_PLACES)}.")
    if place != "reward":
        buffer_kwargs.update(kl_in_reward=place == "both", kl_in_loss=True)
        policy_kwargs["kl_loss"] = estimator


def _recurrent(
    name: str, row: Algorithm, base: LLMTextVecEnv, policy_kwargs: Settings, merged: Settings, rounds: int
) -> Wiring:
    merged.setdefault("n_steps", base.task.settings.max_new_tokens * rounds)
    merged.setdefault("batch_size", max(2, merged["n_steps"] * base.num_envs // MINI_BATCHES))
    policy_kwargs.setdefault("temperature", base.task.settings.temperature)
    return RecurrentTextPolicy, {"policy_kwargs": policy_kwargs, **merged}


def _value_based(
    name: str, row: Algorithm, base: LLMTextVecEnv, policy_kwargs: Settings, merged: Settings, rounds: int
) -> Wiring:
    task = base.task
    if task.settings.kl_estimator != "k1":
        raise ValueError(f"kl_estimator={task.settings.kl_estimator!r}: {name}'s backup is made for k1.")
    cap = task.settings.max_new_tokens
    train_freq = merged.setdefault("train_freq", cap * rounds)
    if not isinstance(train_freq, int) or train_freq < cap:
        raise ValueError(
            f"train_freq={train_freq!r} must be a number of steps, at least max_new_tokens={cap}: responses are learnt from "
            "when they are finished."
        )
    # uniformly random tokens are no exploration of language; softmax(Q/τ) is what explores
    for setting, value in {"learning_starts": 0, "exploration_initial_eps": 0.0, "exploration_final_eps": 0.0}.items():
        merged.setdefault(setting, value)
    critic = policy_settings(task, policy_kwargs, merged)
    own = {k: v for k, v in critic.items() if k in inspect.signature(LLMQPolicy).parameters}
    own.setdefault("q_scale", task.kl_coef or task.settings.__class__.kl_coef)
    soft = own.get("backup", "soft") == "soft"
    replay_buffer_kwargs = {
        "n_steps": merged.pop("n_steps", 1),
        "gamma": merged["gamma"],
        "entropy_coef": own["q_scale"] if soft else 0.0,
        **(merged.pop("replay_buffer_kwargs", {}) or {}),
    }
    return LLMQPolicy, {
        "policy_kwargs": own,
        "replay_buffer_class": TokenReplayBuffer,
        "replay_buffer_kwargs": replay_buffer_kwargs,
        **merged,
    }


def _black_box(
    name: str, row: Algorithm, base: LLMTextVecEnv, policy_kwargs: Settings, merged: Settings, rounds: int
) -> Wiring:
    settings = base.task.settings
    for setting in ("model", "temperature", "trust_remote_code"):
        policy_kwargs.setdefault(setting, getattr(settings, setting))
    merged.setdefault("n_eval_episodes", base.num_envs)
    return LLMSearchPolicy, {"policy_kwargs": policy_kwargs, **merged}


def policy_settings(task: TextTask, given: Settings, algorithm: Mapping[str, Any]) -> Settings:
    """The policy's arguments for a task: its model and temperature, a critic that it can have, a reference to share."""
    settings = task.settings
    kwargs: Settings = {
        "model": settings.model,
        "temperature": settings.temperature,
        "mixed_precision": settings.mixed_precision,
        "trust_remote_code": settings.trust_remote_code,
        "defer_values": True,
        "entropy_grad": bool(algorithm.get("ent_coef", 0.0)),
        **given,
    }
    classifier = task.reward_model if isinstance(task.reward_model, ClassifierReward) else None
    can_start = classifier is not None and classifier.shares_tokenizer and scalar_head(classifier.model) is not None
    if "critic" not in kwargs:
        kwargs["critic"] = default_critic(can_start, bool(kwargs.get("lora_rank")))
    if kwargs["critic"] not in CRITICS:
        raise ValueError(f"critic={kwargs['critic']!r} is not known; use one of {', '.join(CRITICS)}.")
    if kwargs["critic"] == "reward_model":
        if not can_start or classifier is None:
            raise ValueError(
                "critic='reward_model' needs one reward model that is a decoder with the actor's tokenizer; "
                f"this task's is {settings.reward_model!r}. Choose critic='actor', 'head' or 'detached_head'."
            )
        is_default = classifier.name == DEFAULT_REWARD_MODEL
        kwargs.setdefault("reward_model", None if is_default and settings.model is None else classifier.name)
    if kwargs.get("lora_rank"):
        load = settings.load
        same_device = _device_type(algorithm.get("device", "auto")) == _device_type(load.device)
        if load.dtype in ("float32", "fp32") and same_device:
            # The reference of the task and the actor are then one model; see SharedLM.
            assert task.model.lm.name == (settings.model or DEFAULT_MODEL)
            kwargs["reference_load"] = tuple(load)
    return kwargs


def default_critic(reward_model_fits: bool, lora: bool) -> str:
    """The critic that stood highest in score against KL; see the README's table. LoRA keeps memory low with a head."""
    if reward_model_fits:
        return "reward_model"
    return "detached_head" if lora else "actor"


def _device_type(device: Any) -> str:
    from stable_baselines3.common.utils import get_device

    return str(get_device(device).type)
