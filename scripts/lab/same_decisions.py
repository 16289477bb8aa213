r"""Rounds fed by people who rank, choose, give stars, correct or give thumbs, as many decisions each, and by a judge.

    python scripts/lab/same_decisions.py --output-dir docs/feedback

A decision is one prompt that a simulated person deals with; a round is `--decisions` of them:

- rankings: four responses are put in order. DPO on all pairs.
- choices: the better of two responses. DPO.
- stars: each of four responses gets 1 to 5. DPO on the order that follows.
- corrections: one response is rewritten. DPO on corrected against original.
- thumbs: one response gets a thumb up or down. KTO.
- judge: people give stars in the first round only. A language model learns them as grades, and grades in the rounds after that.

Each round samples from the actor of the round before, and trains that one; the embedded model stays the reference. Passes and
learning rate of each kind are those with the highest gold score, less a tenth of the KL in nats, after one round with a seed of
its own. The commands are called as a user would call them.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Before torch: each job is a process with one thread.
os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")

import numpy as np
import tyro

from agents.console import PlainConsole
from agents.figures import DPI, new_figure
from agents.files import write_json, write_text
from agents.pipeline.commands import run_here
from agents.preferences.records import write_jsonl
from llm_env.default_task import DEFAULT_MODEL
from llm_env.default_task.gold import gold_score
from simulated_people import Person, choices

console = PlainConsole()
KINDS = ("rankings", "choices", "stars", "corrections", "thumbs", "judge")
COLORS = dict(zip(KINDS, ("#1f77b4", "#17becf", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd"), strict=True))
SEARCH_SEED = 100
EPOCHS, RATES = (2.0, 8.0), (3e-4, 1e-3)
JUDGE_PROMPT = "{prompt}\n{response}\nGrade:"
"""What the tiny judge reads; it knows no other language than this."""


@dataclass(frozen=True)
class Args:
    """Compares kinds of feedback at the same number of human decisions."""

    output_dir: Path = Path("docs/feedback")
    """Folder for results, table, picture and samples; runs that are in the results are not made again."""
    work_dir: Path = Path("runs/same_decisions")
    """Folder for samples, preferences and actors."""
    decisions: int = 200
    """Decisions of people in a round."""
    rounds: int = 3
    """Rounds of a run."""
    seeds: int = 3
    """Runs of each kind."""
    jobs: int = 2
    """Runs at a time."""


def run(command: object, *words: object) -> None:
    """Runs a command of `agents.cli`.

    Raises:
        RuntimeError: it failed.
    """
    if run_here(str(command), [str(word) for word in words]):
        raise RuntimeError(f"{command} {' '.join(map(str, words))} failed")


def lines_of(path: Path) -> list[dict[str, Any]]:
    """The records of a JSONL file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def preferences(kind: str, folder: Path, person: Person) -> tuple[str, int]:
    """Has a person deal with ``responses.jsonl``, and writes what is trained on to ``preferences.jsonl``.

    Returns:
        The loss that takes it, and how many responses the person read.
    """
    records = lines_of(folder / "responses.jsonl")
    firsts = [(r["prompt"], r["responses"][0]) for r in records]
    loss, read = "dpo", sum(len(r["responses"]) for r in records)
    if kind == "rankings":
        found = [person.ranked(r) for r in records]
    elif kind == "choices":
        found, read = choices([person.ranked(r) for r in records]), 2 * len(records)
    elif kind in ("stars", "judge"):
        found = [person.starred(r) for r in records]
    elif kind == "corrections":
        rewritten = [(p, person.corrected(r["text"]), r["text"]) for p, r in firsts]
        found = [
            {"prompt": p, "chosen": new, "rejected": old} for p, new, old in rewritten if new.strip() != old.strip()
        ]
        read = len(records)
    else:
        loss, read = "kto", len(records)
        found = [
            {"prompt": p, "completion": r["text"], "label": person.thumbed(p, r["text"]), "finished": r["finished"]}
            for p, r in firsts
        ]
    write_jsonl(folder / "preferences.jsonl", found)
    return loss, read


