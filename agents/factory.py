"""`make_algorithm`: a stock algorithm of stable-baselines3, wired for language."""

from __future__ import annotations

import difflib
import inspect
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium
from sb3_contrib import TRPO
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper

from agents.buffers import TokenRolloutBuffer
from agents.critic import CRITICS
from agents.policy import LLMActorCriticPolicy
from agents.vec_env import LLMTextVecEnv
from llm_env import ENV_ID
from llm_env.memory import reuse_freed_memory
from llm_env.models import DEFAULT_MODEL, DEFAULT_REWARD_MODEL
from llm_env.rewards import ClassifierReward, scalar_head
from llm_env.task import TextTask

ALGORITHMS: dict[str, type[BaseAlgorithm]] = {"ppo": PPO, "a2c": A2C, "trpo": TRPO}

# Where they differ from SB3's defaults, and why. γ and λ: the score comes once, at the end, and a discount would hide it
# from the first tokens. Adam at SB3's learning rate; ent_coef 0, because the KL term already keeps entropy.
DEFAULTS: dict[str, dict[str, Any]] = {
    "ppo": {
        "gamma": 1.0,
        "gae_lambda": 0.95,
        "learning_rate": 3e-4,
        "n_epochs": 4,
        "clip_range": 0.2,
        "vf_coef": 0.5,
        "ent_coef": 0.0,
        "max_grad_norm": 1.0,
        "normalize_advantage": False,
    },
    # One update a rollout: a higher rate, and the policy's AdamW instead of A2C's RMSprop.
    "a2c": {
        "gamma": 1.0,
        "gae_lambda": 0.95,
        "learning_rate": 1e-3,
        "vf_coef": 0.5,
        "ent_coef": 0.0,
        "max_grad_norm": 1.0,
        "normalize_advantage": False,
        "use_rms_prop": False,
    },
    # The actor moves by the trust region, the critic by the learning rate.
    "trpo": {
        "gamma": 1.0,
        "gae_lambda": 0.95,
        "learning_rate": 3e-4,
        "target_kl": 0.01,
        "normalize_advantage": False,
    },
}
MINI_BATCHES = 4  # mini-batches of a rollout, unless batch_size says otherwise
POLICY_SETTINGS = (
    "critic",
    "lora_rank",
    "lora_alpha",
    "mixed_precision",
    "gradient_checkpointing",
    "micro_batch_tokens",
    "use_cache",
    "optimizer_class",
    "optimizer_kwargs",
)


