"""The commands that faults befall, at their smallest sizes: how each is started, how it goes on, and what it has to leave."""

from __future__ import annotations

import csv
import hashlib
import importlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agents.algorithms.table import ALGORITHMS
from agents.output_folder import LOCK_FILE

RUN = [
    "--n-envs",
    "4",
    "--max-new-tokens",
    "6",
    "--max-prompt-length",
    "12",
    "--sample-every",
    "2",
    "--checkpoint-every",
    "2",
    # A linear schedule's last update is small, which hides what a resume has forgotten.
    "--lr-schedule",
    "constant",
]
ROLLOUT = 4 * 6
NOT_COMPARED = {"checkpoints", "tensorboard", "command.txt", "versions.json", "run.json", "config.yaml", "steps.json"}
"""Names of files and folders that hold times, paths, or what the result does not depend on."""
_TIMED = ("runtime", "seconds", "per_second", "minutes", "flos", "time/")
PRACTICES: dict[str, list[str]] = {
    "PPO, LoRA": ["--lora-rank", "2", "--critic", "head"],
    "PPO, adaptive KL": ["--kl-target", "1"],
    "PPO, moving reference": ["--ref-refresh-every", "2", "--ref-refresh-share", "0.5"],
    "PPO, best evaluation kept": ["--eval-every", "1", "--n-eval", "4"],
    "PPO, continuous episodes": ["--episodes", "continuous"],
    "PPO, bf16": ["--mixed-precision", "bf16"],
    "PPO, prompts of one's own": ["--prompts", "PROMPTS"],
    "PPO-ptx": ["--ptx-texts", "TEXTS", "--ptx-tokens", "64"],
    "MaskablePPO, masks of the actor": ["--algo", "maskable_ppo", "--top-k", "50", "--mask-refresh", "2"],
}


IMPORTED = (
    "agents.cli.collect_preferences",
    "agents.cli.evaluate_actor",
    "agents.cli.iterate",
    "agents.cli.pipeline",
    "agents.cli.train",
    "agents.cli.train_preference",
    "agents.cli.train_reward_model",
    "agents.cli.train_sft",
    "agents.evaluation.compare",
    "agents.iteration.rounds",
    "agents.pipeline.report",
    "agents.preferences.folder",
    "agents.runs.run",
    "agents.supervised.preference.train",
    "agents.supervised.reward_model.train",
    "agents.supervised.sft",
    "matplotlib.pyplot",
    "torch.utils.tensorboard",
    "transformers.models.llama.modeling_llama",
    "trl.trainer.dpo_trainer",
    "trl.trainer.sft_trainer",
)
"""Modules that the commands import when they are needed."""


@dataclass(frozen=True)
class Command:
    """A command line, and how it goes on after a fault.

    Attributes:
        title: Its name in the table.
        script: Its module in `agents.cli`.
        options: Its options, without the output folder.
        resume: ``run``: by ``--resume FOLDER`` alone; ``flag``: by the same command with ``--resume``; ``same``: by the same
            command.
        children: Whether a pipeline runs its stages in child processes, as it does for users; else in its own, where faults
            are.
    """

    title: str
    script: str
    options: tuple[str, ...]
    resume: str
    children: bool = False

    def arguments(self, folder: Path) -> list[str]:
        """The command line for a folder: of a start, or of going on with what is there."""
        start = ["--output-dir", str(folder), *self.options]
        if self.resume == "run" and (folder / "config.yaml").is_file():
            return ["--resume", str(folder)]
        return [*start, "--resume"] if self.resume == "flag" and self._has_begun(folder) else start

    @staticmethod
    def _has_begun(folder: Path) -> bool:
        """Whether there is a file to go on with; empty folders are none."""
        return any(path.is_file() and path.name != LOCK_FILE for path in folder.rglob("*"))

    def run(self, folder: Path) -> int:
        """Runs the command in this process; returns its exit status."""
        module = importlib.import_module(f"agents.cli.{self.script}")
        arguments = self.arguments(folder)
        if self.script == "pipeline" and not self.children:
            from agents.pipeline.commands import run_here

            return int(module.run(module.parse_command_line(module.Args, arguments, ""), run_here))
        return int(module.main(arguments))


