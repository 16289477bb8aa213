"""The rules of what algorithms, policies, buffers and callbacks can be given, by the name of the setting.

They are the same wherever a setting stands: in a YAML file, on the command line, in `make_algorithm`, in the constructor of
`TextPPO` or of a buffer. Reading this module imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llm_env.rules import FLAG, SEED, SHARE, SLOTS, Rule, number, whole

_NOT_NEGATIVE = number(least=0)
_POSITIVE = number(above=0)
_COUNT = whole(1)
_FROM_0_TO_1 = number(least=0, most=1)

ALGORITHM_NAMES = (
    "ppo", "maskable_ppo", "a2c", "trpo", "grpo", "dr_grpo", "rloo", "remax", "reinforce_pp", "dqn", "qr_dqn",
    "recurrent_ppo", "ars",
)  # fmt: skip
"""The names in `agents.algorithms.table.ALGORITHMS`, for what must not wait for torch."""

ALGORITHM_RULES: dict[str, Rule] = {
    # Every algorithm.
    "seed": SEED,
    "stats_window_size": _COUNT,
    "verbose": whole(0, 2),
    "learning_rate": _NOT_NEGATIVE,
    "gamma": SHARE,
    # Rollouts and updates.
    "n_steps": _COUNT,
    "n_epochs": _COUNT,
    "batch_size": _COUNT,
    "gae_lambda": _FROM_0_TO_1,
    "clip_range": _POSITIVE,
    "clip_range_vf": _POSITIVE,
    "clip_range_high": _POSITIVE,
    "target_kl": _POSITIVE,
    "ent_coef": _NOT_NEGATIVE,
    "vf_coef": _NOT_NEGATIVE,
    "max_grad_norm": _POSITIVE,
    "normalize_advantage": FLAG,
    "whiten_rewards": FLAG,
    "whiten_advantages": FLAG,
    "group_size": SLOTS,
    "max_resamples": whole(0),
    "ptx_coef": _POSITIVE,
    "ptx_tokens": whole(2, of="tokens"),
    # A2C and TRPO.
    "use_rms_prop": FLAG,
    "rms_prop_eps": _POSITIVE,
    "cg_max_steps": _COUNT,
    "cg_damping": _NOT_NEGATIVE,
    "line_search_shrinking_factor": number(above=0, below=1),
    "line_search_max_iter": _COUNT,
    "n_critic_updates": _COUNT,
    # DQN and QR-DQN.
    "buffer_size": _COUNT,
    "learning_starts": whole(0),
    "gradient_steps": whole(1, also=-1),
    "target_update_interval": _COUNT,
    "tau": _FROM_0_TO_1,
    "exploration_fraction": _FROM_0_TO_1,
    "exploration_initial_eps": _FROM_0_TO_1,
    "exploration_final_eps": _FROM_0_TO_1,
    "q_scale": _POSITIVE,
    "n_quantiles": _COUNT,
    "entropy_coef": _NOT_NEGATIVE,
    # Random search.
    "n_delta": _COUNT,
    "n_top": _COUNT,
    "delta_std": _POSITIVE,
    "zero_policy": FLAG,
    "alive_bonus_offset": number(),
    "n_eval_episodes": _COUNT,
    # Policies.
    "temperature": _POSITIVE,
    "reward_shift": number(),
    "reward_scale": _POSITIVE,
    "lora_rank": whole(0),
    "lora_alpha": _POSITIVE,
    "micro_batch_tokens": whole(1, of="tokens"),
    "critic_lr_scale": _POSITIVE,
    "critic_layers": _COUNT,
    "gradient_checkpointing": FLAG,
    "offload": FLAG,
    "use_cache": FLAG,
    "planned": FLAG,
    "entropy_grad": FLAG,
    "trust_remote_code": FLAG,
    "embedding_dim": _COUNT,
    "lstm_hidden_size": _COUNT,
    "n_lstm_layers": _COUNT,
    # Callbacks.
    "mask_refresh": _COUNT,
    "kl_target": _POSITIVE,
    "kl_coef_start": number(least=0),
    "kl_coef_end": number(least=0),
    "kl_gain": number(above=0, below=5),  # at 5 a clipped error of -0.2 would take β to 0, where it stays
    "ref_refresh_every": _COUNT,  # of the callback; a run's setting may be 0, which is none
    "ref_refresh_share": SHARE,
}
ALARMS = ("gold", "repetition", "length", "kl", "gradient")
"""Kinds of alarm; see `agents.callbacks.alarms`."""
OPTIMIZERS = ("adamw", "adamw_8bit")
"""What moves the weights, by name; see `agents.policies.optimizers`."""
WITH_A_CRITIC = ("gae", "turn_gae")
"""What `advantages` can be for algorithms that have a critic; the others are named for theirs."""
SCHEDULES = ("learning_rate", "clip_range", "clip_range_vf", "delta_std")
"""Settings that may be functions of the progress that remains, whose values are known only later."""
MAPPINGS = ("policy_kwargs", "rollout_buffer_kwargs", "replay_buffer_kwargs", "optimizer_kwargs")
"""Settings that hold further ones by name."""


def check_arguments(arguments: Mapping[str, Any], may_be_none: frozenset[str] = frozenset()) -> None:
    """Checks arguments of an algorithm, a policy, a buffer or a callback, and those in the mappings among them.

    Args:
        arguments: Values by name. A name without a rule is passed over, and so is a schedule.
        may_be_none: Names whose value may be None.

    Raises:
        ValueError: one of them breaks its rule.
        TypeError: what should be a mapping is none.
    """
    for name, value in arguments.items():
        if name in MAPPINGS and value is not None:
            if not isinstance(value, Mapping):
                raise TypeError(f"{name}={value!r} must be a mapping of names to values.")
            check_arguments(value, may_be_none)
        elif name in ALGORITHM_RULES:
            left_open = (value is None and name in may_be_none) or (name in SCHEDULES and callable(value))
            if not left_open:
                ALGORITHM_RULES[name].check(name, value)
