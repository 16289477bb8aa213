r"""Compares all algorithms on the embedded default, with the same budget of generated tokens.

    python scripts/lab/compare.py --search --output-dir runs/compare        find each one's settings (Optuna's TPE), recorded
    python scripts/lab/compare.py --output-dir runs/compare --peers         train all with what was found, TRL's beside ours
    python scripts/lab/compare.py --output-dir runs/compare --algos ppo grpo --seeds 0 1
    python scripts/lab/compare.py --output-dir runs/offline --labels 900 --algos ppo grpo dpo dpop orpo iterated_dpo
    python scripts/lab/compare.py --output-dir runs/film --task examples/film_reviews/compare.yaml --labels 1000 --algos ppo dpo

With --labels, all start from the same preference labels: whoever needs scores trains on those of a reward model fitted to them,
whoever trains on preferences has the labels, and its own tokens' worth of responses that this reward model ranks.

The search sees only prompts that are trained on, and maximises score - beta x KL, the objective itself. Every trial and every
run is a line or a file of JSON; what is there already is not run again, so both can be interrupted. Runs and labels of
other settings are an error. Writes table.md, samples.md, results.json and compare.png.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console

from agents.console import plain_warnings
from comparison.figures import draw, markdown_table, samples_table
from comparison.jobs import BASELINES, PEERS, PREFERENCE, Job, make_peer_environment, run_job, start_worker
from comparison.spaces import SPACES, first_trial, job_params, suggest
from comparison.tasks import ComparedTask, Labels, MadeOtherwiseError, check_made_with, make_labels

console = Console(soft_wrap=True)
SEARCH_SEED = 1000


@dataclass(frozen=True)
class Args:
    """Search settings, or train and compare."""

    output_dir: Path = Path("runs/compare")
    """Folder of the search's record, the runs, the table and the picture."""
    search: bool = False
    """Search settings instead of comparing."""
    algos: tuple[str, ...] = ()
    """Default: all algorithms of agents.algorithms.table, and with --peers TRL's. Losses of train_preference.py, dpo_labels
    (with no responses but the labels'), rejection_sampling and iterated_dpo have to be named."""
    peers: bool = False
    """Run TRL's PPO (1.12.0), RLOO and GRPO (1.16.0) too, each in an environment of its own, which is made if need be."""
    peer_envs: Path = Path(".venv-peers")
    """Folder of those environments."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of each algorithm."""
    ppo_seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Seeds of PPO, ours and TRL's."""
    tokens: int = 32_000
    """Response tokens that each run generates for training."""
    kl_coefs: tuple[float, ...] = (0.05,)
    """Beta; several draw several points on the frontier of score against KL."""
    n_prompts: int = 180
    """Held-out prompts of each evaluation."""
    task: Path | None = None
    """YAML file of a task of your own (see comparison/tasks.py). Default: the embedded one."""
    labels: int = 0
    """Preference rankings that all start from, others for each seed. 0: none; the reward model is there already."""
    trials: int = 10
    """Trials of each algorithm's search."""
    search_tokens: int = 12_000
    """Tokens of a trial."""
    jobs: int = 2
    """Runs at a time …"""
    threads: int = 1
    """… each on so many CPU threads."""


def main(args: Args) -> int:
    """Searches or compares; returns the exit status."""
    from agents.algorithms.table import ALGORITHMS

    plain_warnings(console)
    known = [*ALGORITHMS, *PREFERENCE, *PEERS]
    algos = args.algos or [*ALGORITHMS, *(PEERS if args.peers else ())]
    for name in algos:
        if name not in known:
            console.print(f"error: algos: {name!r} is not known; there is {', '.join(known)}.", style="red")
            return 1
    try:
        task = ComparedTask() if args.task is None else ComparedTask.read(args.task)
    except (ValueError, OSError) as error:
        console.print(f"error: {error}", style="red", highlight=False, markup=False)
        return 1
    if args.task is not None and any(name in PEERS for name in algos):
        console.print("error: algos: the peers run on the embedded task only.", style="red")
        return 1
    args.output_dir.mkdir(parents=True, exist_ok=True)
    for name in algos:
        if name in PEERS:
            console.print(f"environment of {name}: {args.peer_envs / f'trl-{PEERS[name]}'}", highlight=False)
            make_peer_environment(args.peer_envs, PEERS[name])
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(args.jobs, mp_context=context, initializer=start_worker) as pool:
        try:
            if args.search:
                prepare_labels(args, task, (SEARCH_SEED,), pool)
                for name in algos:
                    search(args, task, name, pool)
                return 0
            prepare_labels(args, task, sorted({*args.seeds, *(args.ppo_seeds if "ppo" in algos else ())}), pool)
            failed = compare(args, task, list(algos), pool)
        except MadeOtherwiseError as error:
            console.print(f"error: {error}", style="red", highlight=False, markup=False)
            return 1
    results = read_results(args.output_dir)
    table = markdown_table(results)
    (args.output_dir / "table.md").write_text(table, encoding="utf-8")
    (args.output_dir / "samples.md").write_text(samples_table(results), encoding="utf-8")
    (args.output_dir / "results.json").write_text(json.dumps(results) + "\n", encoding="utf-8")
    draw(results, args.output_dir / "compare.png")
    console.print(table, highlight=False)
    console.print(f"Picture: {args.output_dir / 'compare.png'}", highlight=False)
    return 1 if failed else 0


def labels_of(args: Args, task: ComparedTask, seed: int) -> Labels | None:
    """The labels of a seed, if the comparison has any."""
    if not args.labels:
        return None
    return Labels(str((args.output_dir / "labels" / f"seed{seed}").resolve()), args.labels, seed, task)


