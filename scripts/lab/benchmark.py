r"""How fast, beside what: stock PPO on our path, the same without it, TRL's PPOTrainer, and the bare model calls.

    python scripts/lab/benchmark.py                                  # small, a minute
    python scripts/lab/benchmark.py --suite trl --output-dir runs/bench-trl
    python scripts/lab/benchmark.py --model 135m --batch 8 --prompt 64 --response 64 --contenders ours floor trl-small

Contenders run in turn, each in a process of its own, on the same weights, prompts, tokens, epochs, mini-batches, precision
and threads:

    ours        stock stable_baselines3.PPO with our policy, buffer and VecEnv; value head on the actor
    ours-full   the same with a second network as critic, started from the reward model
    naive       the same stock PPO and policy with SB3's DictRolloutBuffer, no cache, a reward at each step (one iteration)
    a2c, trpo   the other algorithms on our path; a2c-naive, trpo-naive without it
    trl-full    TRL 1.12.0's PPOTrainer with its own recipe, a second network as critic
    trl-small   the same with one block of that network
    floor       nothing but the model calls that no PPO can avoid
    dpo         DPO on the same responses in pairs, in our pass without padding; dpo-trl: in TRL's own

First it is checked that they optimise the same thing: log-probs, KL and scores of the first iteration, on the same tokens.
Writes results.json, table.md and times.png (or curve.png). Nothing is downloaded but TRL, into an environment of its own.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.table import Column, Table

from benchmarks.case import SHAPES, Case, build_models, write_case
from benchmarks.figures import draw_curve, draw_times
from llm_env.lm.loading import quiet_loading

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
TRL = "1.12.0"  # the last release with PPO
PHASES = ("generate", "score", "train")
VARIANTS = {
    "ours": "ppo",
    "ours-full": "ppo+critic=reward_model",
    "naive": "ppo+naive",
    "a2c": "a2c",
    "a2c-naive": "a2c+naive",
    "trpo": "trpo",
    "trpo-naive": "trpo+naive",
}
DPO = {"dpo": "ours", "dpo-trl": "trl"}
CONTENDERS = (*VARIANTS, "trl-small", "trl-full", "floor", *DPO)
MEASURED_AGAINST = ("trl-small", "trl-full", "naive", "floor")
# How far means over the first iteration's responses may lie apart: nats per response, score.
TOLERANCE = {"no": 0.01, "bf16": 1.0}
COLUMNS = ("contender", *PHASES, "total, s", "range", "tokens/s", "tokens/CPU s", "peak MiB", "x ours")
WIDE = ("range", "tokens/CPU s")
console = Console(soft_wrap=True)


@dataclass(frozen=True)
class Suite:
    """Cases, who runs them, and what the picture shows.

    Attributes:
        cases: In order.
        contenders: Who runs each.
        curve: The field of `Case` that the picture has on its x axis; None: bars.
    """

    cases: tuple[Case, ...]
    contenders: tuple[str, ...]
    curve: str | None = None


SUITES = {
    "quick": Suite((Case(), Case(response=128, lengths="spread")), ("ours", "floor", "naive")),
    "floor": Suite(
        tuple(Case(model="135m", prompt=64, response=64, precision=p) for p in ("no", "bf16")), ("floor", "ours")
    ),
    "naive": Suite(tuple(Case(prompt=n, response=n) for n in (16, 32, 64, 128, 256)), ("ours", "naive"), "response"),
    "trl": Suite(
        (
            Case(model="135m", prompt=64, response=64),
            Case(model="135m", prompt=32, response=128, lengths="spread"),
        ),
        ("ours", "trl-small", "trl-full", "floor"),
    ),
    "length": Suite(
        tuple(Case(prompt=32, response=n, batch=4) for n in (64, 128, 256, 512, 1024)), ("ours", "floor"), "response"
    ),
    "envs": Suite(
        tuple(Case(prompt=32, response=64, batch=n, mini_batches=1) for n in (1, 2, 4, 8, 16, 32, 64)),
        ("ours", "floor"),
        "batch",
    ),
    "algorithms": Suite((Case(prompt=16, response=16),), ("ours", "naive", "a2c", "a2c-naive", "trpo", "trpo-naive")),
    "dpo": Suite(
        (
            Case(batch=32, prompt=16, response=32, lengths="spread", mini_batches=1),
            Case(model="135m", batch=8, prompt=16, response=64, lengths="spread", mini_batches=1, epochs=1),
        ),
        ("dpo", "dpo-trl"),
    ),
    "gpu": Suite(
        (
            Case(model="135m", batch=64, prompt=128, response=128, device="cuda"),
            Case(model="135m", batch=64, prompt=128, response=128, device="cuda", precision="bf16"),
            Case(model="1b", batch=64, prompt=128, response=128, device="cuda", precision="bf16"),
        ),
        ("ours", "trl-small", "trl-full", "floor"),
    ),
}


@dataclass(frozen=True)
class Args:
    """Measure how fast training is, beside other ways to do the same."""

    suite: str = "quick"
    """quick, floor, naive, trl, length, envs, algorithms, dpo or gpu. Ignored where --model is given."""
    model: str | None = None
    """A case of your own: default, 135m, 1b (random weights), or the folder of a Llama-like model."""
    batch: int = 8
    """Episodes an iteration."""
    prompt: int = 64
    """Tokens of a prompt."""
    response: int = 64
    """Tokens of the longest response."""
    lengths: str = "equal"
    """equal, or spread evenly from 1 to the longest."""
    epochs: int = 4
    """Passes over a rollout."""
    mini_batches: int = 2
    """Optimiser steps an epoch."""
    precision: str = "no"
    """no (float32) or bf16 (autocast)."""
    device: str = "cpu"
    """cpu or cuda."""
    contenders: tuple[str, ...] = ()
    """Who runs. Default: the suite's; for a case of your own, ours and floor."""
    rounds: int = 1
    """How often each contender's process is started, in turn."""
    iterations: int | None = None
    """Timed iterations in each process. Default: 3."""
    warmup: int | None = None
    """Untimed iterations before them. Default: 1."""
    threads: int = 0
    """CPU threads; 0: all."""
    output_dir: Path = Path("runs/benchmark")
    """Where results, models and logs go; runs that are there already are done again."""
    peer_env: Path = ROOT / ".venv-trl"
    """TRL's environment; made if it is not there."""
    timeout: int = 3600
    """Seconds after which a contender is given up."""


