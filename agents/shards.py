"""A policy in shards: each rank has its part of every weight, gradient and optimizer state (``--sharding full``).

The engine is PyTorch's FSDP2 (`fully_shard`). Each decoder layer is a unit, and the policy the root, with all that is in no
layer. To compute, a unit's weights are put together on every rank, and given up again; gradients are added up as they are cut
into shards. So a rank computes with its share of everything and one unit.

FSDP2 comes in where a module is called, and an actor-critic policy is called in many ways. All of them go through one method
of it, `LLMActorCriticPolicy.compute`, which counts as its forward pass. Every call is one that all ranks make: they agree on
the number of mini-batches, of their parts, and of the groups in which rollouts are scored (`as_often_as_others`).

What decodes is a whole copy of the actor on each rank, brought up to date once a rollout: a step of decoding is over sooner
than the weights of a layer could be put together. No other whole model is made in loading: rank 0 reads the weights, on the
CPU, and gives each unit away before the next one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from stable_baselines3.common.utils import get_device
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from agents.distributed import ranks
from llm_env.lm.loading import without_weights
from llm_env.lm.packed_attention import can_pack, note_can_pack

T = TypeVar("T")


def loading() -> contextlib.AbstractContextManager[Any]:
    """A context in which networks are loaded that will be cut into shards: only on rank 0 with their weights."""
    return without_weights() if ranks().shards and not ranks().first else contextlib.nullcontext()


def device_of_shards() -> torch.device:
    """Where shards are: on this rank's GPU, or on the CPU where there is none."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def check_device(device: str) -> None:
    """Refuses a device that shards cannot be on.

    Raises:
        ValueError: it is another one than `device_of_shards`.
    """
    if get_device(device).type != device_of_shards().type:
        raise ValueError(
            f"device={device!r}: with sharding='full' weights are on {device_of_shards().type}. Leave the device out."
        )


def shard(policy: nn.Module, trunks: Sequence[nn.Module]) -> None:
    """Cuts a policy into shards, in place, and gives every rank its part of rank 0's weights.

    Args:
        policy: Has a method ``compute``. On ranks other than 0 its weights may be on the meta device.
        trunks: The decoders in it, whose layers become units.

    Raises:
        ValueError: a decoder does not say what its layers are.
    """
    device = device_of_shards()
    mesh = init_device_mesh(device.type, (ranks().world,))
    for trunk in trunks:  # while rank 0 has it whole
        note_can_pack(trunk, ranks().from_first(can_pack(trunk) if ranks().first else None))
    for unit in [layer for trunk in trunks for layer in layers_of(trunk)]:
        _receive(unit, device)
        fully_shard(unit, mesh=mesh)
    _receive(policy, device)
    fully_shard(policy, mesh=mesh, reshard_after_forward=True)
    register_fsdp_forward_method(policy, "compute")
    for module in policy.modules():
        if isinstance(module, FSDPModule):
            # Gradients come weighted (`Ranks.joined`): they are added up, in a way that gloo knows too.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def layers_of(trunk: nn.Module) -> list[nn.Module]:
    """A decoder's layers, which it names as what must not be cut in two.

    Raises:
        ValueError: it names none.
    """
    names = set(getattr(trunk, "_no_split_modules", None) or ())
    layers = [m for m in trunk.modules() if type(m).__name__ in names]
    if not layers:
        raise ValueError(
            f"sharding='full': {type(trunk).__name__} does not say what its layers are (_no_split_modules), so it cannot be "
            "cut into shards. Use --sharding none."
        )
    return layers


@torch.no_grad()
def _receive(unit: nn.Module, device: torch.device) -> None:
    """Gives a unit rank 0's weights and buffers, whole, on its device; what is in shards already stays.

    Args:
        unit: A layer, or what is left of the policy.
        device: Where it will be.
    """
    # Parameters that took the place of others, by the `id` of those: a tied weight stays one. Of this unit alone: what it
    # holds stays in memory.
    made: dict[int, nn.Parameter] = {}
    for module in unit.modules():
        for name, parameter in module._parameters.items():
            if parameter is None or isinstance(parameter, DTensor):
                continue
            if id(parameter) not in made:
                moved = nn.Parameter(_like_first(parameter, device), requires_grad=parameter.requires_grad)
                made[id(parameter)] = made[id(moved)] = moved
            module._parameters[name] = made[id(parameter)]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = _like_first(buffer, device)


def _like_first(tensor: Tensor, device: torch.device) -> Tensor:
    own = torch.empty_like(tensor, device=device) if tensor.is_meta else tensor.to(device)
    ranks().send_tensor(own.data)
    return own


def whole(tensor: Tensor) -> Tensor:
    """A tensor that may be in shards, whole; all ranks must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def own_part(tensor: Tensor) -> Tensor:
    """What this rank has of a tensor that may be in shards."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def placed_like(tensor: Tensor, target: Tensor) -> Tensor:
    """A whole tensor that all ranks have alike, in shards as `target` is, if it is."""
    if not isinstance(target, DTensor):
        return tensor
    mesh = target.device_mesh
    return distribute_tensor(tensor.to(mesh.device_type), mesh, target.placements, src_data_rank=None)


def wholes_on_first(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of tensors, whole and on the CPU, on rank 0; nothing on the others. All ranks must ask.

    safetensors, which they are for, refuses tensors that share memory, as those of tied embeddings do.
    """
    kept: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if isinstance(tensor, DTensor) or ranks().first:
            value = whole(tensor.detach())  # one at a time
            if ranks().first:
                kept[name] = value.cpu().contiguous().clone()
    return kept


def load_from_first(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Loads rank 0's whole tensors into a module that may be in shards. All ranks must ask.

    Args:
        module: Has a state of these names.
        tensors: As `wholes_on_first` gave them; what other ranks give is not looked at.
    """
    targets = module.state_dict()
    module.load_state_dict(ranks().tensors_from_first(tensors, lambda name, t: placed_like(t, targets[name])))


def as_often_as_others(groups: list[T]) -> list[tuple[T, bool]]:
    """What a rank works through in turn, as often as the rank that has most of it.

    Returns:
        Pairs of a group and whether it counts: the last one comes again where the others are not through yet.
    """
    if not ranks().shards:
        return [(group, True) for group in groups]
    most = max(ranks().everyone(len(groups)))
    return [*((group, True) for group in groups), *((groups[-1], False) for _ in range(most - len(groups)))]
