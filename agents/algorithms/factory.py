"""`make_algorithm`: a stock algorithm of stable-baselines3 or sb3-contrib, wired for language."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from sb3_contrib import TRPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper

from agents.algorithms.capabilities import check_base, check_masks, check_processes, check_shards, check_world
from agents.algorithms.record import RECORD, record_of
from agents.algorithms.replicas import distribute
from agents.algorithms.table import (
    BUFFER_SETTINGS,
    Algorithm,
    algorithm,
    checked_settings,
    settings_of,
)
from agents.algorithms.wiring import Settings, Wiring, device_type
from agents.distributed import ranks
from agents.engines.engine import check_fits
from agents.policies.optimizers import optimizer_named
from agents.rates import rate_for
from agents.rollouts.buffer import TokenRolloutBuffer
from agents.rollouts.vec_env import EPISODE_MODES, LLMTextVecEnv
from agents.shards import check_device
from llm_env import ENV_ID
from llm_env.lm.names import check_choice
from llm_env.lm.runtime import hand_back_freed_memory, reuse_freed_memory
from llm_env.rules import SLOTS
from llm_env.settings import task_settings


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
        n_envs: Slots, which is episodes per rollout and round where they are synchronous. Of several processes
            (`agents.distributed.join`) each makes its part of them.
        rounds: Rounds of `max_new_tokens` steps in a rollout, unless `n_steps` is given.
        episodes: ``"synchronous"`` or ``"continuous"``; see `LLMTextVecEnv`. None: synchronous, and continuous for
            algorithms that do not learn from `TokenRolloutBuffer`.
        env_kwargs: See `llm_env.settings.TaskSettings`.
        settings: The algorithm's own arguments (``learning_rate``, ``n_epochs``, ``batch_size`` in tokens, …), and the
            policy's; `agents.algorithms.table.settings_of(name)` lists them all.

    Returns:
        An instance of the library's own class; of `agents.TextPPO` where the loss has terms that PPO's does not have.

    Raises:
        ValueError: an unknown algorithm, settings that do not go together, or a combination that the README's table of
            algorithms excludes. The last is found before anything is loaded.
        TypeError: an unknown setting; a near one is suggested.
    """
    made = arrange(name, env, n_envs=n_envs, rounds=rounds, episodes=episodes, env_kwargs=env_kwargs, **settings)
    base = made.base
    with warnings.catch_warnings():
        # SB3 warns of a rest of a few transitions; TokenRolloutBuffer deals out mini-batches of nearly equal size.
        warnings.filterwarnings("ignore", "You have specified a mini-batch size")
        model = made.cls(made.row.policy, made.venv, **made.arguments)
    # From now on the buffer has values and rewards computed after each rollout.
    buffer = getattr(model, "rollout_buffer", None)
    if isinstance(buffer, TokenRolloutBuffer):
        buffer.bind(model.policy, made.venv)  # type: ignore[arg-type]  # the row's policy is a RolloutPolicy
    # SB3's `save` writes this as JSON, and `load_algorithm` makes the algorithm from it without unpickling anything.
    environment = {
        "n_envs": base.num_envs,
        "episodes": base.episodes,
        "env_kwargs": {f.name: getattr(base.task.settings, f.name) for f in dataclasses.fields(base.task.settings)},
    }
    distribute(model, made.arguments.get("seed"))
    setattr(model, RECORD, record_of(name=name, settings=settings, rounds=rounds, **environment))
    return model


@dataclass
class Arranged:
    """What an algorithm is made from, before its networks are.

    Attributes:
        row: Its row of the table.
        cls: The library's class, or `TextPPO`.
        venv: The environment, as it was given or made.
        base: The same without wrappers.
        arguments: The class's arguments; ``policy_kwargs`` has the policy's.
    """

    row: Algorithm
    cls: type[BaseAlgorithm]
    venv: VecEnv
    base: LLMTextVecEnv
    arguments: Settings


