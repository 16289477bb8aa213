"""`load_algorithm`: what SB3's `save` wrote, loaded without running any code that may be in it.

SB3's own ``PPO.load`` runs ``cloudpickle`` on parts of the file, which executes whatever somebody put there
(https://github.com/DLR-RM/stable-baselines3/issues/1831). Here three things are read: the weights, with
``torch.load(weights_only=True)``; plain JSON that says what the algorithm was made from; its counters.
"""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from sb3_contrib import ARS
from stable_baselines3.common.base_class import BaseAlgorithm

from agents.algorithms.factory import make_algorithm
from agents.algorithms.record import RECORD, schedule_from, schedules_made
from agents.algorithms.table import algorithm, settings_of
from agents.runs.checkpoint import COUNTERS, MORE_COUNTERS
from llm_env.reward.endpoint import is_url
from llm_env.reward.judges.names import is_language_judge
from llm_env.reward.models import reads_texts
from llm_env.rules import number

MADE_AGAIN = frozenset(
    (
        *("policy_class", "policy_kwargs", "observation_space", "action_space"),
        *("rollout_buffer_class", "replay_buffer_class", "ep_info_buffer", "ep_success_buffer"),
        *("_last_obs", "_last_episode_starts", "_last_original_obs", "_last_lstm_states", "weights"),
        *("learning_rate", "lr_schedule", "clip_range", "clip_range_vf", "train_freq"),
        *("exploration_schedule", "delta_std_schedule"),
    )
)
"""What SB3 pickles and is not needed: it follows from the settings, or a new rollout begins with it."""
_PICKLED = ":serialized:"
_LARGEST_DATA = 1 << 26  # bytes of JSON: with thousands of slots it is some megabytes


def load_algorithm(
    path: str | Path,
    env: Any = None,
    *,
    algo: str | None = None,
    trust_remote_code: bool = False,
    **settings: Any,
) -> BaseAlgorithm:
    """Loads what `model.save(path)` wrote, to predict with or to go on training; nothing in the file is executed.

    SB3 saves weights, optimizer and counters, but neither random states nor episodes under way: an exact continuation is what
    `agents.load_checkpoint` is for.

    Args:
        path: The zip file; ``.zip`` may be left out, as in `save`.
        env: As in `make_algorithm`. None: made from the settings in the file.
        algo: The algorithm's name, as in `make_algorithm`; only needed for one that `make_algorithm` did not make.
        trust_remote_code: Whether model code from a hub may run, if the file asks for it.
        settings: Settings of the algorithm that take the place of the file's, such as ``device``, or that the file cannot say
            without a pickle, such as a schedule of your own.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no such zip, is damaged, does not fit, or has a pickle that would have to be run; or it names
            a Python function as the reward, which would have to be imported.
    """
    path = Path(path)
    if not path.suffix and not path.exists():  # SB3's `save` adds it too
        path = path.with_suffix(".zip")
    data = _read_data(path)
    record = _read_record(path, data)
    name = algo or (None if record is None else record["name"])
    if name is None:
        raise ValueError(
            f"{path} was not saved from what make_algorithm made. Say which algorithm it is: algo='ppo', …"
        )
    _refuse_pickles(path, data, settings)
    # The settings of make_algorithm's call, or of what was made by hand; then the environment.
    saved = (
        _plain_settings(path, name, data, settings)
        if record is None
        else _record_settings(path, name, record, settings)
    )
    chosen = {**saved, **settings}
    _check_remote_code(path, chosen, trust_remote_code)
    if env is not None:
        arguments = {"env": env}
    elif record is not None:
        arguments = _environment_arguments(path, record, trust_remote_code)
    else:
        raise ValueError(f"{path} does not say which environment it was trained on: give env=…")
    model = make_algorithm(name, **arguments, **chosen)
    _load_weights(model, path)
    for counter in (*COUNTERS, *MORE_COUNTERS):
        if number(least=0).allows(data.get(counter)) and hasattr(model, counter):
            setattr(model, counter, data[counter])
    return model


