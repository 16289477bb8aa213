"""How each kind of algorithm gets its policy, its buffer and the settings that language needs."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stable_baselines3.common.utils import get_device

from agents.distributed import ranks
from agents.policies.critic import NETWORKS, check_critic
from agents.policies.q_network import LLMQPolicy
from agents.rates import LORA
from agents.rollouts.buffer import TokenRolloutBuffer
from agents.rollouts.replay import TokenReplayBuffer
from agents.rollouts.vec_env import LLMTextVecEnv
from llm_env.default_task import DEFAULT_MODEL, DEFAULT_REWARD_MODEL
from llm_env.reward.models import ClassifierReward, scalar_head
from llm_env.settings import TaskSettings
from llm_env.task import TextTask

MINI_BATCHES = 4  # mini-batches of a rollout, unless batch_size says otherwise
UPDATE_COST = 0.1
"""What the KL of one update may cost, in score, unless target_kl says otherwise: β x max_new_tokens x target_kl. Scores have a
standard deviation of about 1. A model with many choices a token is moved further by the same learning rate; by how much, the
tokens of a mini-batch say."""
LAMBDA_OF_REWARD_MODEL, LAMBDA_OF_OTHERS = 0.9, 0.95
"""λ of the advantages, unless gae_lambda says otherwise: with a critic that begins as the reward model, and so knows prefixes
from the start, and with any other. How they were chosen: docs/learning.md."""
Settings = dict[str, Any]


@dataclass
class Wiring:
    """What an algorithm is made from.

    Attributes:
        name: Its name, for errors.
        venv: The environment, without wrappers.
        settings: The algorithm's settings, its defaults included; what has been used is taken out.
        policy: Settings of the policy.
        buffer: Arguments of `TokenRolloutBuffer` that its row of the table names.
        rounds: Rounds of `max_new_tokens` steps in a rollout, unless ``n_steps`` is among the settings.
        takes: Names of all settings that the algorithm has.
        buffer_settings: Names of settings that go to the buffer.
        adapters_rate: Whether the learning rate is the default one of adapters; a critic network has none.
    """

    name: str
    venv: LLMTextVecEnv
    settings: Settings
    policy: Settings
    buffer: Mapping[str, Any]
    rounds: int
    takes: frozenset[str]
    buffer_settings: tuple[str, ...] = ()
    adapters_rate: bool = False

    @property
    def task(self) -> TextTask:
        """The environment's task."""
        return self.venv.task


