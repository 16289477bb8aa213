r"""Runs the stages of a configuration in order, each only if its output is not there or something before it changed.

    python scripts/pipeline.py --config rlhf_default --output-dir runs/rlhf

A stage is a command of this program with its options. It writes to a folder of its own in the output folder, and {name} in an
option stands for the folder of an earlier stage. Interrupted, the same command goes on where it stopped. In the end there is
report.html, one file with the plots, tables and samples of all stages.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from agents.cli.arguments import parse_command_line
from agents.console import PlainConsole, print_error
from agents.flat_settings import find_config
from agents.output_folder import check_output_folder, locked
from agents.pipeline.commands import RunCommand, check_command, run_child
from agents.pipeline.stages import Pipeline, read_stages
from agents.processes import RULES
from llm_env.rules import SEED

console = PlainConsole()


@dataclass(frozen=True)
class Args:
    """Run a pipeline."""

    config: Path
    """YAML file: stage names, each with a script and its options. By name, from the package: rlhf_default, dpo_default."""
    output_dir: Path = Path("runs/rlhf")
    """Folder of the stages' folders and the report."""
    seed: int = 0
    """Seed of every stage that does not set another."""
    processes: int = 1
    """Processes of each stage that trains and does not set another number (docs/scale.md)."""
    stop_after: str | None = None
    """Name of the last stage to run. Default: all run, and the report is written."""


def run(args: Args, run_command: RunCommand = run_child) -> int:
    """Runs the stages that are not done, and writes the report; returns the exit status.

    Args:
        args: The command line.
        run_command: Runs a stage's command: in a child process, unless a test runs them in its own.
    """
    args = replace(args, config=find_config(args.config))
    try:
        stages = read_stages(args.config)
        if args.stop_after is not None and args.stop_after not in [s.name for s in stages]:
            raise ValueError(f"stop_after={args.stop_after!r} is none of {', '.join(s.name for s in stages)}.")
        SEED.check("seed", args.seed)
        RULES["processes"].check("processes", args.processes)
        check_output_folder(args.output_dir)
        pipeline = Pipeline(stages, args.output_dir, args.seed, run_command, args.processes)
        for stage in stages:  # all of them before the first runs, which may take hours
            check_command(stage.script, pipeline.command_line(stage), f"{args.config}, stage {stage.name!r}")
        with locked(args.output_dir):
            return run_stages(args, pipeline)
    except KeyboardInterrupt:
        console.print("Stopped. The same command goes on.")
        return 130
    except (ValueError, OSError) as error:
        print_error(error)
        return 1


def run_stages(args: Args, pipeline: Pipeline) -> int:
    """Runs the stages that are not done, and writes the report; returns the exit status.

    Args:
        args: The command line.
        pipeline: The stages, in a folder that no other process writes to.
    """
    stages = pipeline.stages
    for number, stage in enumerate(stages, 1):
        title = f"[{number}/{len(stages)}] {stage.name}"
        if pipeline.is_done(stage):
            console.print(f"{title}: there and unchanged", style="dim")
        else:
            console.rule(f"{title}: {stage.script}.py", align="left")
            status = pipeline.run(stage)
            if status:
                console.print(f"{stage.name} stopped (status {status}). The same command goes on.", style="red")
                return status
        if stage.name == args.stop_after:
            return 0
    from agents.pipeline.report import write_page

    path = write_page(pipeline, args.config)
    total = sum(note.seconds for s in stages if (note := pipeline.note(s)) is not None)
    console.print(f"Report: {path}   ({total / 60:.1f} minutes in all)")
    return 0


def main(argv: Sequence[str]) -> int:
    """Reads the command line and runs it; returns the exit status."""
    return run(parse_command_line(Args, argv, __doc__))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
