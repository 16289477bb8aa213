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

import json
import multiprocessing
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tyro

from agents.console import PlainConsole, plain_warnings, print_error
from agents.files import write_json, write_text
from agents.output_folder import check_output_folder
from comparison.jobs import PEERS, Job, make_peer_environment, run_job, start_worker
from comparison.regret import REFERENCE, Rows, cell_table, draw, regret_table
from comparison.tasks import ComparedTask, MadeOtherwiseError, check_made_with
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
    tasks: tuple[str, ...] = ("embedded", "film", "count")
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
        if "-" in str(name):
            raise ValueError(f"{path}: {name!r}: a name has no hyphen, for it is a part of files' names.")
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


def jobs_of(args: Args, candidates: Mapping[str, Mapping[str, Any]]) -> dict[str, Job]:
    """All runs by the name of their file."""
    jobs: dict[str, Job] = {}
    for task_name in args.tasks:
        task = read_task(task_name)
        common: dict[str, Any] = {"n_prompts": args.n_prompts, "task": asdict(task), "threads": args.threads}
        jobs[f"{task_name}-{REFERENCE}"] = Job(REFERENCE, **common)
        for seed in args.seeds:
            for tokens in args.tokens:
                for kl_coef in args.kl_coefs:
                    for name, settings in candidates.items():
                        params = {k: v for k, v in settings.items() if k != "algo"}
                        jobs[f"{task_name}-{tokens}-beta{kl_coef:g}-{name}-seed{seed}"] = Job(
                            settings["algo"],
                            params,
                            seed=seed,
                            tokens=tokens,
                            kl_coef=kl_coef,
                            peer_envs=str(args.peer_envs.resolve()),
                            **common,
                        )
    return jobs


def made_already(job: Job, path: Path) -> bool:
    """Whether a run's result is there.

    Raises:
        MadeOtherwiseError: it was made with other settings.
    """
    if not path.is_file():
        return False
    wanted: dict[str, Any] = {"n_prompts": job.n_prompts, "task_digest": job.compared.digest}
    wanted |= {"params": json.loads(json.dumps(job.params)), "algo": job.algo}
    check_made_with(json.loads(path.read_text(encoding="utf-8")), wanted, path)
    return True


def run_all(jobs: Mapping[str, Job], folder: Path, pool: ProcessPoolExecutor) -> list[str]:
    """Runs what is not there yet; returns the names of runs that failed."""
    missing = {name: job for name, job in jobs.items() if not made_already(job, folder / f"{name}.json")}
    running: dict[Future[dict[str, Any]], str] = {pool.submit(run_job, job): name for name, job in missing.items()}
    failed = []
    while running:
        finished, _ = wait(running, return_when=FIRST_COMPLETED)
        for future in finished:
            name = running.pop(future)
            job = jobs[name]
            try:
                result = future.result()
            except Exception as error:  # the others go on
                failed.append(name)
                console.print(f"failed: {name}: {error}", style="red")
                continue
            for field in ("peer_envs", "task", "labels", "threads", "values"):
                result.pop(field, None)
            write_json(folder / f"{name}.json", {**result, "task_digest": job.compared.digest}, indent=None)
            objective = result["rm_score"] - job.kl_coef * result["kl"]
            line = f"{name:44s} J {objective:6.3f}  score {result['rm_score']:5.2f}  gold {result['gold_score']:5.2f}"
            console.print(f"{line}  KL {result['kl']:5.2f}  {result['seconds']:4.0f} s  ({len(running)} to go)")
    return failed


def read_rows(folder: Path) -> Rows:
    """What is compared of all runs that are there."""
    rows = []
    for path in sorted(folder.glob("*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        task, *between = path.stem.split("-")
        row = {"task": task, "settings": REFERENCE if between == [REFERENCE] else between[-2]}
        rows.append(
            row | {name: result[name] for name in ("tokens", "kl_coef", "seed", "rm_score", "gold_score", "kl")}
        )
    return rows


def main(args: Args) -> int:
    """Runs the suite; returns the exit status."""
    plain_warnings(console)
    try:
        check_values(args)
        candidates = read_candidates(args.candidates, args.only)
        jobs = jobs_of(args, candidates)
    except (ValueError, OSError) as error:
        print_error(error)
        return 1
    for algo in sorted({job.algo for job in jobs.values()} & set(PEERS)):
        make_peer_environment(args.peer_envs, PEERS[algo])
    folder = args.output_dir / "runs"
    folder.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(args.jobs, mp_context=context, initializer=start_worker) as pool:
        try:
            failed = run_all(jobs, folder, pool)
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
