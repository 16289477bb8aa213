"""What a comparison is made on: the embedded default or a task of one's own, and the preference labels that all start from."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from llm_env.default_task import DEFAULT_GOLD


@dataclass(frozen=True)
class ComparedTask:
    """Names, paths and numbers; the defaults are the embedded one's.

    Attributes:
        model: Reference and starting point.
        reward_model: Trained on by whoever trains on scores. None: the embedded one; with labels, one trained on them.
        prompts: To train on.
        eval_prompts: To measure on. None: with the embedded prompts theirs, else a tenth, held out.
        gold: package.module:function that nobody trains on.
        preferences: File of labels; None: four responses of the model to each prompt, ranked by the annotator.
        annotator: Who ranks them: the embedded rule, or any name of a reward model or function.
        noise: Temperature of the annotator; 1 is Bradley and Terry's.
        label_pairs: Which pairs of these rankings are labels: all, or best_worst.
        max_prompt_length: In tokens.
        max_new_tokens: In tokens.
        temperature: Of sampling, and of the policy.
        mixed_precision: ``no`` or ``bf16``, for whoever can.
        reward: Settings of the reward model's training, where labels make one.
        params: Settings of each algorithm, where no search found any.
    """

    model: str | None = None
    reward_model: str | None = None
    prompts: str | None = None
    eval_prompts: str | None = None
    gold: str = DEFAULT_GOLD
    preferences: str | None = None
    annotator: str = DEFAULT_GOLD
    noise: float = 1.0
    label_pairs: str = "all"
    max_prompt_length: int = 64
    max_new_tokens: int = 32
    temperature: float = 1.0
    mixed_precision: str = "no"
    reward: dict[str, Any] = field(default_factory=lambda: {"learning_rate": 1e-3, "epochs": 4.0})
    params: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> ComparedTask:
        """Reads a YAML file.

        Raises:
            FileNotFoundError, ValueError: there is none, or it has a key that is no setting.
        """
        import yaml

        if not path.is_file():
            raise FileNotFoundError(f"task={str(path)!r}: there is no such file.")
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        known = {f.name for f in dataclasses.fields(cls)}
        for name in values:
            if name not in known:
                raise ValueError(f"{path}: {name!r} is not a setting; there is {', '.join(sorted(known))}.")
        return cls(**values)

    @property
    def digest(self) -> str:
        """Of all but the algorithms' settings: a result with another one is of another task."""
        fields = {k: v for k, v in dataclasses.asdict(self).items() if k != "params"}
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:12]

    def split_prompts(self) -> tuple[list[Any], list[Any]]:
        """(to train on, to measure on)."""
        from llm_env.default_task import DEFAULT_HELDOUT_PROMPTS, DEFAULT_PROMPTS
        from llm_env.text.prompts import read_prompts
        from llm_env.text.split import hold_out

        prompts = read_prompts(self.prompts or DEFAULT_PROMPTS)
        if self.eval_prompts is not None:
            return prompts, read_prompts(self.eval_prompts)
        if self.prompts is None:
            return prompts, read_prompts(DEFAULT_HELDOUT_PROMPTS)
        return hold_out(prompts, 0)


class MadeOtherwiseError(ValueError):
    """What lies in the output folder was made with other settings."""


def check_made_with(found: dict[str, Any], wanted: dict[str, Any], path: Path) -> None:
    """Compares the settings that a file notes with those that are asked for; what it does not note is taken on trust.

    Raises:
        MadeOtherwiseError: one differs.
    """
    for name, value in wanted.items():
        if found.get(name, value) != value:
            raise MadeOtherwiseError(
                f"{path} was made with {name}={found[name]}, and {name}={value} is asked for. "
                "Remove it to make it again, or choose another output_dir."
            )


@dataclass(frozen=True)
class Labels:
    """Preference labels that every algorithm of a seed starts from.

    Attributes:
        folder: Of ``rankings.jsonl``, and of the reward model that is trained on them.
        count: Rankings.
        seed: Of sampling, of the annotator and of the reward model.
        task: Whose.
    """

    folder: str
    count: int
    seed: int
    task: ComparedTask


