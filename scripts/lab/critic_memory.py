"""What each critic costs in memory: its own weights with gradients and Adam's states, and what its forward pass keeps.

    python scripts/lab/critic_memory.py                      on the embedded actor
    python scripts/lab/critic_memory.py MODEL_FOLDER         on another; its reward model is left out

The activations are those that autograd keeps for the backward pass of the value loss, each counted once: 8 texts of 64 tokens.
"""

from __future__ import annotations

import argparse
import sys
import time

import torch

from agents.console import PlainConsole
from agents.policies.critic import CriticSource, make_critic
from llm_env.default_task import DEFAULT_MODEL, DEFAULT_REWARD_MODEL
from llm_env.lm.causal_lm import load_causal_lm
from llm_env.lm.names import LoadSettings
from llm_env.lm.packed_attention import packed_states
from llm_env.lm.packing import pack

console = PlainConsole()

ADAM_BYTES = 16  # float32: weight, gradient, two moments
MIB = 2**20


def measure(model: str, kind: str, layers: int = 1) -> tuple[float, float, float]:
    """MiB of the critic's parameters with gradients and Adam, MiB that its forward pass keeps, seconds forward and backward.

    Args:
        model: Folder or hub id of the actor.
        kind: A row of `agents.policies.critic.CRITICS`.
        layers: Blocks of its own, for ``top_layers``.
    """
    lm = load_causal_lm(model, LoadSettings("float32", "cpu"))
    reward_model = DEFAULT_REWARD_MODEL if model == DEFAULT_MODEL else None
    critic = make_critic(kind, CriticSource(model, lm.hidden_size, reward_model, False, lm.trunk, layers))
    own = sum(p.numel() for p in critic.parameters()) * ADAM_BYTES
    batch = pack([[(7 * i + j) % 1000 for j in range(64)] for i in range(8)], [32] * 8, "cpu")
    with torch.no_grad():
        hidden = packed_states(lm.trunk, batch)[batch.index]
    kept: dict[int, int] = {}
    weights = {p.untyped_storage().data_ptr() for module in (lm.model, critic) for p in module.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        critic(batch, hidden).square().sum()
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        critic(batch, hidden).square().sum().backward()
        seconds.append(time.perf_counter() - start)
    return own / MIB, sum(kept.values()) / MIB, min(seconds)


def main(argv: list[str]) -> None:
    """Prints a line for each critic."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "model", nargs="?", default=DEFAULT_MODEL, help="folder or hub id of the actor; default: the embedded one"
    )
    model = parser.parse_args(argv).model
    rows = [("detached_head", 1), ("top_layers", 1), ("top_layers", 2), ("actor", 1)]
    if model == DEFAULT_MODEL:
        rows.append(("reward_model", 1))
    console.print(
        "| critic | its weights, gradients and Adam (MiB) | activations (MiB) | forward and backward (ms) |\n|---|---|---|---|"
    )
    for kind, layers in rows:
        own, kept, seconds = measure(model, kind, layers)
        name = f"{kind}, k = {layers}" if kind == "top_layers" else kind
        console.print(f"| {name} | {own:,.1f} | {kept:,.1f} | {1000 * seconds:,.0f} |")


if __name__ == "__main__":
    main(sys.argv[1:])
