"""The algorithms that can be swapped in: whose class each is, its defaults, how it is wired, what it can be used with.

A new one is a row of `ALGORITHMS`; where it needs another policy or buffer, a function in `agents.algorithms.wiring` too.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sb3_contrib import ARS, QRDQN, TRPO, MaskablePPO, RecurrentPPO
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm

from agents.algorithms.text_ppo import TextPPO
from agents.algorithms.wiring import Wiring, black_box, on_policy, recurrent, value_based
from agents.policies.actor_critic import LLMActorCriticPolicy
from agents.policies.maskable import MaskableLLMPolicy
from agents.policies.q_network import LLMQPolicy
from agents.policies.random_search import LLMSearchPolicy
from agents.policies.recurrent import RecurrentTextPolicy
from agents.policies.trpo import LLMTrustRegionPolicy
from agents.rules import WITH_A_CRITIC, check_arguments
from llm_env.lm.names import check_choice

ACTOR_CRITIC_SETTINGS = (
    "critic",
    *("lora_rank", "lora_alpha", "base_quantization"),
    "mixed_precision",
    "offload",
    "gradient_checkpointing",
    "micro_batch_tokens",
    "use_cache",
    "planned",
    "engine",
    "optimizer",
    "optimizer_class",
    "optimizer_kwargs",
    "critic_lr_scale",
    "critic_layers",
)
"""The settings of on-policy algorithms that go to their policy; see `agents.policies.settings.PolicySettings`."""
TEXT_LOSS_SETTINGS = ("clip_range_high", "loss_aggregation", "max_resamples", "ptx_texts", "ptx_coef", "ptx_tokens")
"""What `TextPPO` has beside PPO; where one is given, it takes stock PPO's place."""
BUFFER_SETTINGS = ("whiten_rewards", "whiten_advantages", "advantages")
"""The settings of on-policy algorithms that go to `TokenRolloutBuffer`; what makes a row of the table is no setting of it."""
RENAMED = {
    "kl_in_loss": "it is kl_in='loss' or kl_in='reward' now",
    "kl_loss": "it is kl_in='loss' and kl_estimator in env_kwargs now",
    "mask_refresh": "it is a callback now: learn(callback=agents.callbacks.mask_refresh.MaskRefresh(every))",
    "second_derivatives": "it is a policy now: agents.policies.trpo.LLMTrustRegionPolicy",
    "defer_values": "a bound buffer says so: model.rollout_buffer.bind(model.policy, env)",
}
"""Settings that went, and what took their place."""
# Where the defaults differ from SB3's, and why. γ = 1: the score comes once, at the end, and a discount would hide it from the
# first tokens. ent_coef 0: the KL term already keeps entropy. The numbers are near what the search of scripts/lab/compare.py
# found at 64 slots (docs/compare/search.jsonl); PPO's and those without a critic are from several tasks (docs/learning.md).
_ALWAYS = {"gamma": 1.0}
_ACTOR_CRITIC = {**_ALWAYS, "vf_coef": 0.5, "ent_coef": 0.0, "max_grad_norm": 1.0, "normalize_advantage": False}
_CRITIC_FREE = {
    **_ACTOR_CRITIC,
    **{"gae_lambda": 1.0, "vf_coef": 0.0, "critic": "none", "learning_rate": 4e-4, "n_epochs": 4, "clip_range": 0.2},
}
_GROUPS = {**_CRITIC_FREE, "group_size": 4}
_Q = {
    **_ALWAYS,
    "learning_rate": 4e-4,
    "buffer_size": 50_000,
    "batch_size": 512,
    "gradient_steps": 32,
    "target_update_interval": 1024,
    "n_steps": 8,
    "max_grad_norm": 1.0,
    # Uniformly random tokens are no exploration of language; softmax(Q/τ) is what explores.
    **{"learning_starts": 0, "exploration_initial_eps": 0.0, "exploration_final_eps": 0.0},
}
_NO_MASKS = {"masks": "the library's class knows no masks: maskable_ppo does"}
_HAS_CRITIC = {"groups": "its critic is the baseline; grpo, dr_grpo and rloo compare within groups"}
_NO_CRITIC = {"separate_critic": "it has no critic: other responses are its baseline"}
_NO_GROUPS = {"groups": "its baseline is not other responses to the same prompt; grpo's, dr_grpo's and rloo's is"}
_Q_POLICY = ("critic", "q_scale", "backup", "optimizer_class", "optimizer_kwargs")
_Q_NO = {
    "lora": "the target network is a second copy of all weights, which adapters on one base would not be",
    **_NO_MASKS,
    "groups": "it learns from replayed tokens, not from groups of responses",
    "worlds": "its replay stores a response as one text, in which each token follows the one before",
    "bf16": "it regresses on small differences of Q, which bf16 rounds away",
    "processes": "its replay buffer and its updates between steps are one process's",
}


