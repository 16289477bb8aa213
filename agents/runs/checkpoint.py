"""Checkpoints: everything that a run needs to go on as if it had never stopped.

A checkpoint is a folder ``step_000123456`` of safetensors and JSON; nothing in it is unpickled. It is written under
another name, flushed to the disk, and renamed when it is whole, so a half-written one is never taken for a checkpoint;
``checksums.json`` has the SHA-256 of each of its files, so one that was damaged later is not taken for one either. It is
written between two iterations, when the rollout buffer holds nothing that is still needed.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from sb3_contrib import RecurrentPPO
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from agents.checksums import CHECKSUMS, damaged_file, read_object, write_checksums
from agents.distributed import ranks
from agents.files import flush
from agents.rollouts.replay import TokenReplayBuffer
from agents.rollouts.vec_env import text_env
from agents.runs.rank_states import load_slots_and_streams, rank_state, slots_and_streams, torch_random_state
from agents.shards import placed_like, wholes_on_first
from llm_env.lm.weights import read_tensors

FORMAT = 2
"""Format 1, of earlier versions, is the same without ``checksums.json``."""
_ALWAYS_THERE = {"state.json", "policy.safetensors", "optimizer.safetensors", "random.safetensors"}
_TENSORS = ("policy", "optimizer", "random")
COUNTERS = ("num_timesteps", "_total_timesteps", "_episode_num", "_n_updates", "_current_progress_remaining")
MORE_COUNTERS = ("_n_calls", "exploration_rate")  # of DQN and QR-DQN
_PARTIAL = ".partial-"
_REFERENCE = "reference/"


class CheckpointError(ValueError):
    """A checkpoint cannot be gone on from: it is damaged, or was made with something else than is there now."""


def save_checkpoint(
    model: BaseAlgorithm,
    folder: Path,
    extra: dict[str, Any] | None = None,
    keep: int = 2,
    tensors: dict[str, torch.Tensor] | None = None,
) -> Path:
    """Writes a checkpoint and removes all but the newest `keep`.

    Args:
        model: The algorithm, between two iterations, on an `LLMTextVecEnv`.
        folder: The folder that holds all checkpoints of the run.
        extra: Plain values of the caller, which `load_checkpoint` returns.
        keep: Number of checkpoints to keep in the folder, at least 1.
        tensors: Tensors of the caller on rank 0, which `extra_tensors` returns.

    Returns:
        The checkpoint's folder.

    Raises:
        OSError: the disk is full or cannot be written; earlier checkpoints are untouched.
    """
    # What each process has to itself goes to rank 0, so that nothing but its disk is needed.
    others = ranks().everyone(None if ranks().first else rank_state(model))[1:]
    files, optimizer_values = _tensors(model)
    files["extra"] = tensors or {}
    target = folder / f"step_{model.num_timesteps * ranks().world:012d}"
    if ranks().first:
        _write(model, target, extra or {}, others, keep, files, optimizer_values)
    ranks().any(False)  # nobody goes on, or ends, before it is written
    return target


def _tensors(model: BaseAlgorithm) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, Any]]:
    """Gives each file's tensors, whole, on rank 0, by the file's name; and the optimizer's plain values."""
    state = model.policy.optimizer.state_dict()
    entries = {f"{index}/{name}": value for index, of in state["state"].items() for name, value in of.items()}
    scalars = {name: value for name, value in entries.items() if not isinstance(value, torch.Tensor)}
    files = {
        "policy": wholes_on_first(model.policy.state_dict()),
        "optimizer": wholes_on_first({name: value for name, value in entries.items() if name not in scalars}),
    }
    if ranks().first:
        files |= {"algorithm": _algorithm_tensors(model), "random": torch_random_state()}
    return files, {"groups": state["param_groups"], "scalars": scalars}


