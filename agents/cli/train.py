r"""Trains a language model with reinforcement learning, and leaves a folder that describes the run.

    python scripts/train.py --output-dir runs/demo                      the embedded default
    python scripts/train.py --output-dir runs/mine --model FOLDER_OR_HUB_ID --reward-model FOLDER_OR_HUB_ID \
        --prompts prompts.jsonl --max-new-tokens 64 --total-timesteps 200000
    python scripts/train.py --resume runs/mine                          go on where it stopped

Settings come from the defaults, then --config (YAML), then the command line.
"""

from __future__ import annotations

import argparse
import dataclasses
import errno
import sys
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from safetensors import SafetensorError

from agents.console import plain_warnings, print_error
from agents.runs.settings import RunSettings

console = Console(soft_wrap=True)


@dataclasses.dataclass(frozen=True)
class Args(RunSettings):
    """The command line: a run's settings, and where they come from and go to."""

    output_dir: Path | None = None
    """Folder of the run; must be new or empty. Default: runs/ALGO-SEED."""
    config: Path | None = None
    """YAML file of settings; the command line has the last word."""
    resume: Path | None = None
    """Folder of a run to go on with; its own settings are used, and only --total-timesteps may be given as well."""


def parse(argv: list[str]) -> Args:
    """The command line over the YAML file over the defaults.

    Raises:
        FileNotFoundError, ValueError: the YAML file is missing or wrong.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config", type=Path)
    first.add_argument("--resume", type=Path)
    early, _ = first.parse_known_args(argv)
    default = Args()
    if early.resume is not None:
        if not (early.resume / "config.yaml").is_file():
            raise FileNotFoundError(f"resume={str(early.resume)!r}: no run there (no config.yaml in it).")
        default = from_settings(RunSettings.read(early.resume / "config.yaml"), resume=early.resume)
    elif early.config is not None:
        default = from_settings(RunSettings.read(early.config), config=early.config)
    args = tyro.cli(Args, args=argv, default=default, description=__doc__, config=(tyro.conf.FlagConversionOff,))
    if early.resume is not None:
        allowed = dataclasses.replace(default, total_timesteps=args.total_timesteps)
        changed = [f.name for f in dataclasses.fields(Args) if getattr(args, f.name) != getattr(allowed, f.name)]
        if changed:
            raise ValueError(f"--resume uses the run's own settings; {', '.join(changed)} cannot be changed.")
    return args


def from_settings(settings: RunSettings, **extra: Path) -> Args:
    """Settings as the command line's defaults."""
    values: dict[str, Any] = {f.name: getattr(settings, f.name) for f in dataclasses.fields(RunSettings)}
    return Args(**{**values, **extra})


def run_settings(args: Args) -> RunSettings:
    """The command line without its paths, checked.

    Raises:
        ValueError: a value breaks its rule.
    """
    return RunSettings(**{f.name: getattr(args, f.name) for f in dataclasses.fields(RunSettings)}).checked()


def main(argv: list[str]) -> int:
    """Runs the command line; returns the exit status."""
    from llm_env.reward.models import RewardModelError

    plain_warnings(console)
    folder: Path | None = None
    run = None
    try:
        args = parse(argv)
        settings = run_settings(args)
        from agents.runs.run import Interrupted, TrainingRun

        folder = args.resume or args.output_dir or Path("runs") / f"{args.algo}-{args.seed}"
        run = TrainingRun(settings, folder, console, resume=args.resume is not None)
        console.print(
            f"{args.algo} on {run.model.device}, {run.model.n_envs} slots; writing to {folder}", highlight=False
        )
        try:
            run.train()
        except (Interrupted, KeyboardInterrupt):
            console.print(f"Stopped. Go on with: python scripts/train.py --resume {folder}", highlight=False)
            return 130
    except KeyboardInterrupt:
        return 130  # before the first iteration: nothing to save
    except RewardModelError as error:
        return fail(str(error), folder, run)
    except (ValueError, TypeError, OSError, ImportError, SafetensorError) as error:
        if disk_is_full(error):
            return fail(f"the disk is full ({error}). Free some space; the last whole checkpoint stands.", folder, run)
        if run is None or isinstance(error, OSError):
            return fail(str(error), folder, run)
        raise
    console.print(f"Done. Picture: {folder / 'report.png'}   model: {folder / 'actor'}", highlight=False)
    return 0


def disk_is_full(error: Exception) -> bool:
    """Whether an error says so; safetensors wraps the system's own in a text."""
    return (isinstance(error, OSError) and error.errno == errno.ENOSPC) or f"os error {errno.ENOSPC}" in str(error)


def fail(message: str, folder: Path | None, run: object | None) -> int:
    """Prints one line about what went wrong, and how to go on where there is something to go on with."""
    print_error(message)
    if run is not None and folder is not None and (folder / "checkpoints").is_dir():
        console.print(f"Go on with: python scripts/train.py --resume {folder}", highlight=False)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