@dataclass(frozen=True)
class Algorithm:
    """One row of the table.

    Attributes:
        cls: The library's own class; `TextPPO` where the loss is not PPO's.
        policy: Class of the policy on text that it gets.
        about: What it is, in a line, with its paper.
        defaults: Settings whose defaults differ from the class's own.
        wire: Function that turns settings into the constructor's arguments; see `agents.algorithms.wiring`.
        buffer: Arguments of `TokenRolloutBuffer` that make the algorithm what it is, such as the advantage estimator.
        policy_settings: Names of the settings that go to the policy.
        rollouts: Whether it learns from `TokenRolloutBuffer`: with deferred scoring, and synchronous episodes by default.
        whole_episodes: Whether each rollout must be whole episodes, since their baseline is for whole responses.
        trains_language_model: Whether it trains a language model's weights, so that a next run can go on from them.
        pays_policy_kl: Whether rewards hold -β·log π; False for a backup that has that part itself.
        no: The reason for each feature that it cannot be used with, by the keys of `agents.algorithms.capabilities.FEATURES`.
    """

    cls: type[BaseAlgorithm]
    policy: type[Any]
    about: str
    defaults: Mapping[str, Any]
    wire: Callable[[Wiring], dict[str, Any]] = on_policy
    buffer: Mapping[str, Any] = field(default_factory=dict)
    policy_settings: tuple[str, ...] = ACTOR_CRITIC_SETTINGS
    rollouts: bool = True
    whole_episodes: bool = False
    trains_language_model: bool = True
    pays_policy_kl: bool = True
    no: Mapping[str, str] = field(default_factory=dict)

    @property
    def text_loss(self) -> bool:
        """Whether the loss can have `TextPPO`'s terms."""
        return self.cls is PPO or issubclass(self.cls, TextPPO)

    def reason(self, feature: str) -> str | None:
        """Says why it cannot be used with a feature; None where it can."""
        if feature == "shards":  # as far as several processes go
            return self.no.get("processes")
        return self.no.get(feature)

    def refuse(self, name: str, feature: str, what: str) -> None:
        """Refuses a feature that it cannot be used with; `what` asked for it of the algorithm with this name.

        Raises:
            ValueError: the row says why not.
        """
        if (reason := self.reason(feature)) is not None:
            raise ValueError(f"{name} cannot be used with {what}: {reason}.")

    def class_for(self, settings: Mapping[str, Any], kl_in_loss: bool) -> type[BaseAlgorithm]:
        """Chooses stock PPO where the loss is PPO's, `TextPPO` where settings add to it, and any other row's own class."""
        beyond_ppo = kl_in_loss or any(name in settings for name in TEXT_LOSS_SETTINGS)
        return TextPPO if self.cls is PPO and beyond_ppo else self.cls