def arrange(
    name: str,
    env: str | VecEnv | gymnasium.Env[Any, Any],
    *,
    n_envs: int,
    rounds: int,
    episodes: str | None,
    env_kwargs: Mapping[str, Any] | None,
    **settings: Any,
) -> Arranged:
    """Checks an algorithm's settings, makes its environment, and decides what it is made from; see `make_algorithm`."""
    # Check the settings, then make or check the environment, which takes out those that are its own.
    row = algorithm(name)
    SLOTS.check("n_envs", n_envs)
    SLOTS.check("rounds", rounds)
    if env_kwargs is not None and not isinstance(env_kwargs, Mapping):
        raise TypeError(f"env_kwargs={env_kwargs!r} must be a mapping of the environment's settings.")
    check_processes(name, ranks().world)
    if ranks().shards:
        mode = getattr(env.unwrapped, "episodes", None) if isinstance(env, VecEnv) else episodes
        own = {**(env_kwargs if isinstance(env_kwargs, Mapping) else {}), **settings}
        check_shards(
            name, mode, optimizer=settings.get("optimizer", "adamw"), base=own.get("base_quantization", "none")
        )
        check_device(str(settings.get("device", "auto")))
    given = checked_settings(name, settings)
    chosen = {**row.defaults, **given}
    optimizer_named(chosen.get("optimizer", "adamw"))  # what has it is installed
    if chosen.get("seed") is None and ranks().several:  # one order of prompts, and the same new weights
        chosen["seed"] = ranks().from_first(int(np.random.default_rng().integers(2**31)))
    venv = _environment(name, row, env, n_envs, episodes, dict(env_kwargs or {}), chosen)
    base = venv.unwrapped if isinstance(venv, VecEnvWrapper) else venv
    if not isinstance(base, LLMTextVecEnv):
        raise TypeError(f"env must be {ENV_ID!r}, an LLMTextVecEnv or an LLMTextEnv; got {type(base).__name__}.")
    # An environment that exists already may ask for what this algorithm cannot do.
    check_masks(name, base.task.masks.active)
    check_world(name, base.task.make_world is not None)
    if base.task.kl.in_loss and not row.text_loss:
        raise ValueError(f"kl_in={base.task.kl.place!r}: {name}'s loss has no KL term; it takes kl_in='reward'.")
    cls = row.class_for(chosen, base.task.kl.in_loss)

    # The policy's settings, from policy_kwargs or beside them; a name beside them wins.
    policy = dict(chosen.pop("policy_kwargs", {}) or {})
    policy.update({key: chosen.pop(key) for key in row.policy_settings if key in chosen})
    lora = False
    if "learning_rate" not in given and row.trains_language_model:
        lora = bool(policy.get("lora_rank")) and row.cls is not TRPO  # whose rate is the critic's alone
        chosen["learning_rate"] = rate_for(chosen["learning_rate"], base.task.model.lm.hidden_size, lora)
    if device_type(chosen.get("device", "auto")) == "cpu":
        # Weights of a layer come and go, large blocks all: kept, they would take the room that shards save.
        hand_back_freed_memory() if ranks().shards else reuse_freed_memory()
    takes = frozenset(settings_of(name))
    arguments = row.wire(Wiring(name, base, chosen, policy, row.buffer, rounds, takes, BUFFER_SETTINGS, lora))
    return Arranged(row, cls, venv, base, arguments)


