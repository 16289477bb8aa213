"""Runs of a comparison in worker processes: each result is a file, and what is there is not run again."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

from agents.console import PlainConsole
from agents.files import write_json
from comparison.jobs import BASELINES, PEERS, Job, peer_folder, run_job, start_worker
from comparison.tasks import check_made_with
from peer_environment import peer_python

NOT_KEPT = ("peer_envs", "task", "labels", "threads")
"""Fields of a job that are left out of its result."""


def workers(n: int) -> ProcessPoolExecutor:
    """A pool of n processes that start from nothing."""
    return ProcessPoolExecutor(n, mp_context=multiprocessing.get_context("spawn"), initializer=start_worker)


def make_peers(folder: Path, algos: Iterable[str], console: PlainConsole) -> None:
    """Makes the environments of those algorithms that are peers, in a folder."""
    for algo in sorted(set(algos) & set(PEERS)):
        place = peer_folder(folder, algo)
        console.print(f"environment of {algo}: {place}")
        peer_python(place, PEERS[algo])


def run_missing(
    jobs: Mapping[str, Job],
    notes: Mapping[str, Mapping[str, Any]],
    folder: Path,
    pool: ProcessPoolExecutor,
    console: PlainConsole,
) -> list[str]:
    """Runs what is not there yet, and says how each run went.

    Args:
        jobs: The runs, by the names of their files without the ending.
        notes: What each file holds beside the run's result, by the same names.
        folder: Folder of the files.
        pool: Does the work.
        console: Has a line for each run that ends.

    Returns:
        The names of runs that failed; the others go on.

    Raises:
        MadeOtherwiseError: a file is of a run with other settings.
    """
    missing = [name for name, job in jobs.items() if not made_already(job, notes[name], folder / f"{name}.json")]
    running: dict[Future[dict[str, Any]], str] = {pool.submit(run_job, jobs[name]): name for name in missing}
    failed = []
    while running:
        finished, _ = wait(running, return_when=FIRST_COMPLETED)
        for future in finished:
            name = running.pop(future)
            job = jobs[name]
            try:
                result = future.result()
            except Exception as error:  # whatever went wrong there
                failed.append(name)
                console.print(f"failed: {name}: {error}", style="red")
                continue
            kept = {field: value for field, value in result.items() if field not in NOT_KEPT}
            write_json(
                folder / f"{name}.json", {**kept, "task_digest": job.compared.digest, **notes[name]}, indent=None
            )
            score, gold, kl = (result[key] for key in ("rm_score", "gold_score", "kl"))
            line = f"{name:40s} score {score:5.2f}  gold {gold:5.2f}  KL {kl:5.2f}  J {score - job.kl_coef * kl:5.2f}"
            console.print(f"{line}  {result['seconds']:4.0f} s  ({len(running)} to go)")
    return failed


def made_already(job: Job, note: Mapping[str, Any], path: Path) -> bool:
    """Whether a run's result is there.

    Args:
        job: The run.
        note: What the file must hold beside the result.
        path: File of the result.

    Raises:
        MadeOtherwiseError: the file is of a run with other settings.
    """
    if not path.is_file():
        return False
    wanted: dict[str, Any] = {"algo": job.algo, "n_prompts": job.n_prompts, "task_digest": job.compared.digest, **note}
    if job.algo not in BASELINES:
        wanted |= {"params": json.loads(json.dumps(job.params)), "tokens": job.tokens}
    check_made_with(json.loads(path.read_text(encoding="utf-8")), wanted, path)
    return True
