r"""Trains a language model with reinforcement learning, and leaves a folder that describes the run.

    python scripts/train.py --output-dir runs/demo                      the embedded default
    python scripts/train.py --output-dir runs/mine --model FOLDER_OR_HUB_ID --reward-model FOLDER_OR_HUB_ID \
        --prompts prompts.jsonl --max-new-tokens 64 --total-timesteps 200000
    python scripts/train.py --resume runs/mine                          go on where it stopped; as everywhere, the same command
                                                                        with --resume does too
    python scripts/train.py --processes 2 …                             in two processes on this machine (docs/scale.md)

Settings come from the defaults, then --config (YAML), then the command line.
"""

from __future__ import annotations

import argparse
import dataclasses
import errno
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro
from safetensors import SafetensorError

from agents.cli.arguments import parse_command_line, read_command_line
from agents.cli.start import called_as
from agents.console import PlainConsole, plain_warnings, print_error
from agents.flat_settings import from_flat, read_settings, to_flat
from agents.processes import RunProcesses, check_divides, launch, launched, under_torchrun
from agents.runs.settings import CHANGEABLE, RunSettings

console = PlainConsole()
SAME_COMMAND = Path("--output-dir")
"""Stands for the folder of a ``--resume`` without one."""
NOT_DETERMINISTIC = "does not have a deterministic implementation"  # torch's words, for --deterministic


@dataclasses.dataclass(frozen=True)
class RunArgs:
    """A run's settings, and where they come from and go to."""

    output_dir: Path | None = None
    """Folder of the run; must be new or empty. Default: runs/ALGO-SEED."""
    config: Path | None = None
    """YAML file of settings, or demo, which comes with the package; the command line has the last word."""
    resume: Path | None = None
    """Folder of a run to go on with; its own settings are used. May be given as well: --total-timesteps, the limits of waiting
    (--reward-timeout, --reward-wait, --judge-concurrency, --world-timeout, --world-errors), --stop-on, --report-to and
    --push-to-hub. Without a folder, at the end of the command that began it: the run in --output-dir."""
    together: Annotated[RunProcesses, tyro.conf.arg(name=""), tyro.conf.OmitArgPrefixes] = dataclasses.field(
        default_factory=RunProcesses
    )
    """Processes that train together."""
    settings: Annotated[RunSettings, tyro.conf.arg(name=""), tyro.conf.OmitArgPrefixes] = dataclasses.field(
        default_factory=RunSettings
    )
    """Settings of the run."""


@dataclasses.dataclass(frozen=True)
class Args(RunArgs):
    """The command line."""

    dry_run: bool = False
    """Say what the run would need in memory, as `plan` does, and train nothing."""


Read = TypeVar("Read", bound=RunArgs)


def parse(argv: Sequence[str], read: Callable[..., Any] = parse_command_line) -> Args:
    """Reads the command line of train; see `parse_as`."""
    return parse_as(Args, argv, read)


def parse_as(kind: type[Read], argv: Sequence[str], read: Callable[..., Any] = parse_command_line) -> Read:
    """Reads a run's command line over the YAML file over the defaults.

    Args:
        kind: What it is read into; its module's docstring stands above the options in ``--help``.
        argv: The command line without the program's name.
        read: Reads it: `parse_command_line`, or `read_command_line`, which raises a ValueError instead of leaving.

    Raises:
        FileNotFoundError, ValueError: the YAML file is missing or wrong, or --resume stands beside other settings.
    """
    # The two options that say where the defaults come from are read first.
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config", type=Path, nargs="?")
    first.add_argument("--resume", type=Path, nargs="?", const=SAME_COMMAND)
    paths, _ = first.parse_known_args(argv)
    if paths.resume is SAME_COMMAND:
        return parse_same_command(kind, [word for word in argv if word != "--resume"], read)
    if paths.resume is not None:
        check_run(paths.resume)
    source = paths.resume / "config.yaml" if paths.resume is not None else paths.config
    default = kind(
        config=paths.config if paths.resume is None else None,
        resume=paths.resume,
        settings=RunSettings() if source is None else read_settings(RunSettings, source),
    )
    args: Read = read(kind, argv, sys.modules[kind.__module__].__doc__, default)
    if paths.resume is not None:
        changed = [name for name, value in to_flat(args.settings).items() if value != to_flat(default.settings)[name]]
        changed += [name for name in ("config", "output_dir") if getattr(args, name) is not None]
        if refused := [name for name in changed if name not in CHANGEABLE]:
            raise ValueError(f"--resume uses the run's own settings; {', '.join(refused)} cannot be changed.")
    return args