def prepare_labels(args: Args, task: ComparedTask, seeds: Sequence[int], pool: ProcessPoolExecutor) -> None:
    """Collects the labels of each seed, and trains their reward models."""
    waiting = [pool.submit(make_labels, found, args.threads) for s in seeds if (found := labels_of(args, task, s))]
    for seed, future in zip(seeds, waiting, strict=False):
        found = future.result()
        told = f"labels of seed {seed}: {found['rankings']:,} rankings, {found['tokens']:,} tokens, {found['seconds']:.0f} s"
        if found["accuracy"] is not None:
            told += f", reward model right on {found['accuracy']:.1%} of held-out pairs"
        console.print(told, highlight=False)


def search(args: Args, task: ComparedTask, algo: str, pool: ProcessPoolExecutor) -> None:
    """Optuna's TPE on score - beta x KL, `jobs` trials at a time; goes on where the record ends."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    record = args.output_dir / "search.jsonl"
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=0, n_startup_trials=4))
    labels = labels_of(args, task, SEARCH_SEED)
    done = [t for t in read_lines(record) if t["algo"] == algo]
    distributions = {
        name: optuna.distributions.FloatDistribution(*values, log=True)
        if kind == "log"
        else optuna.distributions.CategoricalDistribution(values)
        for name, (kind, values) in SPACES[algo].items()
    }
    for trial in done:
        study.add_trial(
            optuna.trial.create_trial(params=trial["chosen"], distributions=distributions, value=trial["objective"])
        )
    if not done:
        study.enqueue_trial(first_trial(algo))
    running: dict[Future[dict[str, Any]], tuple[Any, dict[str, Any]]] = {}
    started = len(done)
    while started < args.trials or running:
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
            try:
                result = future.result()
            except Exception as error:  # a trial that fails is one that found nothing
                console.print(f"{algo} {chosen}: {error}", style="red", highlight=False, markup=False)
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
                continue
            objective = result["rm_score"] - result["kl_coef"] * result["kl"]
            study.tell(trial, objective)
            kept = {key: result[key] for key in ("rm_score", "gold_score", "kl", "trained_tokens", "seconds")}
            line = {"algo": algo, "chosen": chosen, "objective": objective, **kept}
            with record.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            console.print(f"{algo:14s} {objective:6.3f}  {chosen}", highlight=False)


def compare(args: Args, task: ComparedTask, algos: list[str], pool: ProcessPoolExecutor) -> list[str]:
    """Trains and evaluates what is not there yet; returns what failed."""
    folder = args.output_dir / "runs"
    folder.mkdir(exist_ok=True)
    jobs: list[Job] = []
    for algo in [*BASELINES, *algos]:
        params = {} if algo in BASELINES else task.params.get(algo) or best_settings(args.output_dir, algo)
        seeds = args.ppo_seeds if algo in ("ppo", "trl_ppo") else args.seeds
        betas = args.kl_coefs if algo not in BASELINES else (Job.kl_coef,)  # which plays no part there
        for kl_coef in betas:
            for seed in seeds:
                envs = str(args.peer_envs.resolve())
                labels = labels_of(args, task, seed)
                job = Job(algo, params, seed, args.tokens, kl_coef, "heldout", args.n_prompts, envs)
                folder_of = labels.folder if labels else ""
                jobs.append(replace(job, task=asdict(task), labels=folder_of, threads=args.threads))
    missing = [job for job in jobs if not made_already(job, args.labels, folder / f"{job.name}.json")]
    running = {pool.submit(run_job, job): job for job in missing}
    failed: list[str] = []
    while running:
        finished, _ = wait(running, return_when=FIRST_COMPLETED)
        for future in finished:
            job = running.pop(future)
            try:
                result = future.result()
            except Exception as error:
                failed.append(job.name)
                console.print(f"failed: {job.name}: {error}", style="red", highlight=False, markup=False)
                continue
            for name in ("peer_envs", "task", "labels", "threads"):
                result.pop(name)
            result |= {"task_digest": job.compared.digest, "label_count": args.labels}
            partial = folder / f".{job.name}.partial"
            partial.write_text(json.dumps(result) + "\n", encoding="utf-8")
            partial.replace(folder / f"{job.name}.json")
            console.print(
                f"{job.name:32s} score {result['rm_score']:5.2f}  gold {result['gold_score']:5.2f}  KL {result['kl']:5.2f}"
                f"  ({len(running)} to go)",
                highlight=False,
            )
    return failed


def made_already(job: Job, label_count: int, path: Path) -> bool:
    """Whether a job's result is there.

    Raises:
        MadeOtherwiseError: there is one, of a job with other settings.
    """
    if not path.is_file():
        return False
    wanted: dict[str, Any] = {"n_prompts": job.n_prompts, "label_count": label_count}
    wanted["task_digest"] = job.compared.digest
    if job.algo not in BASELINES:
        wanted |= {"params": json.loads(json.dumps(job.params)), "tokens": job.tokens}
    check_made_with(json.loads(path.read_text(encoding="utf-8")), wanted, path)
    return True


def best_settings(folder: Path, algo: str) -> dict[str, Any]:
    """What the search found, or the defaults where there was none."""
    trials = [t for t in read_lines(folder / "search.jsonl") if t["algo"] == algo]
    chosen = max(trials, key=lambda t: t["objective"])["chosen"] if trials else first_trial(algo)
    return job_params(algo, chosen)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """A JSONL file's records; none where there is no file."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


def read_results(folder: Path) -> list[dict[str, Any]]:
    """All runs' results, in the order of their names."""
    return [json.loads(p.read_text(encoding="utf-8")) for p in sorted((folder / "runs").glob("*.json"))]


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Args, description=__doc__)))
