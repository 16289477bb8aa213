"""One training run of a comparison: trains on a budget of tokens, responds to held-out prompts, and measures the responses."""

from __future__ import annotations

import dataclasses
import gc
import json
import multiprocessing
import os
import subprocess
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from agents.console import PlainConsole, plain_warnings
from agents.iteration.settings import REJECTION_SAMPLING
from agents.supervised.preference.methods import METHODS
from comparison.preference_jobs import ALONE, train_on_preferences
from comparison.tasks import ComparedTask, reward_model_in

PEERS = {"trl_ppo": "1.12.0", "trl_rloo": "1.16.0", "trl_grpo": "1.16.0"}
"""Peers, and the release of TRL that each runs from: the last one with PPO, and a current one."""
BASELINES = {"reference": 1, "reference_greedy": 1, "best_of_4": 4, "best_of_16": 16}
"""Baselines, which need no training, and the number of responses that each takes its best from."""
PREFERENCE = (*METHODS, ALONE, REJECTION_SAMPLING, "iterated_dpo")
"""Methods that train on preferences, or on the best of several responses."""
PEER_SCRIPT = Path(__file__).parent / "trl_peer.py"


@dataclass(frozen=True)
class Job:
    """A run, in plain values that a worker process can be sent.

    Attributes:
        algo: A key of `agents.algorithms.table.ALGORITHMS`, one of `PREFERENCE`, of `PEERS` or of `BASELINES`.
        params: Settings of the algorithm, `n_envs` among them.
        seed: Seed of training; responses are sampled with the next one.
        tokens: Budget: response tokens that are generated for training, ReMax's greedy ones included.
        kl_coef: Coefficient β of the KL, in score per nat.
        split: Prompts to respond to: ``validation``, for a search, takes those that are trained on; ``heldout`` the others.
        n_prompts: Number of prompts to respond to.
        peer_envs: Folder of the peers' virtual environments.
        task: Fields of a `ComparedTask`.
        labels: Folder of the labels that are trained on, and of their reward model; empty where there are none.
        threads: CPU threads of torch.
    """

    algo: str
    params: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    tokens: int = 32_000
    kl_coef: float = 0.05
    split: str = "heldout"
    n_prompts: int = 180
    peer_envs: str = ""
    task: dict[str, Any] = field(default_factory=dict)
    labels: str = ""
    threads: int = 1

    @property
    def compared(self) -> ComparedTask:
        """The task that the run is about."""
        return ComparedTask(**self.task)

    @property
    def reward_model(self) -> str | None:
        """The reward model that is trained on: the one fitted to the labels, or the task's; None is the embedded one."""
        if self.labels and self.compared.reward_model is None:
            return str(reward_model_in(self.labels))
        return self.compared.reward_model

    def train_prompts(self) -> list[Any]:
        """Prompts to train on."""
        return self.compared.split_prompts()[0]

    @property
    def name(self) -> str:
        """Name of the file that holds the result, without its ending."""
        return f"{self.algo}-beta{self.kl_coef:g}-seed{self.seed}"


def start_worker() -> None:
    """Makes a pool's worker print warnings as the scripts do, and end with the process that made it, however that ends."""
    plain_warnings(PlainConsole())
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Waits for the parent's end, which comes after the worker's unless it was killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def run_job(job: Job) -> dict[str, Any]:
    """Trains and evaluates; called in a pool's worker.

    Returns:
        The job's fields; means of score, gold score, KL (nats) and length (tokens) over the responses, with each prompt's
        scores; a curve, samples, and the tokens and seconds that training took.
    """
    import torch

    from llm_env.lm.registry import MODELS

    torch.set_num_threads(job.threads)
    started = time.perf_counter()
    if job.algo in BASELINES:
        outcome = _baseline(job)
    elif job.algo in PEERS:
        outcome = _peer(job)
    elif job.algo in PREFERENCE:
        outcome = _preference(job)
    else:
        outcome = _ours(job)
    MODELS.clear()  # the next job of this worker has others
    gc.collect()
    return {**dataclasses.asdict(job), **outcome, "seconds": round(time.perf_counter() - started, 1)}


def env_kwargs(job: Job) -> dict[str, Any]:
    """Arguments of the environment."""
    task = job.compared
    return {
        "model": task.model,
        "reward_model": job.reward_model,
        "prompts": None if task.prompts is None else job.train_prompts(),
        "max_prompt_length": task.max_prompt_length,
        "max_new_tokens": task.max_new_tokens,
        "temperature": task.temperature,
        **task.environment,
        "kl_coef": job.kl_coef,
        "device": "cpu",
    }


