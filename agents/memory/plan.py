"""The plan: what one process of a run needs in memory while it collects, scores and trains."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from agents.distributed import BUCKET_BYTES
from agents.memory import passes
from agents.memory.formulas import gathered_bytes, rollout_bytes, share
from agents.memory.networks import Networks, Sizes, build, sizes
from agents.memory.weightless import nbytes, trained, weightless
from agents.policies.critic import CriticNetwork
from agents.runs.settings import RunSettings
from agents.shards import layers_of
from llm_env.extras import require
from llm_env.lm.quantization import nf4_layers, whole_shape

PHASES = ("collecting", "scoring", "training")
GPU_CONTEXT = 500 * 2**20
"""What CUDA takes of a GPU before the first tensor: driver's context and kernels, about."""
AT_WORK = 80 * 2**20
"""What libraries take on a CPU beyond what they have once they are imported, for tokenizer, compiled kernels, and what the
allocator keeps. About; scripts/lab/plan_memory.py measures it."""


@dataclass(frozen=True)
class Plan:
    """What one process of a run needs.

    Attributes:
        parts: Bytes of each part in each phase, by the part's name and the phase's.
        settings: The run's settings.
        sizes: What the process works on.
        processes: How many there are.
        sharding: Whether each has all weights (``none``), or its part of them (``full``).
        device: ``cpu`` or ``cuda``.
        weights: Number of weights of actor and critic, and how many of them are trained.
        gradients: Bytes of all gradients at an update's end, of one process without shards.
        counted: Whether an update's memory was counted; else it is estimated by formulas.
    """

    parts: dict[str, dict[str, int]]
    settings: RunSettings
    sizes: Sizes
    processes: int
    sharding: str
    device: str
    weights: dict[str, int]
    gradients: int
    counted: bool

    def sums(self) -> dict[str, int]:
        """Bytes of each phase."""
        return {phase: sum(part[phase] for part in self.parts.values()) for phase in PHASES}

    @property
    def peak(self) -> tuple[str, int]:
        """The phase that needs most, and its bytes."""
        return max(self.sums().items(), key=lambda pair: pair[1])

    @property
    def needed(self) -> int:
        """Bytes of the device: on a CPU all processes are in one memory, while each GPU has its own."""
        return self.peak[1] * (self.processes if self.device == "cpu" else 1)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values, in bytes."""
        phase, most = self.peak
        return {
            "algorithm": self.settings.algorithm.algo,
            "device": self.device,
            "processes": self.processes,
            "sharding": self.sharding,
            "weights": self.weights,
            "sizes": dataclasses.asdict(self.sizes),
            "parts": self.parts,
            "sums": self.sums(),
            "peak": {"phase": phase, "bytes": most},
            "needed": self.needed,
            "gradients": self.gradients,
            "counted": self.counted,
        }


def make_plan(settings: RunSettings, processes: int = 1, sharding: str = "none", device: str = "cpu") -> Plan:
    """Plans a run, without its weights.

    Args:
        settings: The run's settings, checked.
        processes: How many processes train together.
        sharding: ``none``, or ``full``: each has its part of the weights.
        device: ``cpu`` or ``cuda``, which the run will be on.

    Raises:
        FileNotFoundError, ValueError, TypeError, ImportError: as `agents.memory.networks.build`.
    """
    base = resident() + AT_WORK if device == "cpu" else GPU_CONTEXT
    if settings.task.base_quantization != "none":
        require("bitsandbytes", "quantized")  # here, where the tables that it makes when it is imported have data
    with weightless():
        networks = build(settings)
        size = sizes(networks, settings, processes)
        parts = {name: dict.fromkeys(PHASES, bytes_) for name, bytes_ in held(networks, processes, sharding).items()}
        work, asked, found = _work(networks, size)
        parts |= work
        idle = networks.idle - ({"critic"} if sharding == "full" else set())
        if device != "cpu" and idle:
            put_aside(parts, idle, asked, found)
        if sharding == "full":
            _share_update(parts, networks, processes)
        elif processes > 1:  # gradients are added up in two buckets, one under way while the other is filled
            parts["exchange"] = {**dict.fromkeys(PHASES, 0), "training": 2 * BUCKET_BYTES}
        _masks(parts, networks, size, settings)
        if device == "cpu":
            if settings.keeps_best_gold:
                parts["best actor"] = dict.fromkeys(PHASES, _kept(networks))
            parts["rollout"] = dict.fromkeys(PHASES, _rollout(networks, size, processes))
        parts["Python and libraries" if device == "cpu" else "CUDA"] = dict.fromkeys(PHASES, base)
        weights = {name: sum(t.numel() for t in tensors) for name, tensors in networks.weights().items() if tensors}
        weights["trained"] = sum(p.numel() for p in trained(networks.policy.parameters()))
        parts = {name: part for name, part in parts.items() if any(part.values())}
        return Plan(parts, settings, size, processes, sharding, device, weights, found.gradients, found.counted)


def put_aside(
    parts: dict[str, dict[str, int]], idle: Set[str], asked: Sequence[passes.Asked], found: passes.Update
) -> None:
    """Takes models that idle out of a plan, in place.

    Collecting needs none of them; scoring has them one at a time, of which the one that needs most with its weights counts;
    training has the critic.

    Args:
        parts: The plan, with all models on the device all the time.
        idle: The models' names.
        asked: What asking each of them about a rollout needs.
        found: What an update needs, of which the critic's optimizer states are taken.
    """
    worst = max(asked, key=lambda one: one.needs + (one.weights if one.part in idle else 0))
    for kind in ("activations", "logits"):
        parts[kind]["scoring"] = worst.most[kind]
    for name in idle & parts.keys():
        scoring = worst.weights if name == worst.part else 0
        parts[name] |= {"collecting": 0, "scoring": scoring, "training": parts[name]["training"] * (name == "critic")}
    if "critic" in idle:
        for phase in ("collecting", "scoring"):
            parts["optimizer"][phase] -= found.of_critic


def held(networks: Networks, processes: int, sharding: str) -> dict[str, int]:
    """Bytes of the networks that are there all the time, by name; the optimizer's states are not among them."""
    weights = networks.weights()
    policy, reference = networks.policy, networks.task.model.lm.model
    own = share if sharding == "full" else lambda size, processes: size
    found = {
        "actor": own(nbytes(weights["actor"]), processes),
        "critic": own(nbytes(weights["critic"]), processes),
        "target network": nbytes(weights["target"]),
    }
    # With LoRA the reference is the actor without its adapters, where the two can be one model (`agents.policies.actor.Actor`).
    is_actor = reference is policy.lm.model
    if not is_actor or sharding == "full":
        found["reference"] = nbytes(t for name, t in _tensors(reference) if "lora_" not in name)
    found["reward model"] = nbytes(t for model in networks.rewards for _, t in _tensors(model))
    copy = networks.decoder.lm.model
    if copy is not policy.lm.model:
        found["decoding copy"] = nbytes(t for _, t in _tensors(copy))
    elif sharding == "full":
        found["decoding copy"] = nbytes(t for name, t in _tensors(copy) if "lora_" not in name)
    return found


