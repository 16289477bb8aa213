"""The algorithms that can be swapped in: whose class each is, its defaults, and what it can be used with."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sb3_contrib import ARS, QRDQN, TRPO, MaskablePPO, RecurrentPPO
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm

from agents.algorithms.grpo import GRPO

FEATURES = {
    "full_weights": "all weights",
    "lora": "LoRA",
    "separate_critic": "critic of its own",
    "masks": "masks",
    "groups": "groups",
    "gpu": "GPU (tests not yet run)",
    "bf16": "bf16",
    "resume": "resume",
}
ON_POLICY_SETTINGS = (
    "critic",
    "lora_rank",
    "lora_alpha",
    "mixed_precision",
    "gradient_checkpointing",
    "micro_batch_tokens",
    "use_cache",
    "optimizer_class",
    "optimizer_kwargs",
    "critic_lr_scale",
    "ptx_texts",
    "ptx_coef",
    "ptx_tokens",
)
BUFFER_SETTINGS = ("whiten_rewards",)
KL_PLACES = ("reward", "loss", "both")
# Where the defaults differ from SB3's, and why. γ and λ: the score comes once, at the end, and a discount would hide it from
# the first tokens. ent_coef 0, because the KL term already keeps entropy. The numbers are near what the search found that
# scripts/lab/compare.py recorded in docs/compare/search.jsonl, at 64 slots; PPO's are those of the README's longer runs.
_ALWAYS = {"gamma": 1.0}
_ACTOR_CRITIC = {
    **_ALWAYS,
    "gae_lambda": 0.95,
    "vf_coef": 0.5,
    "ent_coef": 0.0,
    "max_grad_norm": 1.0,
    "normalize_advantage": False,
}
_CRITIC_FREE = {**_ACTOR_CRITIC, "gae_lambda": 1.0, "vf_coef": 0.0, "critic": "none", "clip_range": 0.2}
_GROUPS = {**_CRITIC_FREE, "group_size": 4}
_NO_MASKS = {"masks": "the library's class knows no masks: maskable_ppo does"}
_HAS_CRITIC = {"groups": "its critic is the baseline; grpo, dr_grpo and rloo compare within groups"}
_NO_CRITIC = {"separate_critic": "it has no critic: other responses are its baseline"}
_Q_NO = {
    "lora": "the target network is a second copy of all weights, which adapters on one base would not be",
    **_NO_MASKS,
    "groups": "it learns from replayed tokens, not from groups of responses",
    "bf16": "it regresses on small differences of Q, which bf16 rounds away",
}


@dataclass(frozen=True)
class Algorithm:
    """One row of the table.

    Attributes:
        cls: The library's own class; for GRPO, whose loss stock PPO cannot say, `agents.algorithms.grpo.GRPO`.
        family: ``on-policy``, ``critic-free``, ``masked``, ``recurrent``, ``value-based`` or ``black box``.
        about: What it is, in a line, with its paper.
        defaults: Settings that differ from the class's own.
        buffer: Arguments of `TokenRolloutBuffer`.
        policy_settings: Settings that go to the policy.
        no: Features that it cannot be used with, and the reason.
    """

    cls: type[BaseAlgorithm]
    family: str
    about: str
    defaults: Mapping[str, Any]
    buffer: Mapping[str, Any] = field(default_factory=dict)
    policy_settings: tuple[str, ...] = ON_POLICY_SETTINGS
    no: Mapping[str, str] = field(default_factory=dict)

    @property
    def whole_episodes(self) -> bool:
        """Whether it needs synchronous episodes."""
        return self.family == "critic-free"

    def reason(self, feature: str) -> str | None:
        """Why it cannot be used with a feature; None where it can."""
        return self.no.get(feature)


ALGORITHMS: dict[str, Algorithm] = {
    "ppo": Algorithm(
        PPO,
        "on-policy",
        "Clipped surrogate, Schulman et al. 2017 (https://arxiv.org/abs/1707.06347)",
        {**_ACTOR_CRITIC, "learning_rate": 3e-4, "n_epochs": 4, "clip_range": 0.2},
        no={**_NO_MASKS, **_HAS_CRITIC},
    ),
    # One update a rollout: a higher rate, and the policy's AdamW instead of A2C's RMSprop.
    "a2c": Algorithm(
        A2C,
        "on-policy",
        "Advantage actor-critic, Mnih et al. 2016 (https://arxiv.org/abs/1602.01783)",
        {**_ACTOR_CRITIC, "gae_lambda": 0.9, "learning_rate": 1e-3, "use_rms_prop": False},
        no={**_NO_MASKS, **_HAS_CRITIC},
    ),
    # The actor moves by the trust region, the critic by the learning rate.
    "trpo": Algorithm(
        TRPO,
        "on-policy",
        "Natural gradient in a trust region, Schulman et al. 2015 (https://arxiv.org/abs/1502.05477)",
        {**_ALWAYS, "gae_lambda": 0.95, "normalize_advantage": False, "learning_rate": 8e-4, "target_kl": 0.02},
        # its step is a line search on the surrogate alone: further terms of the loss have no place in it
        policy_settings=tuple(s for s in ON_POLICY_SETTINGS if not s.startswith(("ptx_", "critic_lr"))),
        no={**_NO_MASKS, **_HAS_CRITIC, "bf16": "its Hessian-vector products need float32"},
    ),
    "maskable_ppo": Algorithm(
        MaskablePPO,
        "masked",
        "PPO that chooses among allowed tokens, Huang and Ontañón 2020 (https://arxiv.org/abs/2006.14171)",
        {**_ACTOR_CRITIC, "learning_rate": 4e-4, "n_epochs": 4, "clip_range": 0.2},
        policy_settings=(*ON_POLICY_SETTINGS, "mask_refresh"),
        no=_HAS_CRITIC,
    ),
    "recurrent_ppo": Algorithm(
        RecurrentPPO,
        "recurrent",
        "PPO with an LSTM on learned embeddings, from scratch: no language model",
        {**_ACTOR_CRITIC, "gae_lambda": 0.9, "learning_rate": 4e-3, "n_epochs": 2, "clip_range": 0.2, "ent_coef": 0.01},
        policy_settings=("embedding_dim", "lstm_hidden_size", "n_lstm_layers"),
        no={
            "lora": "there is no language model to put adapters into",
            "separate_critic": "its critic is an LSTM of its own already",
            **_NO_MASKS,
            **_HAS_CRITIC,
            "bf16": "its LSTM is small: there is nothing to gain",
        },
    ),
    "dqn": Algorithm(
        DQN,
        "value-based",
        "Q-learning with replay, Mnih et al. 2015 (https://doi.org/10.1038/nature14236); Q from the LM head, soft backup",
        {
            **_ALWAYS,
            "learning_rate": 4e-4,
            "buffer_size": 50_000,
            "batch_size": 512,
            "gradient_steps": 32,
            "target_update_interval": 1024,
            "n_steps": 8,
            "max_grad_norm": 1.0,
        },
        policy_settings=("critic", "q_scale", "backup", "optimizer_class", "optimizer_kwargs"),
        no=_Q_NO,
    ),
    "qr_dqn": Algorithm(
        QRDQN,
        "value-based",
        "Quantile regression, Dabney et al. 2018 (https://arxiv.org/abs/1710.10044); quantiles of V, Q from the LM head",
        {
            **_ALWAYS,
            "learning_rate": 4e-4,
            "buffer_size": 50_000,
            "batch_size": 512,
            "gradient_steps": 32,
            "target_update_interval": 1024,
            "n_steps": 8,
            "max_grad_norm": 1.0,
            "n_quantiles": 25,
        },
        policy_settings=("critic", "q_scale", "backup", "n_quantiles", "optimizer_class", "optimizer_kwargs"),
        no=_Q_NO,
    ),
    "ars": Algorithm(
        ARS,
        "black box",
        "Augmented random search, Mania et al. 2018 (https://arxiv.org/abs/1803.07055), on the last normalisation's gains",
        {"learning_rate": 0.5, "delta_std": 0.14, "n_delta": 4, "zero_policy": False},
        policy_settings=("searched",),
        no={
            "full_weights": "random search in a million directions finds nothing: it moves normalisation gains",
            "lora": "adapters have as many directions as whole layers",
            "separate_critic": "it has no critic: it compares whole episodes",
            **_NO_MASKS,
            "groups": "each candidate's weights are judged on episodes of their own",
            "bf16": "it never computes a gradient; decoding is all it does",
            "resume": "its callbacks are called in the middle of an update, when the candidates are drawn already",
        },
    ),
    "grpo": Algorithm(
        GRPO,
        "critic-free",
        "Group-relative advantages, KL in the loss, Shao et al. 2024 (https://arxiv.org/abs/2402.03300)",
        {**_GROUPS, "learning_rate": 8e-4, "n_epochs": 4, "kl_in_loss": True, "loss_aggregation": "sequence"},
        buffer={"advantages": "grpo", "whiten_advantages": False},
        no={**_NO_MASKS, **_NO_CRITIC},
    ),
    "dr_grpo": Algorithm(
        GRPO,
        "critic-free",
        "GRPO without its two normalisations, Liu et al. 2025 (https://arxiv.org/abs/2503.20783)",
        {**_GROUPS, "learning_rate": 8e-4, "n_epochs": 4, "kl_in_loss": False, "loss_aggregation": "constant"},
        buffer={"advantages": "dr_grpo", "whiten_advantages": False},
        no={**_NO_MASKS, **_NO_CRITIC},
    ),
    "rloo": Algorithm(
        PPO,
        "critic-free",
        "REINFORCE, leave-one-out baseline, Ahmadian et al. 2024 (https://arxiv.org/abs/2402.14740)",
        {**_GROUPS, "learning_rate": 5e-4, "n_epochs": 4},
        buffer={"advantages": "rloo", "whiten_advantages": False},
        no={**_NO_MASKS, **_NO_CRITIC},
    ),
    "remax": Algorithm(
        PPO,
        "critic-free",
        "REINFORCE, greedy response as baseline, Li et al. 2023 (https://arxiv.org/abs/2310.10505)",
        {**_CRITIC_FREE, "learning_rate": 3e-4, "n_epochs": 4},
        buffer={"advantages": "remax", "whiten_advantages": False},
        no={
            **_NO_MASKS,
            **_NO_CRITIC,
            "groups": "its baseline is not other responses to the same prompt; grpo's, dr_grpo's and rloo's is",
        },
    ),
    "reinforce_pp": Algorithm(
        PPO,
        "critic-free",
        "REINFORCE++: return to go, whitened over the rollout, Hu et al. 2025 (https://arxiv.org/abs/2501.03262)",
        {**_CRITIC_FREE, "learning_rate": 4e-4, "n_epochs": 4},
        buffer={"advantages": "reinforce_pp", "whiten_advantages": True},
        no={
            **_NO_MASKS,
            **_NO_CRITIC,
            "groups": "its baseline is not other responses to the same prompt; grpo's, dr_grpo's and rloo's is",
        },
    ),
}
_NOT_SETTINGS = {
    *("self", "args", "kwargs", "policy", "env", "policy_kwargs", "rollout_buffer_class", "replay_buffer_class"),
    *("_init_setup_model", "use_sde", "sde_sample_freq", "optimize_memory_usage"),
}


def algorithm(name: str) -> Algorithm:
    """The row of an algorithm.

    Raises:
        ValueError: an unknown name; the near one is suggested.
    """
    if name not in ALGORITHMS:
        near = difflib.get_close_matches(str(name).lower().replace("-", "_"), ALGORITHMS, 1, 0.4)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"Algorithm {name!r} is not known; there is {', '.join(ALGORITHMS)}.{hint}")
    return ALGORITHMS[name]


def settings_of(name: str) -> list[str]:
    """All settings of an algorithm: its class's, the policy's and the buffer's.

    Besides these ``group_size`` where it compares within groups, and ``kl_in`` (`KL_PLACES`) where the KL may be a term of
    the loss.
    """
    row = algorithm(name)
    names = set(row.policy_settings)
    for cls in row.cls.__mro__:
        parameters = inspect.signature(vars(cls)["__init__"]).parameters
        names.update(parameters)
        if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            break
    if "group_size" in row.defaults:
        names.add("group_size")
    if row.family in ("on-policy", "masked", "critic-free"):
        names.update(BUFFER_SETTINGS)
        if row.cls is not GRPO and "ptx_texts" in row.policy_settings:
            names.add("kl_in")
    if row.family == "critic-free":
        names -= {"critic", "critic_lr_scale", "vf_coef", "clip_range_vf", "gae_lambda"}
    if row.cls is GRPO:
        names -= {"ent_coef"}
    return sorted({*names, "policy_kwargs"} - _NOT_SETTINGS | {"policy_kwargs"})


def checked_settings(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Refuses what the algorithm cannot be used with and settings that it does not have, before anything is loaded.

    Returns:
        The settings, less those that it does not have but that say nothing (``lora_rank=0``).

    Raises:
        ValueError: an unknown algorithm, or a combination that its row of the table excludes; the reason is given.
        TypeError: an unknown setting; the near one is named, and all there are.
    """
    row = algorithm(name)
    if settings.get("lora_rank"):
        _refuse(name, row, "lora", f"lora_rank={settings['lora_rank']}")
    if settings.get("mixed_precision", "no") != "no":
        _refuse(name, row, "bf16", f"mixed_precision={settings['mixed_precision']!r}")
    if settings.get("group_size", 1) > 1:
        _refuse(name, row, "groups", f"group_size={settings['group_size']}")
    if settings.get("critic") not in (None, "none"):
        _refuse(name, row, "separate_critic", f"critic={settings['critic']!r}")
    known = settings_of(name)
    neutral = {"lora_rank": 0, "mixed_precision": "no", "group_size": 1, "critic": "none"}
    for setting, value in settings.items():
        if setting not in known and not (setting in neutral and value == neutral[setting]):
            near = difflib.get_close_matches(setting, known, 1)
            hint = f"Did you mean {near[0]!r}? " if near else ""
            raise TypeError(f"{name} has no setting {setting!r}. {hint}It has {', '.join(known)}.")
    return {setting: value for setting, value in settings.items() if setting in known}


