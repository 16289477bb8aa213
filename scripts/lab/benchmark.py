r"""How fast, beside what: stock PPO on our path, the same without it, TRL's PPOTrainer, and the bare model calls.

    python scripts/lab/benchmark.py                                  # small, a minute
    python scripts/lab/benchmark.py --suite trl --output-dir runs/bench-trl
    python scripts/lab/benchmark.py --model 135m --batch 8 --prompt 64 --response 64 --contenders ours floor trl-small

Contenders run in turn, each in a process of its own, on the same weights, prompts, tokens, epochs, mini-batches, precision
and threads:

    ours        stock stable_baselines3.PPO with our policy, buffer and VecEnv; value head on the actor
    stepped     the same without writing turns ahead: one token at each step of the environment
    unshared    the same without reading common prefixes once (docs/performance.md)
    engine-transformers, engine-vllm   the same with an engine that writes the turns (docs/engines.md)
    ours-full   the same with a second network as critic, started from the reward model
    naive       the same stock PPO and policy with SB3's DictRolloutBuffer, no cache, a reward at each step (one iteration)
    a2c, trpo   the other algorithms on our path; a2c-naive, trpo-naive without it
    trl-full    TRL 1.12.0's PPOTrainer with its own recipe, a second network as critic
    trl-small   the same with one block of that network
    floor       nothing but the model calls that no PPO can avoid
    decode      nothing but decoding, by our loop; decode-transformers, decode-vllm: by an engine (benchmarks/decode.py)
    reading     no more than reading weights, keys and values once a step, at the rate at which this machine copies memory
    dpo         DPO on the same responses in pairs, in our pass without padding; dpo-trl: in TRL's own

First it is checked that they optimize the same thing: log-probs, KL and scores of the first iteration, on the same tokens.
Writes results.json, table.md and times.png (or curve.png). Nothing is downloaded but TRL, into an environment of its own.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from agents.console import PlainConsole
from agents.files import write_json, write_text
from benchmarks.case import SHAPES, Case, build_models, write_case
from benchmarks.figures import draw_curve, draw_times
from benchmarks.suites import CONTENDERS, DECODE, DPO, SUITES, VARIANTS, Suite
from benchmarks.tables import markdown, same_objective, show, summary
from llm_env.lm.loading import quiet_loading
from peer_environment import peer_python

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
TRL = "1.12.0"  # the last release with PPO
console = PlainConsole()


@dataclass(frozen=True)
class Args:
    """Measure how fast training is, beside other ways to do the same."""

    suite: str = "quick"
    """quick, floor, naive, trl, length, envs, groups, algorithms, dpo, engines, decode or gpu; ignored beside --model."""
    model: str | None = None
    """Model of a single case instead of a suite: default, 135m, 1b (random weights), or the folder of a Llama-like model."""
    batch: int = 8
    """Episodes in an iteration."""
    prompt: int = 64
    """Length of each prompt, in tokens."""
    response: int = 64
    """Length of the longest response, in tokens."""
    group: int = 1
    """Responses to each prompt."""
    lengths: str = "equal"
    """Lengths of the responses: equal, or spread (evenly from 1 to the longest)."""
    epochs: int = 4
    """Passes over each rollout."""
    mini_batches: int = 2
    """Optimizer steps in each pass."""
    precision: str = "no"
    """Arithmetic: no (float32) or bf16 (autocast)."""
    device: str = "cpu"
    """Device: cpu or cuda."""
    contenders: tuple[str, ...] = ()
    """Contenders that run. Default: the suite's; with --model, ours and floor."""
    rounds: int = 1
    """Processes of each contender, started in turn with the others'."""
    iterations: int | None = None
    """Timed iterations in each process. Default: 3."""
    warmup: int | None = None
    """Untimed iterations before the timed ones. Default: 1."""
    threads: int = 0
    """CPU threads of a contender; 0 takes all."""
    output_dir: Path = Path("runs/benchmark")
    """Folder of results, models and logs. Runs whose results it holds are done again."""
    peer_env: Path = ROOT / ".venv-trl"
    """Folder of TRL's virtual environment; made at first use."""
    timeout: int = 3600
    """Seconds after which a contender is stopped and left out."""


