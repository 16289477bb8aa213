r"""Runs the stages of a configuration in order, each only if its output is not there or something before it changed.

    python scripts/pipeline.py --config scripts/configs/rlhf_default.yaml --output-dir runs/rlhf

A stage is a script of this folder with its options: it has a folder of its own in the output folder, and {name} in an option
stands for the folder of an earlier stage. Interrupted, the same command goes on where it stopped. In the end there is
report.html, one file with the plots, tables and samples of all stages.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console

from agents.console import print_error
from agents.pipeline.stages import Pipeline, read_stages

console = Console(soft_wrap=True)


@dataclass(frozen=True)
class Args:
    """Run a pipeline."""

    config: Path
    """YAML file: stage names, each with a script and its options."""
    output_dir: Path = Path("runs/rlhf")
    """Folder of the stages' folders and the report."""
    seed: int = 0
    """Seed of every stage that does not say another."""
    stop_after: str | None = None
    """Last stage to run."""


def run(args: Args) -> int:
    """Runs what is not done, and writes the report; returns the exit status."""
    try:
        stages = read_stages(args.config)
        if args.stop_after is not None and args.stop_after not in [s.name for s in stages]:
            raise ValueError(f"stop_after={args.stop_after!r} is none of {', '.join(s.name for s in stages)}.")
        pipeline = Pipeline(stages, args.output_dir, args.seed)
        for number, stage in enumerate(stages, 1):
            title = f"[{number}/{len(stages)}] {stage.name}"
            if pipeline.is_done(stage):
                console.print(f"{title}: there and unchanged", style="dim", highlight=False, markup=False)
            else:
                console.rule(f"{title}: {stage.script}.py".replace("[", r"\["), align="left")
                status = pipeline.run(stage)
                if status:
                    console.print(f"{stage.name} stopped (status {status}). The same command goes on.", style="red")
                    return status
            if stage.name == args.stop_after:
                return 0
        from agents.pipeline.report import write_page

        path = write_page(pipeline, args.config)
    except KeyboardInterrupt:
        console.print("Stopped. The same command goes on.")
        return 130
    except (ValueError, OSError) as error:
        print_error(error)
        return 1
    total = sum(note.seconds for s in stages if (note := pipeline.note(s)) is not None)
    console.print(f"Report: {path}   ({total / 60:.1f} minutes in all)", highlight=False)
    return 0


def main(argv: Sequence[str]) -> int:
    """Reads the command line and runs it; returns the exit status."""
    return run(tyro.cli(Args, args=argv, description=__doc__))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
