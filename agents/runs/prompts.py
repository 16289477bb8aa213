"""Which prompts a run trains on, and which it holds out for samples and evaluations."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from agents.distributed import ranks
from agents.files import write_text
from agents.runs.settings import RunSettings
from llm_env.default_task import DEFAULT_HELDOUT_PROMPTS
from llm_env.text.prompts import PromptRecord, prompt_record, read_prompts
from llm_env.text.split import hold_out

HELD_OUT_LEAST_PROMPTS = 10
TRAIN_FILE = "train_prompts.jsonl"
HELD_OUT_FILE = "heldout_prompts.jsonl"

RunPromptSource = str | list[PromptRecord]


@dataclass(frozen=True)
class RunPrompts:
    """The prompts of a run.

    Attributes:
        train: A file, a dataset id or a list to train on. None: the embedded prompts.
        held_out: A file, a dataset id or a list to sample from and evaluate on. None: a world begins each episode by itself.
        split: The two lists that the user's prompts were split into, which a new run writes to its folder; None where the
            settings or an earlier start of the run say both.
    """

    train: RunPromptSource | None
    held_out: RunPromptSource | None
    split: tuple[list[PromptRecord], list[PromptRecord]] | None = None

    def write(self, folder: Path) -> None:
        """Writes both sides of a split to the run's folder, for the next start of the run."""
        for name, prompts in zip((TRAIN_FILE, HELD_OUT_FILE), self.split or (), strict=False):
            if prompts:
                write_prompts(folder / name, prompts)


def run_prompts(settings: RunSettings, folder: Path, resume: bool) -> RunPrompts:
    """Decides which prompts a run trains on and which it holds out.

    Args:
        settings: Name the prompts, the held-out prompts and the seed of the split.
        folder: The run's folder, which has the split already if the run goes on.
        resume: Whether the run goes on.

    Raises:
        FileNotFoundError, ValueError: the prompts cannot be read, or the run's own are not in its folder any more.
    """
    prompts, eval_prompts = settings.task.prompts, settings.folder.eval_prompts
    if prompts is None or eval_prompts is not None:
        return RunPrompts(prompts, eval_prompts or (None if settings.task.world else DEFAULT_HELDOUT_PROMPTS))
    if resume:
        train_file, held_out_file = folder / TRAIN_FILE, folder / HELD_OUT_FILE
        if not train_file.is_file():  # the file that they came from has the held-out ones too
            raise FileNotFoundError(
                f"{train_file} is missing, which has the prompts that the run trains on. Put it back."
            )
        return RunPrompts(str(train_file), str(held_out_file if held_out_file.is_file() else train_file))
    all_prompts = read_prompts(prompts)
    if len(all_prompts) < HELD_OUT_LEAST_PROMPTS:  # too few to hold any out: samples are of the same ones
        return RunPrompts(all_prompts, all_prompts, split=(all_prompts, []))
    train_prompts, held_out = hold_out(all_prompts, settings.training.seed)
    return RunPrompts(train_prompts, held_out, split=(train_prompts, held_out))


def shared_prompts(read: Callable[[], RunPrompts]) -> RunPrompts:
    """The prompts that rank 0 reads, in every process; with one process what `read` gives, as it is."""
    if not ranks().several:
        return read()
    prompts = read() if ranks().first else RunPrompts(None, None)
    train, held_out = (_from_first(side) for side in (prompts.train, prompts.held_out))
    return RunPrompts(train, held_out, prompts.split)


def _from_first(source: RunPromptSource | None) -> RunPromptSource | None:
    # Embedded prompts are on every machine; of the user's file there may be one copy.
    if source is not None and source != DEFAULT_HELDOUT_PROMPTS:
        told = ranks().from_first([[r.where, r.to_json()] for r in read_prompts(source)])
    else:
        told = ranks().from_first(source)
    return [prompt_record(where, record) for where, record in told] if isinstance(told, list) else told


def write_prompts(path: Path, prompts: list[PromptRecord]) -> None:
    """Writes prompts, with their columns, as JSONL that `read_prompts` reads."""
    write_text(path, "".join(json.dumps(p.to_json(), ensure_ascii=False) + "\n" for p in prompts))