def rankings_in(folder: str | Path) -> Path:
    """The labels in their folder."""
    return Path(folder) / "rankings.jsonl"


def reward_model_in(folder: str | Path) -> Path:
    """The reward model that was trained on them."""
    return Path(folder) / "reward" / "reward_model"


def make_labels(labels: Labels, threads: int) -> dict[str, Any]:
    """Collects the labels and trains the reward model, unless they are there or the task has one; for a pool's worker.

    Returns:
        Rankings, tokens of the ranked responses, held-out accuracy of the reward model (None without one), seconds.

    Raises:
        MadeOtherwiseError: the folder has other labels.
    """
    import time

    import torch

    torch.set_num_threads(threads)
    folder = Path(labels.folder)
    note = folder / "labels.json"
    made_with = {"rankings": labels.count, "task_digest": labels.task.digest}
    if note.is_file():
        found = json.loads(note.read_text(encoding="utf-8"))
        check_made_with(found, made_with, folder)
        return found
    started = time.perf_counter()
    folder.mkdir(parents=True, exist_ok=True)
    tokens = _collect(labels, folder)
    found = {**made_with, "tokens": tokens, "accuracy": None}
    if labels.task.reward_model is None:
        found["accuracy"] = _train_reward_model(labels, folder)["accuracy"]
    found["seconds"] = round(time.perf_counter() - started, 1)
    note.write_text(json.dumps(found) + "\n", encoding="utf-8")
    return found


def _train_reward_model(labels: Labels, folder: Path) -> dict[str, Any]:
    """On the labels; returns its report."""
    from agents.supervised.reward_model.train import train_reward_model
    from agents.supervised.settings import RewardSettings

    shutil.rmtree(folder / "reward", ignore_errors=True)
    common = {"evaluations": 1, "device": "cpu", "seed": labels.seed, "mixed_precision": labels.task.mixed_precision}
    settings = RewardSettings(
        output_dir=folder / "reward",
        model=labels.task.model,
        preferences=str(rankings_in(labels.folder)),
        **(common | labels.task.reward),
    )
    report = train_reward_model(settings)
    shutil.rmtree(folder / "reward" / "checkpoints", ignore_errors=True)
    return report


def _collect(labels: Labels, folder: Path) -> int:
    """Writes ``rankings.jsonl``; returns the tokens that were generated for it, 0 for labels from a file."""
    from rich.console import Console

    from agents.preferences.folder import candidates_in, rank_in
    from agents.preferences.judge import Judge
    from agents.preferences.records import read_rankings, write_jsonl
    from agents.preferences.sampling import Sampling, Source
    from agents.preferences.selection import pairs_of
    from llm_env.default_task import DEFAULT_MODEL
    from llm_env.lm.names import LoadSettings

    task = labels.task
    rng = np.random.default_rng(labels.seed)
    if task.preferences is not None:
        given = read_rankings(task.preferences)
        if len(given) < labels.count:
            raise ValueError(
                f"labels={labels.count}: {task.preferences} has {len(given)}. Ask for fewer, or give more."
            )
        chosen = sorted(rng.permutation(len(given))[: labels.count].tolist())
        write_jsonl(rankings_in(labels.folder), [given[i].to_json() for i in chosen])
        return 0
    prompts = task.split_prompts()[0]
    laps = -(-labels.count // len(prompts))
    order = [i for _ in range(laps) for i in rng.permutation(len(prompts)).tolist()][: labels.count]
    load = LoadSettings("float32", "cpu")
    source = Source(task.model or DEFAULT_MODEL, task.temperature)
    sampling = Sampling((source,), 4, task.max_prompt_length, task.max_new_tokens, labels.seed)
    candidates = candidates_in(folder, [prompts[i] for i in order], sampling, load, {}, Console(quiet=True))
    found = rank_in(folder, candidates, Judge(task.annotator, load, noise=task.noise, seed=labels.seed))
    if task.label_pairs != "all":
        write_jsonl(rankings_in(labels.folder), [pair.to_json() for pair in pairs_of(found, task.label_pairs)])
    return int(json.loads((folder / "responses.json").read_text(encoding="utf-8"))["tokens"])
