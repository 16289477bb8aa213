r"""Compares all algorithms on the embedded default, with the same budget of generated tokens.

    python scripts/lab/compare.py --search --output-dir runs/compare        find each one's settings (Optuna's TPE), recorded
    python scripts/lab/compare.py --output-dir runs/compare --peers         train all with what was found, TRL's beside ours
    python scripts/lab/compare.py --output-dir runs/compare --algos ppo grpo --seeds 0 1
    python scripts/lab/compare.py --output-dir runs/offline --labels 900 --algos ppo grpo dpo dpop orpo iterated_dpo
    python scripts/lab/compare.py --output-dir runs/film --task examples/film_reviews/compare.yaml --labels 1000 --algos ppo dpo

With --labels, all start from the same preference labels: whoever needs scores trains on those of a reward model fitted to them,
whoever trains on preferences has the labels, and its own tokens' worth of responses that this reward model ranks.

The search sees only prompts that are trained on, and maximizes score - beta x KL, the objective itself. Every trial is a line
of JSON and every run a file; those that are there are not run again, so both can be interrupted. Runs and labels of other
settings are an error. Writes table.md, samples.md, results.json and compare.png.
"""

from __future__ import annotations

import json
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
from comparison.figures import draw, markdown_table, samples_table
from comparison.jobs import BASELINES, PEERS, PREFERENCE, Job, run_job
from comparison.pool import make_peers, run_missing, workers
from comparison.spaces import SPACES, first_trial, job_params, suggest
from comparison.tasks import ComparedTask, Labels, MadeOtherwiseError, make_labels
from llm_env.extras import installed
from llm_env.rules import SEED, Each, Rule, check_settings, number, whole
from llm_env.text.records import jsonl_lines

console = PlainConsole()
SEARCH_SEED = 1000


@dataclass(frozen=True)
class Args:
    """Searches settings, or trains and compares."""

    output_dir: Path = Path("runs/compare")
    """Folder of the search's record, the runs, the table and the picture."""
    search: bool = False
    """Search settings instead of comparing."""
    algos: tuple[str, ...] = ()
    """Algorithms to compare. Default: all of agents.algorithms.table, and with --peers TRL's. Losses of train_preference.py,
    dpo_labels (which trains on the labels alone), rejection_sampling and iterated_dpo run only where they are named here."""
    peers: bool = False
    """Run TRL's PPO (1.12.0), RLOO and GRPO (1.16.0) too, each in a virtual environment that is made at first use."""
    peer_envs: Path = Path(".venv-peers")
    """Folder of the peers' virtual environments."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of each algorithm but PPO."""
    ppo_seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Seeds of PPO, ours and TRL's; more of them, for the others are measured against it."""
    tokens: int = 32_000
    """Response tokens that each run generates for training."""
    kl_coefs: tuple[float, ...] = (0.05,)
    """Coefficients beta of the KL; each gives a point on the frontier of score against KL."""
    n_prompts: int = 180
    """Held-out prompts of each evaluation."""
    task: Path | None = None
    """YAML file of a task (fields: see comparison/tasks.py). Default: the embedded task."""
    labels: int = 0
    """Preference rankings that all algorithms of a seed start from. 0 makes none: the task's reward model is used as it is."""
    trials: int = 10
    """Trials of each algorithm's search."""
    search_tokens: int = 12_000
    """Response tokens that each trial of the search generates."""
    jobs: int = 2
    """Runs at a time."""
    threads: int = 1
    """CPU threads of each run."""


def check_values(args: Args) -> None:
    """Checks the numbers, the folder, and that Optuna is there for a search.

    Raises:
        ValueError, OSError, ImportError: one of them is wrong.
    """
    counts = ("tokens", "n_prompts", "trials", "search_tokens", "jobs", "threads")
    rules: dict[str, Rule] = {name: whole(1) for name in counts}
    seeds = Each(SEED, least=1)
    rules |= {"labels": whole(0), "seeds": seeds, "ppo_seeds": seeds, "kl_coefs": Each(number(least=0), least=1)}
    check_settings(args, rules)
    check_output_folder(args.output_dir)
    if args.search and not installed("optuna"):
        raise ImportError("--search needs optuna, which is not installed: pip install optuna")


