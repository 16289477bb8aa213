r"""Compares ways of giving credit on *GuessTheNumber*, and writes docs/turns/: results.json, table.md, a picture, transcripts.

    python scripts/lab/turns.py --output-dir docs/turns --jobs 2

Each method is tried at three learning rates first, with a seed of its own and a third of the games; then it is trained from
five seeds at the one that found most numbers. All methods play the same number of games. Then each actor plays games that it
was not trained on.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Before torch: each job is a process with one thread.
os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")

import numpy as np
import tyro

from agents import TextMetricsCallback, make_algorithm
from agents.console import PlainConsole
from agents.figures import DPI, new_figure
from agents.files import write_json, write_text
from llm_env.episode import Episode
from llm_env.guess_the_number import game_settings
from llm_env.guess_the_number.world import best_play
from llm_env.lm.causal_lm import CausalLM
from llm_env.rollout import respond
from llm_env.settings import task_settings
from llm_env.task import TextTask

console = PlainConsole()
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "PPO, GAE of tokens": ("ppo", {"critic": "actor"}),
    "PPO, GAE of turns": ("ppo", {"critic": "actor", "advantages": "turn_gae"}),
    "GRPO": ("grpo", {"group_size": 8, "kl_in": "reward"}),
    "RLOO": ("rloo", {"group_size": 8}),
}
RATES = (5e-4, 1e-3, 2e-3)
SEARCH_SEED = 100
EVALUATION_SEED = 12345
COLORS = dict(zip(METHODS, ("#1f77b4", "#17becf", "#d62728", "#ff7f0e"), strict=True))


@dataclass(frozen=True)
class Args:
    """Compares ways of giving credit on GuessTheNumber."""

    output_dir: Path = Path("docs/turns")
    """Folder for the results; those that are there are not made again."""
    seeds: int = 5
    """Seeds of each method."""
    rollouts: int = 120
    """Rollouts of a run."""
    n_envs: int = 256
    """Games in a rollout."""
    games: int = 2000
    """Games that each trained actor plays."""
    jobs: int = 2
    """Runs at a time."""


def played(lm: CausalLM, count: int) -> list[Episode]:
    """Games that a model plays, sampled."""
    task = TextTask(task_settings(game_settings()))
    return respond(lm, task, [None] * count, EVALUATION_SEED)


def measured(games: Sequence[Episode]) -> dict[str, float]:
    """The share of the numbers that was found, and the mean number of guesses, found or not."""
    return {
        "found": float(np.mean([game.world_return for game in games])),
        "guesses": float(np.mean([len(game.turns) for game in games])),
    }


def transcript(game: Episode) -> str:
    """A game in a line."""
    return "  ".join(f"{turn.text} {turn.reply}" for turn in game.turns)


def train(method: str, learning_rate: float, seed: int, rollouts: int, n_envs: int, games: int) -> dict[str, Any]:
    """One run, and what its actor reaches."""
    algorithm, settings = METHODS[method]
    model: Any = make_algorithm(
        algorithm, n_envs=n_envs, env_kwargs=game_settings(), seed=seed, learning_rate=learning_rate, **settings
    )
    curve: list[float] = []
    metrics = TextMetricsCallback()
    metrics.after_iteration = lambda: curve.append(metrics.last["rollout/rm_score"])  # type: ignore[method-assign]
    began = time.perf_counter()
    model.learn(rollouts * model.n_steps * n_envs, callback=[metrics], log_interval=None)
    seconds = time.perf_counter() - began
    ended = played(model.policy.lm, games)
    return {
        "method": method,
        "learning_rate": learning_rate,
        "seed": seed,
        "rollouts": rollouts,
        "n_envs": n_envs,
        "tokens": model.env.unwrapped.generated_tokens,
        "seconds": round(seconds, 1),
        "kl": float(np.mean([game.kl for game in ended])),
        **measured(ended),
        "curve": curve,
        "transcripts": [transcript(game) for game in ended[:6]],
    }


def results_of(args: Args) -> dict[str, Any]:
    """All runs, each written to the disk when it is done."""
    path = args.output_dir / "results.json"
    kept: dict[str, Any] = (
        json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"search": [], "runs": []}
    )
    with ProcessPoolExecutor(args.jobs) as pool:

        def run_all(key: str, wanted: list[tuple[str, float, int]], rollouts: int, games: int) -> None:
            done = {(r["method"], r["learning_rate"], r["seed"]) for r in kept[key] if r["rollouts"] == rollouts}
            futures = [pool.submit(train, *job, rollouts, args.n_envs, games) for job in wanted if job not in done]
            for future in futures:
                result = future.result()
                kept[key].append(result)
                write_json(path, kept)
                console.print(
                    f"{result['method']}, learning rate {result['learning_rate']:g}, seed {result['seed']}: found "
                    f"{result['found']:.1%} in {result['guesses']:.2f} guesses, {result['seconds']:.0f} s"
                )

        run_all("search", [(m, rate, SEARCH_SEED) for m in METHODS for rate in RATES], args.rollouts // 3, 500)
        best = {
            m: max((r for r in kept["search"] if r["method"] == m), key=lambda r: float(r["found"])) for m in METHODS
        }
        jobs = [(m, float(best[m]["learning_rate"]), seed) for seed in range(args.seeds) for m in METHODS]
        run_all("runs", jobs, args.rollouts, args.games)
    if "reference" not in kept:
        task = TextTask(task_settings(game_settings()))
        games = played(task.model.lm, args.games)
        kept["reference"] = {**measured(games), "transcripts": [transcript(game) for game in games[:6]]}
        write_json(path, kept)
    return kept


def table(results: dict[str, Any]) -> str:
    """The table, in Markdown: means over the seeds, lowest and highest."""
    kwargs = game_settings()["world_kwargs"]
    found, guesses = best_play(kwargs["largest"], kwargs["guesses"])
    reference = results["reference"]
    rows = [
        "| | learning rate | found | guesses | KL, nats | tokens | seconds |",
        "|---|---|---|---|---|---|---|",
        f"| best play (binary search) | | {found:.1%} | {guesses:.2f} | | | |",
        f"| reference, before training | | {reference['found']:.1%} | {reference['guesses']:.2f} | 0 | | |",
    ]
    for method in METHODS:
        runs = [r for r in results["runs"] if r["method"] == method]

        def spread(name: str, form: str, runs: list[dict[str, Any]] = runs) -> str:
            values = [r[name] for r in runs]
            return f"{np.mean(values):{form}} ({min(values):{form}} to {max(values):{form}})"

        rows.append(
            f"| {method} | {runs[0]['learning_rate']:g} | {spread('found', '.1%')} | {spread('guesses', '.2f')} | "
            f"{np.mean([r['kl'] for r in runs]):.1f} | {np.mean([r['tokens'] for r in runs]):,.0f} | "
            f"{np.median([r['seconds'] for r in runs]):.0f} |"
        )
    return "\n".join(rows) + "\n"


def transcripts(results: dict[str, Any]) -> str:
    """Games before and after, in Markdown: the first six of the evaluation, of seed 0."""
    parts = {"Before training": results["reference"]["transcripts"]}
    parts |= {r["method"]: r["transcripts"] for r in results["runs"] if r["seed"] == 0}
    return "\n".join(f"**{name}**\n\n```text\n" + "\n".join(games) + "\n```\n" for name, games in parts.items())


def draw(results: dict[str, Any], path: Path) -> None:
    """The share found along training: the mean over the seeds, and the band between the lowest and the highest."""
    figure = new_figure(7.5, 4.2)
    axes = figure.subplots()
    for method in METHODS:
        runs = [r for r in results["runs"] if r["method"] == method]
        curves = np.array([_smooth(r["curve"]) for r in runs])
        games = np.arange(1, curves.shape[1] + 1) * runs[0]["n_envs"]
        axes.plot(games, curves.mean(0), color=COLORS[method], label=method)
        axes.fill_between(games, curves.min(0), curves.max(0), color=COLORS[method], alpha=0.15, linewidth=0)
    axes.axhline(1.0, color="black", linestyle=":", label="best play: binary search")
    axes.axhline(results["reference"]["found"], color="gray", linestyle="--", label="before training")
    axes.set_xlabel("games played")
    axes.set_ylabel("numbers found")
    axes.set_ylim(0, 1.04)
    axes.legend(loc="lower right", fontsize=8)
    figure.savefig(path, dpi=DPI)


def _smooth(curve: Sequence[float], width: int = 5) -> np.ndarray:
    """Means of up to `width` neighbors."""
    half = width // 2
    return np.array([np.mean(curve[max(0, i - half) : i + half + 1]) for i in range(len(curve))])


def main() -> int:
    """Runs the comparison."""
    args = tyro.cli(Args, description=__doc__)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    results = results_of(args)
    write_text(args.output_dir / "table.md", table(results))
    write_text(args.output_dir / "transcripts.md", transcripts(results))
    draw(results, args.output_dir / "found.png")
    console.print(table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