ALGORITHMS: dict[str, Algorithm] = {
    "ppo": Algorithm(
        PPO,
        LLMActorCriticPolicy,
        "Clipped surrogate, Schulman et al. 2017 (https://arxiv.org/abs/1707.06347)",
        {**_ACTOR_CRITIC, "learning_rate": 3e-4, "n_epochs": 4, "clip_range": 0.2},
        no={**_NO_MASKS, **_HAS_CRITIC},
    ),
    # One update a rollout: a higher rate, and the policy's AdamW instead of A2C's RMSprop.
    "a2c": Algorithm(
        A2C,
        LLMActorCriticPolicy,
        "Advantage actor-critic, Mnih et al. 2016 (https://arxiv.org/abs/1602.01783)",
        {**_ACTOR_CRITIC, "gae_lambda": 0.9, "learning_rate": 1e-3, "use_rms_prop": False},
        no={**_NO_MASKS, **_HAS_CRITIC},
    ),
    # The actor moves by the trust region, the critic by the learning rate.
    "trpo": Algorithm(
        TRPO,
        LLMTrustRegionPolicy,
        "Natural gradient in a trust region, Schulman et al. 2015 (https://arxiv.org/abs/1502.05477)",
        {**_ALWAYS, "gae_lambda": 0.95, "normalize_advantage": False, "learning_rate": 8e-4, "target_kl": 0.02},
        # TRPO's own step moves the actor and the optimizer moves the critic alone, at the learning rate: nothing to scale.
        policy_settings=tuple(s for s in ACTOR_CRITIC_SETTINGS if s != "critic_lr_scale"),
        no={
            **_NO_MASKS,
            **_HAS_CRITIC,
            "bf16": "its Hessian-vector products need float32",
            "processes": "its Hessian-vector products and line search would have to be shared, inside the library's step",
        },
    ),
    "maskable_ppo": Algorithm(
        MaskablePPO,
        MaskableLLMPolicy,
        "PPO that chooses among allowed tokens, Huang and Ontañón 2020 (https://arxiv.org/abs/2006.14171)",
        {**_ACTOR_CRITIC, "learning_rate": 4e-4, "n_epochs": 4, "clip_range": 0.2},
        no=_HAS_CRITIC,
    ),
    "recurrent_ppo": Algorithm(
        RecurrentPPO,
        RecurrentTextPolicy,
        "PPO with an LSTM on learned embeddings, from scratch: no language model",
        {**_ACTOR_CRITIC, "gae_lambda": 0.9, "learning_rate": 4e-3, "n_epochs": 2, "clip_range": 0.2, "ent_coef": 0.01},
        wire=recurrent,
        policy_settings=("embedding_dim", "lstm_hidden_size", "n_lstm_layers"),
        rollouts=False,
        trains_language_model=False,
        no={
            "lora": "there is no language model to put adapters into",
            "separate_critic": "its critic is an LSTM of its own already",
            "worlds": "its LSTM reads the last token of each state, and would miss all others that a world says",
            **_NO_MASKS,
            **_HAS_CRITIC,
            "bf16": "its LSTM is small: there is nothing to gain",
            "processes": "its LSTM is small, and the library's buffer deals out its mini-batches in each process for itself",
        },
    ),
    "dqn": Algorithm(
        DQN,
        LLMQPolicy,
        "Q-learning with replay, Mnih et al. 2015 (https://doi.org/10.1038/nature14236); Q from the LM head, soft backup",
        _Q,
        wire=value_based,
        policy_settings=_Q_POLICY,
        rollouts=False,
        pays_policy_kl=False,
        no=_Q_NO,
    ),
    "qr_dqn": Algorithm(
        QRDQN,
        LLMQPolicy,
        "Quantile regression, Dabney et al. 2018 (https://arxiv.org/abs/1710.10044); quantiles of V, Q from the LM head",
        {**_Q, "n_quantiles": 25},
        wire=value_based,
        policy_settings=(*_Q_POLICY, "n_quantiles"),
        rollouts=False,
        pays_policy_kl=False,
        no=_Q_NO,
    ),
    "ars": Algorithm(
        ARS,
        LLMSearchPolicy,
        "Augmented random search, Mania et al. 2018 (https://arxiv.org/abs/1803.07055), on the last normalization's gains",
        {"learning_rate": 0.5, "delta_std": 0.14, "n_delta": 4, "zero_policy": False},
        wire=black_box,
        policy_settings=("searched",),
        rollouts=False,
        trains_language_model=False,
        no={
            "full_weights": "random search in a million directions finds nothing: it moves normalization gains",
            "lora": "adapters have as many directions as whole layers",
            "separate_critic": "it has no critic: it compares whole episodes",
            **_NO_MASKS,
            "groups": "each candidate's weights are judged on episodes of their own",
            "bf16": "it never computes a gradient; decoding is all it does",
            "processes": "it has no gradient to share: the library has pools of its own for its candidates",
            "resume": "its callbacks are called in the middle of an update, when the candidates are drawn already",
        },
    ),
    "grpo": Algorithm(
        TextPPO,
        LLMActorCriticPolicy,
        "Group-relative advantages, KL in the loss, Shao et al. 2024 (https://arxiv.org/abs/2402.03300)",
        {**_GROUPS, "kl_in": "loss", "loss_aggregation": "sequence"},
        whole_episodes=True,
        buffer={"advantages": "grpo", "whiten_advantages": False},
        no={**_NO_MASKS, **_NO_CRITIC},
    ),
    "dr_grpo": Algorithm(
        TextPPO,
        LLMActorCriticPolicy,
        "GRPO without its two normalizations, Liu et al. 2025 (https://arxiv.org/abs/2503.20783)",
        {**_GROUPS, "loss_aggregation": "constant"},
        whole_episodes=True,
        buffer={"advantages": "dr_grpo", "whiten_advantages": False},
        no={**_NO_MASKS, **_NO_CRITIC},
    ),
    "rloo": Algorithm(
        PPO,
        LLMActorCriticPolicy,
        "REINFORCE, leave-one-out baseline, Ahmadian et al. 2024 (https://arxiv.org/abs/2402.14740)",
        _GROUPS,
        whole_episodes=True,
        buffer={"advantages": "rloo", "whiten_advantages": False},
        no={**_NO_MASKS, **_NO_CRITIC},
    ),
    "remax": Algorithm(
        PPO,
        LLMActorCriticPolicy,
        "REINFORCE, greedy response as baseline, Li et al. 2023 (https://arxiv.org/abs/2310.10505)",
        _CRITIC_FREE,
        whole_episodes=True,
        buffer={"advantages": "remax", "whiten_advantages": False},
        no={
            **_NO_MASKS,
            **_NO_CRITIC,
            **_NO_GROUPS,
            "worlds": "its greedy baseline would need a second episode of each world, from the same state",
        },
    ),
    "reinforce_pp": Algorithm(
        PPO,
        LLMActorCriticPolicy,
        "REINFORCE++: return to go, whitened over the rollout, Hu et al. 2025 (https://arxiv.org/abs/2501.03262)",
        _CRITIC_FREE,
        whole_episodes=True,
        buffer={"advantages": "reinforce_pp", "whiten_advantages": True},
        no={**_NO_MASKS, **_NO_CRITIC, **_NO_GROUPS},
    ),
}
# Settings of policies that None leaves to themselves.
_NO_DEFAULT = frozenset({"lora_alpha", "micro_batch_tokens", "clip_range_high"})
# Arguments of constructors that `make_algorithm` fills in itself, or that have no meaning for language.
_NOT_SETTINGS = {
    *("self", "args", "kwargs", "policy", "env", "policy_kwargs", "rollout_buffer_class", "replay_buffer_class"),
    *("_init_setup_model", "use_sde", "sde_sample_freq", "optimize_memory_usage", "sub_sampling_factor"),
}