def _tensors(model: nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]


def _work(networks: Networks, size: Sizes) -> tuple[dict[str, dict[str, int]], list[passes.Asked], passes.Update]:
    """What the passes of `agents.memory.passes` found, by part and phase; who was asked, and what an update was."""
    parts = {name: dict.fromkeys(PHASES, 0) for name in ("gradients", "optimizer", "cache", "activations", "logits")}
    decoder = networks.decoder.lm  # the copy in mixed precision is made before the weights move
    most, cache = passes.decode(decoder, networks, size)
    parts["cache"] |= {"collecting": cache, "scoring": cache if not networks.is_q_network else 0}
    for kind, count in most.items():
        parts[kind]["collecting"] = count - (cache if kind == "activations" else 0)
    asked = passes.asked(networks, size)
    for kind, count in passes.most_needing(asked).items():
        parts[kind]["scoring"] = count
    found = passes.update(networks, size)
    for kind, count in found.most.items():
        parts[kind]["training"] = count
    if found.gradients > sum(found.most.values()):  # then the optimizer's step is where most is needed
        parts["activations"]["training"] = parts["logits"]["training"] = 0
        parts["gradients"]["training"] = found.gradients
    parts["optimizer"] = dict.fromkeys(PHASES, found.optimizer)
    return parts, asked, found


def _share_update(parts: dict[str, dict[str, int]], networks: Networks, processes: int) -> None:
    """Cuts gradients and the optimizer's states into shards, in place, and adds what is put together for a moment."""
    policy = networks.policy
    trunks = [networks.lm.trunk, *([policy.critic.trunk] if isinstance(policy.critic, CriticNetwork) else [])]
    layers = [nbytes(layer.parameters()) for trunk in trunks for layer in layers_of(trunk)]
    rest = nbytes(policy.parameters()) - sum(layers)
    gathered = gathered_bytes(max(layers), rest)
    parts["put together"] = {"collecting": 0, "scoring": gathered, "training": 2 * gathered}  # gradients too
    for name in ("gradients", "optimizer"):
        parts[name] = {phase: share(count, processes) for phase, count in parts[name].items()}


def _masks(parts: dict[str, dict[str, int]], networks: Networks, size: Sizes, settings: RunSettings) -> None:
    """Adds second caches and copies: of who is asked at every step, and whose top-k and top-p are looked at."""
    reference = networks.task.model.lm
    looks = settings.task.top_k > 0 or settings.task.top_p < 1.0
    if networks.is_q_network or looks:
        parts["reference's cache"] = dict.fromkeys(PHASES, passes.cache_of(reference, size))
    if settings.algorithm.mask_refresh and looks:
        layers = nf4_layers(reference.model).values()  # which the copy has whole
        whole = sum(4 * whole_shape(layer).numel() - nbytes([layer.weight, *layer.buffers()]) for layer in layers)
        parts["masks' copy"] = dict.fromkeys(PHASES, nbytes(t for _, t in _tensors(reference.model)) + whole)
    if networks.made.row.buffer.get("advantages") == "remax":  # a greedy response to each prompt
        parts["greedy cache"] = {**dict.fromkeys(PHASES, 0), "scoring": passes.cache_of(networks.decoder.lm, size)}


def _kept(networks: Networks) -> int:
    """Bytes of the copy that `agents.callbacks.best_gold` keeps, in which a tied weight stands under each of its names."""
    return sum(t.numel() * t.element_size() for t in networks.policy.state_dict().values())


def _rollout(networks: Networks, size: Sizes, processes: int) -> int:
    """Bytes of the buffer when it is full, all episodes being as long as they can be."""
    if networks.is_q_network:
        tokens = int(networks.made.arguments["buffer_size"])
        return rollout_bytes(tokens, tokens // size.response * size.prompt, 0, False)
    tokens = size.episodes * size.response
    return rollout_bytes(tokens, size.episodes * size.prompt, networks.lm.vocab_size, networks.task.masks.active)


def resident() -> int:
    """Bytes that this process has from the system: Python and the libraries, where nothing else is loaded.

    0 where the system does not say.
    """
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