def _environment(
    name: str, row: Algorithm, env: Any, n_envs: int, episodes: str | None, env_kwargs: Settings, chosen: Settings
) -> VecEnv:
    """The `LLMTextVecEnv` that an algorithm needs, or the one given, checked; takes the environment's settings out."""
    group_size = chosen.pop("group_size", 1)
    default_place = row.defaults.get("kl_in", "reward")
    kl_in = chosen.pop("kl_in", default_place)
    # An environment that exists: nothing can be set any more, only checked.
    if isinstance(env, VecEnv):
        if env_kwargs:
            raise ValueError("env_kwargs go with env='LLMText-v0'; this environment exists already.")
        base = env.unwrapped if isinstance(env, VecEnvWrapper) else env
        if isinstance(base, LLMTextVecEnv):
            _check_environment(name, row, base, group_size, None if kl_in == default_place else kl_in)
        return env
    # By its id, or by a single environment, whose settings are taken over: a new vectorized one is made.
    if isinstance(env, str | Path):
        # Gymnasium allows a module before the id, as in ``llm_env:LLMText-v0``.
        if str(env).rpartition(":")[2] != ENV_ID:
            raise ValueError(f"env={env!r} is not known; it is {ENV_ID!r} or an environment.")
    else:
        spec = getattr(env, "spec", None)
        if spec is None or spec.id != ENV_ID:
            raise TypeError(f"env must be {ENV_ID!r}, an LLMTextVecEnv or an LLMTextEnv; got {type(env).__name__}.")
        env_kwargs = {**{k: v for k, v in spec.kwargs.items() if k != "render_mode"}, **env_kwargs}
    if env_kwargs.get("kl_in") is None:
        env_kwargs["kl_in"] = kl_in
        # Settings of earlier versions name k1 for grpo too, whose loss had k3 all the same: k1 restrains nothing there.
        if default_place == "loss" and env_kwargs.get("kl_estimator") == "k1":
            env_kwargs["kl_estimator"] = None
    # The frozen models compute, are put aside and quantized as the policy's are.
    policy = {**(chosen.get("policy_kwargs") or {}), **chosen}
    for setting in ("mixed_precision", "offload", "base_quantization"):
        if setting in policy:
            env_kwargs.setdefault(setting, policy[setting])
    # Combinations that the table excludes are found before any model is loaded.
    rules = task_settings(env_kwargs)
    check_masks(name, rules.has_masks)
    check_world(name, rules.world is not None)
    checked_settings(name, {n: getattr(rules, n) for n in ("mixed_precision", "kl_in", "offload")})
    check_base(rules.base_quantization, policy.get("lora_rank", 0))
    if episodes is not None:
        check_choice("episodes", episodes, EPISODE_MODES)
    else:
        episodes = "synchronous" if row.rollouts else "continuous"
    if episodes == "synchronous" and not row.rollouts:
        raise ValueError(f"{name} takes episodes='continuous': its own buffer would learn from idle slots.")
    if episodes == "continuous" and row.whole_episodes:
        raise ValueError(f"{name} needs episodes='synchronous': its baseline is for whole responses.")
    if n_envs % group_size:
        raise ValueError(f"n_envs={n_envs} must be a multiple of group_size={group_size}.")
    check_fits(policy.get("engine"), rules, episodes, ranks().world)
    return LLMTextVecEnv(
        ranks().part_of(n_envs, "n_envs", group_size),
        episodes=episodes,
        scoring="deferred" if row.rollouts else "step",
        group_size=group_size,
        pay_policy_kl=row.pays_policy_kl,
        **env_kwargs,
    )


def _check_environment(name: str, row: Algorithm, venv: LLMTextVecEnv, group_size: int, kl_in: str | None) -> None:
    """Refuses an environment that exists already and does not fit."""
    # How episodes start and are scored, the groups, where the KL is charged, and who pays log π.
    if row.whole_episodes and (venv.episodes, venv.scoring) != ("synchronous", "deferred"):
        raise ValueError(f"{name} needs LLMTextVecEnv(episodes='synchronous', scoring='deferred', …).")
    if group_size != venv.group_size:
        raise ValueError(f"group_size={group_size}, but the environment's is {venv.group_size}; make them equal.")
    if kl_in is not None and kl_in != venv.task.kl.place:
        raise ValueError(
            f"kl_in={kl_in!r}, but the environment's is {venv.task.kl.place!r}; give it to the environment."
        )
    if not row.rollouts and (venv.episodes, venv.scoring) != ("continuous", "step"):
        raise ValueError(f"{name} needs LLMTextVecEnv(episodes='continuous', scoring='step', …).")
    if not row.pays_policy_kl and venv.pay_policy_kl:
        raise ValueError(
            f"{name} needs LLMTextVecEnv(pay_policy_kl=False, …): its backup has the policy's part of the KL."
        )