def train_judge(stars: Path, folder: Path, seed: int) -> None:
    """Fine-tunes the embedded model on people's stars: it answers with a grade, twice the stars."""
    records = []
    for record in lines_of(stars):
        for response in record["responses"]:
            question = JUDGE_PROMPT.format(prompt=record["prompt"], response=response["text"])
            records.append({"prompt": question, "response": f" {2 * record['stars'][response['id']]}"})
    write_jsonl(folder / "grades.jsonl", records)
    run(
        *("train_sft", "--texts", folder / "grades.jsonl", "--output-dir", folder / "judge", "--epochs", 8),
        *("--learning-rate", 1e-3, "--seed", seed, "--device", "cpu", "--n-samples", 0),
    )
    write_text(folder / "judge.txt", JUDGE_PROMPT)


def agreement(rankings: Path) -> float:
    """The share of pairs that are worth different gold scores which a judge put in that order; its ties count one half."""
    agreed = []
    for record in lines_of(rankings):
        place = {i: rank for rank, tier in enumerate(record["ranking"]) for i in tier}
        golds = dict(zip(place, gold_score([""] * len(place), [_text(record, i) for i in place]), strict=True))
        for one, other in itertools.combinations(place, 2):
            if golds[one] != golds[other]:
                better, worse = (one, other) if golds[one] > golds[other] else (other, one)
                agreed.append(0.5 if place[better] == place[worse] else float(place[better] < place[worse]))
    return float(np.mean(agreed))


def _text(record: dict[str, Any], response: str) -> str:
    return str(next(r["text"] for r in record["responses"] if r["id"] == response))


def collect(args: Args, place: Path, actor: str, seed: int, judge: Path | None) -> None:
    """Samples responses, and has a judge rank them if there is one."""
    words: list[object] = ["collect_preferences", "--output-dir", place, "--actors", actor, "--seed", seed]
    words += ["--n-prompts", args.decisions, "--n-responses", 4, "--device", "cpu"]
    if judge is not None:
        words += [
            "--judge",
            f"llm:{judge / 'judge/actor'}",
            "--judge-mode",
            "grade",
            "--judge-prompt",
            judge / "judge.txt",
        ]
    run(*words)


def learn(args: Args, kind: str, epochs: float, rate: float, seed: int, rounds: int, folder: Path) -> dict[str, Any]:
    """Rounds of one kind.

    Returns:
        What was asked for, and for each round the gold score, the KL to the embedded model, how much was decided and read.
    """
    person, actor, first = Person(seed), str(DEFAULT_MODEL), folder / "round_0"
    done: list[dict[str, Any]] = []
    agreements: list[float] = []
    for number in range(rounds):
        place = folder / f"round_{number}"
        by_judge = kind == "judge" and number > 0
        collect(args, place, actor, 1000 * seed + number, first if by_judge else None)
        if by_judge:
            (place / "rankings.jsonl").replace(place / "preferences.jsonl")
            loss, read = "dpo", 0
            agreements.append(agreement(place / "preferences.jsonl"))
        else:
            loss, read = preferences(kind, place, person)
        if kind == "judge" and number == 0 and rounds > 1:
            train_judge(place / "preferences.jsonl", place, seed)
        run(
            *("train_preference", "--preferences", place / "preferences.jsonl", "--loss", loss, "--model", actor),
            *("--ref-model", DEFAULT_MODEL, "--epochs", epochs, "--learning-rate", rate, "--seed", seed),
            *("--device", "cpu", "--n-samples", 0, "--output-dir", place / "trained"),
        )
        actor = str(place / "trained/actor")
        run("evaluate_actor", "--actor", actor, "--output", place / "evaluation.json")
        values = json.loads((place / "evaluation.json").read_text(encoding="utf-8"))
        means = {name: values[name]["mean"] for name in ("gold_score", "kl")}
        about = {"decisions": 0 if by_judge else args.decisions, "read": read, "samples": values["samples"][:3]}
        done.append({**means, "start": values["reference_gold_score"]["mean"], **about})
    return {"kind": kind, "epochs": epochs, "rate": rate, "seed": seed, "rounds": done, "agreements": agreements}


def worth(part: dict[str, Any]) -> float:
    """What settings are chosen by: words break before the gold score shows it, and the KL tells."""
    return float(part["gold_score"] - 0.1 * part["kl"])


