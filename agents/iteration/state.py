"""What all steps of the rounds share: the settings, the models' names, the prompts, and the folder with what is done already.

OUT/settings.json              the settings of the rounds
OUT/round_1/responses.jsonl    what the current actor (and an opponent) wrote
OUT/round_1/rankings.jsonl     the judges' rankings of these responses
OUT/round_1/train.jsonl        what was chosen to train on
OUT/round_1/training/actor/    the actor after the round
OUT/round_1/evaluation.json    on held-out prompts
OUT/round_1/steps.json         the steps that are done, with their seconds
OUT/arena/                     against opponents: each player's responses to held-out prompts, and who beat whom
OUT/arena.json, arena.md       and the strengths
OUT/rounds.json, rounds.md, rounds.png, actor/   all rounds, and the last actor
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from agents.checksums import read_object
from agents.files import write_json, write_text
from agents.iteration.settings import IterationSettings
from agents.output_folder import has_files
from llm_env.default_task import (
    DEFAULT_GOLD,
    DEFAULT_HELDOUT_PROMPTS,
    DEFAULT_MODEL,
    DEFAULT_PROMPTS,
    DEFAULT_REWARD_MODEL,
)
from llm_env.lm.loading import resolve_device
from llm_env.lm.names import LoadSettings
from llm_env.text.prompts import PromptRecord, read_prompts
from llm_env.text.split import hold_out

CHANGEABLE = (
    "output_dir", "rounds", "host", "port", "evaluate_every", "reward_timeout", "reward_wait", "judge_concurrency",
    "processes", "rank_timeout",
)  # fmt: skip
"""Settings that may differ when the rounds of a folder go on."""

RESULTS = ("rankings.jsonl", "judgments.jsonl", "training", "reward_modelling", "evaluation.json")
"""What a round's folder holds once there is something to keep; responses alone are sampled again."""


