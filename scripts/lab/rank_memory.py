"""What a process of a run needs in memory: one process with all slots, and in several, as replicas and with weights in shards.

    python scripts/lab/rank_memory.py --output-dir runs/rank_memory
    python scripts/lab/rank_memory.py --output-dir runs/rank_memory --model default        a small shape, in a minute

PPO with a critic network of the actor's shape, random weights, float32, on CPUs. Weights, gradients, Adam's states, the copy
that decodes and the reference are counted by their storages; beside them stands what the process has from the system (RSS):
at the peak of loading, of collecting a rollout and of training on it. Freed blocks go back to the system at once in all cases
(``MALLOC_MMAP_THRESHOLD_``), so that a peak is what was in use.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from agents.console import PlainConsole
from benchmarks.case import SHAPES, build_models

console = PlainConsole()
SLOTS, PROMPT, RESPONSE, ROLLOUTS = 8, 16, 16, 2
CASES = ((1, "none"), (2, "none"), (2, "full"))
COLUMNS = ("weights", "gradients", "Adam", "decoding copy", "reference", "loading", "collecting", "training")
MIB = 2**20


def score(prompts: list[str], responses: list[str]) -> list[float]:
    """A reward that needs no model: how many different words a response has."""
    return [float(len(set(r.split()))) for r in responses]


def resident() -> float:
    """MiB that this process has from the system now."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("/proc/self/status has no VmRSS")


class Peaks(threading.Thread):
    """Looks at the resident memory every 10 ms, and keeps the most of each phase, and the seconds of it."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.phase = "loading"
        self.most: dict[str, float] = {}
        self.seconds: dict[str, float] = {}

    def run(self) -> None:
        """Goes on until the process ends."""
        last = time.perf_counter()
        while True:
            phase, now = self.phase, time.perf_counter()
            self.most[phase] = max(self.most.get(phase, 0.0), resident())
            self.seconds[phase] = self.seconds.get(phase, 0.0) + now - last
            last = now
            time.sleep(0.01)


def mib(tensors: Iterable[Any]) -> float:
    """MiB of this rank's parts of tensors, each storage counted once."""
    from agents.shards import own_part

    storages = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in map(own_part, tensors)}
    return sum(s.nbytes() for s in storages.values()) / MIB


def make_model(folder: Path) -> Any:
    """PPO with a critic of the actor's shape, in this rank.

    Args:
        folder: Models of `build_models`.
    """
    from stable_baselines3.common.logger import Logger

    from agents.algorithms.factory import make_algorithm

    env = {
        "model": str(folder / "actor"),
        "prompts": [" ".join(f"t{(37 * i + 11 * j) % 1000 + 1}" for j in range(PROMPT)) for i in range(64)],
        "reward_model": "rank_memory:score",
        "max_new_tokens": RESPONSE,
        "max_prompt_length": 2 * PROMPT,
    }
    size = SLOTS * RESPONSE // 2
    model = make_algorithm(
        "ppo", n_envs=SLOTS, seed=0, device="cpu", critic="actor", n_epochs=1, batch_size=size, env_kwargs=env
    )
    model.set_logger(Logger(None, []))
    return model


def watch_optimizer(optimizer: Any, found: dict[str, float]) -> None:
    """Has each update note what gradients and states take."""

    def before(*_: Any) -> None:
        moved = [p for group in optimizer.param_groups for p in group["params"]]
        found["gradients"] = mib(p.grad for p in moved if p.grad is not None)

    def after(*_: Any) -> None:
        found["Adam"] = mib(v for state in optimizer.state.values() for v in state.values() if v.ndim)

    optimizer.register_step_pre_hook(before)
    optimizer.register_step_post_hook(after)


def phases_of(peaks: Peaks) -> Any:
    """A callback that says when a rollout begins, and when it is over and trained on."""
    from stable_baselines3.common.callbacks import BaseCallback

    class Phases(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_start(self) -> None:
            peaks.phase = "collecting"

        def _on_rollout_end(self) -> None:
            peaks.phase = "training"

    return Phases()


def measure(sharding: str, folder: Path, output: Path) -> None:
    """Trains some rollouts, in one of the ranks or alone, and writes what each rank needed.

    Args:
        sharding: As in `agents.distributed.join`.
        folder: Models of `build_models`.
        output: JSON file.
    """
    import torch

    from agents.distributed import join, part

    torch.set_num_threads(1)
    me = join(sharding=sharding)
    peaks = Peaks()
    peaks.start()
    model = make_model(folder)
    found: dict[str, float] = {}
    watch_optimizer(model.policy.optimizer, found)
    model.learn(ROLLOUTS * SLOTS * RESPONSE // me.world, phases_of(peaks), log_interval=None)
    peaks.phase = "end"
    found["weights"] = mib(model.policy.parameters())
    copy = model.policy._acting.whole
    found["decoding copy"] = mib(copy.model.parameters()) if copy is not model.policy.lm else 0.0
    found["reference"] = mib(model.env.unwrapped.task.model.lm.model.parameters())
    found |= {phase: peaks.most[phase] for phase in ("loading", "collecting", "training")}
    found |= {f"seconds {phase}": peaks.seconds[phase] / ROLLOUTS for phase in ("collecting", "training")}
    rows = me.everyone(found)
    if me.first:
        output.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    part()


def main(argv: list[str]) -> int:
    """Measures each case in processes of its own, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, required=True, help="for the models and the figures")
    parser.add_argument("--model", choices=tuple(SHAPES), default="135m", help="the shape")
    parser.add_argument("--measure", metavar="SHARDING", help="measure one case, as one of its processes")
    args = parser.parse_args(argv)
    folder: Path = args.output_dir / args.model
    if args.measure:
        measure(args.measure, folder, folder / "ranks.json")
        return 0
    build_models(args.model, folder)
    environment = {**os.environ, "LLM_ENV_FAST": "linear,attention", "MALLOC_MMAP_THRESHOLD_": str(2**18)}
    environment["OMP_NUM_THREADS"] = "1"
    script = [__file__, "--output-dir", str(args.output_dir), "--model", args.model, "--measure"]
    console.print("| MiB | " + " | ".join(COLUMNS) + " |\n|---" + "|---" * len(COLUMNS) + "|")
    every: dict[str, Any] = {}
    for world, sharding in CASES:
        torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", str(world)] if world > 1 else []
        subprocess.run([sys.executable, *torchrun, *script, sharding], env=environment, check=True)
        name = "one process" if world == 1 else f"{world} {'shards' if sharding == 'full' else 'replicas'}"
        every[name] = rows = json.loads((folder / "ranks.json").read_text(encoding="utf-8"))
        most = {column: max(row[column] for row in rows) for column in COLUMNS}
        console.print(f"| {name} | " + " | ".join(f"{most[column]:,.0f}" for column in COLUMNS) + " |")
    (folder / "ranks.json").write_text(json.dumps(every, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
