"""What `llm-env plan` says that a run needs in memory, beside what the run has taken: weights, gradients, Adam, and each phase.

    python scripts/lab/plan_memory.py --output-dir runs/plan_memory
    python scripts/lab/plan_memory.py --output-dir runs/plan_memory --model 30m --cases full lora      some of it

PPO with random weights on a CPU. Each case is planned in one process and trained in another, of which weights, gradients and
optimizer states are counted by their storages, and the resident memory (RSS) is looked at all the time. Freed blocks go back to
the system at once (``MALLOC_MMAP_THRESHOLD_``), so that a peak is what was in use.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from agents.console import PlainConsole
from benchmarks.case import SHAPES, build_models
from rank_memory import Peaks, mib, phases_of, watch_optimizer

console = PlainConsole()
MODELS = ("30m", "135m")
SLOTS, PROMPT, RESPONSE, ROLLOUTS = 16, 32, 96, 2
BATCH = 8 * RESPONSE
CASES: dict[str, dict[str, Any]] = {
    "full": {"critic": "actor"},
    "full, checkpoints": {"critic": "actor", "gradient_checkpointing": True},
    "full, micro-batches": {"critic": "actor", "micro_batch_tokens": 128},
    "full, head": {"critic": "detached_head"},
    "full, top layer": {"critic": "top_layers"},
    "lora": {"critic": "detached_head", "lora_rank": 16},
    "lora, checkpoints": {"critic": "detached_head", "lora_rank": 16, "gradient_checkpointing": True},
    "nf4": {"critic": "detached_head", "lora_rank": 16, "base_quantization": "nf4"},
    "nf4, checkpoints": {
        "critic": "detached_head",
        "lora_rank": 16,
        "base_quantization": "nf4",
        "gradient_checkpointing": True,
    },
    "lora, actor": {"critic": "actor", "lora_rank": 16},
    "bf16": {"critic": "detached_head", "mixed_precision": "bf16"},
    "grpo": {"algo": "grpo", "group_size": 4},
}
"""Settings of each case that differ from the others'."""
PHASES = ("collecting", "scoring", "training")
EXACT = ("weights", "gradients", "optimizer")
MIB = 2**20


def settings(folder: Path, case: str) -> Any:
    """The run's settings: `RunSettings`.

    Args:
        folder: Models of `build_models`.
        case: A key of `CASES`.
    """
    from agents.runs.settings import AlgorithmSettings, RunSettings, TaskOptions, TrainingSettings

    chosen = dict(CASES[case])
    task = TaskOptions(
        model=str(folder / "actor"),
        prompts=str(folder / "prompts.txt"),
        reward_model=("rank_memory:score",),
        max_new_tokens=RESPONSE,
        max_prompt_length=PROMPT,
        mixed_precision=chosen.pop("mixed_precision", "no"),
        base_quantization=chosen.pop("base_quantization", "none"),
        device="cpu",
    )
    algorithm = AlgorithmSettings(n_epochs=1, batch_size=BATCH, **chosen)
    steps = ROLLOUTS * SLOTS * RESPONSE
    return RunSettings(task, algorithm, TrainingSettings(total_timesteps=steps, n_envs=SLOTS))