def algorithm(name: str) -> Algorithm:
    """Looks up the row of an algorithm.

    Raises:
        ValueError: the name is not known; the nearest one is suggested.
    """
    if not isinstance(name, str) or name not in ALGORITHMS:
        near = difflib.get_close_matches(str(name).lower().replace("-", "_"), ALGORITHMS, 1, 0.4)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"Algorithm {name!r} is not known; there is {', '.join(ALGORITHMS)}.{hint}")
    return ALGORITHMS[name]


def settings_of(name: str) -> list[str]:
    """Names all settings of an algorithm: its class's, the policy's and the buffer's.

    An algorithm that compares within groups has ``group_size`` too. One whose loss can have further terms has what `TextPPO`
    has beside PPO, and ``kl_in``, which goes to the environment.
    """
    row = algorithm(name)
    names = {*row.policy_settings, *class_settings(row.cls)}
    if "group_size" in row.defaults:
        names.add("group_size")
    if row.rollouts:
        names.update(set(BUFFER_SETTINGS) - set(row.buffer))
    if row.text_loss:
        names.update(TEXT_LOSS_SETTINGS, ("kl_in",))
        if "group_size" not in row.defaults:
            names.discard("max_resamples")
    if row.defaults.get("critic") == "none":  # nothing to say of a critic that is not there
        names -= {"critic", "critic_lr_scale", "critic_layers", "vf_coef", "clip_range_vf", "gae_lambda"}
    return sorted(names - _NOT_SETTINGS | {"policy_kwargs"})