def main(args: Args) -> int:
    """Searches or compares; returns the exit status."""
    from agents.algorithms.table import ALGORITHMS

    plain_warnings(console)
    try:
        check_values(args)
    except (ValueError, OSError, ImportError) as error:
        print_error(error)
        return 1
    names = [*ALGORITHMS, *PREFERENCE, *PEERS]
    algos = args.algos or [*ALGORITHMS, *(PEERS if args.peers else ())]
    for name in algos:
        if name not in names:
            print_error(f"algos: {name!r} is not known; there is {', '.join(names)}.")
            return 1
    try:
        task = ComparedTask() if args.task is None else ComparedTask.read(args.task)
    except (ValueError, OSError) as error:
        print_error(error)
        return 1
    if args.task is not None and any(name in PEERS for name in algos):
        print_error("algos: the peers run on the embedded task only.")
        return 1
    args.output_dir.mkdir(parents=True, exist_ok=True)
    make_peers(args.peer_envs, algos, console)
    with workers(args.jobs) as pool:
        try:
            if args.search:
                prepare_labels(args, task, (SEARCH_SEED,), pool)
                for name in algos:
                    search(args, task, name, pool)
                return 0
            prepare_labels(args, task, sorted({*args.seeds, *(args.ppo_seeds if "ppo" in algos else ())}), pool)
            jobs = {job.name: job for job in jobs_of(args, task, algos)}
            notes = {name: {"label_count": args.labels} for name in jobs}
            folder = args.output_dir / "runs"
            folder.mkdir(exist_ok=True)
            failed = run_missing(jobs, notes, folder, pool, console)
        except MadeOtherwiseError as error:
            print_error(error)
            return 1
    results = read_results(args.output_dir)
    table = markdown_table(results)
    write_text(args.output_dir / "table.md", table)
    write_text(args.output_dir / "samples.md", samples_table(results))
    write_json(args.output_dir / "results.json", results, indent=None)
    draw(results, args.output_dir / "compare.png")
    console.print(table)
    console.print(f"Picture: {args.output_dir / 'compare.png'}")
    return 1 if failed else 0


def labels_of(args: Args, task: ComparedTask, seed: int) -> Labels | None:
    """Where a seed's labels are, or will be; None where the comparison has none."""
    if not args.labels:
        return None
    return Labels(str((args.output_dir / "labels" / f"seed{seed}").resolve()), args.labels, seed, task)


def prepare_labels(args: Args, task: ComparedTask, seeds: Sequence[int], pool: ProcessPoolExecutor) -> None:
    """Collects the labels of each seed, and trains their reward models."""
    all_labels = [labels for seed in seeds if (labels := labels_of(args, task, seed))]
    futures = [pool.submit(make_labels, labels, args.threads) for labels in all_labels]
    for labels, future in zip(all_labels, futures, strict=True):
        made = future.result()
        line = f"labels of seed {labels.seed}: {made['rankings']:,} rankings, {made['tokens']:,} tokens"
        line += f", {made['seconds']:.0f} s"
        if made["accuracy"] is not None:
            line += f", reward model right on {made['accuracy']:.1%} of held-out pairs"
        console.print(line)


def search(args: Args, task: ComparedTask, algo: str, pool: ProcessPoolExecutor) -> None:
    """Searches an algorithm's settings with Optuna's TPE on score - beta x KL, `jobs` trials at a time.

    Goes on where the record of trials, ``search.jsonl``, ends.
    """
    record = args.output_dir / "search.jsonl"
    earlier = [trial for trial in read_lines(record) if trial["algo"] == algo]
    study = make_study(algo, earlier)
    labels = labels_of(args, task, SEARCH_SEED)
    running: dict[Future[dict[str, Any]], tuple[Any, dict[str, Any]]] = {}
    started = len(earlier)
    while started < args.trials or running:
        # Keep the workers busy: a new trial is drawn with what is known by then.
        while started < args.trials and len(running) < args.jobs:
            trial = study.ask()
            chosen = suggest(trial, algo)
            job = Job(
                algo,
                job_params(algo, chosen),
                seed=SEARCH_SEED,
                tokens=args.search_tokens,
                kl_coef=args.kl_coefs[0],
                split="validation",
                peer_envs=str(args.peer_envs.resolve()),
                task=asdict(task),
                labels=labels.folder if labels else "",
                threads=args.threads,
            )
            running[pool.submit(run_job, job)] = (trial, chosen)
            started += 1
        finished, _ = wait(running, return_when=FIRST_COMPLETED)
        for future in finished:
            trial, chosen = running.pop(future)
            finish_trial(study, trial, algo, chosen, future, record)