def main(args: Args) -> int:
    """Runs the suite; returns the exit status."""
    suite = suite_of(args)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    results: list[dict[str, Any]] = []
    sound = True
    for case in suite.cases:
        console.rule(case.name)
        # Contenders take turns, so that a slow hour of the machine hits them all.
        runs: dict[str, list[dict[str, Any]]] = {}
        for _ in range(args.rounds):
            for contender in suite.contenders:
                result = run_one(args, case, contender)
                if result is not None:
                    runs.setdefault(contender, []).append(result)
        rows = {contender: summary(case, processes) for contender, processes in runs.items()}
        sound &= same_objective(case, rows)
        results.append({"case": dataclasses.asdict(case), "name": case.name, "contenders": rows})
        show(case, rows)
        write_json(args.output_dir / "results.json", results)  # after each case: a later one may fail
    write_text(args.output_dir / "table.md", markdown(results))
    if suite.curve is None:
        draw_times(results, args.output_dir / "times.png")
    else:
        draw_curve(results, suite.curve, args.output_dir / "curve.png")
    console.print(f"Written: {args.output_dir}")
    return 0 if sound else 1


def suite_of(args: Args) -> Suite:
    """The suite that the arguments name, with their threads, iterations and contenders.

    Raises:
        ValueError: the suite, the model or a contender is not known.
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
    """Runs one contender in a process of its own.

    Returns:
        What `benchmarks.case.write_result` wrote; None, with the reason on the screen, where the contender cannot run.
    """
    folder = args.output_dir.resolve()
    with quiet_loading():
        models = build_models(case.model, folder / "models" / Path(case.model).name)
    case_path, result_path, log_path = folder / "case.json", folder / "result.json", folder / f"{contender}.log"
    if contender.endswith("naive"):  # one iteration of it takes longer than all of the others together
        case = dataclasses.replace(case, iterations=1, warmup=0)
    write_case(case_path, case, models)
    result_path.unlink(missing_ok=True)
    command, environment = command_of(args, contender, case_path, result_path, log_path)
    with console.status(f"{contender} …"), log_path.open("w", encoding="utf-8") as log:
        try:
            subprocess.run(
                command, cwd=folder, env=environment, stdout=log, stderr=log, check=True, timeout=args.timeout
            )
        except subprocess.TimeoutExpired:
            console.print(f"{contender}: given up after {args.timeout} s", style="yellow")
            return None
        except subprocess.CalledProcessError as error:
            last = log_path.read_text(encoding="utf-8").strip().splitlines()[-1:] or [""]
            console.print(f"{contender} cannot run here (exit status {error.returncode}): {last[0]}", style="yellow")
            return None
    result: dict[str, Any] = json.loads(result_path.read_text(encoding="utf-8"))
    return result


def command_of(
    args: Args, contender: str, case_path: Path, result_path: Path, log_path: Path
) -> tuple[list[str], Mapping[str, str]]:
    """The command line of a contender's process, and its environment variables."""
    python, module, extra, search_path = sys.executable, "ours", [], [HERE, ROOT]
    if contender in VARIANTS:
        extra = [VARIANTS[contender]]
    elif contender in DPO:
        module, extra = "dpo", [DPO[contender]]
    elif contender in DECODE:
        module, extra = "decode", [DECODE[contender]]
    elif contender == "floor":
        module = "floor"
    else:  # TRL: another interpreter, which must not see this project's packages
        module, extra, search_path = "trl_ppo", [contender.removeprefix("trl-")], [HERE]
        with console.status(f"TRL's environment in {args.peer_env}"):
            python = str(peer_python(args.peer_env, TRL, log_path))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, search_path))}
    return [python, "-m", f"benchmarks.{module}", str(case_path), str(result_path), *extra], environment


if __name__ == "__main__":
    try:
        sys.exit(main(tyro.cli(Args, description=__doc__)))
    except ValueError as problem:
        console.print(f"error: {problem}", style="bold red")
        sys.exit(2)
