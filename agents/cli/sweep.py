r"""Trains several variants with several seeds, evaluates each on held-out prompts, and draws them side by side.

    python scripts/sweep.py --config scripts/configs/demo.yaml --output-dir runs/seeds --seeds 0 1 2 3 4
    python scripts/sweep.py --config scripts/configs/demo.yaml --output-dir runs/critics \
        --vary critic=reward_model --vary critic=head --vary critic=detached_head --seeds 0 1 2

Every run is an ordinary run's folder. A run that is there already is not run again, so a sweep can be gone on with.
Writes table.md, results.json and curves.png.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from rich.console import Console

from agents.figures import can_draw

console = Console(soft_wrap=True)


@dataclass(frozen=True)
class Args:
    """Train and compare variants."""

    output_dir: Path
    """Folder for the runs, the table and the picture."""
    config: Path | None = None
    """YAML file of settings that all variants share."""
    vary: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A variant: setting=value, several joined by commas. Repeat the flag. Default: the configuration as it is."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of each variant."""
    jobs: int = 1
    """Runs at a time."""
    threads: int = 0
    """CPU threads of each run; 0: all."""
    n_prompts: int = 180
    """Held-out prompts of each evaluation."""
    texts: Path | None = None
    """Held-out text, whose perplexity each evaluation measures."""


def run(args: Args) -> int:
    """Runs, evaluates, summarises; returns the exit status."""
    variants = args.vary or ("",)
    jobs = [(variant, seed) for seed in args.seeds for variant in variants]
    with ThreadPoolExecutor(args.jobs) as pool:
        failed = [job for job, ok in zip(jobs, pool.map(lambda job: run_one(args, *job), jobs), strict=True) if not ok]
    for variant, seed in failed:
        console.print(f"failed: {label(variant)}, seed {seed}; see {folder(args, variant, seed)}.log", style="red")
    results = {
        label(variant): [
            json.loads((folder(args, variant, seed) / "evaluation.json").read_text())
            for seed in args.seeds
            if (variant, seed) not in failed
        ]
        for variant in variants
    }
    (args.output_dir / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    table = markdown_table(results)
    (args.output_dir / "table.md").write_text(table, encoding="utf-8")
    console.print(table, highlight=False)
    if can_draw():
        draw(args, [v for v in variants if results[label(v)]])
        console.print(f"Picture: {args.output_dir / 'curves.png'}", highlight=False)
    return 1 if failed else 0


def label(variant: str) -> str:
    """How a variant is called."""
    return variant or "default"


def folder(args: Args, variant: str, seed: int) -> Path:
    """A run's folder."""
    name = "".join(c if c.isalnum() or c in "=._-" else "-" for c in label(variant))
    return args.output_dir / f"{name}-seed{seed}"


def run_one(args: Args, variant: str, seed: int) -> bool:
    """Trains and evaluates one run, unless it is there; returns whether it is there now."""
    target = folder(args, variant, seed)
    if (target / "evaluation.json").is_file():
        return True
    train = [sys.executable, "-m", "agents.cli.train"]
    if (target / "config.yaml").is_file():
        train += ["--resume", str(target)]
    else:
        train += ["--output-dir", str(target), "--seed", str(seed)]
        train += ["--config", str(args.config)] if args.config else []
        for change in filter(None, variant.split(",")):
            name, _, value = change.partition("=")
            train += [f"--{name.strip().replace('_', '-')}", value.strip()]
    evaluate = [sys.executable, "-m", "agents.cli.evaluate", "--actor", str(target / "actor")]
    evaluate += ["--n-prompts", str(args.n_prompts)]
    evaluate += ["--texts", str(args.texts)] if args.texts else []
    environment = dict(os.environ)
    if args.threads:
        environment["OMP_NUM_THREADS"] = str(args.threads)
    target.parent.mkdir(parents=True, exist_ok=True)
    with Path(f"{target}.log").open("a", encoding="utf-8") as log:
        for command in (train, evaluate):
            if subprocess.run(command, stdout=log, stderr=log, env=environment, check=False).returncode:
                return False
    console.print(f"done: {target}", highlight=False)
    return True


def mean_and_range(values: Sequence[float]) -> str:
    """``mean (lowest to highest)``."""
    return f"{np.mean(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def markdown_table(results: dict[str, list[dict[str, Any]]]) -> str:
    """One row a variant, over its seeds."""
    head = "| variant | seeds | score | gain (ref. std) | gold | KL (nats) | win rate | length |\n"
    lines = [head, "|---|---|---|---|---|---|---|---|\n"]
    for name, runs in results.items():
        if not runs:
            continue
        if not any("reference" in line for line in lines):
            first = runs[0]
            gold = first["reference_gold_score"]
            lines.append(
                f"| reference | | {first['reference_rm_score']['mean']:.2f} | 0 | "
                f"{'' if gold is None else format(gold['mean'], '.2f')} | 0 | | "
                f"{first['reference_response_length']['mean']:.1f} |\n"
            )
        gold_text = mean_and_range([r["gold_score"]["mean"] for r in runs]) if runs[0]["gold_score"] else ""
        lines.append(
            f"| {name} | {len(runs)} | {mean_and_range([r['rm_score']['mean'] for r in runs])} | "
            f"{mean_and_range([r['gain_in_reference_stds'] for r in runs])} | {gold_text} | "
            f"{mean_and_range([r['kl']['mean'] for r in runs])} | {mean_and_range([r['win_rate'] for r in runs])} | "
            f"{np.mean([r['response_length']['mean'] for r in runs]):.1f} |\n"
        )
    return "".join(lines)


def draw(args: Args, variants: Sequence[str]) -> None:
    """Score over tokens and score over KL, a colour a variant, a line a seed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from agents.runs.figure import read_progress

    figure = Figure(figsize=(11, 4.2 + 0.25 * (len(variants) > 1)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 3)
    for number, variant in enumerate(variants):
        for seed in args.seeds:
            path = folder(args, variant, seed) / "progress.csv"
            if not path.is_file():
                continue
            run = read_progress(path)
            name = label(variant) if seed == args.seeds[0] else None
            style = {"color": f"C{number}", "linewidth": 1.2, "alpha": 0.75}
            panels[0].plot(run["rollout/tokens"], run["rollout/rm_score"], label=name, **style)
            if "rollout/gold_score" in run:
                panels[1].plot(run["rollout/tokens"], run["rollout/gold_score"], **style)
            panels[2].plot(run["rollout/kl"], run["rollout/rm_score"], ".", markersize=4, **style)
    for panel, title, x in zip(
        panels,
        ("reward-model score", "gold score (not trained on)", "score against KL"),
        ("tokens generated", "tokens generated", "KL to the reference (nats per response)"),
        strict=True,
    ):
        panel.set_title(title, fontsize=10)
        panel.set_xlabel(x)
        panel.grid(alpha=0.3)
    if len(variants) > 1:
        figure.legend(loc="outside lower center", ncols=3, fontsize=8)
    figure.savefig(args.output_dir / "curves.png", dpi=110)


def main(argv: Sequence[str]) -> int:
    """Reads the command line and runs it; returns the exit status."""
    return run(tyro.cli(Args, args=argv, description=__doc__))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