def commands(inputs: Path) -> list[Command]:
    """All commands of the campaign.

    Args:
        inputs: A folder made by `make_inputs`.
    """
    files = {
        "PROMPTS": inputs / "prompts.txt",
        "TEXTS": inputs / "reviews.jsonl",
        "RANKINGS": inputs / "rankings.jsonl",
    }

    def filled(words: Sequence[str]) -> tuple[str, ...]:
        return tuple(str(files.get(word, word)) for word in words)

    def run(title: str, *words: str) -> Command:
        return Command(title, "train", filled([*RUN, "--total-timesteps", str(ROLLOUT * 5), *words]), "run")

    groups = ("grpo", "dr_grpo", "rloo")
    few_updates = ["--batch-size", "24", "--algo-kwargs", "gradient_steps=4"]
    algorithms = [
        run(row.cls.__name__ if name not in (*groups, "remax", "reinforce_pp") else name, "--algo", name, *more)
        for name, row in ALGORITHMS.items()
        if row.reason("resume") is None
        for more in [["--group-size", "2"] if name in groups else few_updates if "dqn" in name else []]
    ]
    practices = [run(title, *words) for title, words in PRACTICES.items()]
    small = ["--batch-size", "8", "--epochs", "1", "--evaluations", "3"]
    stages = [
        Command("SFT", "train_sft", filled(["--texts", "TEXTS", *small]), "flag"),
        Command("reward model", "train_reward_model", filled(["--preferences", "RANKINGS", *small]), "flag"),
        Command("DPO", "train_preference", filled(["--preferences", "RANKINGS", "--loss", "dpo", *small]), "flag"),
        Command("collecting preferences", "collect_preferences", ("--judge", "gold", "--n-prompts", "70"), "same"),
    ]
    rounds = ["--rounds", "2", "--judge", "gold", "--n-eval", "8", "--max-new-tokens", "12"]
    few = ["--prompts-per-round", "24", "--checkpoints", "2", "--batch-size", "8"]
    algorithm = ["--method", "ppo", "--total-timesteps", "192", "--n-envs", "4"]
    repeated = [
        Command("rounds of DPO", "iterate", ("--method", "dpo", *rounds, *few), "same"),
        Command("rounds of PPO", "iterate", (*algorithm, *rounds), "same"),
        Command("pipeline", "pipeline", ("--config", str(inputs / "pipeline.yaml")), "same"),
    ]
    return [*algorithms, *practices, *stages, *repeated]


def import_all() -> None:
    """Imports what the commands import when they start, so that the processes of the trials, which are forked, need not."""
    for module in IMPORTED:
        importlib.import_module(module)


def make_inputs(folder: Path) -> None:
    """Writes prompts, texts, rankings and a pipeline's configuration for the commands."""
    from agents.cli import collect_preferences, write_reviews

    folder.mkdir(parents=True)
    (folder / "prompts.txt").write_text("".join(f"Review of place {i}:\n" for i in range(40)), encoding="utf-8")
    if write_reviews.main(["--output-dir", str(folder), "--reviews", "60", "--heldout-reviews", "10"]):
        raise RuntimeError("The reviews could not be written.")
    if collect_preferences.main(["--output-dir", str(folder), "--judge", "gold", "--n-prompts", "40"]):
        raise RuntimeError("The preferences could not be collected.")
    stages: dict[str, dict[str, Any]] = {
        "sft": {
            "script": "train_sft",
            "texts": str(folder / "reviews.jsonl"),
            "batch_size": 16,
            "epochs": 1,
            "evaluations": 2,
        },
        "preferences": {"script": "collect_preferences", "actors": "{sft}/actor", "judge": "gold", "n_prompts": 40},
        "reward": {
            "script": "train_reward_model",
            "model": "{sft}/actor",
            "preferences": "{preferences}/rankings.jsonl",
            "batch_size": 16,
            "epochs": 1,
            "evaluations": 2,
        },
        "ppo": {
            "script": "train",
            "model": "{sft}/actor",
            "reward_model": "{reward}/reward_model",
            "prompts": str(folder / "prompts.txt"),
            "n_envs": 4,
            "max_new_tokens": 6,
            "total_timesteps": ROLLOUT * 3,
            "checkpoint_every": 1,
        },
        "evaluation": {"script": "evaluate_actor", "actor": "{ppo}/actor", "n_prompts": 4},
    }
    (folder / "pipeline.yaml").write_text(json.dumps(stages), encoding="utf-8")  # JSON is YAML


def result_of(folder: Path) -> dict[str, str]:
    """What a command left: a hash of each file, without times and without paths.

    Args:
        folder: Its output folder, whose own name is taken out of the files.
    """
    result = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        parts = path.relative_to(folder).parts
        if any(part in NOT_COMPARED or part.startswith((".", "damaged_")) for part in parts):
            continue
        if path.suffix in (".png", ".html", ".md"):  # drawn from the others
            continue
        result["/".join(parts)] = hashlib.sha256(_content(path, str(folder))).hexdigest()[:16]
    return result


def _content(path: Path, folder: str) -> bytes:
    """A file's content without times and without the folder's name."""
    content = path.read_bytes()
    if path.suffix == ".safetensors":
        return content
    text = content.decode("utf-8").replace(folder, "FOLDER")
    readers: dict[str, Callable[[str], Any]] = {
        ".json": json.loads,
        ".csv": lambda t: list(csv.DictReader(t.splitlines())),
    }
    if path.suffix not in readers:
        return text.encode()
    return json.dumps(_untimed(readers[path.suffix](text)), sort_keys=True).encode()


def _untimed(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _untimed(v) for k, v in value.items() if not any(word in str(k) for word in _TIMED)}
    return [_untimed(v) for v in value] if isinstance(value, list) else value