def parse_same_command(kind: type[Read], argv: Sequence[str], read: Callable[..., Any]) -> Read:
    """Reads the command line that began a run, at the end of which ``--resume`` stood without a folder.

    Args:
        kind: See `parse_as`.
        argv: The command line without it.
        read: See `parse_as`.

    Raises:
        FileNotFoundError, ValueError: as `parse_as`; --output-dir is missing, or a setting is not what the run has.
    """
    args = parse_as(kind, argv, read)
    if args.output_dir is None:
        raise ValueError("--resume without a folder goes on in --output-dir: give that too, or --resume RUN.")
    check_run(args.output_dir)
    began, now = (to_flat(s) for s in (read_settings(RunSettings, args.output_dir / "config.yaml"), args.settings))
    if refused := [name for name, value in now.items() if value != began[name] and name not in CHANGEABLE]:
        raise ValueError(
            f"--resume: the run in {args.output_dir} has other settings ({', '.join(refused)}). Give the command that began "
            f"it, or --resume {args.output_dir} alone."
        )
    return dataclasses.replace(args, resume=args.output_dir, output_dir=None, config=None)


def check_run(folder: Path) -> None:
    """Refuses to go on in a folder that has no run.

    Raises:
        FileNotFoundError, ValueError: its ``config.yaml`` is missing or empty.
    """
    config = folder / "config.yaml"
    if not config.is_file():
        raise FileNotFoundError(f"resume={str(folder)!r}: no run there (no config.yaml in it).")
    if not config.read_bytes().strip():
        raise ValueError(f"{config} is empty, which said what the run is. Put it back.")


def check(argv: Sequence[str]) -> None:
    """Checks a command line without loading a model or writing anything; see `agents.pipeline.commands.check_command`."""
    from agents.algorithms.table import checked_settings  # imports torch

    args = parse(argv, read_command_line)
    settings = args.settings.checked()
    checked_settings(settings.algorithm.algo, settings.algorithm_arguments())
    check_together(args.together, settings)


def main(argv: Sequence[str]) -> int:
    """Runs the command line; returns the exit status."""
    plain_warnings(console)
    try:
        if under_torchrun():
            return train(*settings_of_first(argv))
        args = parse(argv)
        settings = args.settings.checked()
        check_together(args.together, settings)
        if args.dry_run:
            from agents.memory.show import show  # imports torch, which --help need not wait for

            return show(settings, args.together, console)
    except (ValueError, TypeError, OSError, ImportError) as error:
        return fail(str(error), None, None)
    if args.together.processes > 1:
        return launch("train", argv, args.together.processes)
    try:
        return train(settings, folder_of(args), args.resume is not None)
    except KeyboardInterrupt:  # while libraries were loaded
        return 130


def check_together(together: RunProcesses, settings: RunSettings) -> None:
    """Checks the number of processes, and whether the run's work can be shared among so many.

    Raises:
        ValueError: it cannot.
    """
    together.check_processes()
    if together.world == 1:
        return
    from agents.algorithms.capabilities import check_processes, check_shards  # these import torch
    from agents.algorithms.table import algorithm

    check_processes(settings.algorithm.algo, together.world)
    if together.sharding == "full":
        chosen = settings.algorithm
        base = settings.task.base_quantization
        check_shards(chosen.algo, settings.training.episodes, chosen.mask_refresh, chosen.optimizer, base)
    unit = settings.algorithm.group_size or algorithm(settings.algorithm.algo).defaults.get("group_size", 1)
    check_divides("n_envs", settings.training.n_envs, together.world, int(unit))


