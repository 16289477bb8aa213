"""Settings that the search may choose, for each algorithm; its first trial takes the defaults of the algorithms' table."""

from __future__ import annotations

from typing import Any

Space = dict[str, tuple[str, Any]]
"""Setting -> (kind, values), as `log` and `one_of` make it."""


def log(low: float, high: float) -> tuple[str, Any]:
    """A number between two, on a logarithmic scale."""
    return "log", (low, high)


def one_of(*values: Any) -> tuple[str, Any]:
    """One of several values."""
    return "one", values


_ON_POLICY: Space = {"learning_rate": log(1e-4, 1.5e-3), "n_envs": one_of(32, 64, 128)}
_EPOCHS: Space = {"n_epochs": one_of(2, 4, 8)}
_Q: Space = {
    "learning_rate": log(2e-4, 3e-3),
    "n_envs": one_of(32, 64),
    "n_steps": one_of(1, 4, 8, 32),
    "gradient_steps": one_of(8, 16, 32),
    "target_update_interval": one_of(1024, 4096),
}
SPACES: dict[str, Space] = {
    "ppo": {**_ON_POLICY, **_EPOCHS, "clip_range": one_of(0.1, 0.2, 0.3), "gae_lambda": one_of(0.9, 0.95, 1.0)},
    "a2c": {"learning_rate": log(3e-4, 5e-3), "n_envs": one_of(16, 32, 64), "gae_lambda": one_of(0.9, 0.95, 1.0)},
    "trpo": {"target_kl": log(5e-3, 0.1), "n_envs": one_of(64, 128), "learning_rate": log(1e-4, 1e-3)},
    "maskable_ppo": {
        **_ON_POLICY,
        **_EPOCHS,
        "top_p": one_of(0.9, 0.95, 0.99),
        "mask_refresh": one_of(0, 1, 4),
        "gae_lambda": one_of(0.9, 0.95, 1.0),
    },
    "recurrent_ppo": {
        "learning_rate": log(3e-4, 5e-3),
        "n_envs": one_of(16, 32, 64),
        **_EPOCHS,
        "ent_coef": one_of(0.0, 0.01, 0.05),
        "gae_lambda": one_of(0.9, 0.95, 1.0),
    },
    "dqn": _Q,
    "qr_dqn": _Q,
    "ars": {
        "learning_rate": log(0.05, 3.0),
        "delta_std": log(0.02, 0.3),
        "n_delta": one_of(2, 4, 8),
        "n_envs": one_of(8, 16, 32),
        "searched": one_of("last_norm", "norms"),
    },
    "grpo": {**_ON_POLICY, **_EPOCHS, "group_size": one_of(4, 8)},
    "dr_grpo": {**_ON_POLICY, **_EPOCHS, "group_size": one_of(4, 8)},
    "rloo": {**_ON_POLICY, **_EPOCHS, "group_size": one_of(4, 8)},
    "remax": {**_ON_POLICY, **_EPOCHS},
    "reinforce_pp": {**_ON_POLICY, **_EPOCHS},
    "trl_ppo": {
        "learning_rate": log(1e-4, 1.5e-3),
        "batch_size": one_of(32, 64, 128),
        "n_epochs": one_of(2, 4, 8),
        "vf_coef": one_of(0.1, 0.5),
    },
    "trl_rloo": {
        "learning_rate": log(1e-4, 1.5e-3),
        "batch_size": one_of(32, 64, 128),
        "n_epochs": one_of(1, 2, 4),
        "group_size": one_of(4, 8),
    },
}
_PAIRS: Space = {"learning_rate": log(3e-5, 1e-3), "beta": log(0.03, 1.0), "epochs": one_of(1, 2)}
SPACES |= {
    **dict.fromkeys(("dpo", "dpo_labels", "iterated_dpo", "tdpo1", "ipo", "kto"), _PAIRS),
    "dpop": {**_PAIRS, "dpop_lambda": log(0.3, 50.0)},
    "tdpo2": {**_PAIRS, "tdpo_alpha": one_of(0.25, 0.5, 1.0)},
    "orpo": {**_PAIRS, "beta": log(0.05, 5.0)},
    "simpo": {**_PAIRS, "beta": log(0.5, 5.0)},
    "rejection_sampling": {
        "learning_rate": log(1e-4, 2e-3),
        "n_responses": one_of(4, 8, 16),
        "epochs": one_of(1, 2, 4),
        "rounds": one_of(1, 3),
    },
}
SPACES["trl_grpo"] = SPACES["trl_rloo"]
# Where the defaults are not the algorithms' table's: peers, preference methods, and choices that the table has no value for.
DEFAULT_TRIALS: dict[str, dict[str, Any]] = {
    "trl_ppo": {"learning_rate": 3e-4, "batch_size": 64, "n_epochs": 4, "vf_coef": 0.1},
    "trl_rloo": {"learning_rate": 3e-4, "batch_size": 64, "n_epochs": 2, "group_size": 4},
    "trl_grpo": {"learning_rate": 3e-4, "batch_size": 64, "n_epochs": 2, "group_size": 4},
    "maskable_ppo": {"top_p": 0.95, "mask_refresh": 0},
    "ars": {"searched": "last_norm", "n_envs": 16},
    **{
        name: {"learning_rate": 2e-4, "beta": 0.1, "epochs": 2}
        for name in ("dpo", "dpo_labels", "iterated_dpo", "tdpo1")
    },
    "tdpo2": {"learning_rate": 2e-4, "beta": 0.1, "tdpo_alpha": 0.5, "epochs": 2},
    "ipo": {"learning_rate": 2e-4, "beta": 0.1, "epochs": 2},
    "kto": {"learning_rate": 2e-4, "beta": 0.1, "epochs": 2},
    "dpop": {"learning_rate": 2e-4, "beta": 0.3, "dpop_lambda": 5.0, "epochs": 2},
    "orpo": {"learning_rate": 2e-4, "beta": 1.0, "epochs": 2},
    "simpo": {"learning_rate": 2e-4, "beta": 2.0, "epochs": 2},
    "rejection_sampling": {"learning_rate": 5e-4, "n_responses": 8, "epochs": 2, "rounds": 3},
}


def suggest(trial: Any, algo: str) -> dict[str, Any]:
    """Settings that an Optuna trial chooses."""
    chosen: dict[str, Any] = {}
    for name, (kind, values) in SPACES[algo].items():
        if kind == "log":
            chosen[name] = trial.suggest_float(name, *values, log=True)
        else:
            chosen[name] = trial.suggest_categorical(name, values)
    return chosen


def first_trial(algo: str) -> dict[str, Any]:
    """The algorithm's default of each setting that the search may choose."""
    from agents.algorithms.table import ALGORITHMS
    from agents.algorithms.wiring import LAMBDA_OF_REWARD_MODEL  # the compared tasks have one

    defaults: dict[str, Any] = {"n_envs": 64, **DEFAULT_TRIALS.get(algo, {})}
    if algo in ALGORITHMS:
        defaults = {"gae_lambda": LAMBDA_OF_REWARD_MODEL, **ALGORITHMS[algo].defaults, **defaults}
    return {name: defaults[name] for name in SPACES[algo] if name in defaults}


def job_params(algo: str, chosen: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `make_algorithm` for a trial's choice."""
    params = dict(chosen)
    if "top_p" in params:
        params["env_kwargs"] = {"top_p": params.pop("top_p")}
    return params
