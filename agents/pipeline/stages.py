"""Stages of a configuration, and what is known of them: which ran, from which inputs, with which output.

A stage is a command of `agents.cli` with its options. It has a folder of its own in the output folder, and {name} in an option
stands for the folder of an earlier stage. A stage runs only if its output is not there or something before it changed.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

SCRIPTS = {
    "write_reviews": "output-dir",
    "train_sft": "output-dir",
    "collect_preferences": "output-dir",
    "train_reward_model": "output-dir",
    "train_preference": "output-dir",
    "iterate": "output-dir",
    "train": "output-dir",
    "evaluate": "output",
}
"""The scripts that can be stages, and the option that says where they write."""
PASSING = ("checkpoints", "tensorboard")
"""Folders whose files may go without a stage counting as changed."""
OPTIONS_FROM = 5
"""Words of a stage's command before its options: python -m MODULE --output-dir FOLDER."""


@dataclass(frozen=True)
class Stage:
    """One step.

    Attributes:
        name: Of its folder.
        script: What runs.
        options: Its options, {names} not yet put in.
        needs: Earlier stages that the options name.
    """

    name: str
    script: str
    options: dict[str, Any]
    needs: tuple[str, ...]


@dataclass(frozen=True)
class Note:
    """What is kept of a stage: ``.stages/NAME.json``.

    Attributes:
        inputs: Fingerprint of its command and of what it reads.
        outputs: Fingerprint of what it wrote; None while it is under way.
        seconds: How long it took, over all attempts.
    """

    inputs: str
    outputs: str | None = None
    seconds: float = 0.0


def read_stages(path: Path) -> list[Stage]:
    """Reads a configuration.

    Raises:
        FileNotFoundError, ValueError: there is none, or it is malformed; the stage is named.
    """
    if not path.is_file():
        raise FileNotFoundError(f"config={str(path)!r}: there is no such file.")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise ValueError(f"{path}{f', line {mark.line + 1}' if mark else ''}: not valid YAML.") from error
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{path}: must be a mapping of stage names to their script and options.")
    stages: list[Stage] = []
    for name, body in content.items():
        where = f"{path}, stage {name!r}"
        if not re.fullmatch(r"[A-Za-z0-9_]+", str(name)):
            raise ValueError(f"{where}: a stage's name has letters, digits and underscores.")
        if not isinstance(body, dict) or body.get("script") not in SCRIPTS:
            script = body.get("script") if isinstance(body, dict) else body
            near = difflib.get_close_matches(str(script), SCRIPTS, 1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{where}: script={script!r} is none of {', '.join(SCRIPTS)}.{hint}")
        options = {k: v for k, v in body.items() if k != "script"}
        needs = tuple(dict.fromkeys(re.findall(r"\{(\w+)\}", json.dumps(options))))
        known = [s.name for s in stages]
        for need in needs:
            if need not in known:
                raise ValueError(f"{where}: {{{need}}} is no earlier stage; there is {', '.join(known) or 'none'}.")
        stages.append(Stage(str(name), str(body["script"]), options, needs))
    return stages


def filled_in(value: Any, folders: Mapping[str, Path]) -> Any:
    """An option with {names} replaced by folders."""
    if isinstance(value, str):
        return re.sub(r"\{(\w+)\}", lambda m: str(folders[m[1]]), value)
    if isinstance(value, list):
        return [filled_in(v, folders) for v in value]
    return value


def command(stage: Stage, folder: Path, folders: Mapping[str, Path], seed: int) -> list[str]:
    """The stage's command line."""
    target = folder / "evaluation.json" if stage.script == "evaluate" else folder
    words = [sys.executable, "-m", f"agents.cli.{stage.script}", f"--{SCRIPTS[stage.script]}", str(target)]
    for name, value in ({"seed": seed} | stage.options).items():
        words.append(f"--{name.replace('_', '-')}")
        words += [
            str(v) for v in (filled_in(value, folders) if isinstance(value, list) else [filled_in(value, folders)])
        ]
    return words


def fingerprint(path: Path) -> str:
    """Of a file's content, or of all files in a folder but those that come and go."""
    digest = hashlib.sha256()
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    for file in files:
        inside = file.relative_to(path).parts if path.is_dir() else ()
        if any(part in PASSING for part in inside):
            continue
        digest.update(str(inside).encode())
        with file.open("rb") as content:
            while block := content.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


class Pipeline:
    """Stages, and what is known of them.

    Args:
        stages: In order.
        folder: Where they write.
        seed: For stages that do not say another.
    """

    def __init__(self, stages: list[Stage], folder: Path, seed: int) -> None:
        self.stages = stages
        self.folder = folder
        self.seed = seed
        self.folders = {s.name: folder / s.name for s in stages}

    def note(self, stage: Stage) -> Note | None:
        """What is kept of a stage."""
        path = self._note_path(stage)
        return Note(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None

    def _note_path(self, stage: Stage) -> Path:
        return self.folder / ".stages" / f"{stage.name}.json"

    def _keep(self, stage: Stage, note: Note) -> None:
        path = self._note_path(stage)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(dataclasses.asdict(note)) + "\n", encoding="utf-8")
        partial.replace(path)

    def inputs(self, stage: Stage) -> str:
        """Fingerprint of a stage's command and of the files and folders that it names, earlier stages' among them."""
        words = command(stage, self.folders[stage.name], self.folders, self.seed)[OPTIONS_FROM:]
        read = [Path(w) for w in words if not w.startswith("--") and Path(w).exists()]
        named = [fingerprint(p) for p in read]
        upstream = [note.outputs for need in stage.needs if (note := self.note(self._stage(need))) is not None]
        return hashlib.sha256(json.dumps([words, named, upstream]).encode()).hexdigest()

    def _stage(self, name: str) -> Stage:
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

    def run(self, stage: Stage) -> int:
        """Runs a stage, from where it stopped if it is the same still; returns the exit status."""
        folder, inputs = self.folders[stage.name], self.inputs(stage)
        note = self.note(stage)
        words = command(stage, folder, self.folders, self.seed)
        used = folder.is_dir() and any(folder.iterdir())
        before = 0.0
        if used and note is not None and note.outputs is None and note.inputs == inputs:  # interrupted
            before = note.seconds
            if stage.script == "train" and (folder / "config.yaml").is_file():
                words = [*words[:3], "--resume", str(folder)]
            elif stage.script in ("train_sft", "train_reward_model", "train_preference"):
                words += ["--resume", "True"]
        elif used:
            if note is None:
                raise FileExistsError(f"{folder} is not empty, and no stage of this pipeline made it. Move it away.")
            shutil.rmtree(folder)
        self._keep(stage, Note(inputs, None, before))
        if stage.script == "evaluate":
            folder.mkdir(parents=True, exist_ok=True)
        started = time.perf_counter()
        status = subprocess.run(words, check=False).returncode
        seconds = before + time.perf_counter() - started
        self._keep(stage, Note(inputs, fingerprint(folder) if status == 0 else None, round(seconds, 1)))
        return status
