r"""Measures what each of PPO's practices does on the default task, and writes docs/ablations.md.

    python scripts/write_reviews.py --output-dir runs/text
    python scripts/lab/ablate.py --output-dir runs/ablations --text runs/text --jobs 2 --threads 1

Each row is the plain run with one thing changed, over the same seeds; runs that are there already are not made again.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from agents.cli import sweep
from agents.console import PlainConsole
from agents.files import write_text

console = PlainConsole()

KL_TARGET = 4.0
# Row of the table: settings that differ from the plain run.
PRACTICES: dict[str, str] = {
    "(plain)": "",
    f"adaptive KL, target {KL_TARGET:g}, from β 0.05": f"kl_target={KL_TARGET},kl_gain=1",
    f"adaptive KL, target {KL_TARGET:g}, from β 0.3": f"kl_coef=0.3,kl_target={KL_TARGET},kl_gain=1",
    "an update's KL not bounded": "target_kl=1000",
    "an update's KL at most 0.003 a token": "target_kl=0.003",
    "λ 0.95": "gae_lambda=0.95",
    "λ 1": "gae_lambda=1",
    "advantages not whitened": "algo_kwargs=whiten_advantages=False",
    "k2 in the reward": "kl_estimator=k2",
    "k3 in the reward": "kl_estimator=k3",
    "exact KL in the reward": "kl_estimator=exact",
    "k1 in the loss": "kl_estimator=k1,kl_in=loss",
    "k2 in the loss": "kl_estimator=k2,kl_in=loss",
    "k3 in the loss": "kl_estimator=k3,kl_in=loss",
    "exact KL in the loss": "kl_estimator=exact,kl_in=loss",
    "exact KL in both": "kl_estimator=exact,kl_in=both",
    "critic from the actor, not the reward model": "critic=actor",
    "critic's learning rate x 3": "critic_lr_scale=3",
    "scores shifted by 3": "reward_shift=3",
    "scores halved": "reward_scale=0.5",
    "scores clipped to 1": "reward_clip=1",
    "rewards whitened": "whiten_rewards=True",
    "value clipping": "clip_range_vf=0.2",
    "entropy bonus": "ent_coef=0.01",
    "missing-end penalty": "missing_eos_penalty=2",
    "length penalty": "length_penalty=0.05",
    "reference refreshed, hard, every 8": "ref_refresh_every=8",
    "reference as moving average, a tenth": "ref_refresh_every=1,ref_refresh_share=0.1",
    "PPO-ptx, γ 0.5": "ptx_texts={text}/reviews.jsonl,ptx_coef=0.5",
    "best checkpoint kept": "eval_every=2",
}


@dataclass(frozen=True)
class Args:
    """Ablates PPO's practices."""

    output_dir: Path
    """Folder for the runs."""
    text: Path
    """Folder that write_reviews.py wrote."""
    page: Path = Path("docs/ablations.md")
    """Markdown page to write."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of each row."""
    total_timesteps: int = 51_200
    """Environment steps of each run."""
    jobs: int = 2
    """Runs at a time."""
    threads: int = 1
    """CPU threads of each run."""


def main(args: Args) -> int:
    """Makes the runs that are missing and writes the page; returns the exit status."""
    args.output_dir.mkdir(parents=True, exist_ok=True)
    config = args.output_dir / "plain.yaml"
    write_text(
        config, f"total_timesteps: {args.total_timesteps}\nstop_on: [none]\n"
    )  # each row is to be seen to the end
    practices = {name: change.format(text=args.text) for name, change in PRACTICES.items()}
    vary = tuple(practices.values())
    texts = args.text / "heldout_reviews.jsonl"
    settings = sweep.Args(args.output_dir, config, vary, args.seeds, args.jobs, args.threads, texts=texts)
    status = sweep.run(settings)
    rows = {name: read(settings, change) for name, change in practices.items()}
    write_text(args.page, page(rows, args))
    console.print(f"Page: {args.page}")
    return status