def make_study(algo: str, earlier: Sequence[Mapping[str, Any]]) -> Any:
    """An Optuna study that knows earlier trials; without any, it begins with the algorithm's defaults."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=0, n_startup_trials=4))
    distributions: dict[str, Any] = {
        name: optuna.distributions.FloatDistribution(values[0], values[1], log=True)
        if kind == "log"
        else optuna.distributions.CategoricalDistribution(values)
        for name, (kind, values) in SPACES[algo].items()
    }
    for trial in earlier:
        study.add_trial(
            optuna.trial.create_trial(params=trial["chosen"], distributions=distributions, value=trial["objective"])
        )
    if not earlier:
        study.enqueue_trial(first_trial(algo))
    return study


def finish_trial(
    study: Any, trial: Any, algo: str, chosen: dict[str, Any], future: Future[dict[str, Any]], record: Path
) -> None:
    """Tells the study what a trial came to, and appends it to the record; a trial that failed is not recorded."""
    import optuna

    try:
        result = future.result()
    except Exception as error:  # whatever went wrong there, the other trials go on
        console.print(f"{algo} {chosen}: {error}", style="red")
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
        return
    objective = result["rm_score"] - result["kl_coef"] * result["kl"]
    study.tell(trial, objective)
    kept = {key: result[key] for key in ("rm_score", "gold_score", "kl", "trained_tokens", "seconds")}
    line = {"algo": algo, "chosen": chosen, "objective": objective, **kept}
    with record.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    console.print(f"{algo:14s} {objective:6.3f}  {chosen}")


def jobs_of(args: Args, task: ComparedTask, algos: Sequence[str]) -> list[Job]:
    """A job for each baseline and algorithm, β and seed."""
    jobs = []
    for algo in [*BASELINES, *algos]:
        params = {} if algo in BASELINES else task.params.get(algo) or best_settings(args.output_dir, algo)
        seeds = args.ppo_seeds if algo in ("ppo", "trl_ppo") else args.seeds
        betas = args.kl_coefs if algo not in BASELINES else (Job.kl_coef,)  # which plays no part there
        for kl_coef in betas:
            for seed in seeds:
                labels = labels_of(args, task, seed)
                job = Job(
                    algo,
                    params,
                    seed=seed,
                    tokens=args.tokens,
                    kl_coef=kl_coef,
                    split="heldout",
                    n_prompts=args.n_prompts,
                    peer_envs=str(args.peer_envs.resolve()),
                    task=asdict(task),
                    labels=labels.folder if labels else "",
                    threads=args.threads,
                )
                jobs.append(job)
    return jobs


def best_settings(folder: Path, algo: str) -> dict[str, Any]:
    """Settings of the search's best trial, or the defaults where no trial was recorded."""
    trials = [t for t in read_lines(folder / "search.jsonl") if t["algo"] == algo]
    chosen = max(trials, key=lambda t: t["objective"])["chosen"] if trials else first_trial(algo)
    return job_params(algo, chosen)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """A JSONL file's records; none where there is no file."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in jsonl_lines(path.read_text(encoding="utf-8")) if line]


def read_results(folder: Path) -> list[dict[str, Any]]:
    """Results of all runs in a folder, in the order of their names."""
    return [json.loads(p.read_text(encoding="utf-8")) for p in sorted((folder / "runs").glob("*.json"))]


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Args, description=__doc__)))