def make_task(job: Job) -> Any:
    """The environment's task in float32, with which every algorithm is measured; a masked policy under its masks."""
    from llm_env.settings import MASK_RULES, TaskSettings
    from llm_env.task import TextTask

    of_run = job.params.get("env_kwargs", {})
    return TextTask(TaskSettings(**env_kwargs(job), **{rule: of_run[rule] for rule in MASK_RULES if rule in of_run}))


def prompts_for(job: Job, task: Any) -> list[Any]:
    """The prompts to respond to; None for each episode that begins with what a world says."""
    from llm_env.text.prompts import PromptSet

    if job.compared.begins_itself:
        return [None] * job.n_prompts
    train, held_out = job.compared.split_prompts()
    source = held_out if job.split == "heldout" else train
    return list(PromptSet(source, task.tokenizer, task.settings.max_prompt_length).spread(job.n_prompts))


def measured(job: Job, episodes: list[Any], kl_bound: float = 0.0, certain: bool = False) -> dict[str, Any]:
    """Means over episodes, each one's scores, and the first eight as samples.

    Args:
        job: Names the gold function.
        episodes: Episodes with their scores.
        kl_bound: Added to each KL, in nats: the bound for best-of-n.
        certain: Whether the policy is greedy, so that log π of each token is 0.
    """
    from agents.evaluation.gold import load_gold

    gold_model = load_gold(job.compared.gold)
    gold = [e.rm_score for e in episodes] if gold_model is None else gold_model.score(episodes)
    kl = [(-e.ref_log_prob if certain else e.kl) + kl_bound for e in episodes]
    scores = {"rm_score": [float(e.rm_score) for e in episodes], "gold_score": [float(v) for v in gold]}
    return {
        **{name: float(np.mean(values)) for name, values in scores.items()},
        "values": {name: [round(v, 4) for v in values] for name, values in scores.items()},
        "kl": float(np.mean(kl)),
        "response_length": float(np.mean([len(e.response_ids) for e in episodes])),
        "samples": [[e.prompt.text, e.response_text, round(e.rm_score, 2)] for e in episodes[:8]],
    }


def _baseline(job: Job) -> dict[str, Any]:
    """Responds with the reference: sampled, greedy, or the best of n."""
    from agents.algorithms.best_of_n import best_of_n, best_of_n_kl
    from llm_env.rollout import respond

    task = make_task(job)
    n = BASELINES[job.algo]
    greedy = job.algo == "reference_greedy"
    with task.model.frozen() as lm:
        if greedy:
            episodes = respond(lm, task, prompts_for(job, task), 1, deterministic=True)
        else:
            episodes = best_of_n(lm, task, prompts_for(job, task), n, 1 + job.seed)
    return {
        **measured(job, episodes, best_of_n_kl(n), certain=greedy),
        "curve": [],
        "trained_tokens": 0,
        "train_seconds": 0.0,
        "tokens_per_second": None,
    }


def _ours(job: Job) -> dict[str, Any]:
    """Trains one of the project's algorithms."""
    from stable_baselines3.common.utils import LinearSchedule

    from agents import TextMetricsCallback, make_algorithm
    from agents.algorithms.table import algorithm
    from agents.callbacks.mask_refresh import MaskRefresh
    from agents.callbacks.token_budget import TokenBudget
    from agents.evaluation.gold import load_gold
    from comparison.training_record import TrainingRecord

    gold: Any = load_gold(job.compared.gold)
    row = algorithm(job.algo)
    params = dict(job.params)
    mask_refresh = params.pop("mask_refresh", 0)
    half = job.compared.mixed_precision
    precision: dict[str, Any] = {} if half == "no" else {"mixed_precision": half}
    model = make_algorithm(
        job.algo,
        env_kwargs={**env_kwargs(job), **precision, **params.pop("env_kwargs", {})},
        seed=job.seed,
        device="cpu",
        **precision,
        **params,
    )
    model.learning_rate = LinearSchedule(float(model.learning_rate), 0.0, 1.0)  # type: ignore[arg-type]  # a number until now
    model._setup_lr_schedule()
    curve: list[list[float]] = []
    metrics = TextMetricsCallback(gold=gold)
    metrics.after_iteration = lambda: curve.append(  # type: ignore[method-assign]
        [
            metrics.tokens,
            *(round(metrics.last.get(f"rollout/{k}", np.nan), 4) for k in ("rm_score", "gold_score", "kl")),
        ]
    )
    training = TrainingRecord(metrics)
    # Where ended slots idle, steps outnumber tokens, and `TokenBudget` ends training; elsewhere a step is a token.
    idle = row.rollouts
    started = time.perf_counter()
    refreshes = [MaskRefresh(mask_refresh)] if mask_refresh else []
    callbacks = [training, metrics, *refreshes, TokenBudget(metrics, job.tokens)]
    model.learn(10**9 if idle else job.tokens, callback=callbacks, log_interval=None)  # type: ignore[arg-type]
    seconds = time.perf_counter() - started
    task = make_task(job)
    greedy = job.algo == "ars"  # it searches for a deterministic policy
    episodes = model.policy.respond(task, prompts_for(job, task), 1 + job.seed, greedy)  # type: ignore[operator]
    return {
        **measured(job, episodes, certain=greedy),
        "curve": curve,
        "training": training.rows,
        "trained_tokens": metrics.tokens,
        "train_seconds": seconds,
        "tokens_per_second": metrics.tokens / seconds,
    }


