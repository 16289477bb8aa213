"""Runs of a comparison that train on preferences or on the best of several responses, on a budget of generated tokens.

`rejection_sampling`, `iterated_dpo` and every loss of train_preference.py sample from their current actor and have the reward
model rank, as `scripts/iterate.py` does; the losses in one round, from the reference. Where the comparison has labels, they
are trained on too (in the first round). `dpo_labels` has the labels alone and generates nothing.
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


def train_on_preferences(job: Any, work: Path, reward_model: str, task: Any) -> dict[str, Any]:
    """Trains, and leaves the actor in ``run/actor`` of a folder; returns what to record.

    Args:
        job: A `comparison.jobs.Job`.
        work: The folder.
        reward_model: Who ranks.
        task: A `TextTask`: its prompts are sampled from.
    """
    from agents.iteration import IterationSettings, iterate
    from agents.supervised.preference import train as preference
    from agents.supervised.settings import PreferenceSettings

    compared = job.compared
    params = dict(job.params)
    common: dict[str, Any] = {"model": compared.model, "mixed_precision": compared.mixed_precision, "device": "cpu"}
    started = time.perf_counter()
    if job.algo == ALONE:
        if not job.labels:
            raise ValueError(f"{ALONE} trains on labels alone; give --labels.")
        given = PreferenceSettings(
            output_dir=work / "run",
            preferences=str(rankings_in(job.labels)),
            evaluations=1,
            n_samples=0,
            max_prompt_length=compared.max_prompt_length,
            seed=job.seed,
            **common,
            **params,
        )
        preference.train_on_preferences(given)
        return {"trained_tokens": 0, "train_seconds": time.perf_counter() - started}
    rounds = int(params.pop("rounds", ROUNDS.get(job.algo, 1)))
    n_responses = int(params.pop("n_responses", 4))
    extra = {k: params.pop(k) for k in ("dpop_lambda", "tdpo_alpha") if k in params}
    prompts = work / "prompts.jsonl"
    write_prompts(prompts, job.train_prompts())
    length = mean_response_length(task, job.labels)
    settings = IterationSettings(
        output_dir=work / "run",
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
        method_kwargs=tuple(f"{k}={v}" for k, v in extra.items()),
        n_eval=2,
        evaluate_every=rounds,
        checkpoints=1,
        seed=job.seed,
        **common,
        **params,
    )
    iterate(settings)
    seconds = time.perf_counter() - started
    notes = sorted((work / "run").glob("round_*/responses.json"))
    tokens = sum(int(json.loads(p.read_text(encoding="utf-8"))["tokens"]) for p in notes)
    return {"trained_tokens": tokens, "train_seconds": seconds}


def write_prompts(path: Path, prompts: list[Any]) -> None:
    """Writes prompts for `read_prompts`."""
    from agents.preferences.records import write_jsonl

    write_jsonl(path, [{"prompt": p} if isinstance(p, str) else {"messages": p} for p in prompts])


def mean_response_length(task: Any, labels: str) -> float:
    """Tokens of the reference's responses."""
    note = Path(labels) / "responses.json"
    if labels and note.is_file():
        known = json.loads(note.read_text(encoding="utf-8"))
        return known["tokens"] / known["asked"] / known["settings"]["n_responses"]
    from llm_env.rollout import respond

    with task.model.frozen() as lm:
        episodes = respond(lm, task, task.prompts.spread(64), 0)
    return sum(len(e.response_ids) for e in episodes) / len(episodes)