def results_of(args: Args) -> dict[str, Any]:
    """All runs, each on the disk when it is done."""
    path = args.output_dir / "results.json"
    kept: dict[str, Any] = {"search": [], "runs": []}
    if path.is_file():
        kept = json.loads(path.read_text(encoding="utf-8"))
    with ProcessPoolExecutor(args.jobs) as pool:

        def run_all(key: str, wanted: Sequence[tuple[str, float, float, int]], rounds: int) -> None:
            known = {(r["kind"], r["epochs"], r["rate"], r["seed"]) for r in kept[key]}
            futures = [
                pool.submit(learn, args, *job, rounds, args.work_dir / key / "_".join(map(str, job)))
                for job in wanted
                if job not in known
            ]
            for future in futures:
                result = future.result()
                kept[key].append(result)
                write_json(path, kept)
                golds = ", ".join(f"{r['gold_score']:.2f}" for r in result["rounds"])
                console.print(
                    f"{key}: {result['kind']}, {result['epochs']:g} passes at {result['rate']:g}, seed "
                    f"{result['seed']}: gold {golds}"
                )

        searched = [kind for kind in KINDS if kind != "judge"]  # which begins as stars do
        run_all("search", [(k, e, r, SEARCH_SEED) for k in searched for e in EPOCHS for r in RATES], 1)
        best = {
            kind: max((r for r in kept["search"] if r["kind"] == kind), key=lambda r: worth(r["rounds"][0]))
            for kind in searched
        }
        best["judge"] = best["stars"]
        jobs = [
            (kind, float(best[kind]["epochs"]), float(best[kind]["rate"]), seed)
            for seed in range(args.seeds)
            for kind in KINDS
        ]
        run_all("runs", jobs, args.rounds)
    return kept


def table(results: dict[str, Any]) -> str:
    """The table, in Markdown: after the last round, and after the first."""
    rows = [
        "| | passes, rate | people's decisions | responses read | gold after one round | after all, each seed | KL, nats |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind in KINDS:
        runs = [r for r in results["runs"] if r["kind"] == kind]
        decisions, read = (sum(part[name] for part in runs[0]["rounds"]) for name in ("decisions", "read"))
        first = np.mean([r["rounds"][0]["gold_score"] for r in runs])
        last = ", ".join(f"{r['rounds'][-1]['gold_score']:.2f}" for r in runs)
        kl = ", ".join(f"{r['rounds'][-1]['kl']:.1f}" for r in runs)
        rows.append(
            f"| {kind} | {runs[0]['epochs']:g}, {runs[0]['rate']:g} | {decisions:,} | {read:,} | {first:.2f} | {last} | {kl} |"
        )
    return "\n".join(rows) + "\n"


def samples(results: dict[str, Any]) -> str:
    """What the embedded model writes, and the actors of seed 0 after the last round, in Markdown."""
    runs = {r["kind"]: r["rounds"][-1]["samples"] for r in results["runs"] if r["seed"] == 0}
    shown = [("before", s["prompt"], s["reference_response"]) for s in runs[KINDS[0]]]
    shown += [(kind, s["prompt"], s["response"]) for kind in KINDS for s in runs[kind]]
    golds = gold_score([prompt for _, prompt, _ in shown], [text for *_, text in shown])
    rows = [
        f"| {kind} | {prompt} | {text.strip()} | {gold:.0f} |"
        for (kind, prompt, text), gold in zip(shown, golds, strict=True)
    ]
    return "\n".join(["| | prompt | response | gold |", "|---|---|---|---|", *rows]) + "\n"


def draw(results: dict[str, Any], path: Path) -> None:
    """Gold score after each round: the mean over the seeds, and the band between lowest and highest."""
    figure = new_figure(7.0, 4.2)
    axes = figure.subplots()
    for kind in KINDS:
        runs = [r for r in results["runs"] if r["kind"] == kind]
        curves = np.array([[r["rounds"][0]["start"], *(part["gold_score"] for part in r["rounds"])] for r in runs])
        decided = sum(part["decisions"] for part in runs[0]["rounds"])
        rounds = np.arange(curves.shape[1])
        axes.plot(
            rounds, curves.mean(0), color=COLORS[kind], marker="o", markersize=4, label=f"{kind}: {decided} decisions"
        )
        axes.fill_between(rounds, curves.min(0), curves.max(0), color=COLORS[kind], alpha=0.13, linewidth=0)
    axes.set_xticks(rounds)
    axes.set_xlabel("rounds")
    axes.set_ylabel("gold score on held-out prompts")
    axes.legend(loc="upper left", fontsize=8)
    figure.savefig(path, dpi=DPI)


def main() -> int:
    """Runs the comparison."""
    args = tyro.cli(Args, description=__doc__)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    results = results_of(args)
    write_text(args.output_dir / "table.md", table(results))
    write_text(args.output_dir / "samples.md", samples(results))
    draw(results, args.output_dir / "same_decisions.png")
    console.print(table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