def _read_data(path: Path) -> dict[str, Any]:
    """Reads the file's JSON, in which pickles are texts like any other."""
    if not path.is_file():
        raise FileNotFoundError(f"path={str(path)!r}: there is no such file.")
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.getinfo("data").file_size > _LARGEST_DATA:
                raise ValueError(f"{path}: its data has more than {_LARGEST_DATA:,} bytes.")
            data = json.loads(archive.read("data"))
    except (zipfile.BadZipFile, KeyError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not what an algorithm's save writes, or it is damaged ({error}).") from error
    if not isinstance(data, dict):
        raise ValueError(f"{path} is not what an algorithm's save writes: its data is no JSON object.")
    return data


def _read_record(path: Path, data: Mapping[str, Any]) -> dict[str, Any] | None:
    """What `make_algorithm` noted of its arguments; None where the algorithm was made by hand."""
    record = data.get(RECORD)
    if record is None:
        return None
    kinds = {
        "name": str,
        "n_envs": int,
        "episodes": str,
        "env_kwargs": dict,
        "settings": dict,
        "rounds": int,
        "left_out": list,
    }
    if not isinstance(record, dict) or not all(isinstance(record.get(key), kind) for key, kind in kinds.items()):
        raise ValueError(f"{path}: its {RECORD} is not what make_algorithm notes there.")
    return record


def _refuse_pickles(path: Path, data: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Refuses pickles of what cannot be made again from settings."""
    pickled = [key for key, value in data.items() if isinstance(value, dict) and _PICKLED in value]
    if unknown := sorted(key for key in pickled if key not in MADE_AGAIN and key not in given):
        raise ValueError(
            f"{path} has pickled Python under {', '.join(unknown)}, which would be executed if it were loaded. Save the "
            "algorithm without it, or say what it is as a keyword argument."
        )


def _record_settings(path: Path, name: str, record: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that `make_algorithm` was called with: those of the algorithm, and nothing else that the file may have."""
    settings = {k: v for k, v in schedules_made(record["settings"]).items() if k != "tensorboard_log"}
    if unknown := sorted(settings.keys() - _names(name)):
        raise ValueError(f"{path}: its {RECORD} has {', '.join(unknown)}, which are no settings of {name}.")
    left_out = [n.removeprefix("settings.") for n in record["left_out"] if str(n).startswith("settings.")]
    if missing := [n for n in left_out if n.partition(".")[0] not in given]:
        raise ValueError(
            f"{path}: {', '.join(missing)} could not be saved as plain values. Say what they are as keyword arguments."
        )
    return {**settings, "rounds": record["rounds"]}


def _names(name: str) -> set[str]:
    """The settings of an algorithm that a file may have."""
    return {*settings_of(name), "kl_in", "policy_kwargs", "rollout_buffer_kwargs", "replay_buffer_kwargs"}


def _plain_settings(path: Path, name: str, data: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of an algorithm that was made by hand: its own attributes, where they are plain values or schedules."""
    row, settings = algorithm(name), {}
    for key in _names(name) & data.keys() - {"seed", "device", "tensorboard_log"}:
        value = data[key]
        if isinstance(value, dict) and _PICKLED in value:
            # SB3 writes beside each pickle what its parts say of themselves.
            value = schedule_from(str({k: v for k, v in value.items() if k != _PICKLED}))
            if value is None:
                if key not in given:
                    raise ValueError(f"{path}: {key} is a pickle there. Say what it is: load_algorithm(…, {key}=…).")
                continue
        settings[key] = value
    # These are arguments of the buffer, which has them in its own dictionary.
    if row.rollouts is False:
        settings.pop("n_steps", None)
    return settings


def _environment_arguments(path: Path, record: Mapping[str, Any], trust_remote_code: bool) -> dict[str, Any]:
    """The arguments of `make_algorithm` that say which environment it is."""
    kwargs = dict(record["env_kwargs"])
    if left_out := [str(n).removeprefix("env_kwargs.") for n in record["left_out"] if str(n).startswith("env_kwargs.")]:
        raise ValueError(
            f"{path}: {', '.join(left_out)} could not be saved as plain values. Give the environment: env=…"
        )
    if kwargs.get("world") is not None:
        raise ValueError(
            f"{path} names a world ({kwargs['world']!r}), which would be imported and made. If you trust it, give the "
            "environment yourself: env=…"
        )
    rewards = kwargs["reward_model"] if isinstance(kwargs.get("reward_model"), list) else [kwargs.get("reward_model")]
    names = [str(r[0] if isinstance(r, list) and r else r) for r in rewards if r is not None]
    if functions := [n for n in names if reads_texts(n) and not is_url(n) and not is_language_judge(n)]:
        raise ValueError(
            f"{path} names a Python function as its reward ({', '.join(functions)}), which would be imported and called. If "
            "you trust it, give the environment yourself: env=…"
        )
    _check_remote_code(path, kwargs, trust_remote_code)
    return {"env_kwargs": kwargs, "n_envs": record["n_envs"], "episodes": record["episodes"]}


def _check_remote_code(path: Path, settings: Mapping[str, Any], trusted: bool) -> None:
    nested = settings.get("policy_kwargs") or {}
    if (settings.get("trust_remote_code") or nested.get("trust_remote_code")) and not trusted:
        raise ValueError(f"{path} asks to run model code from a hub. If you trust it: trust_remote_code=True.")


def _load_weights(model: BaseAlgorithm, path: Path) -> None:
    """Puts the file's weights and optimizer states into a model that was made with the same settings."""
    try:
        model.set_parameters(str(path), device=model.device)
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path}: its weights are not only tensors: {str(error).splitlines()[0]}") from error
    except (RuntimeError, ValueError, KeyError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: its weights do not fit, or are damaged: {' '.join(str(error).split())}") from error
    if isinstance(model, ARS):  # it searches from this vector, not from the policy
        weights: Any = torch.nn.utils.parameters_to_vector(model.policy.parameters()).detach()
        model.weights = weights