def _preference(job: Job) -> dict[str, Any]:
    """Trains on preferences: the labels, and rankings of the actor's responses by the reward model."""
    from agents.policies.text_policy import load_actor
    from llm_env.default_task import DEFAULT_REWARD_MODEL

    task = make_task(job)
    with tempfile.TemporaryDirectory() as work:
        record = train_on_preferences(job, Path(work), job.reward_model or DEFAULT_REWARD_MODEL, task)
        actor = load_actor(Path(work) / "run" / "actor", task)
    episodes = actor.respond(task, prompts_for(job, task), 1 + job.seed)
    return {**measured(job, episodes), **record, "curve": [], "tokens_per_second": None}


def peer_folder(envs: Path, algo: str) -> Path:
    """The folder of a peer's environment, in the folder of all of them."""
    return envs / f"trl-{PEERS[algo]}"


def peer_files(task: ComparedTask) -> dict[str, str]:
    """Actor, reward model and prompts of a task as a peer wants them: folders and a file.

    Raises:
        ValueError: the reward is no model, or prompts to measure on have no file of their own.
    """
    from llm_env.default_task import DEFAULT_MODEL, DEFAULT_PROMPTS, DEFAULT_REWARD_MODEL

    if task.reward_model is not None and ":" in task.reward_model:
        raise ValueError(
            f"reward_model={task.reward_model!r}: peers are trained on reward models alone, not on functions."
        )
    if task.prompts is not None and task.eval_prompts is None:
        raise ValueError(
            f"prompts={task.prompts!r}: a peer trains on all of a file; give eval_prompts, to be measured on."
        )
    found = {
        "actor": task.model or DEFAULT_MODEL,
        "reward_model": task.reward_model or DEFAULT_REWARD_MODEL,
        "prompts": task.prompts or DEFAULT_PROMPTS,
    }
    return {name: str(Path(path).resolve()) for name, path in found.items()}


def _peer(job: Job) -> dict[str, Any]:
    """Trains with TRL in a virtual environment of its own; the actor that it leaves responds here, as ours do."""
    from agents.policies.text_policy import load_actor

    files, task = peer_files(job.compared), make_task(job)
    python = peer_folder(Path(job.peer_envs), job.algo) / "bin" / "python"
    if not python.is_file():
        raise FileNotFoundError(f"{job.algo}: there is no {python}; compare.py makes it with --peers.")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        request = {
            "algo": job.algo, "params": job.params, "seed": job.seed, "tokens": job.tokens, "kl_coef": job.kl_coef,
            "max_new_tokens": task.settings.max_new_tokens, **files,
        }  # fmt: skip
        (work / "job.json").write_text(json.dumps(request), encoding="utf-8")
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        environment["OMP_NUM_THREADS"] = "1"
        command = [str(python), str(PEER_SCRIPT), str(work / "job.json"), str(work / "out")]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{job.algo} failed:\n{done.stderr[-3000:]}")
        record = json.loads((work / "out" / "result.json").read_text(encoding="utf-8"))
        actor = load_actor(work / "out" / "actor", task)
        episodes = actor.respond(task, prompts_for(job, task), 1 + job.seed)
    seconds = record.pop("seconds")
    rate = record["trained_tokens"] / seconds
    return {**measured(job, episodes), **record, "train_seconds": seconds, "tokens_per_second": rate}
