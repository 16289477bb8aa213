"""Runs of a comparison that train on preferences or on the best of several responses, on a budget of generated tokens.

`rejection_sampling`, `iterated_dpo` and every loss of train_preference.py sample responses from their current actor, and the
reward model ranks them, as in `scripts/iterate.py`; the losses do so in one round, from the reference. Where the comparison
has labels, the first round trains on them too. `dpo_labels` trains on the labels alone and generates nothing.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from agents.iteration.settings import REJECTION_SAMPLING
from comparison.tasks import rankings_in

ROUNDS = {"iterated_dpo": 3, REJECTION_SAMPLING: 3}
ALONE = "dpo_labels"
ITERATION_OPTIONS = ("dpop_lambda", "tdpo_alpha")  # which `IterationSettings` takes among its method_kwargs


def train_on_preferences(job: Any, work: Path, reward_model: str, task: Any) -> dict[str, Any]:
    """Trains, and leaves the actor in ``run/actor`` of a folder.

    Args:
        job: A `comparison.jobs.Job`.
        work: The folder.
        reward_model: Name of the reward model that ranks responses.
        task: A `TextTask`, to measure how long the reference's responses are.

    Returns:
        ``trained_tokens``: response tokens that were generated; ``train_seconds``.
    """
    started = time.perf_counter()
    train = train_on_labels if job.algo == ALONE else train_in_rounds
    tokens = train(job, work, reward_model, task)
    return {"trained_tokens": tokens, "train_seconds": time.perf_counter() - started}


def train_on_labels(job: Any, work: Path, reward_model: str, task: Any) -> int:
    """Trains on the labels alone, with arguments as in `train_on_preferences`; returns the 0 tokens that it generates.

    Raises:
        ValueError: the comparison has no labels.
    """
    from agents.supervised.preference import train as preference
    from agents.supervised.settings import PreferenceSettings

    if not job.labels:
        raise ValueError(f"{ALONE} trains on labels alone; give --labels.")
    settings = PreferenceSettings(
        output_dir=work / "run",
        model=job.compared.model,
        preferences=str(rankings_in(job.labels)),
        evaluations=1,
        n_samples=0,
        max_prompt_length=job.compared.max_prompt_length,
        mixed_precision=job.compared.mixed_precision,
        device="cpu",
        seed=job.seed,
        **job.params,
    )
    preference.train_on_preferences(settings)
    return 0


def train_in_rounds(job: Any, work: Path, reward_model: str, task: Any) -> int:
    """Trains in rounds of sampling and ranking, with arguments as in `train_on_preferences`; returns the tokens generated."""
    from agents.iteration.rounds import iterate
    from agents.iteration.settings import IterationSettings

    compared = job.compared
    params = dict(job.params)
    rounds = int(params.pop("rounds", ROUNDS.get(job.algo, 1)))
    n_responses = int(params.pop("n_responses", 4))
    options = {name: params.pop(name) for name in ITERATION_OPTIONS if name in params}
    prompts = work / "prompts.jsonl"
    write_prompts(prompts, job.train_prompts())
    # The budget in tokens becomes a number of prompts: what a response of the reference is long on average.
    length = mean_response_length(task, job.labels)
    settings = IterationSettings(
        output_dir=work / "run",
        model=compared.model,
        method="dpo" if job.algo == "iterated_dpo" else job.algo,
        rounds=rounds,
        judge=(reward_model,),
        first_preferences=str(rankings_in(job.labels)) if job.labels and job.algo != REJECTION_SAMPLING else None,
        prompts=str(prompts),
        eval_prompts=str(prompts),
        prompts_per_round=max(2, round(job.tokens / rounds / n_responses / length)),
        n_responses=n_responses,
        temperature=compared.temperature,
        max_prompt_length=compared.max_prompt_length,
        max_new_tokens=compared.max_new_tokens,
        method_kwargs=tuple(f"{name}={value}" for name, value in options.items()),
        n_eval=2,
        evaluate_every=rounds,
        checkpoints=1,
        mixed_precision=compared.mixed_precision,
        device="cpu",
        seed=job.seed,
        **params,
    )
    iterate(settings)
    notes = sorted((work / "run").glob("round_*/responses.json"))
    return sum(int(json.loads(note.read_text(encoding="utf-8"))["tokens"]) for note in notes)


def write_prompts(path: Path, prompts: list[Any]) -> None:
    """Writes prompt records to a file that `read_prompts` reads."""
    from agents.preferences.records import write_jsonl

    write_jsonl(path, [p.to_json() for p in prompts])


def mean_response_length(task: Any, labels: str) -> float:
    """Mean length of the reference's responses, in tokens: of the labels' responses, or of 64 that are sampled for it."""
    note = Path(labels) / "responses.json"
    if labels and note.is_file():
        sampling = json.loads(note.read_text(encoding="utf-8"))
        return sampling["tokens"] / sampling["asked"] / sampling["settings"]["n_responses"]
    from llm_env.rollout import respond

    with task.model.frozen() as lm:
        episodes = respond(lm, task, task.prompts.spread(64), 0)
    return sum(len(e.response_ids) for e in episodes) / len(episodes)