def main(args: Args) -> int:
    """Runs the suite; returns the exit status."""
    suite = suite_of(args)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    results: list[dict[str, Any]] = []
    sound = True
    for case in suite.cases:
        console.rule(case.name)
        runs: dict[str, list[dict[str, Any]]] = {}
        for _ in range(args.rounds):
            for contender in suite.contenders:
                result = run_one(args, case, contender)
                if result is not None:
                    runs.setdefault(contender, []).append(result)
        rows = {contender: summary(case, found) for contender, found in runs.items()}
        sound &= same_objective(case, rows)
        results.append({"case": dataclasses.asdict(case), "name": case.name, "contenders": rows})
        show(case, rows)
        (args.output_dir / "results.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
    (args.output_dir / "table.md").write_text(markdown(results), encoding="utf-8")
    if suite.curve is None:
        draw_times(results, args.output_dir / "times.png")
    else:
        draw_curve(results, suite.curve, args.output_dir / "curve.png")
    console.print(f"Written: {args.output_dir}")
    return 0 if sound else 1


def suite_of(args: Args) -> Suite:
    """The suite that was asked for.

    Raises:
        ValueError: it, or a contender, is not known.
    """
    if args.model is not None:
        if args.model not in SHAPES and not Path(args.model).is_dir():
            raise ValueError(f"model={args.model!r} is neither {', '.join(SHAPES)} nor a folder.")
        names = [f.name for f in dataclasses.fields(Case) if f.name not in ("iterations", "warmup")]
        suite = Suite((Case(**{name: getattr(args, name) for name in names}),), ("ours", "floor"))
    elif args.suite in SUITES:
        suite = SUITES[args.suite]
    else:
        raise ValueError(f"suite={args.suite!r} is not known; there is {', '.join(SUITES)}.")
    for contender in args.contenders:
        if contender not in CONTENDERS:
            raise ValueError(f"contender {contender!r} is not known; there is {', '.join(CONTENDERS)}.")
    changes = {name: getattr(args, name) for name in ("iterations", "warmup") if getattr(args, name) is not None}
    cases = tuple(dataclasses.replace(case, threads=args.threads, **changes) for case in suite.cases)
    return Suite(cases, args.contenders or suite.contenders, suite.curve)


def run_one(args: Args, case: Case, contender: str) -> dict[str, Any] | None:
    """One contender's process; None, with the reason on the screen, where it cannot run."""
    folder = args.output_dir.resolve()
    with quiet_loading():
        models = build_models(case.model, folder / "models" / Path(case.model).name)
    written, result, log = folder / "case.json", folder / "result.json", folder / f"{contender}.log"
    if contender.endswith("naive"):  # one iteration of it takes longer than all of the others together
        case = dataclasses.replace(case, iterations=1, warmup=0)
    write_case(written, case, models)
    result.unlink(missing_ok=True)
    scripts = HERE / "benchmarks"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(scripts)])}
    if contender == "floor":
        command = [sys.executable, "floor.py", str(written), str(result)]
    elif contender in DPO:
        command = [sys.executable, "dpo.py", str(written), str(result), DPO[contender]]
    elif contender.startswith("trl-"):
        environment["PYTHONPATH"] = str(scripts)
        python = peer_python(args.peer_env, log)
        command = [python, "trl_ppo.py", str(written), str(result), contender.removeprefix("trl-")]
    else:
        command = [sys.executable, "ours.py", str(written), str(result), VARIANTS[contender]]
    with console.status(f"{contender} …"), log.open("w", encoding="utf-8") as file:
        try:
            subprocess.run(
                command, cwd=scripts, env=environment, stdout=file, stderr=file, check=True, timeout=args.timeout
            )
        except subprocess.TimeoutExpired:
            console.print(f"{contender}: given up after {args.timeout} s", style="yellow")
            return None
        except subprocess.CalledProcessError as error:
            last = log.read_text(encoding="utf-8").strip().splitlines()[-1:] or [""]
            console.print(f"{contender} cannot run here (exit status {error.returncode}): {last[0]}", style="yellow")
            return None
    loaded: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    return loaded


