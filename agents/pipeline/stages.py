"""The stages of a configuration, and a record of each: which inputs it ran from, and which output it left.

A stage is a command of `agents.cli` with its options. It writes to a folder of its own in the output folder, and {name} in an
option stands for the folder of an earlier stage. A stage runs only if its output is not there or something before it changed.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agents.files import write_json
from agents.flat_settings import option_words, read_yaml
from agents.output_folder import LOCK_FILE, empty_folder, has_files
from agents.pipeline.commands import RunCommand, run_child

SCRIPTS = {
    "write_reviews": "output-dir",
    "train_sft": "output-dir",
    "collect_preferences": "output-dir",
    "collect_feedback": "output-dir",
    "find_hacks": "output-dir",
    "train_reward_model": "output-dir",
    "train_preference": "output-dir",
    "iterate": "output-dir",
    "train": "output-dir",
    "evaluate_actor": "output",
}
"""The commands that can be stages, and the option that says where each writes."""
RESUMED_BY_FLAG = ("train_sft", "train_reward_model", "train_preference")
"""The commands that go on in their output folder with ``--resume``; train takes the folder, the others need no option."""
IN_PROCESSES = ("train_sft", "train_reward_model", "train_preference", "iterate", "train")
"""The commands that several processes can run together."""
NOT_COMPARED = ("checkpoints", "tensorboard", LOCK_FILE)
"""Names of folders and files that may change or go without the stage counting as changed."""
EVALUATION_FILE = "evaluation.json"
"""What `evaluate_actor` writes: its stage's output, and beside the actor of another stage something that somebody added."""


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
        name: Name of the stage and of its folder.
        script: The command of `agents.cli` that runs.
        options: Options of the command by name, still with {name} for another stage's folder.
        needs: Earlier stages that the options name.
    """

    name: str
    script: str
    options: dict[str, Any]
    needs: tuple[str, ...]


@dataclass(frozen=True)
class Note:
    """The record of a stage, ``.stages/NAME.json``.

    Attributes:
        inputs: Fingerprint of the stage's command line and of the files that it reads.
        outputs: Fingerprint of the files that it wrote; None while it is under way.
        seconds: Time that it took, over all attempts.
    """

    inputs: str
    outputs: str | None = None
    seconds: float = 0.0


def read_stages(path: Path) -> list[Stage]:
    """Reads a configuration: a YAML mapping of stage names to their script and its options.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the configuration is malformed; the stage is named.
    """
    content = read_yaml(path, stages=True)
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{path}: must be a mapping of stage names to their script and options.")
    stages: list[Stage] = []
    for name, body in content.items():
        where = f"{path}, stage {name!r}"
        if not re.fullmatch(r"[A-Za-z0-9_]+", str(name)):
            raise ValueError(f"{where}: a stage's name has letters, digits and underscores.")
        if not isinstance(body, dict):
            raise ValueError(
                f"{where}: {body!r} is no mapping of a script and its options. Settings are for llm-env train."
            )
        if (script := body.get("script")) not in SCRIPTS:
            near = difflib.get_close_matches(str(script), SCRIPTS, 1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{where}: script={script!r} is none of {', '.join(SCRIPTS)}.{hint}")
        options = {k: v for k, v in body.items() if k != "script"}
        # Stages whose folders the options name; they must stand above, so that the order of the file is an order to run in.
        needs = tuple(dict.fromkeys(re.findall(r"\{(\w+)\}", json.dumps(options))))
        earlier = [s.name for s in stages]
        for need in needs:
            if need not in earlier:
                raise ValueError(f"{where}: {{{need}}} is no earlier stage; there is {', '.join(earlier) or 'none'}.")
        stages.append(Stage(str(name), str(body["script"]), options, needs))
    return stages


def filled_in(value: Any, folders: Mapping[str, Path]) -> Any:
    """Replaces each {name} in an option's value, or in the entries of a list, by the folder of that stage."""
    if isinstance(value, str):
        return re.sub(r"\{(\w+)\}", lambda match: str(folders[match[1]]), value)
    if isinstance(value, list):
        return [filled_in(v, folders) for v in value]
    return value


def stage_options(stage: Stage, folders: Mapping[str, Path], seed: int) -> list[str]:
    """Gives a stage's command line, without the option that says where it writes.

    Args:
        stage: The stage whose command line it is.
        folders: The stages' folders by name.
        seed: Seed of a stage that does not set another.
    """
    options = {"seed": seed} | stage.options
    return [word for name, value in options.items() for word in option_words(name, filled_in(value, folders))]


def output_option(stage: Stage, folder: Path) -> list[str]:
    """Gives the option that says where a stage writes: its folder, or a file in it."""
    target = folder / EVALUATION_FILE if stage.script == "evaluate_actor" else folder
    return [f"--{SCRIPTS[stage.script]}", str(target)]


