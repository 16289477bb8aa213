"""What `llm-env plan` and `train --dry-run` print."""

from __future__ import annotations

import json
import sys

from rich.console import Console

from agents.memory import device, table
from agents.memory.plan import make_plan
from agents.memory.remedies import remedies
from agents.processes import RunProcesses
from agents.runs.settings import RunSettings


def show(
    settings: RunSettings, together: RunProcesses, console: Console, memory: int | None = None, as_json: bool = False
) -> int:
    """Plans a run and prints the plan; returns the exit status.

    Args:
        settings: The run's settings, checked.
        together: Its processes, checked.
        console: Where the table is printed.
        memory: Bytes of the device to plan for; None: of this machine's.
        as_json: Whether to print JSON.

    Raises:
        FileNotFoundError, ValueError, TypeError, ImportError: something is wrong with the settings, or cannot be read.
    """
    kind = device.kind(settings.task.device, memory is not None)
    has, whose = device.memory(kind) if memory is None else (memory, "that were given")
    plan = make_plan(settings, together.processes, together.sharding, kind)
    fits = plan.needed <= has
    if as_json:
        found = [] if fits else remedies(plan, has)
        told = plan.to_dict() | {"memory": has, "fits": fits}
        told["remedies"] = [{"options": o, "costs": c, "needed": p.needed} for o, c, p in found]
        sys.stdout.write(json.dumps(told, indent=1) + "\n")
    else:
        console.print(table.text(plan))
        console.print("\n" + table.verdict(plan, has, whose))
        if not fits:
            console.print("What would make it fit? Each is planned anew:")
            found = remedies(plan, has, lambda options, planned: console.print(table.trial(options, planned, has)))
            console.print(table.advice(found, has))
    return 0 if fits else 3