def on_policy(w: Wiring) -> Settings:
    """Rollouts of text: `LLMActorCriticPolicy` or a subclass, and `TokenRolloutBuffer`.

    Raises:
        ValueError: a rollout would not be whole episodes, or a mini-batch cannot hold a response.
    """
    settings, cap = w.settings, w.task.settings.max_new_tokens
    # The buffer whitens where the algorithm does not do so for each mini-batch; but a loss with β·KL in it weighs that against
    # advantages, which must have the score's scale then: beside those of standard deviation 1 another β would count.
    whiten = not settings.get("normalize_advantage", True) and not w.task.kl.in_loss
    buffer = {"whiten_advantages": whiten, **w.buffer}
    if "advantages" in w.buffer:
        buffer["group_size"] = w.venv.group_size
    buffer.update({key: settings.pop(key) for key in w.buffer_settings if key in settings})
    buffer.update(settings.pop("rollout_buffer_kwargs", {}) or {})
    # SB3 counts steps per slot; a round is as many as the longest response can have.
    round_steps = w.venv.round_steps
    n_steps = settings.setdefault("n_steps", round_steps * w.rounds)
    if w.venv.episodes == "synchronous" and n_steps % round_steps:
        lag = " + max_turns x world_lag" * (round_steps != cap)
        raise ValueError(
            f"n_steps={n_steps} must be a multiple of max_new_tokens{lag}={round_steps}, so that a rollout is whole episodes; "
            "or take episodes='continuous'."
        )
    # Steps in which a slot waits for its world have no tokens.
    tokens = n_steps * cap // round_steps * w.venv.num_envs * ranks().world
    # Mini-batches are counted in tokens here, and hold whole responses.
    least = cap * ranks().world
    if "batch_size" in w.takes:
        settings.setdefault("batch_size", max(least, -(-tokens // MINI_BATCHES)))
    if "target_kl" in w.takes and w.task.kl.coef > 0:
        settings.setdefault("target_kl", UPDATE_COST / (w.task.kl.coef * cap))
    batch_size = settings.get("batch_size", tokens)
    if batch_size < least:
        times = f" x {ranks().world} processes = {least}" if ranks().several else ""
        raise ValueError(
            f"batch_size={batch_size} tokens must be at least max_new_tokens={cap}{times}: responses are not torn apart."
        )
    if ranks().several and settings.get("normalize_advantage", True):
        raise ValueError(
            "normalize_advantage=True goes by each process's part of a mini-batch; with several processes leave it out, "
            "and the whole rollout's advantages are whitened."
        )
    if w.task.kl.in_loss and w.task.kl.estimator == "k1":
        warnings.warn(
            "k1 in the loss has a gradient of 0 in expectation: it restrains nothing. Use k2, k3 or exact there, or k1 "
            "in the reward.",
            stacklevel=3,
        )
    policy = policy_settings(w.task, w.policy, settings)
    if w.adapters_rate and policy["critic"] in NETWORKS:
        policy.setdefault("critic_lr_scale", 1 / LORA)
    settings.setdefault(
        "gae_lambda", LAMBDA_OF_REWARD_MODEL if policy["critic"] == "reward_model" else LAMBDA_OF_OTHERS
    )
    return {
        # What is left in `settings` are arguments of the class itself.
        "policy_kwargs": policy,
        "rollout_buffer_class": TokenRolloutBuffer,
        "rollout_buffer_kwargs": buffer,
        **settings,
    }


def recurrent(w: Wiring) -> Settings:
    """sb3-contrib's own recurrent buffer, on steps as they come."""
    w.settings.setdefault("n_steps", w.task.settings.max_new_tokens * w.rounds)
    # In steps: this buffer cuts sequences as it likes.
    w.settings.setdefault("batch_size", max(2, w.settings["n_steps"] * w.venv.num_envs // MINI_BATCHES))
    w.policy.setdefault("temperature", w.task.settings.temperature)
    return {"policy_kwargs": w.policy, **w.settings}


def value_based(w: Wiring) -> Settings:
    """A Q-network from the LM head, and `TokenReplayBuffer`.

    Raises:
        ValueError: a KL estimator that the backup is not made for, or updates before a response is finished.
    """
    task, settings, cap = w.task, w.settings, w.task.settings.max_new_tokens
    if task.kl.estimator != "k1":
        raise ValueError(f"kl_estimator={task.kl.estimator!r}: {w.name}'s backup is made for k1.")
    train_freq = settings.setdefault("train_freq", cap * w.rounds)
    if not isinstance(train_freq, int) or train_freq < cap:
        raise ValueError(
            f"train_freq={train_freq!r} must be a number of steps, at least max_new_tokens={cap}: responses are learned from "
            "when they are finished."
        )
    # A Q-network has no critic and no adapters; what it does not take is dropped.
    accepted = inspect.signature(LLMQPolicy).parameters
    policy = {k: v for k, v in policy_settings(task, w.policy, settings).items() if k in accepted}
    # τ is the environment's β: then the fixed point is the optimum of KL-regularized RLHF.
    policy.setdefault("q_scale", task.kl.coef or TaskSettings.kl_coef)
    # The soft backup has the policy's entropy in its value, times τ; the hard one has none.
    soft = policy.get("backup", "soft") == "soft"
    replay_buffer_kwargs = {
        "n_steps": settings.pop("n_steps", 1),
        "gamma": settings["gamma"],
        "entropy_coef": policy["q_scale"] if soft else 0.0,
        **(settings.pop("replay_buffer_kwargs", {}) or {}),
    }
    return {
        "policy_kwargs": policy,
        "replay_buffer_class": TokenReplayBuffer,
        "replay_buffer_kwargs": replay_buffer_kwargs,
        **settings,
    }


def black_box(w: Wiring) -> Settings:
    """A policy whose few searched weights are perturbed; no buffer."""
    # The policy has to be the environment's model, at its temperature.
    for name in ("model", "temperature", "trust_remote_code"):
        w.policy.setdefault(name, getattr(w.task.settings, name))
    w.settings.setdefault("n_eval_episodes", w.venv.num_envs)
    return {"policy_kwargs": w.policy, **w.settings}


def policy_settings(task: TextTask, user_settings: Settings, algorithm: Mapping[str, Any]) -> Settings:
    """The policy's arguments for a task: its model and temperature, a critic that it can have, a reference to share.

    Args:
        task: The environment's task, which has the model, the temperature and the reward model.
        user_settings: Policy settings that the user gave; they win over the task's.
        algorithm: The algorithm's settings: ``ent_coef`` and ``device`` are read.

    Returns:
        Keyword arguments of the policy.

    Raises:
        ValueError: the critic is not known, or has nothing to start from; or the reference is quantized in another way.
    """
    settings = task.settings
    kwargs: Settings = {
        "model": settings.model,
        "temperature": settings.temperature,
        "mixed_precision": settings.mixed_precision,
        "offload": settings.offload,
        "base_quantization": settings.base_quantization,
        "trust_remote_code": settings.trust_remote_code,
        "entropy_grad": bool(algorithm.get("ent_coef", 0.0)),
        **user_settings,
    }
    # A critic can start as the reward model if that reads all of the actor's ids and scores with a linear head.
    classifier = task.reward_model if isinstance(task.reward_model, ClassifierReward) else None
    reads_ids = (
        classifier is not None and classifier.shares_tokenizer and classifier.n_tokens >= task.model.lm.vocab_size
    )
    can_start = classifier is not None and reads_ids and scalar_head(classifier.model) is not None
    if "critic" not in kwargs:
        kwargs["critic"] = default_critic(can_start, bool(kwargs.get("lora_rank")))
    check_critic(kwargs["critic"])
    if kwargs["critic"] == "reward_model" and not can_start:
        raise ValueError(
            "critic='reward_model' needs one reward model that is a decoder with the actor's tokenizer and all of its tokens; "
            f"this task's is {settings.reward_model!r}. Choose critic='actor', 'head' or 'detached_head'."
        )
    if kwargs["critic"] in ("reward_model", "top_layers") and can_start and classifier is not None:
        # With the default actor, None means the default reward model (`PolicySettings.critic_start`).
        is_default = classifier.name == DEFAULT_REWARD_MODEL
        kwargs.setdefault("reward_model", None if is_default and settings.model is None else classifier.name)
        kwargs.setdefault("reward_shift", settings.reward_shift)
        kwargs.setdefault("reward_scale", settings.reward_scale)
    if kwargs["base_quantization"] != settings.base_quantization:
        raise ValueError(
            f"base_quantization={kwargs['base_quantization']!r}, but the environment's is {settings.base_quantization!r}: the "
            "reference would not be the model below the adapters. Give it to the environment."
        )
    if kwargs.get("lora_rank"):
        load = task.model.settings  # by which the registry knows it
        same_device = device_type(algorithm.get("device", "auto")) == device_type(load.device)
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


def device_type(device: Any) -> str:
    """``cpu`` or ``cuda``, of a device as stable-baselines3 takes it."""
    return str(get_device(device).type)