def fingerprint(path: Path) -> str:
    """Hashes a file's content, or names and contents of all files in a folder but those in `NOT_COMPARED`.

    In a folder with an actor its evaluation is left out too.
    """
    digest = hashlib.sha256()
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    for file in files:
        inside = (
            file.relative_to(path).parts if path.is_dir() else ()
        )  # names count inside a folder, not where it stands
        if any(part in NOT_COMPARED for part in inside) or (inside == (EVALUATION_FILE,) and (path / "actor").is_dir()):
            continue
        digest.update(str(inside).encode())
        with file.open("rb") as content:
            while block := content.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


class Pipeline:
    """Stages, their folders and their records.

    Args:
        stages: The stages in the order in which they run.
        folder: The folder that holds the stages' folders.
        seed: Seed of each stage that does not set another.
        run: Runs a stage's command; see `RunCommand`.
        processes: How many processes train, in a stage that does not set another number.
    """

    def __init__(
        self, stages: list[Stage], folder: Path, seed: int, run: RunCommand = run_child, processes: int = 1
    ) -> None:
        self.stages = stages
        self.folder = folder
        self.seed = seed
        self.run_command = run
        self.processes = processes
        self.folders = {s.name: folder / s.name for s in stages}

    def note(self, stage: Stage) -> Note | None:
        """Reads the record of a stage; None where it never ran."""
        path = self._note_path(stage)
        return Note(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None

    def _note_path(self, stage: Stage) -> Path:
        return self.folder / ".stages" / f"{stage.name}.json"

    def keep(self, stage: Stage, note: Note) -> None:
        """Writes the record of a stage."""
        write_json(self._note_path(stage), dataclasses.asdict(note), indent=None)

    def inputs(self, stage: Stage) -> str:
        """Hashes a stage's options with the files and folders that they name, earlier stages' among them."""
        # A stage's output depends on its options, on the files that they name, and on what the stages before it wrote.
        words = stage_options(stage, self.folders, self.seed)
        named = [fingerprint(Path(w)) for w in words if not w.startswith("--") and Path(w).exists()]
        upstream = [note.outputs for need in stage.needs if (note := self.note(self.stage(need))) is not None]
        return hashlib.sha256(json.dumps([words, named, upstream]).encode()).hexdigest()

    def stage(self, name: str) -> Stage:
        """Gives the stage of a name."""
        return next(s for s in self.stages if s.name == name)

    def is_done(self, stage: Stage) -> bool:
        """Whether the stage's output is there, made by this command from these inputs, and unchanged since."""
        note = self.note(stage)
        folder = self.folders[stage.name]
        return (
            note is not None
            and note.outputs is not None
            and folder.is_dir()
            and note.inputs == self.inputs(stage)
            and note.outputs == fingerprint(folder)
        )

    def command_line(self, stage: Stage) -> list[str]:
        """The words with which a stage's command starts."""
        return [
            *output_option(stage, self.folders[stage.name]),
            *stage_options(stage, self.folders, self.seed),
            *self._together(stage),
        ]

    def _together(self, stage: Stage) -> list[str]:
        """The words that say how many processes a stage runs in, which is no input: another number makes it no other stage."""
        asked = self.processes > 1 and stage.script in IN_PROCESSES and "processes" not in stage.options
        return option_words("processes", self.processes) if asked else []

    def run(self, stage: Stage) -> int:
        """Runs a stage, from where it stopped if it is the same still; returns the exit status.

        Raises:
            FileExistsError: the stage's folder has files that no stage of this pipeline wrote.
        """
        folder, inputs, note = self.folders[stage.name], self.inputs(stage), self.note(stage)
        argv = self.command_line(stage)
        # A folder with files: go on in it if the same stage was interrupted there, begin again if something changed.
        seconds_before = 0.0
        if has_files(folder):
            if note is None:
                raise FileExistsError(f"{folder} is not empty, and no stage of this pipeline made it. Move it away.")
            if note.outputs is None and note.inputs == inputs:  # interrupted
                seconds_before = note.seconds
                argv = resumed(stage, folder, argv, self._together(stage))
            else:
                empty_folder(folder)
        # Without outputs the record says that the stage is under way, also if this process is killed now.
        self.keep(stage, Note(inputs, None, seconds_before))
        if stage.script == "evaluate_actor":  # it writes a file, and makes no folder for it
            folder.mkdir(parents=True, exist_ok=True)
        started = time.perf_counter()
        status = self.run_command(stage.script, argv)
        seconds = seconds_before + time.perf_counter() - started
        self.keep(stage, Note(inputs, fingerprint(folder) if status == 0 else None, round(seconds, 1)))
        return status


def resumed(stage: Stage, folder: Path, argv: list[str], together: Sequence[str] = ()) -> list[str]:
    """Gives the command line that goes on with an interrupted stage.

    Args:
        stage: The stage whose command line it is.
        folder: Its folder, which is not empty.
        argv: The command line that started it.
        together: The words among them that say how many processes there are, which are said again.
    """
    if stage.script == "train" and (folder / "config.yaml").is_file():
        return ["--resume", str(folder), *together]
    return [*argv, "--resume"] if stage.script in RESUMED_BY_FLAG else argv