def check_masks(name: str, masks: bool) -> None:
    """Refuses mask rules for an algorithm that would not heed them.

    Raises:
        ValueError: with the reason.
    """
    if masks:
        _refuse(name, algorithm(name), "masks", "top_k, top_p, min_new_tokens, allowed and forbidden tokens")


def _refuse(name: str, row: Algorithm, feature: str, what: str) -> None:
    reason = row.reason(feature)
    if reason is not None:
        raise ValueError(f"{name} cannot be used with {what}: {reason}.")


def capability_table() -> str:
    """The README's table, in Markdown: algorithm by feature, with a note for each no."""
    notes: dict[str, int] = {}
    lines = ["| algorithm | class | " + " | ".join(FEATURES.values()) + " |", "|---" * (len(FEATURES) + 2) + "|"]
    for name, row in ALGORITHMS.items():
        cells = []
        for feature in FEATURES:
            reason = row.reason(feature)
            cells.append("yes" if reason is None else f"no [{notes.setdefault(reason, len(notes) + 1)}]")
        lines.append(
            f"| `{name}` | `{row.cls.__module__.partition('.')[0]}.{row.cls.__name__}` | " + " | ".join(cells) + " |"
        )
    lines += ["", *(f"{number}. {reason[0].upper()}{reason[1:]}." for reason, number in notes.items())]
    return "\n".join(lines) + "\n"
