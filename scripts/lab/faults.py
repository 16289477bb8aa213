r"""A fault campaign: kills commands, fills the disk, damages checkpoints, and looks whether each ends with the same result.

    python scripts/lab/faults.py --output-dir runs/faults                    some hundred faults, over all commands
    python scripts/lab/faults.py --output-dir runs/faults --only PPO --kills 20

Each command runs undisturbed once, which also tells its points (`campaign/faults.py`): files that it opens, renames and
removes, tensors that it writes, phases of training. Then faults are put at points of every kind and at random moments; the
command goes on as a user would go on; and what it leaves is compared, byte for byte but for times. Writes table.md and
trials.json.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

# Before torch: each trial forks a process that has everything imported, and threads do not survive a fork.
os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")

import numpy as np
import torch
import tyro

from agents.checksums import CHECKSUMS
from agents.console import PlainConsole
from agents.files import write_json, write_text
from campaign.commands import Command, commands, import_all, make_inputs
from campaign.faults import Fault
from campaign.trials import Outcome, damaged, faulty, killed_alone, newest_checkpoint, second_process, undisturbed

console = PlainConsole()
DAMAGE = ("flipped", "cut", "empty", "missing")


@dataclass(frozen=True)
class Args:
    """Runs a fault campaign."""

    output_dir: Path = Path("runs/faults")
    """Folder of the trials' folders (those with the same result are removed), the table and the record."""
    kills: int = 200
    """Kills in all, over all commands: at points, with half-written files, at random moments; some twice."""
    only: tuple[str, ...] = ()
    """Titles of commands to try. Default: all."""
    jobs: int = 2
    """Trials at a time."""
    seed: int = 0
    """Seed of the points and moments."""


@dataclass(frozen=True)
class Trial:
    """A trial of a command: faults one after another, damage to a checkpoint, who is killed alone, else a second process."""

    command: Command
    name: str
    faults: tuple[Fault, ...] = ()
    damage: tuple[str, str] | None = None
    alone: tuple[str, float] | None = None


def plan(command: Command, points: Sequence[str], whole: Path, kills: int, rng: np.random.Generator) -> list[Trial]:
    """Chooses the trials of a command.

    Args:
        command: The command.
        points: The labels of its points, in order.
        whole: Its undisturbed folder.
        kills: Number of kills.
        rng: Chooses points and moments.
    """
    by_label: dict[str, list[int]] = {}
    for number, label in enumerate(points):
        by_label.setdefault(label, []).append(number)
    labels = list(by_label)
    rng.shuffle(labels)
    writing = [number for number, label in enumerate(points) if label.endswith("\twrites")]

    def point(index: int) -> float:
        return float(rng.choice(by_label[labels[index % len(labels)]]))

    def kill(index: int) -> Fault:
        kind = ("kill", "torn", "kill", "moment")[index % 4]
        if kind == "moment":
            return Fault(kind, float(rng.uniform(0.02, 0.98)))
        return Fault(kind, float(rng.choice(writing)) if kind == "torn" else point(index))

    faults = [(kill(i), *([kill(i + 1)] if i % 3 == 2 else [])) for i in range(kills)]
    faults += [(Fault(kind, point(kills + i)),) for i, kind in enumerate(("term", "int"))]
    faults += [(Fault("full", float(rng.choice(writing))),) for _ in range(2)]
    faults += [(Fault("clock", point(kills + 4)),)]
    trials = [Trial(command, f"{i:03d}", f) for i, f in enumerate(faults)]
    if (whole / "checkpoints").is_dir():
        files = sorted(p.name for p in newest_checkpoint(whole).iterdir())
        chosen = [(file, DAMAGE[int(rng.integers(4))]) for file in files]
        if (
            command.resume == "flag"
        ):  # Killed before the checksums, `Trainer` leaves a whole checkpoint; before its state, none
            chosen = [d for d in chosen if d[1] != "missing" or d[0] not in (CHECKSUMS, "trainer_state.json")]
        trials += [Trial(command, f"damage-{i:02d}", damage=d) for i, d in enumerate(chosen)]
    if command.script == "pipeline":
        trials += [
            Trial(command, f"{who}-{i}", alone=(who, float(rng.uniform())))
            for who in ("child", "parent")
            for i in range(2)
        ]
    return [*trials, Trial(command, "second")]


