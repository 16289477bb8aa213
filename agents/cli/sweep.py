r"""Trains several variants with several seeds, evaluates each on held-out prompts, and draws them side by side.

    python scripts/sweep.py --config demo --output-dir runs/seeds --seeds 0 1 2 3 4
    python scripts/sweep.py --config demo --output-dir runs/critics \
        --vary critic=reward_model --vary critic=head --vary critic=detached_head --seeds 0 1 2

Each run is a folder as train.py leaves it. A run that is there already is not run again, so the same command goes on with a
sweep that was interrupted. Writes table.md, results.json and curves.png.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from agents.cli.arguments import parse_command_line
from agents.console import PlainConsole, print_error
from agents.figures import DPI, can_draw, new_figure
from agents.files import write_json, write_text
from agents.flat_settings import option_words
from agents.output_folder import check_output_folder, locked
from agents.pipeline.commands import RunCommand, check_command, run_child
from llm_env.rules import SEED, Each, Rule, check_settings, whole

console = PlainConsole()


@dataclass(frozen=True)
class Args:
    """Train and compare variants."""

    output_dir: Path
    """Folder for the runs, the table and the picture."""
    config: Path | None = None
    """YAML file of settings that all variants share, or demo, which comes with the package."""
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

    def check_values(self) -> None:
        """Checks the numbers, and that the file of texts is there.

        Raises:
            ValueError, FileNotFoundError: a number breaks its rule, or there is no such file.
        """
        rules: dict[str, Rule] = {
            "seeds": Each(SEED, least=1),
            "jobs": whole(1, 1_000),
            "threads": whole(0),
            "n_prompts": whole(1),
        }
        check_settings(self, rules)
        if self.texts is not None and not self.texts.is_file():
            raise FileNotFoundError(f"texts={str(self.texts)!r}: there is no such file.")


def run(args: Args, run_command: RunCommand = run_child) -> int:
    """Trains and evaluates what is missing, writes table and picture; returns the exit status.

    Args:
        args: The command line.
        run_command: Runs the commands train and evaluate: in child processes, unless a test runs them in its own.
    """
    variants = args.vary or ("",)
    try:
        args.check_values()
        check_output_folder(args.output_dir)
        for variant in variants:
            where = f"vary {variant!r}" if variant else "sweep"
            check_command("train", train_words(args, variant, args.seeds[0]), where)
    except (ValueError, OSError) as error:
        print_error(error)
        return 1
    try:
        with locked(args.output_dir):
            return run_all(args, run_command)
    except FileExistsError as error:
        print_error(error)
        return 1


def run_all(args: Args, run_command: RunCommand) -> int:
    """Does what `run` says, in a folder that no other process writes to."""
    variants = args.vary or ("",)
    # Seed by seed, so that an interrupted sweep has compared all variants on some seeds.
    jobs = [(variant, seed) for seed in args.seeds for variant in variants]

    def run_job(job: tuple[str, int]) -> bool:
        return run_one(args, *job, run_command)

    if args.jobs == 1:  # in this thread, so that a command run in this process can handle signals
        succeeded = [run_job(job) for job in jobs]
    else:
        with ThreadPoolExecutor(args.jobs) as pool:
            succeeded = list(pool.map(run_job, jobs))
    failed = [job for job, ok in zip(jobs, succeeded, strict=True) if not ok]
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
    write_json(args.output_dir / "results.json", results)
    table = markdown_table(results)
    write_text(args.output_dir / "table.md", table)
    console.print(table)
    if can_draw():
        draw(args, [v for v in variants if results[label(v)]])
        console.print(f"Picture: {args.output_dir / 'curves.png'}")
    return 1 if failed else 0


def label(variant: str) -> str:
    """Names a variant in tables and pictures."""
    return variant or "default"


def folder(args: Args, variant: str, seed: int) -> Path:
    """Gives the folder of a variant's run with a seed."""
    name = "".join(c if c.isalnum() or c in "=._-" else "-" for c in label(variant))
    return args.output_dir / f"{name}-seed{seed}"


def variant_options(variant: str) -> list[str]:
    """Gives a variant's words on the command line of train.

    Args:
        variant: ``setting=value``, several joined by commas; empty: the configuration as it is.

    Raises:
        ValueError: a part of it is not of that form.
    """
    words: list[str] = []
    for change in filter(None, variant.split(",")):
        name, equals, value = (part.strip() for part in change.partition("="))
        if not (name and equals and value):
            raise ValueError(f"vary: {change!r} must be setting=value.")
        is_flag = value.lower() in ("true", "false")
        words += option_words(name, value.lower() == "true" if is_flag else value)
    return words


def train_words(args: Args, variant: str, seed: int) -> list[str]:
    """Gives the command line of train that starts a variant's run with a seed.

    Raises:
        ValueError: the variant is not of the form setting=value.
    """
    words = ["--output-dir", str(folder(args, variant, seed)), "--seed", str(seed), *variant_options(variant)]
    return words + (["--config", str(args.config)] if args.config else [])


def run_one(args: Args, variant: str, seed: int, run_command: RunCommand) -> bool:
    """Trains and evaluates one run, unless it is there already.

    Returns:
        Whether the run and its evaluation are there now.
    """
    target = folder(args, variant, seed)
    if (target / "evaluation.json").is_file():
        return True
    console.print(f"runs: {target}   its lines: {target}.log")
    interrupted = (target / "config.yaml").is_file()
    train = ["--resume", str(target)] if interrupted else train_words(args, variant, seed)
    evaluate = ["--actor", str(target / "actor"), "--n-prompts", str(args.n_prompts)]
    evaluate += ["--texts", str(args.texts)] if args.texts else []
    for name, argv in (("train", train), ("evaluate_actor", evaluate)):
        if run_command(name, argv, log=Path(f"{target}.log"), threads=args.threads):
            return False
    console.print(f"done: {target}")
    return True


def mean_and_range(values: Sequence[float]) -> str:
    """Formats values as ``mean (lowest to highest)``."""
    return f"{np.mean(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def markdown_table(results: dict[str, list[dict[str, Any]]]) -> str:
    """Makes a Markdown table, one row a variant, over its seeds.

    Args:
        results: The variants' evaluations by label, one for each seed.
    """
    head = "| variant | seeds | score | gain (ref. std) | gold | KL (nats) | win rate | length |\n"
    lines = [head, "|---|---|---|---|---|---|---|---|\n"]
    for name, runs in results.items():
        if not runs:
            continue
        if not any(
            "reference" in line for line in lines
        ):  # the reference is the same in all runs: one row, from the first
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
    """Draws score over tokens and score over KL, a color for each variant, a line for each seed.

    Args:
        args: The command line, whose output folder has the runs and gets the picture.
        variants: The variants that have a run.
    """
    from agents.runs.figure import read_progress

    figure = new_figure(11, 4.2 + 0.25 * (len(variants) > 1))  # the legend stands below
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
        legend = figure.legend(loc="outside lower center", ncols=3, fontsize=8)
        for text in legend.get_texts():
            text.set_parse_math(False)  # a dollar sign in a setting is one
    figure.savefig(args.output_dir / "curves.png", dpi=DPI)


def main(argv: Sequence[str]) -> int:
    """Reads the command line and runs it; returns the exit status."""
    return run(parse_command_line(Args, argv, __doc__))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