def read(settings: sweep.Args, change: str) -> list[dict[str, Any]]:
    """Evaluations of a row's runs, one for each seed whose run is there."""
    outcomes = []
    for seed in settings.seeds:
        folder = sweep.folder(settings, change, seed)
        if not (folder / "evaluation.json").is_file():
            continue
        outcome = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
        best = folder / "best" / "best.json"
        if best.is_file():
            outcome["best"] = json.loads(best.read_text(encoding="utf-8"))
        outcomes.append(outcome)
    return outcomes


COLUMNS: dict[str, Callable[[dict[str, Any]], float]] = {
    "score": lambda r: r["rm_score"]["mean"],
    "gold": lambda r: r["gold_score"]["mean"],
    "KL": lambda r: r["kl"]["mean"],
    "score - 0.05 KL": lambda r: r["rm_score"]["mean"] - 0.05 * r["kl"]["mean"],
    "length": lambda r: r["response_length"]["mean"],
    "ended": lambda r: r["eos_rate"],
    "self-BLEU": lambda r: r["diversity"]["self_bleu"],
    "perplexity": lambda r: r["perplexity"],
}


def page(rows: dict[str, list[dict[str, Any]]], args: Args) -> str:
    """The Markdown page."""
    plain = rows["(plain)"]
    lines = [
        "# What each practice does",
        "",
        f"PPO on the embedded default, {args.total_timesteps:,} environment steps, seeds {', '.join(map(str, args.seeds))};",
        "one thing changed in each row. Means over the seeds on 180 held-out prompts, lowest and highest seed in brackets.",
        "KL to the first reference, in nats per response; perplexity of 500 reviews of topics that the prompts leave out.",
        "The last column is the change of score - 0.05 KL against the plain run, in brackets the lowest and the highest of the",
        "seed-by-seed differences: where they differ in sign, nothing is shown. Runs are short: the adaptive KL coefficient",
        "needs some twenty rollouts to settle, nearly all that it has here.",
        "",
        "```bash",
        "python scripts/write_reviews.py --output-dir runs/text",
        f"python scripts/lab/ablate.py --output-dir runs/ablations --text runs/text --seeds {' '.join(map(str, args.seeds))}",
        "```",
        "",
        "| changed | setting | " + " | ".join(COLUMNS) + " | effect |",
        "|---" * (len(COLUMNS) + 3) + "|",
        reference_row(plain[0]),
    ]
    objective = COLUMNS["score - 0.05 KL"]
    for name, runs in rows.items():
        if not runs:
            continue
        cells = []
        for column in COLUMNS.values():
            values = [column(r) for r in runs]
            cells.append(f"{np.mean(values):.2f} ({min(values):.2f} to {max(values):.2f})")
        effect = ""
        if name != "(plain)":
            differences = [objective(r) - objective(p) for r, p in zip(runs, plain, strict=False)]
            effect = f"{np.mean(differences):+.2f} ({min(differences):+.2f} to {max(differences):+.2f})"
        setting = PRACTICES[name].format(text="runs/text").replace(",", " ")
        lines.append(f"| {name} | {f'`{setting}`' if setting else ''} | " + " | ".join(cells) + f" | {effect} |")
    return "\n".join(lines) + "\n" + best_lines(rows)


def reference_row(run: dict[str, Any]) -> str:
    """The table's row of the reference, which every run's evaluation holds."""
    score = f"{run['reference_rm_score']['mean']:.2f}"
    ended, diversity = run["reference_eos_rate"], run["reference_diversity"]["self_bleu"]
    return (
        f"| reference | | {score} | {run['reference_gold_score']['mean']:.2f} | 0 | {score} | "
        f"{run['reference_response_length']['mean']:.1f} | {ended:.2f} | {diversity:.2f} | "
        f"{run['reference_perplexity']:.2f} | |"
    )


def best_lines(rows: dict[str, list[dict[str, Any]]]) -> str:
    """A sentence on the steps whose checkpoint was kept as the best."""
    kept = [r for r in rows["best checkpoint kept"] if "best" in r]
    if not kept:
        return ""
    steps = ", ".join(f"{r['best']['timestep']:,}" for r in kept)
    return f"\nThe best checkpoint by `eval/objective` was that of step {steps} (one for each seed).\n"


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Args, description=__doc__)))
