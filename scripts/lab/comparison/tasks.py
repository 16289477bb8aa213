"""What a comparison is made on: a task, embedded or from a file, and the preference labels that all algorithms start from."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from agents.files import write_json
from llm_env.default_task import DEFAULT_GOLD


@dataclass(frozen=True)
class ComparedTask:
    """A task in names, paths and numbers; the defaults are the embedded one's.

    Attributes:
        model: Folder or hub id of the reference, from which training starts. None is the embedded actor.
        reward_model: Reward model of algorithms that train on scores. None is the embedded one; with labels, one that is
            trained on them.
        prompts: File or dataset of prompts to train on. None is the embedded ones.
        eval_prompts: File or dataset of prompts to measure on. None takes the embedded held-out prompts with the embedded
            prompts, and else a tenth of `prompts`.
        gold: ``package.module:function`` whose score no algorithm trains on. None: there is none, and the score stands for it.
        preferences: File of labels. None makes them: four responses of the model to each prompt, ranked by the annotator.
        annotator: Reward model or function that ranks them. The default is the embedded gold rule.
        noise: Temperature of the annotator; at 1 it draws rankings from Bradley and Terry's model, at 0 it never errs.
        label_pairs: Pairs of these rankings that become labels: ``all``, or ``best_worst``.
        max_prompt_length: Longest prompt, in tokens.
        max_new_tokens: Longest response, in tokens.
        temperature: Temperature of sampling, and of the policy.
        mixed_precision: ``no`` or ``bf16``, for algorithms that have it.
        environment: Further settings of the environment, such as a world and the sizes of its turns.
        reward: Settings of the reward model's training, where it is trained on labels.
        params: Settings by algorithm, which go before those of a search.
    """

    model: str | None = None
    reward_model: str | None = None
    prompts: str | None = None
    eval_prompts: str | None = None
    gold: str | None = DEFAULT_GOLD
    preferences: str | None = None
    annotator: str = DEFAULT_GOLD
    noise: float = 1.0
    label_pairs: str = "all"
    max_prompt_length: int = 64
    max_new_tokens: int = 32
    temperature: float = 1.0
    mixed_precision: str = "no"
    environment: dict[str, Any] = field(default_factory=dict)
    reward: dict[str, Any] = field(default_factory=lambda: {"learning_rate": 1e-3, "epochs": 4.0})
    params: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> ComparedTask:
        """Reads a YAML file.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file has a key that is no setting.
        """
        import yaml

        if not path.is_file():
            raise FileNotFoundError(f"task={str(path)!r}: there is no such file.")
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        settings = {f.name for f in dataclasses.fields(cls)}
        for name in values:
            if name not in settings:
                raise ValueError(f"{path}: {name!r} is not a setting; there is {', '.join(sorted(settings))}.")
        return cls(**values)

    @property
    def digest(self) -> str:
        """A hash of all fields but the algorithms' settings; results with another one are of another task."""
        fields = {k: v for k, v in dataclasses.asdict(self).items() if k != "params"}
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def begins_itself(self) -> bool:
        """Whether episodes begin with what a world says, not with prompts."""
        return "world" in self.environment and self.prompts is None

    def split_prompts(self) -> tuple[list[Any], list[Any]]:
        """Prompts to train on, and prompts to measure on."""
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


def check_made_with(noted: dict[str, Any], wanted: dict[str, Any], path: Path) -> None:
    """Compares the settings that a file notes with those that are wanted; a setting that it does not note passes.

    Raises:
        MadeOtherwiseError: one differs.
    """
    for name, value in wanted.items():
        if noted.get(name, value) != value:
            raise MadeOtherwiseError(
                f"{path} was made with {name}={noted[name]}, and {name}={value} is asked for. "
                "Remove it to make it again, or choose another output_dir."
            )