def class_settings(cls: type[Any]) -> dict[str, Any]:
    """Default values of a class's constructor by name, those that it hands on to its base classes included."""
    defaults: dict[str, Any] = {}
    for base in cls.__mro__:
        if "__init__" not in vars(base):
            continue
        parameters = inspect.signature(vars(base)["__init__"]).parameters
        defaults = {
            name: p.default for name, p in parameters.items()
        } | defaults  # the class's own go before its base's
        if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):  # no **kwargs: nothing is handed on
            break
    return defaults


def checked_settings(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Checks an algorithm's settings before anything is loaded.

    Returns:
        The settings, without those that the algorithm does not have and whose value asks for nothing (``lora_rank=0``).

    Raises:
        ValueError: the algorithm is not known, its row of the table excludes a setting (the reason is given), or a value breaks
            its rule in `agents.rules`.
        TypeError: the algorithm has no such setting; the nearest one is named, or what took its place, and all there are.
    """
    row = algorithm(name)
    # A value of another kind than compared with here is refused by its rule below.
    if settings.get("lora_rank"):
        row.refuse(name, "lora", f"lora_rank={settings['lora_rank']}")
    if settings.get("mixed_precision", "no") != "no":
        row.refuse(name, "bf16", f"mixed_precision={settings['mixed_precision']!r}")
    if settings.get("group_size", 1) not in (0, 1):
        row.refuse(name, "groups", f"group_size={settings['group_size']}")
    if settings.get("critic") not in (None, "none"):
        row.refuse(name, "separate_critic", f"critic={settings['critic']!r}")
    has = settings_of(name)
    neutral: dict[str, Any] = {"lora_rank": 0, "mixed_precision": "no", "group_size": 1, "offload": False}
    neutral |= {"critic": "none", "kl_in": "reward", "base_quantization": "none"}
    for setting, value in settings.items():
        if setting not in has and not (setting in neutral and value == neutral[setting]):
            near = difflib.get_close_matches(setting, has, 1)
            hint = f"Did you mean {near[0]!r}? " if near else ""
            if setting in RENAMED:
                hint = f"{RENAMED[setting][0].upper()}{RENAMED[setting][1:]}. "
            raise TypeError(f"{name} has no setting {setting!r}. {hint}It has {', '.join(has)}.")
    if (chosen := settings.get("advantages")) is not None:
        check_choice("advantages", chosen, WITH_A_CRITIC)
    check_arguments(settings, _NO_DEFAULT | {s for s, default in class_settings(row.cls).items() if default is None})
    return {setting: value for setting, value in settings.items() if setting in has}