class RoundsState:
    """The rounds of a folder.

    Args:
        settings: The settings of the rounds, checked.
        console: Terminal that progress is printed on.

    Attributes:
        first: Name of the model that the first round starts from; the evaluations' KL is to it.
        judges: Names of the judges.
        load: dtype and device of the models that only score or respond.
        prompts: The prompts that the actor responds to and trains on.
        held_out: The prompts of the evaluations.

    Raises:
        FileNotFoundError, ValueError: the prompts cannot be read.
    """

    def __init__(self, settings: IterationSettings, console: Console) -> None:
        self.settings = settings
        self.console = console
        self.folder = settings.output_dir
        self.first = settings.model or DEFAULT_MODEL
        self.judges = settings.judge or (DEFAULT_REWARD_MODEL,)
        device = str(resolve_device(settings.device))
        self.load = LoadSettings("float32", device, settings.trust_remote_code, settings.special_tokens_in_text)
        self.prompts, self.held_out = split_prompts(settings)

    @property
    def gold(self) -> str | None:
        """The name of the gold function: what the setting says, or the embedded rule with the embedded prompts."""
        if self.settings.gold is not None:
            return self.settings.gold
        return DEFAULT_GOLD if self.settings.prompts is None else None

    def round_folder(self, number: int) -> Path:
        """A round's folder; before the first round, the folder of all rounds."""
        return self.folder / f"round_{number}" if number else self.folder

    def actor(self, number: int) -> Path:
        """The actor after a round; before the first round, the model that it starts from."""
        return self.round_folder(number) / "training" / "actor" if number else Path(self.first)

    def steps_done(self, number: int) -> dict[str, float]:
        """The steps of a round that are done, with their seconds."""
        path = self.round_folder(number) / "steps.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    def step(self, number: int, name: str, run: Callable[[RoundsState, int], None]) -> None:
        """Runs a step of a round, unless it is done already, and notes that it is.

        Args:
            number: The round; 0: before the first.
            name: The step's name in ``steps.json``.
            run: The step: a function of this object and the round's number.
        """
        steps = self.steps_done(number)
        if name in steps:
            return
        started = time.perf_counter()
        run(self, number)
        steps[name] = round(time.perf_counter() - started, 1)
        write_json(self.round_folder(number) / "steps.json", steps, indent=None)

    def evaluation(self, number: int) -> dict[str, Any] | None:
        """The evaluation of a round's actor; None where there is none."""
        path = self.round_folder(number) / "evaluation.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    def keep_actor(self) -> None:
        """Copies the last round's actor to ``OUT/actor``, whole or not at all."""
        partial, target = self.folder / ".partial-actor", self.folder / "actor"
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(self.actor(self.settings.rounds), partial)
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)

    def check_folder(self) -> None:
        """Refuses a folder with files of something else.

        Raises:
            ValueError: it has some.
        """
        if has_files(self.folder) and not (self.folder / "settings.json").is_file():
            raise ValueError(
                f"output_dir={str(self.folder)!r} is not empty and holds no rounds. Choose another folder."
            )

    def keep_settings(self) -> None:
        """Writes the settings to the folder, or compares them with those of the rounds in it.

        A first attempt that came to no ranking and no training left no results: its files make room.

        Raises:
            ValueError: the folder holds something else, or rounds with other settings.
        """
        values = {k: v for k, v in dataclasses.asdict(self.settings).items() if k not in CHANGEABLE}
        values = json.loads(json.dumps(values))  # tuples as JSON gives them back, as lists
        path = self.folder / "settings.json"
        if path.is_file():
            try:
                before = read_object(path)
            except ValueError as error:
                raise ValueError(
                    f"{path} is damaged ({error}), which says what the rounds are. Put it back."
                ) from error
            # A setting that is newer than the rounds had its default then.
            defaults = {f.name: f.default for f in dataclasses.fields(self.settings)}
            before = json.loads(
                json.dumps({**defaults, **before, "opponent": _opponents(before.get("opponent"))}, default=str)
            )
            changed = [k for k, v in values.items() if before[k] != v]
            if not changed:
                return
            if any(path for name in RESULTS for path in self.folder.glob(f"round_*/{name}")):
                raise ValueError(
                    f"output_dir={str(self.folder)!r} has rounds with other settings ({', '.join(changed)}). Choose another "
                    "folder, or the same settings."
                )
            for name in ("settings.json", "steps.json", "evaluation.json", "arena.json", "arena.md"):
                (self.folder / name).unlink(missing_ok=True)
            remove_folder(self.folder / "arena")
            for round_folder in self.folder.glob("round_*"):
                remove_folder(round_folder)
        else:
            self.check_folder()
        write_text(path, json.dumps(values, indent=1) + "\n")


def _opponents(value: Any) -> list[str]:
    """The setting `opponent` as a list; rounds of an earlier version have one name or none."""
    return [value] if isinstance(value, str) else list(value or ())


def split_prompts(settings: IterationSettings) -> tuple[list[PromptRecord], list[PromptRecord]]:
    """Reads the prompts; returns those to train on and those to evaluate on.

    Raises:
        FileNotFoundError, ValueError: they cannot be read, or are too few to hold one out.
    """
    prompts = read_prompts(settings.prompts or DEFAULT_PROMPTS)
    if settings.eval_prompts is not None:
        return prompts, read_prompts(settings.eval_prompts, "eval_prompts")
    if settings.prompts is None:
        return prompts, read_prompts(DEFAULT_HELDOUT_PROMPTS)
    if len(prompts) < 2:
        raise ValueError(f"prompts={settings.prompts!r} has {len(prompts)}; with fewer than two none can be held out.")
    return hold_out(prompts, settings.seed)


def reward_name(judge: str) -> str:
    """A judge's name as the name of a reward model: ``gold`` stands for the embedded rule."""
    return DEFAULT_GOLD if judge == "gold" else judge


def remove_folder(folder: Path) -> None:
    """Removes a folder; an interruption leaves no part of it under its name."""
    if folder.is_dir():
        old = folder.with_name(f".old-{folder.name}")
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
        shutil.rmtree(old)