@dataclass(frozen=True)
class Labels:
    """Preference labels that every algorithm of a seed starts from.

    Attributes:
        folder: Folder of ``rankings.jsonl``, and of the reward model that is trained on them.
        count: Number of rankings.
        seed: Seed of sampling, of the annotator and of the reward model.
        task: Task whose prompts, model and annotator make the labels.
    """

    folder: str
    count: int
    seed: int
    task: ComparedTask


def rankings_in(folder: str | Path) -> Path:
    """The labels' file in their folder."""
    return Path(folder) / "rankings.jsonl"


def reward_model_in(folder: str | Path) -> Path:
    """The reward model's folder in the labels' folder."""
    return Path(folder) / "reward" / "reward_model"


def make_labels(labels: Labels, threads: int) -> dict[str, Any]:
    """Collects labels, and trains a reward model on them unless the task has one; called in a pool's worker.

    Labels that are there are not made again.

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
        earlier: dict[str, Any] = json.loads(note.read_text(encoding="utf-8"))
        check_made_with(earlier, made_with, folder)
        return earlier
    started = time.perf_counter()
    folder.mkdir(parents=True, exist_ok=True)
    tokens = _collect(labels, folder)
    accuracy = _train_reward_model(labels, folder)["accuracy"] if labels.task.reward_model is None else None
    seconds = round(time.perf_counter() - started, 1)
    record = {**made_with, "tokens": tokens, "accuracy": accuracy, "seconds": seconds}
    write_json(note, record, indent=None)  # last: a folder without it was cut off, and is made again
    return record


def _train_reward_model(labels: Labels, folder: Path) -> dict[str, Any]:
    """On the labels; returns its report."""
    from agents.supervised.reward_model.train import train_reward_model
    from agents.supervised.settings import RewardSettings

    shutil.rmtree(folder / "reward", ignore_errors=True)
    common: dict[str, Any] = {
        "evaluations": 1,
        "device": "cpu",
        "seed": labels.seed,
        "mixed_precision": labels.task.mixed_precision,
    }
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
    """Writes ``rankings.jsonl``; returns the tokens that were generated for it, 0 for labels from a file.

    Raises:
        ValueError: the task's file has fewer rankings.
    """
    from rich.console import Console

    from agents.preferences.folder import candidates_in, rank_in
    from agents.preferences.judge import RewardJudge
    from agents.preferences.records import read_rankings, write_jsonl
    from agents.preferences.sampling import Sampling, Source
    from agents.preferences.selection import pairs_of
    from llm_env.default_task import DEFAULT_MODEL
    from llm_env.lm.names import LoadSettings

    task = labels.task
    rng = np.random.default_rng(labels.seed)
    if task.preferences is not None:
        rankings = read_rankings(task.preferences)
        if len(rankings) < labels.count:
            raise ValueError(
                f"labels={labels.count}: {task.preferences} has {len(rankings)}. Ask for fewer, or give more."
            )
        chosen = sorted(rng.permutation(len(rankings))[: labels.count].tolist())
        write_jsonl(rankings_in(labels.folder), [rankings[i].to_json() for i in chosen])
        return 0
    prompts = task.split_prompts()[0]
    # As many shuffled rounds through the prompts as the labels need.
    laps = -(-labels.count // len(prompts))
    order = [i for _ in range(laps) for i in rng.permutation(len(prompts)).tolist()][: labels.count]
    load = LoadSettings("float32", "cpu")
    source = Source(task.model or DEFAULT_MODEL, task.temperature)
    sampling = Sampling((source,), 4, task.max_prompt_length, task.max_new_tokens, labels.seed)
    candidates = candidates_in(folder, [prompts[i] for i in order], sampling, load, {}, Console(quiet=True))
    ranked = rank_in(folder, candidates, RewardJudge(task.annotator, load, noise=task.noise, seed=labels.seed))
    if task.label_pairs != "all":
        write_jsonl(rankings_in(labels.folder), [pair.to_json() for pair in pairs_of(ranked, task.label_pairs)])
    return int(json.loads((folder / "responses.json").read_text(encoding="utf-8"))["tokens"])