def folder_of(args: RunArgs) -> Path:
    """The folder that a run writes to."""
    settings = args.settings
    return args.resume or args.output_dir or Path("runs") / f"{settings.algorithm.algo}-{settings.training.seed}"


def settings_of_first(argv: Sequence[str]) -> tuple[RunSettings, Path, bool]:
    """What `train` takes, for one of several processes: rank 0 reads the files that the command line names, for all.

    Raises:
        FileNotFoundError, ValueError, TypeError: on rank 0, something on the command line or in the files is wrong.
    """
    from agents.distributed import ranks  # imports torch

    told: dict[str, Any] = {}
    if ranks().first:
        args = parse(argv)
        if args.dry_run:
            raise ValueError("dry_run: one process plans for all. Leave torchrun out, and say --processes.")
        settings = args.settings.checked()
        check_together(args.together, settings)
        told = {"settings": to_flat(settings), "folder": str(folder_of(args)), "resume": args.resume is not None}
        told["sharding"] = args.together.sharding
    told = ranks().from_first(told)
    ranks().sharding = told["sharding"]
    return from_flat(RunSettings, told["settings"], "rank 0"), Path(told["folder"]), bool(told["resume"])


def train(settings: RunSettings, folder: Path, resume: bool) -> int:
    """Trains, and says in one line how it ended; returns the exit status.

    Args:
        settings: The run's settings, checked.
        folder: Where the run writes, or has written; new or empty unless `resume`.
        resume: Whether the run in it goes on.
    """
    # Here and not above, so that --help and a wrong setting do not wait for torch.
    from agents.distributed import ranks
    from agents.runs.checkpoint import CheckpointError
    from agents.runs.run import TrainingRun
    from llm_env.reward.models import RewardModelError
    from llm_env.worlds.base import WorldError

    run = None
    try:
        run = TrainingRun(settings, folder, console, resume)
        console.print(
            f"{settings.algorithm.algo} on {run.model.device}, {settings.training.n_envs} slots"
            f"{f' in {run.world} processes' * (run.world > 1)}{', weights in shards' * ranks().shards}; writing to {folder}",
        )
        run.train()
    except KeyboardInterrupt:
        if run is not None:  # else nothing is there to go on with
            console.print(f"Stopped. {go_on(folder)}")
        return 130
    except FloatingPointError as error:  # going on from the checkpoint would come to the same numbers
        return fail(str(error), folder, None)
    except (RewardModelError, WorldError) as error:
        return fail(str(error), folder, run)
    except (CheckpointError, FileExistsError) as error:
        return fail(str(error), None, None)  # nothing was trained, and a second try would end in the same way
    except RuntimeError as error:
        if NOT_DETERMINISTIC not in str(error):
            raise
        return fail(f"--deterministic: {str(error).partition(',')[0]}. Leave it out.", folder, None)
    except (ValueError, TypeError, OSError, ImportError, SafetensorError) as error:
        if disk_is_full(error):
            return fail(f"the disk is full ({error}). Free some space; the last whole checkpoint stands.", folder, run)
        if run is None or isinstance(error, OSError):
            return fail(str(error), folder, run)
        raise
    console.print(f"Done. Page: {folder / 'report.html'}   model: {folder / 'actor'}")
    return 0


def go_on(folder: Path) -> str:
    """Says how to go on with a run."""
    together = f"--processes {os.environ['WORLD_SIZE']} " if launched() else ""
    return f"Go on with: {called_as()} {together}--resume {folder}"


def disk_is_full(error: Exception) -> bool:
    """Whether an error says that the disk is full; safetensors hides the system's own error in a text."""
    return (isinstance(error, OSError) and error.errno == errno.ENOSPC) or f"os error {errno.ENOSPC}" in str(error)


def fail(message: str, folder: Path | None, run: object | None) -> int:
    """Prints one line about what went wrong, and how to go on if there is a checkpoint; returns the exit status.

    Args:
        message: What went wrong, as the error says it.
        folder: The run's folder, if it is decided.
        run: The run, if it came to be.
    """
    print_error(message)
    if run is not None and folder is not None and (folder / "checkpoints").is_dir():
        console.print(go_on(folder))
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