def run_trial(trial: Trial, whole: Path, expected: dict[str, str], usual: float) -> Outcome:
    """Runs a trial in a folder beside the undisturbed one, and removes it where all is well."""
    folder = whole.with_name(trial.name)
    if trial.damage is not None:
        outcome = damaged(trial.command, whole, *trial.damage, folder, expected)
    elif trial.alone is not None:
        outcome = killed_alone(trial.command, *trial.alone, folder, expected)
    elif trial.faults:
        outcome = faulty(trial.command, trial.faults, folder, expected, usual)
    else:
        outcome = second_process(trial.command, folder, expected, usual)
    if not outcome.problem:
        shutil.rmtree(folder, ignore_errors=True)
    return outcome


def run_command(command: Command, number: int, kills: int, args: Args, pool: ProcessPoolExecutor) -> list[Outcome]:
    """Runs a command undisturbed, then all its trials."""
    rng = np.random.default_rng([args.seed, number])
    whole = args.output_dir / f"{number:02d}" / "whole"
    whole.parent.mkdir(parents=True)
    expected, points, usual = pool.submit(undisturbed, command, whole).result()
    trials = plan(command, points, whole, kills, rng)
    futures = [pool.submit(run_trial, trial, whole, expected, usual) for trial in trials]
    outcomes = [future.result() for future in futures]
    equal = sum(not o.problem for o in outcomes)
    console.print(f"{command.title}: {len(points)} points, {equal} of {len(outcomes)} well")
    for outcome, trial in zip(outcomes, trials, strict=True):
        if outcome.problem:
            where = whole.with_name(trial.name)
            console.print(f"  {where}: {outcome.kind} {outcome.faults}: {outcome.problem}", style="red")
    return outcomes


def table(outcomes: Sequence[Outcome]) -> str:
    """The table of the campaign, in Markdown: faults by kind, and by command."""
    rows = ["| fault | tried | struck | same result | lines printed, at most |", "|---|---|---|---|---|"]
    names = {
        "kill": "SIGKILL at a named point",
        "torn": "SIGKILL while a file is half-written",
        "moment": "SIGKILL at a random moment",
        "then": "SIGKILL, and again while it resumes",
        "term": "SIGTERM",
        "int": "SIGINT (Ctrl-C)",
        "full": "the disk is full, and free again",
        "clock": "the clock jumps back by a day",
        "damage": "a file of the newest checkpoint damaged",
        "lock": "a second process in the same folder",
        "child": "a pipeline's child killed alone",
        "parent": "a pipeline killed alone, while its child lives on",
    }
    for kind, name in names.items():
        some = [o for o in outcomes if (" then " in o.kind) == (kind == "then") and (kind == "then" or o.kind == kind)]
        lines = max((len(o.lines) for o in some), default=0)
        equal = sum(not o.problem for o in some)
        rows.append(f"| {name} | {len(some)} | {sum(o.struck for o in some)} | {equal} | {lines} |")
    rows += ["", "| command | faults | same result |", "|---|---|---|"]
    tried = Counter(o.command for o in outcomes)
    well = Counter(o.command for o in outcomes if not o.problem)
    rows += [f"| {title} | {count} | {well[title]} |" for title, count in tried.items()]
    return "\n".join(rows) + "\n"


def main() -> int:
    """Runs the campaign; returns 1 where a result differs."""
    args = tyro.cli(Args, description=__doc__)
    if args.output_dir.exists():
        console.print(f"error: output_dir={str(args.output_dir)!r} exists. Choose a new folder.")
        return 1
    torch.set_num_threads(1)
    outcomes: list[Outcome] = []
    import_all()
    with ProcessPoolExecutor(args.jobs, mp_context=multiprocessing.get_context("fork")) as pool:
        inputs = args.output_dir.absolute() / "inputs"
        pool.submit(make_inputs, inputs).result()
        chosen = [c for c in commands(inputs) if not args.only or c.title in args.only]
        if not chosen:
            console.print(f"error: only={args.only} is none of {', '.join(c.title for c in commands(inputs))}.")
            return 1
        for number, command in enumerate(chosen):
            share = args.kills // len(chosen) + (number < args.kills % len(chosen))
            outcomes += run_command(command, number, share, args, pool)
            write_json(args.output_dir / "trials.json", [dataclasses.asdict(o) for o in outcomes])
    write_text(args.output_dir / "table.md", table(outcomes))
    console.print(table(outcomes))
    return 1 if any(o.problem for o in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
