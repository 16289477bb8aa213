r"""Trains a model on sums of two-digit numbers, with a calculator to call and without one, and writes docs/calculator/.

    python scripts/lab/calculator.py --model SMOLLM2_135M_INSTRUCT --output-dir runs/calculator

The same PPO trains both from the outcome, 1 for the right number: without a tool that is the last number of the answer; with
one it has to stand between <answer> tags, since what the calculator says is a number too, and each prompt shows one worked
example, for else the model never writes a call. Then each actor, and the model as it was, answer sums that were held out. A run
that was stopped goes on.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from agents.console import PlainConsole
from agents.evaluation.statistics import wilson_interval
from agents.files import write_json, write_text
from agents.preferences.records import write_jsonl

console = PlainConsole()
ROOT = Path(__file__).resolve().parents[2]
HELD_OUT = 192
COMMON = (
    *("--max-prompt-length", "160", "--kl-coef", "0.02"),
    *("--critic", "detached_head", "--lora-rank", "16", "--learning-rate", "3e-4", "--mixed-precision", "bf16"),
)
ARMS = {
    "with a calculator": (
        *("--reward-model", "verifier:number?column=answer&extract=tag"),
        *("--world", "llm_env.worlds.tools:ToolWorld", "--world-kwargs", "tools=llm_env.worlds.calculator:Calculator"),
        *("--max-turns", "3", "--max-turn-tokens", "24", "--max-new-tokens", "48", "--max-world-tokens", "24"),
        *("--stop-strings", "</calculate>", "</answer>"),
    ),
    "without a tool": (
        *("--reward-model", "verifier:number?column=answer"),
        *("--max-new-tokens", "24", "--stop-strings", "</answer>"),
    ),
}


@dataclass(frozen=True)
class Args:
    """Trains a model on sums, with a calculator and without."""

    model: str
    """Model folder or hub id of a model that chats, as HuggingFaceTB/SmolLM2-135M-Instruct."""
    output_dir: Path = Path("runs/calculator")
    """Folder for the runs."""
    page_dir: Path = Path("docs/calculator")
    """Folder for the table and the samples."""
    iterations: int = 16
    """Rollouts of each run."""
    n_envs: int = 32
    """Answers in a rollout."""
    seed: int = 0
    """Seed of the sums, and of training."""


def sums(rng: random.Random, with_tool: bool) -> list[dict[str, Any]]:
    """All sums of two numbers from 10 to 99 in an order of their own; with a tool, each behind a worked example."""
    pairs = [(a, b) for a in range(10, 100) for b in range(10, 100)]
    rng.shuffle(pairs)
    records = []
    for a, b in pairs:
        messages = [{"role": "user", "content": f"What is {a} + {b}?"}]
        if with_tool:
            c, d = rng.randint(10, 99), rng.randint(10, 99)
            said = (f"What is {c} + {d}?", f"<calculate>{c} + {d}</calculate>", str(c + d), f"<answer>{c + d}</answer>")
            roles = ("user", "assistant", "user", "assistant")
            messages = [{"role": role, "content": text} for role, text in zip(roles, said, strict=True)] + messages
        records.append({"prompt": messages, "answer": str(a + b)})
    return records


def run(command: list[str]) -> None:
    """Runs one of the project's commands.

    Raises:
        SystemExit: it failed.
    """
    status = subprocess.run([sys.executable, *command], cwd=ROOT, check=False).returncode
    if status:
        raise SystemExit(status)


def arm(args: Args, name: str) -> Path:
    """Trains and evaluates one of the two, as far as that is not done; returns its folder."""
    folder = args.output_dir.resolve() / name.replace(" ", "_")
    data = folder.parent / f"{folder.name}_sums"
    if not (data / "held_out.jsonl").is_file():
        records = sums(random.Random(args.seed), "calculator" in name)
        data.mkdir(parents=True, exist_ok=True)
        write_jsonl(data / "train.jsonl", records[HELD_OUT:])
        write_jsonl(data / "held_out.jsonl", records[:HELD_OUT])
    options = (*COMMON, *ARMS[name])
    steps = args.iterations * args.n_envs * int(options[options.index("--max-new-tokens") + 1])
    if (folder / "config.yaml").is_file():
        command = ["scripts/train.py", "--resume", str(folder)]
    else:
        command = [
            "scripts/train.py",
            "--model",
            args.model,
            "--output-dir",
            str(folder),
            "--seed",
            str(args.seed),
            *options,
        ]
        command += ["--prompts", str(data / "train.jsonl"), "--eval-prompts", str(data / "held_out.jsonl")]
        command += ["--n-envs", str(args.n_envs), "--total-timesteps", str(steps)]
    if not (folder / "evaluation.json").is_file():
        run(command)
        run(["scripts/evaluate_actor.py", "--actor", str(folder / "actor"), "--n-prompts", str(HELD_OUT)])
    return folder


def main(args: Args) -> int:
    """Trains both, and writes the table and the samples; returns the exit status."""
    args.output_dir.mkdir(parents=True, exist_ok=True)
    reports = {}
    for name in ARMS:
        folder = arm(args, name)
        reports[name] = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    write_json(args.page_dir / "results.json", reports)
    console.print(table(reports, args))
    write_text(args.page_dir / "table.md", table(reports, args))
    return 0


def table(reports: dict[str, Any], args: Args) -> str:
    """Held-out accuracy before and after, in Markdown."""
    rows = ["| | before | after | KL, nats |", "|---|---|---|---|"]
    for name, report in reports.items():
        before, after = (_share(report[key]["mean"]) for key in ("reference_rm_score", "rm_score"))
        rows.append(f"| {name} | {before} | {after} | {report['kl']['mean']:.1f} |")
    return "\n".join([*rows, "", f"{HELD_OUT} held-out sums, {args.iterations * args.n_envs:,} answers in training."])


def _share(mean: float) -> str:
    """A share of the held-out sums with its interval."""
    low, high = wilson_interval(mean * HELD_OUT, HELD_OUT)
    return f"{mean:.1%} ({low:.1%} to {high:.1%})"


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(main(tyro.cli(Args)))