def make_algorithm(
    name: str,
    env: str | VecEnv | gymnasium.Env[Any, Any] = ENV_ID,
    *,
    n_envs: int = 64,
    rounds: int = 1,
    episodes: str = "synchronous",
    env_kwargs: Mapping[str, Any] | None = None,
    **settings: Any,
) -> BaseAlgorithm:
    """A stock algorithm with `LLMActorCriticPolicy`, `TokenRolloutBuffer` and `LLMTextVecEnv`.

    On a CPU, the process is told to keep freed memory for its next step; see `llm_env.memory.reuse_freed_memory`.

    Args:
        name: ``"ppo"``, ``"a2c"`` or ``"trpo"``.
        env: ``"LLMText-v0"``, made with `n_envs`, `episodes` and `env_kwargs`; or an environment that exists already: an
            `LLMTextVecEnv`, or what `gymnasium.make("LLMText-v0")` returned, whose settings are then taken over.
        n_envs: Slots, which is episodes per rollout and round where they are synchronous.
        rounds: Rounds of `max_new_tokens` steps in a rollout, unless `n_steps` is given.
        episodes: ``"synchronous"`` or ``"continuous"``; see `LLMTextVecEnv`.
        env_kwargs: See `llm_env.task.TaskSettings`.
        settings: The algorithm's own arguments (``learning_rate``, ``n_epochs``, ``batch_size`` in tokens, …), and the
            policy's: ``critic``, ``lora_rank``, ``lora_alpha``, ``mixed_precision``, ``gradient_checkpointing``,
            ``micro_batch_tokens``, ``use_cache``, ``optimizer_class``, ``optimizer_kwargs``.

    Returns:
        An instance of the library's own class.

    Raises:
        ValueError: an unknown algorithm, or settings that do not go together.
        TypeError: an unknown setting; a near one is suggested.
    """
    algorithm = algorithm_class(name)
    check_settings(name, settings)
    environment = dict(env_kwargs or {})
    if isinstance(env, str) and "mixed_precision" in settings:  # the frozen models compute as the actor does
        environment.setdefault("mixed_precision", settings["mixed_precision"])
    venv = _make_venv(env, n_envs, episodes, environment)
    base = venv.unwrapped if isinstance(venv, VecEnvWrapper) else venv
    if not isinstance(base, LLMTextVecEnv):
        raise TypeError(f"env must be {ENV_ID!r}, an LLMTextVecEnv or an LLMTextEnv; got {type(base).__name__}.")
    task = base.task

    merged = {**DEFAULTS[name], **settings}
    policy_kwargs = dict(merged.pop("policy_kwargs", {}) or {})
    policy_kwargs.update({key: merged.pop(key) for key in POLICY_SETTINGS if key in merged})
    rollout_buffer_kwargs = {"whiten_advantages": not merged.get("normalize_advantage", True)}
    rollout_buffer_kwargs.update(merged.pop("rollout_buffer_kwargs", {}) or {})
    cap = task.settings.max_new_tokens
    n_steps = merged.setdefault("n_steps", cap * rounds)
    if base.episodes == "synchronous" and n_steps % cap:
        raise ValueError(
            f"n_steps={n_steps} must be a multiple of max_new_tokens={cap}, so that a rollout is whole episodes; "
            "or take episodes='continuous'."
        )
    tokens = n_steps * base.num_envs
    if "batch_size" in inspect.signature(algorithm).parameters:
        merged.setdefault("batch_size", max(cap, -(-tokens // MINI_BATCHES)))
    batch_size = merged.get("batch_size", tokens)
    if batch_size < cap:
        raise ValueError(
            f"batch_size={batch_size} tokens must be at least max_new_tokens={cap}: responses are not torn apart."
        )
    if algorithm is TRPO:
        policy_kwargs.setdefault("second_derivatives", True)
    policy_kwargs = policy_settings(task, policy_kwargs, merged)
    if _device_type(merged.get("device", "auto")) == "cpu":
        reuse_freed_memory()
    with warnings.catch_warnings():
        # Of a rest of a few transitions; TokenRolloutBuffer deals out mini-batches of nearly equal size.
        warnings.filterwarnings("ignore", "You have specified a mini-batch size")
        return algorithm(  # type: ignore[call-arg]
            LLMActorCriticPolicy,
            venv,
            policy_kwargs=policy_kwargs,
            rollout_buffer_class=TokenRolloutBuffer,
            rollout_buffer_kwargs=rollout_buffer_kwargs,
            **merged,
        )


def algorithm_class(name: str) -> type[BaseAlgorithm]:
    """The library's class of an algorithm.

    Raises:
        ValueError: an unknown name; the near one is suggested.
    """
    if name not in ALGORITHMS:
        near = difflib.get_close_matches(str(name).lower(), ALGORITHMS, 1, 0.4)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"Algorithm {name!r} is not known; there is {', '.join(ALGORITHMS)}.{hint}")
    return ALGORITHMS[name]


def check_settings(name: str, settings: Mapping[str, Any]) -> None:
    """Refuses settings that neither the algorithm nor the policy has, before anything is loaded.

    Raises:
        TypeError: naming the near one, or all there are.
    """
    own = set(inspect.signature(algorithm_class(name)).parameters)
    own -= {"policy", "env", "rollout_buffer_class", "_init_setup_model", "use_sde", "sde_sample_freq"}
    known = sorted(own.union(POLICY_SETTINGS))
    for setting in settings:
        if setting not in known:
            near = difflib.get_close_matches(setting, known, 1)
            hint = f"Did you mean {near[0]!r}?" if near else f"It has {', '.join(known)}."
            raise TypeError(f"{name} has no setting {setting!r}. {hint}")


def policy_settings(task: TextTask, given: dict[str, Any], algorithm: Mapping[str, Any]) -> dict[str, Any]:
    """The policy's arguments for a task: its model and temperature, a critic that it can have, a reference to share."""
    settings = task.settings
    kwargs: dict[str, Any] = {
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


def _make_venv(env: Any, n_envs: int, episodes: str, env_kwargs: dict[str, Any]) -> VecEnv:
    if isinstance(env, VecEnv):
        if env_kwargs:
            raise ValueError("env_kwargs go with env='LLMText-v0'; this environment exists already.")
        return env
    if isinstance(env, str | Path):
        if str(env).rpartition(":")[2] != ENV_ID:
            raise ValueError(f"env={env!r} is not known; it is {ENV_ID!r} or an environment.")
        return LLMTextVecEnv(n_envs, episodes=episodes, scoring="deferred", **env_kwargs)
    spec = getattr(env, "spec", None)
    if spec is None or spec.id != ENV_ID:
        raise TypeError(f"env must be {ENV_ID!r}, an LLMTextVecEnv or an LLMTextEnv; got {type(env).__name__}.")
    kwargs = {key: value for key, value in spec.kwargs.items() if key != "render_mode"}
    return LLMTextVecEnv(n_envs, episodes=episodes, scoring="deferred", **{**kwargs, **env_kwargs})