def write_prompts(folder: Path) -> None:
    """Writes prompts of `PROMPT` tokens."""
    lines = [" ".join(f"t{(37 * i + 11 * j) % 1000 + 1}" for j in range(PROMPT)) for i in range(64)]
    (folder / "prompts.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def planned(folder: Path, case: str) -> dict[str, float]:
    """What the plan says, in MiB."""
    from agents.memory.plan import make_plan

    plan = make_plan(settings(folder, case).checked())
    parts = plan.parts
    weights = sum(parts.get(name, {"training": 0})["training"] for name in ("actor", "critic"))
    found = {
        "weights": weights,
        "gradients": plan.gradients,
        "optimizer": parts["optimizer"]["training"],
        **plan.sums(),
    }
    return {name: size / MIB for name, size in found.items()}


def measured(folder: Path, case: str) -> dict[str, float]:
    """Trains some rollouts; returns what was needed, in MiB."""
    import torch
    from stable_baselines3.common.logger import Logger

    from agents.algorithms.factory import make_algorithm
    from agents.rollouts import buffer
    from agents.runs.arguments import algorithm_settings
    from llm_env.lm.quantization import scales_of

    score = buffer.TokenRolloutBuffer.compute_returns_and_advantage

    def scoring(*args: Any, **kwargs: Any) -> None:
        peaks.phase = "scoring"
        score(*args, **kwargs)

    buffer.TokenRolloutBuffer.compute_returns_and_advantage = scoring  # type: ignore[method-assign]
    torch.set_num_threads(1)
    run = settings(folder, case).checked()
    peaks = Peaks()
    peaks.start()
    model = make_algorithm(
        run.algorithm.algo,
        n_envs=SLOTS,
        env_kwargs=run.task.task_arguments(run.task.prompts),
        seed=0,
        **{**algorithm_settings(run), "device": "cpu"},
    )
    model.set_logger(Logger(None, []))
    found: dict[str, float] = {}
    watch_optimizer(model.policy.optimizer, found)
    began = time.process_time()
    model.learn(run.training.total_timesteps, phases_of(peaks), log_interval=None)  # type: ignore[arg-type]
    found["seconds"] = time.process_time() - began
    peaks.phase = "end"
    found["optimizer"] = found.pop("Adam")
    found["weights"] = mib([*torch.nn.Module.parameters(model.policy), *scales_of(model.policy)])
    return found | {phase: peaks.most[phase] for phase in PHASES}


def main(argv: list[str]) -> int:
    """Plans and measures each case in processes of its own, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, required=True, help="for the models and the figures")
    parser.add_argument("--model", choices=tuple(SHAPES), nargs="+", default=MODELS, help="the shapes")
    parser.add_argument("--cases", choices=tuple(CASES), nargs="+", default=tuple(CASES), help="the cases")
    parser.add_argument("--do", choices=("plan", "measure"), help="do one case, in a process of its own")
    args = parser.parse_args(argv)
    if args.do:
        folder = args.output_dir / args.model[0]
        found = (planned if args.do == "plan" else measured)(folder, args.cases[0])
        (folder / f"{args.do}.json").write_text(json.dumps(found), encoding="utf-8")
        return 0
    environment = {**os.environ, "LLM_ENV_FAST": "linear,attention", "MALLOC_MMAP_THRESHOLD_": str(2**18)}
    environment |= {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([os.environ.get("PYTHONPATH", ""), str(Path(__file__).parent)]),
    }
    columns = (*EXACT, *PHASES)
    console.print(
        "| model | case | " + " | ".join((*columns, "CPU seconds")) + " |\n|---|---" + "|---" * (len(columns) + 1) + "|"
    )
    results: list[dict[str, Any]] = []
    for model in args.model:
        folder = args.output_dir / model
        build_models(model, folder)
        write_prompts(folder)
        for case in args.cases:
            row: dict[str, Any] = {"model": model, "case": case}
            for what in ("plan", "measure"):
                command = [sys.executable, __file__, "--output-dir", str(args.output_dir), "--model", model]
                subprocess.run([*command, "--cases", case, "--do", what], env=environment, check=True)
                row[what] = json.loads((folder / f"{what}.json").read_text(encoding="utf-8"))
            results.append(row)
            cells = [cell(row["plan"][c], row["measure"][c]) for c in columns]
            cells.append(f"{row['measure']['seconds']:.0f}")
            console.print(f"| {model} | {case} | " + " | ".join(cells) + " |")
    (args.output_dir / "plan_memory.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return 0


def cell(plan: float, measure: float) -> str:
    """Planned and measured MiB, and how far the plan is off."""
    off = plan / measure - 1 if measure else 0.0
    return f"{plan:,.0f} / {measure:,.0f} ({100 * off:+.0f} %)"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
