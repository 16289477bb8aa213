"""What each process of a run has to itself, and a checkpoint keeps: its slots, and its random streams."""

from __future__ import annotations

import random
import warnings
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm

from agents.distributed import ranks
from agents.rollouts.vec_env import text_env


def slots_and_streams(model: BaseAlgorithm) -> dict[str, Any]:
    """Gives slots, place in the order of prompts, and the random streams but for torch's, in plain values."""
    starts = model._last_episode_starts
    return {
        "random": _random_state(model),
        "env": text_env(model.env).state_dict(),
        "episode_starts": [False] * model.n_envs if starts is None else np.asarray(starts).astype(bool).tolist(),
        "ep_info_buffer": [_plain(info) for info in model.ep_info_buffer or []],
    }


def rank_state(model: BaseAlgorithm) -> dict[str, Any]:
    """Gives the same with torch's random streams: what a rank sends to the one that writes."""
    return {
        **slots_and_streams(model),
        "torch": {name: state.tolist() for name, state in torch_random_state().items()},
    }


def load_slots_and_streams(
    model: BaseAlgorithm, written_by: Sequence[dict[str, Any]], first_streams: dict[str, torch.Tensor]
) -> None:
    """Puts this process where the same rank was; of another number of ranks, each takes its part of their slots.

    Args:
        model: The algorithm.
        written_by: What `slots_and_streams`, and from rank 1 on `rank_state`, gave on each rank that wrote the checkpoint.
        first_streams: Rank 0's torch streams.
    """
    me, env = ranks(), text_env(model.env)
    same = len(written_by) == me.world
    own = written_by[min(me.rank, len(written_by) - 1)]
    slots = own if same else _part_of_slots(written_by, env.group_size)
    model.ep_info_buffer = deque(own["ep_info_buffer"], maxlen=model._stats_window_size)
    model.ep_success_buffer = deque(maxlen=model._stats_window_size)
    model._last_obs = env.load_state_dict(slots["env"])  # type: ignore[assignment]
    model._last_episode_starts = np.array(slots["episode_starts"], dtype=bool)
    if not same and me.first:
        warnings.warn(
            f"the checkpoint is of {len(written_by)} process{'es' * (len(written_by) > 1)}, and now there "
            f"{'are' if me.several else 'is'} {me.world}: weights, optimizer and prompts go on, but what is sampled is not "
            "what it would have been.",
            stacklevel=2,
        )
    if me.rank < len(written_by):
        streams = (
            first_streams if me.first else {n: torch.tensor(v, dtype=torch.uint8) for n, v in own["torch"].items()}
        )
        _load_random_state(model, own["random"], streams)
    # A rank that there was not keeps the streams that `distribute` gave it.


def _part_of_slots(written_by: Sequence[dict[str, Any]], group_size: int) -> dict[str, Any]:
    """This rank's part of the slots of another number of ranks; all were at one place of one order of prompts."""

    def place(slot: int, rank: int, world: int) -> int:
        """Where a rank's slot stands among all, whose groups take turns over the ranks."""
        return (slot // group_size * world + rank) * group_size + slot % group_size

    def parted(values: Sequence[Sequence[Any]]) -> list[Any]:
        of_all = {place(s, r, len(values)): value for r, own in enumerate(values) for s, value in enumerate(own)}
        return [of_all[place(s, ranks().rank, ranks().world)] for s in range(len(of_all) // ranks().world)]

    env = written_by[0]["env"]
    episodes = parted([state["env"]["batch"]["episodes"] for state in written_by])
    return {
        "env": {**env, "batch": {**env["batch"], "episodes": episodes}},
        "episode_starts": parted([state["episode_starts"] for state in written_by]),
    }


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return value.item() if isinstance(value, np.generic) else value


def torch_random_state() -> dict[str, torch.Tensor]:
    """Torch's random streams: of the CPU, and of each GPU."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states.update({f"cuda{i}": s for i, s in enumerate(torch.cuda.get_rng_state_all())})
    return states


def _random_state(model: BaseAlgorithm) -> dict[str, Any]:
    version, internal, gauss = random.getstate()
    name, keys, pos, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": [version, list(internal), gauss],
        "numpy": [name, np.asarray(keys).tolist(), int(pos), int(has_gauss), float(cached)],
        "action_space": model.action_space.np_random.bit_generator.state,
    }


def _load_random_state(model: BaseAlgorithm, values: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    version, internal, gauss = values["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, pos, has_gauss, cached = values["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), pos, has_gauss, cached))
    model.action_space.np_random.bit_generator.state = values["action_space"]
    torch.set_rng_state(tensors["cpu"])
    cuda = [tensors[f"cuda{i}"] for i in range(len(tensors) - 1)]
    if cuda and torch.cuda.is_available() and len(cuda) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(cuda)