def _write(
    model: BaseAlgorithm,
    target: Path,
    extra: dict[str, Any],
    others: list[Any],
    keep: int,
    files: dict[str, dict[str, torch.Tensor]],
    optimizer_values: dict[str, Any],
) -> None:
    """Writes a checkpoint, whole or not at all, and removes old ones; `others` are the states of the ranks from 1 on."""
    # Everything is written to another name first, so that a folder named step_… is always whole.
    folder = target.parent
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{_PARTIAL}{target.name}"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir()
        for name, tensors in files.items():
            if tensors or name in _TENSORS:
                save_file(tensors, partial / f"{name}.safetensors")
        state = {
            "format": FORMAT,
            "counters": {name: getattr(model, name) for name in (*COUNTERS, *MORE_COUNTERS) if hasattr(model, name)},
            "optimizer": optimizer_values,
            **slots_and_streams(model),
            "mix": mix.order.state_dict() if (mix := getattr(model, "mix", None)) is not None else None,
            "extra": extra,
            **({"ranks": others} if others else {}),
        }
        (partial / "state.json").write_text(json.dumps(state), encoding="utf-8")
        write_checksums(partial)
        for path in (*partial.iterdir(), partial):  # on the disk before the rename, or a power cut could leave it empty
            flush(path)
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
        flush(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    for old in list_checkpoints(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first; `damage` says whether one is whole still."""
    return sorted(p for p in folder.glob("step_*") if p.is_dir())


def damage(checkpoint: Path) -> str | None:
    """Says what is wrong with a checkpoint's files; None where each is as it was written.

    Args:
        checkpoint: The checkpoint's folder. Of one that an earlier version wrote, without checksums, only ``state.json`` is
            checked.
    """
    if not (checkpoint / "state.json").is_file():
        return "state.json is missing"
    try:
        # The files' checksums first: what they contain is not worth reading where they differ.
        if (reason := damaged_file(checkpoint)) is not None:
            return reason
        state = read_object(checkpoint / "state.json")
        sums = read_object(checkpoint / CHECKSUMS) if (checkpoint / CHECKSUMS).is_file() else {}
    except ValueError as error:
        return str(error)
    if "format" not in state:
        return "state.json has no format"
    if state["format"] == 1:
        return None
    return None if sums.keys() >= _ALWAYS_THERE else f"{CHECKSUMS} is missing, or lacks a file"


def load_checkpoint(model: BaseAlgorithm, checkpoint: Path | None, check: bool = True) -> dict[str, Any]:
    """Puts an algorithm where `save_checkpoint` left off.

    Go on with ``model.learn(total - model.num_timesteps, reset_num_timesteps=False)``. With as many processes as wrote it, what
    follows is what would have followed; with another number it is not, since they sample by other random streams, and a warning
    says so.

    Args:
        model: An algorithm made with the same settings as the saved one.
        checkpoint: The checkpoint's folder, which rank 0 alone reads; the other processes may give None.
        check: Whether its files are compared with their checksums first; off where the caller has just done so.

    Returns:
        The plain values that were saved as `extra`.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        CheckpointError: a file of it is damaged, or it has another format, another number of slots, or weights that do not
            fit.
    """
    me = ranks()
    state: dict[str, Any] = {}
    files: dict[str, dict[str, torch.Tensor]] = {name: {} for name in (*_TENSORS, "algorithm")}
    if me.first:
        assert checkpoint is not None
        state, files = _read_checkpoint(model, checkpoint, check)
    state = me.from_first(state)
    files = {name: me.tensors_from_first(tensors, _keeper(model, name)) for name, tensors in files.items()}
    # Weights and optimizer first, then what the algorithm counts and keeps, then the environment, and last the random states,
    # which what comes before may have used.
    try:
        model.policy.load_state_dict(files["policy"])
    except RuntimeError as error:  # as torch says it, on many lines
        raise CheckpointError(f"{checkpoint} does not fit: {' '.join(str(error).split())}") from error
    _load_optimizer(model.policy.optimizer, files["optimizer"], state["optimizer"])
    written_by = [state, *state.get("ranks", [])]
    for name, value in state["counters"].items():
        # SB3 counts the steps of one process's slots.
        of_all = len(written_by) / me.world if name in ("num_timesteps", "_total_timesteps") else 1
        setattr(model, name, value if of_all == 1 else round(value * of_all))
    extra = dict(state["extra"])
    if tensors := files["algorithm"]:
        if "rollouts" in tensors:  # earlier versions kept the age of the masks' actor here
            extra["mask_rollouts"] = int(tensors.pop("rollouts"))
        _load_algorithm_tensors(model, tensors)
    if state.get("mix") is not None:
        model.mix.order.load_state_dict(state["mix"])  # type: ignore[attr-defined]  # of TextPPO
    load_slots_and_streams(model, written_by, files["random"])
    return extra


def _keeper(model: BaseAlgorithm, file: str) -> Callable[[str, torch.Tensor], torch.Tensor]:
    """Gives what a rank keeps of a tensor of a checkpoint's file: where the weights are in shards, its part."""
    if not ranks().shards or file not in ("policy", "optimizer"):
        return lambda _, tensor: tensor
    weights = model.policy.state_dict()
    moved = [p for group in model.policy.optimizer.param_groups for p in group["params"]]

    def keep(name: str, tensor: torch.Tensor) -> torch.Tensor:
        target = weights.get(name) if file == "policy" else moved[int(name.partition("/")[0])]
        # An optimizer's state has its parameter's shape, or is a counter, of which each rank has its own.
        return tensor if target is None or target.shape != tensor.shape else placed_like(tensor, target)

    return keep


def _read_checkpoint(
    model: BaseAlgorithm, checkpoint: Path, check: bool
) -> tuple[dict[str, Any], dict[str, dict[str, torch.Tensor]]]:
    """The plain values and the tensors of a checkpoint; see `load_checkpoint`."""
    if not (checkpoint / "state.json").is_file():
        raise FileNotFoundError(f"{checkpoint} holds no checkpoint.")
    if check and (reason := damage(checkpoint)) is not None:
        raise CheckpointError(f"{checkpoint} is damaged: {reason}. Take another checkpoint.")
    state = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
    if state["format"] not in range(1, FORMAT + 1):
        raise CheckpointError(f"{checkpoint} has format {state['format']}; this version reads 1 to {FORMAT}.")
    slots = sum(len(one["episode_starts"]) for one in (state, *state.get("ranks", [])))
    if slots != model.n_envs * ranks().world:
        raise CheckpointError(f"{checkpoint} has {slots} slots, the environment {model.n_envs * ranks().world}.")
    files = {name: _read(checkpoint / f"{name}.safetensors") for name in _TENSORS}
    own = checkpoint / "algorithm.safetensors"
    return state, {**files, "algorithm": _read(own) if own.is_file() else {}}


def extra_tensors(checkpoint: Path | None) -> dict[str, torch.Tensor]:
    """The tensors that were saved beside `extra`, on rank 0, which alone reads them; none where there were none.

    Args:
        checkpoint: The checkpoint's folder, looked at before by `load_checkpoint`; None on the other ranks.
    """
    path = None if checkpoint is None else checkpoint / "extra.safetensors"
    return _read(path) if path is not None and path.is_file() else {}


def _read(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file of a checkpoint; an earlier version wrote no checksums, by which damage would be known."""
    try:
        return read_tensors(path)
    except ValueError as error:
        raise CheckpointError(str(error)) from error


def _algorithm_tensors(model: BaseAlgorithm) -> dict[str, torch.Tensor]:
    """Tensors that an algorithm keeps besides policy and optimizer: replay buffer, LSTM states, mask model, moved reference."""
    if isinstance(model, OffPolicyAlgorithm):
        assert isinstance(model.replay_buffer, TokenReplayBuffer)
        return model.replay_buffer.state_tensors()
    if isinstance(model, RecurrentPPO):
        states = model._last_lstm_states
        assert states is not None
        return wholes_on_first({f"{k}{i}": t for k in ("pi", "vf") for i, t in enumerate(getattr(states, k))})
    tensors: dict[str, torch.Tensor] = {}
    env = text_env(model.env)
    if env.mask_copy is not None:
        tensors.update(wholes_on_first(dict(env.mask_copy.model.named_parameters())))
    task = env.task
    if task.reference.version:  # it has moved: the folder or hub id that it was loaded from has other weights
        weights = dict(task.own_reference().named_parameters())
        tensors.update(wholes_on_first({f"{_REFERENCE}{name}": p for name, p in weights.items()}))
    return tensors


def _load_algorithm_tensors(model: BaseAlgorithm, tensors: dict[str, torch.Tensor]) -> None:
    if isinstance(model, OffPolicyAlgorithm):
        assert isinstance(model.replay_buffer, TokenReplayBuffer)
        model.replay_buffer.load_state_tensors(tensors)
        return
    if isinstance(model, RecurrentPPO):
        states = {name: tensor.to(model.device) for name, tensor in tensors.items()}
        model._last_lstm_states = RNNStates(  # type: ignore[assignment]
            (states["pi0"], states["pi1"]), (states["vf0"], states["vf1"])
        )
        return
    reference = {n.removeprefix(_REFERENCE): t for n, t in tensors.items() if n.startswith(_REFERENCE)}
    if reference:
        text_env(model.env).task.load_reference(reference)
    masks = {n: t for n, t in tensors.items() if not n.startswith(_REFERENCE)}
    if masks:
        env = text_env(model.env)
        if env.mask_copy is None:
            env.take_masks_from(model.policy.lm)  # type: ignore[arg-type]  # a policy under masks has one
        env.load_masks(masks)


def _load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor], values: dict[str, Any]) -> None:
    state: dict[int, dict[str, Any]] = {}
    for key, value in [*tensors.items(), *values["scalars"].items()]:
        index, _, name = key.partition("/")
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": values["groups"]})
