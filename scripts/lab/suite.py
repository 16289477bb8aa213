r"""Measures sets of settings on a suite of small tasks, at several β and budgets: which defaults are good everywhere?

    python scripts/lab/build_film_sentences.py --sentences cornell-movie-review-data/rotten_tomatoes    for the task `film`
    python scripts/lab/suite.py --output-dir runs/suite --candidates scripts/configs/suite/ppo.yaml
    python scripts/lab/suite.py --output-dir runs/suite --only defaults --seeds 3 4 5

A cell is a task, a budget of response tokens and a β. What counts is J = score - β·KL on held-out prompts, which is what all
of them maximize; a candidate's regret in a cell is how far its J, the mean over the seeds, is below the best one's there.
Scores of all tasks have a standard deviation of about 1 over the reference's responses, so that regrets of different tasks
can be averaged.

Every run is a file; those that are there are not run again, so it can be interrupted. Writes results.json, table.md, which
has the regrets of all and J of those that were asked for, and suite.png, which has these.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tyro

from agents.console import PlainConsole, plain_warnings, print_error
from agents.files import write_json, write_text
from agents.output_folder import check_output_folder
from comparison.jobs import Job
from comparison.pool import make_peers, run_missing, workers
from comparison.regret import REFERENCE, Rows, cell_table, draw, regret_table
from comparison.tasks import ComparedTask, MadeOtherwiseError
from llm_env.rules import SEED, Each, Rule, check_settings, number, whole

console = PlainConsole()
CONFIGS = Path(__file__).parents[1] / "configs" / "suite"


@dataclass(frozen=True)
class Args:
    """Trains each candidate in each cell."""

    output_dir: Path = Path("runs/suite")
    """Folder of the runs, the table and the picture."""
    candidates: Path = CONFIGS / "ppo.yaml"
    """YAML file: a name, and under it `algo` and the settings of `make_algorithm`."""
    only: tuple[str, ...] = ()
    """Names of the candidates to run. Default: all of the file."""
    tasks: tuple[str, ...] = ("embedded", "film", "count", "guess")
    """Tasks: `embedded`, or the names of files beside ppo.yaml."""
    tokens: tuple[int, ...] = (20_000,)
    """Budgets: response tokens that a run generates for training."""
    kl_coefs: tuple[float, ...] = (0.02, 0.05, 0.15, 0.4)
    """Coefficients β of the KL."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of training."""
    n_prompts: int = 180
    """Held-out prompts that each run is measured on."""
    peer_envs: Path = Path(".venv-peers")
    """Folder of the peers' virtual environments."""
    jobs: int = 2
    """Runs at a time."""
    threads: int = 1
    """CPU threads of each run."""


def check_values(args: Args) -> None:
    """Checks the numbers and the folder.

    Raises:
        ValueError, OSError: one of them is wrong.
    """
    rules: dict[str, Rule] = {name: whole(1) for name in ("n_prompts", "jobs", "threads")}
    rules |= {
        "seeds": Each(SEED, least=1),
        "tokens": Each(whole(1), least=1),
        "kl_coefs": Each(number(least=0), least=1),
    }
    check_settings(args, rules)
    check_output_folder(args.output_dir)


def read_candidates(path: Path, only: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The candidates by name, each with its `algo`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: one has no algorithm, or a name of `only` is not there.
    """
    import yaml

    if not path.is_file():
        raise FileNotFoundError(f"candidates={str(path)!r}: there is no such file.")
    found: dict[str, dict[str, Any]] = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    for name, settings in found.items():
        if name == REFERENCE:
            raise ValueError(f"{path}: {name!r} is the name of what is not trained; take another.")
        if not isinstance(settings, dict) or "algo" not in settings:
            raise ValueError(f"{path}: {name!r} must be a table with `algo` and settings; it is {settings!r}.")
    for name in only:
        if name not in found:
            raise ValueError(f"only: {name!r} is not in {path}; there is {', '.join(found)}.")
    return {name: settings for name, settings in found.items() if not only or name in only}


def read_task(name: str) -> ComparedTask:
    """A task by its name.

    Raises:
        FileNotFoundError: there is no file of it.
    """
    return ComparedTask() if name == "embedded" else ComparedTask.read(CONFIGS / f"{name}.yaml")


def jobs_of(
    args: Args, candidates: Mapping[str, Mapping[str, Any]]
) -> tuple[dict[str, Job], dict[str, dict[str, str]]]:
    """All runs by the name of their file, and the names of task and settings that each file notes."""
    jobs: dict[str, Job] = {}
    notes: dict[str, dict[str, str]] = {}
    for task_name in args.tasks:
        task = read_task(task_name)
        common: dict[str, Any] = {"n_prompts": args.n_prompts, "task": asdict(task), "threads": args.threads}
        made = {f"{task_name}-{REFERENCE}": (REFERENCE, Job(REFERENCE, **common))}
        for seed, tokens, kl_coef, (name, settings) in itertools.product(
            args.seeds, args.tokens, args.kl_coefs, candidates.items()
        ):
            params = {k: v for k, v in settings.items() if k != "algo"}
            budget = {"seed": seed, "tokens": tokens, "kl_coef": kl_coef, "peer_envs": str(args.peer_envs.resolve())}
            job = Job(settings["algo"], params, **budget, **common)
            made[f"{task_name}-{tokens}-beta{kl_coef:g}-{name}-seed{seed}"] = (name, job)
        for file, (name, job) in made.items():
            jobs[file], notes[file] = job, {"task": task_name, "settings": name}
    return jobs, notes


def read_rows(folder: Path) -> Rows:
    """What is compared of all runs that are there."""
    names = ("task", "settings", "tokens", "kl_coef", "seed", "rm_score", "gold_score", "kl")
    results = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    return [{name: result[name] for name in names} for result in results]


def main(args: Args) -> int:
    """Runs the suite; returns the exit status."""
    plain_warnings(console)
    try:
        check_values(args)
        candidates = read_candidates(args.candidates, args.only)
        jobs, notes = jobs_of(args, candidates)
    except (ValueError, OSError) as error:
        print_error(error)
        return 1
    make_peers(args.peer_envs, (job.algo for job in jobs.values()), console)
    folder = args.output_dir / "runs"
    folder.mkdir(parents=True, exist_ok=True)
    with workers(args.jobs) as pool:
        try:
            failed = run_missing(jobs, notes, folder, pool, console)
        except MadeOtherwiseError as error:
            print_error(error)
            return 1
    rows = read_rows(folder)
    table = regret_table(rows) + "\n" + cell_table(rows, list(candidates))
    write_text(args.output_dir / "table.md", table)
    write_json(args.output_dir / "results.json", rows, indent=None)
    draw(rows, args.output_dir / "suite.png", list(candidates))
    console.print(table)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Args, description=__doc__)))