def peer_python(folder: Path, log: Path) -> str:
    """The interpreter of TRL's own environment, which is made at the first call."""
    import torch
    import transformers

    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        with console.status(f"making TRL's environment in {folder}"), log.open("w", encoding="utf-8") as file:
            venv.create(folder, clear=True, with_pip=True)
            for packages in (
                [f"torch=={torch.__version__.partition('+')[0]}"],
                [f"trl=={TRL}", f"transformers=={transformers.__version__}"],
            ):
                subprocess.run([str(python), "-m", "pip", "install", "--quiet", *packages], check=True, stderr=file)
        (folder / "complete").touch()
    return str(python)


def summary(case: Case, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over all timed iterations of all processes.

    Returns:
        ``seconds`` and ``cpu_seconds`` an iteration, for each phase and ``total``; ``range`` of the total;
        ``tokens_per_second``, ``tokens_per_cpu_second``; ``peak_mb``; ``busy``: the share of the threads' time that was
        spent computing; ``objective`` of the first process.
    """
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
    }


def same_objective(case: Case, rows: dict[str, dict[str, Any]]) -> bool:
    """Whether the contenders agree on log-probs, KL and scores; says so where they do not."""
    sound = True
    for name in ("log_prob", "kl", "score", "dpo_loss"):
        told = {c: row["objective"][name] for c, row in rows.items() if name in row["objective"]}
        if told and max(told.values()) - min(told.values()) > TOLERANCE[case.precision]:
            sound = False
            console.print(f"NOT the same objective: {name} is {told}", style="bold red")
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
    ours = rows.get("dpo" if contender in DPO else "ours")
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


if __name__ == "__main__":
    try:
        sys.exit(main(tyro.cli(Args, description=__doc__)))
    except ValueError as problem:
        console.print(f"error: {problem}", style="bold red", markup=False)
        sys.exit(2)
