"""What came out: medians of the timed iterations, the check that contenders had one objective, and the tables."""

from __future__ import annotations

import statistics
from typing import Any

from rich.table import Column, Table

from agents.console import PlainConsole
from benchmarks.case import Case
from benchmarks.suites import DECODE, DPO

PHASES = ("generate", "score", "train")
# How far means over the first iteration's responses may lie apart: nats per response, score.
TOLERANCE = {"no": 0.01, "bf16": 1.0}
COLUMNS = ("contender", *PHASES, "total, s", "range", "tokens/s", "tokens/CPU s", "peak MiB", "x ours")
WIDE = ("range", "tokens/CPU s")
console = PlainConsole()


def summary(case: Case, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over all timed iterations of all of a contender's processes.

    Args:
        case: The case.
        runs: Results of the processes, as `benchmarks.case.write_result` wrote them.

    Returns:
        ``seconds`` and ``cpu_seconds`` an iteration, for each phase and ``total``; ``range`` of the total;
        ``tokens_per_second``, ``tokens_per_cpu_second``; ``peak_mb``; ``busy``: the share of the threads' time that was
        spent computing; ``objective`` and ``parameters`` of the first process.
    """
    # an iteration maps each phase to its (wall, CPU) seconds
    iterations = [iteration for run in runs for iteration in run["iterations"]]
    totals = [[sum(phase[clock] for phase in i.values()) for i in iterations] for clock in (0, 1)]
    medians = [
        {p: statistics.median(i.get(p, (0.0, 0.0))[clock] for i in iterations) for p in PHASES} for clock in (0, 1)
    ]
    for clock in (0, 1):
        medians[clock]["total"] = statistics.median(totals[clock])
    return {
        "seconds": medians[0],
        "cpu_seconds": medians[1],
        "range": [min(totals[0]), max(totals[0])],
        "iterations": len(iterations),
        "tokens_per_second": case.tokens() / medians[0]["total"],
        "tokens_per_cpu_second": case.tokens() / medians[1]["total"],
        "peak_mb": max(run["peak_mb"] for run in runs),
        "busy": sum(totals[1]) / (sum(totals[0]) * runs[0]["threads"]),
        **{key: runs[0][key] for key in ("objective", "threads", "torch", "transformers")},
        "parameters": runs[0].get("parameters"),  # of what is trained; not every contender counts them
    }


def same_objective(case: Case, rows: dict[str, dict[str, Any]]) -> bool:
    """Whether the contenders agree on log-probs, KL, scores and loss; prints those on which they do not."""
    sound = True
    for name in ("log_prob", "kl", "score", "dpo_loss"):
        means = {c: row["objective"][name] for c, row in rows.items() if name in row["objective"]}
        if means and max(means.values()) - min(means.values()) > TOLERANCE[case.precision]:
            sound = False
            console.print(f"NOT the same objective: {name} is {means}", style="bold red")
    return sound


def show(case: Case, rows: dict[str, dict[str, Any]]) -> None:
    """Prints a case's table; table.md has more columns."""
    table = Table(*(Column(name, no_wrap=True) for name in COLUMNS if name not in WIDE), padding=(0, 1, 0, 0))
    for contender, row in rows.items():
        line = dict(zip(COLUMNS, cells(contender, row, rows), strict=True))
        table.add_row(*(value for name, value in line.items() if name not in WIDE))
        if case.device == "cpu" and row["busy"] < 0.8:
            console.print(
                f"{contender} had {row['busy']:.0%} of its threads: do not use its wall times", style="yellow"
            )
    console.print(table)


def cells(contender: str, row: dict[str, Any], rows: dict[str, dict[str, Any]]) -> list[str]:
    """A contender's line of the table; the last cell is its time over ours."""
    ours = rows.get("dpo" if contender in DPO else "decode" if contender in DECODE else "ours")
    ratio = f"{row['seconds']['total'] / ours['seconds']['total']:.2f}" if ours else ""
    return [
        contender,
        *(f"{row['seconds'][phase]:.2f}" for phase in (*PHASES, "total")),
        f"{row['range'][0]:.2f} to {row['range'][1]:.2f}",
        f"{row['tokens_per_second']:,.0f}",
        f"{row['tokens_per_cpu_second']:,.0f}",
        f"{row['peak_mb']:,.0f}",
        ratio,
    ]


def markdown(results: list[dict[str, Any]]) -> str:
    """All tables, as Markdown."""
    lines = ["| " + " | ".join(("case", *COLUMNS)) + " |", "|" + "---|" * (len(COLUMNS) + 1)]
    for result in results:
        rows = result["contenders"]
        lines += [f"| {result['name']} | " + " | ".join(cells(c, row, rows)) + " |" for c, row in rows.items()]
    return "\n".join(lines) + "\n"
