r"""Compares ways of giving credit on *GuessTheNumber*, and writes docs/turns/: results.json, table.md, a picture, transcripts.

    python scripts/lab/turns.py --output-dir docs/turns --jobs 2

Each method is tried at three learning rates first, with a seed of its own and half of the games; then it is trained from
five seeds at the one that found most numbers. All methods play the same number of games, with a β that falls from 0.05 to 0;
PPO without any penalty stands beside them. Then each actor plays games that it was not trained on.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Before torch: each job is a process with one thread.
os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")

import numpy as np
import tyro
from stable_baselines3.common.utils import LinearSchedule

from agents import LinearKL, TextMetricsCallback, make_algorithm
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
WITHOUT_KL = "PPO, GAE of tokens, no KL penalty"
"""The first method again, with β 0."""
RATES = (5e-4, 1e-3, 2e-3)
BETA = 0.05
"""Where β begins; it falls to 0 in a straight line."""
SEARCH_SEED = 100
SEARCH_PART = 2
"""The search plays one game in so many; in fewer, rates cannot be told apart."""
EVALUATION_SEED = 12345
COLORS = dict(zip((*METHODS, WITHOUT_KL), ("#1f77b4", "#17becf", "#d62728", "#ff7f0e", "#7f7f7f"), strict=True))
Choice = tuple[str, float, float]
"""A method, its learning rate and its first β."""


@dataclass(frozen=True)
class Args:
    """Compares ways of giving credit on GuessTheNumber."""

    output_dir: Path = Path("docs/turns")
    """Folder for the results; those that are there are not made again."""
    seeds: int = 5
    """Seeds of each method."""
    rollouts: int = 150
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


def train(method: str, learning_rate: float, kl_coef: float, seed: int, args: Args, part: int = 1) -> dict[str, Any]:
    """One run of a `part` of the games, whose learning rate and β fall to 0; and what its actor reaches."""
    algorithm, settings = METHODS["PPO, GAE of tokens" if method == WITHOUT_KL else method]
    rollouts = args.rollouts // part
    model: Any = make_algorithm(
        algorithm,
        n_envs=args.n_envs,
        env_kwargs={**game_settings(), "kl_coef": kl_coef},
        seed=seed,
        learning_rate=LinearSchedule(learning_rate, 0.0, 1.0),
        **settings,
    )
    curve: list[float] = []
    metrics = TextMetricsCallback()
    metrics.after_iteration = lambda: curve.append(metrics.last["rollout/rm_score"])  # type: ignore[method-assign]
    began = time.perf_counter()
    model.learn(rollouts * model.n_steps * args.n_envs, callback=[metrics, LinearKL(kl_coef)], log_interval=None)
    seconds = time.perf_counter() - began
    ended = played(model.policy.lm, args.games // part)
    return {
        "method": method,
        "learning_rate": learning_rate,
        "kl_coef": kl_coef,
        "seed": seed,
        "rollouts": rollouts,
        "n_envs": args.n_envs,
        "tokens": model.env.unwrapped.generated_tokens,
        "seconds": round(seconds, 1),
        "kl": float(np.mean([game.kl for game in ended])),
        **measured(ended),
        "curve": curve,
        "transcripts": [transcript(game) for game in ended[:6]],
    }


def run_all(kept: dict[str, Any], key: str, jobs: list[tuple[Choice, int]], args: Args, part: int = 1) -> None:
    """Runs what is not among the results yet, `args.jobs` at a time; each is written to the disk when it is done."""
    done = {(r["method"], r["learning_rate"], r["kl_coef"], r["seed"]) for r in kept[key]}
    with ProcessPoolExecutor(args.jobs) as pool:
        missing = [(choice, seed) for choice, seed in jobs if (*choice, seed) not in done]
        futures = [pool.submit(train, *choice, seed, args, part) for choice, seed in missing]
        for number, future in enumerate(as_completed(futures), 1):
            result = future.result()
            kept[key].append(result)
            write_json(args.output_dir / "results.json", kept)
            console.print(
                f"{key} {number} of {len(futures)}: {result['method']}, learning rate {result['learning_rate']:g}, β from "
                f"{result['kl_coef']:g}, seed {result['seed']}: found {result['found']:.1%} in {result['guesses']:.2f} "
                f"guesses, {result['seconds']:.0f} s"
            )


def results_of(args: Args) -> dict[str, Any]:
    """All runs: the search, then the seeds of each method at what it found; and the reference."""
    path = args.output_dir / "results.json"
    kept: dict[str, Any] = {"settings": {"rollouts": args.rollouts, "n_envs": args.n_envs}, "search": [], "runs": []}
    if path.is_file():
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["settings"] != kept["settings"]:
            raise ValueError(
                f"{path} has runs of {found['settings']}, not {kept['settings']}: take another --output-dir."
            )
        kept = found
    grid: list[Choice] = [(method, rate, BETA) for method in METHODS for rate in RATES]
    grid += [(WITHOUT_KL, rate, 0.0) for rate in RATES]
    run_all(kept, "search", [(choice, SEARCH_SEED) for choice in grid], args, SEARCH_PART)
    choices = [best(kept, method) for method in COLORS]
    run_all(kept, "runs", [(choice, seed) for seed in range(args.seeds) for choice in choices], args)
    if "reference" not in kept:
        task = TextTask(task_settings(game_settings()))
        games = played(task.model.lm, args.games)
        kept["reference"] = {**measured(games), "transcripts": [transcript(game) for game in games[:6]]}
        write_json(path, kept)
    return kept


def best(results: dict[str, Any], method: str) -> Choice:
    """What found most numbers in the search."""
    chosen = max((r for r in results["search"] if r["method"] == method), key=lambda r: float(r["found"]))
    return method, chosen["learning_rate"], chosen["kl_coef"]


def table(results: dict[str, Any]) -> str:
    """The table, in Markdown: means over the seeds, lowest and highest."""
    kwargs = game_settings()["world_kwargs"]
    found, guesses = best_play(kwargs["largest"], kwargs["guesses"])
    reference = results["reference"]
    rows = [
        "| | learning rate | β | found | guesses | KL, nats | tokens |",
        "|---|---|---|---|---|---|---|",
        f"| best play (binary search) | | | {found:.1%} | {guesses:.2f} | | |",
        f"| reference, before training | | | {reference['found']:.1%} | {reference['guesses']:.2f} | 0 | |",
    ]
    for method in COLORS:
        runs = [r for r in results["runs"] if r["method"] == method]

        def spread(name: str, form: str, runs: list[dict[str, Any]] = runs) -> str:
            values = [r[name] for r in runs]
            return f"{np.mean(values):{form}} ({min(values):{form}} to {max(values):{form}})"

        rows.append(
            f"| {method} | {runs[0]['learning_rate']:g} | {_beta(runs[0])} | {spread('found', '.1%')} | "
            f"{spread('guesses', '.2f')} | {np.mean([r['kl'] for r in runs]):.1f} | "
            f"{np.mean([r['tokens'] for r in runs]):,.0f} |"
        )
    return "\n".join(rows) + "\n"


def _beta(run: dict[str, Any]) -> str:
    return f"{run['kl_coef']:g} to 0" if run["kl_coef"] else "0"


def transcripts(results: dict[str, Any]) -> str:
    """Games before and after, in Markdown: the first six of the evaluation, of seed 0."""
    parts = {"Before training": results["reference"]["transcripts"]}
    parts |= {r["method"]: r["transcripts"] for r in results["runs"] if r["seed"] == 0}
    return "\n".join(f"**{name}**\n\n```text\n" + "\n".join(games) + "\n```\n" for name, games in parts.items())


def draw(results: dict[str, Any], path: Path) -> None:
    """The share found along training: the mean over the seeds, and the band between the lowest and the highest."""
    figure = new_figure(7.5, 4.2)
    axes = figure.subplots()
    for method in COLORS:
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
    figure.legend(loc="outside lower center", ncols=3, fontsize=8, frameon=False)
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
