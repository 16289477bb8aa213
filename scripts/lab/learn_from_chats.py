r"""What users say in chat logs, found by rules and learned from: a table of precision, recall and gold scores.

    python scripts/lab/learn_from_chats.py --output-dir runs/chats

For each seed, the embedded actor answers prompts, and users of `chat_users` say what they think of it, or something else. The
shipped rules read the log (`collect_feedback`), KTO and SFT train on what they found, and KTO on what is true. The gold score
of each actor on the held-out prompts stands beside that of the actor that answered.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from agents.console import PlainConsole
from agents.conversations.log import LABELS, NEGATIVE, POSITIVE
from agents.evaluation.statistics import Estimate
from agents.files import write_json, write_text
from agents.pipeline.commands import run_here
from agents.preferences.records import write_jsonl
from chat_users import write_conversations
from llm_env.default_task import DEFAULT_MODEL, DEFAULT_PROMPTS
from llm_env.lm.generate import continue_prompts
from llm_env.lm.names import LoadSettings
from llm_env.lm.registry import shared_causal_lm
from llm_env.text.prompts import PromptSet, read_prompts

console = PlainConsole()


@dataclass(frozen=True)
class Args:
    """Learn from what users say in chats."""

    output_dir: Path = Path("runs/chats")
    """Folder for logs, actors and results; what is there is not made again."""
    records: int = 300
    """Conversations in a log."""
    seeds: int = 3
    """Logs, each with its actors."""
    epochs: float = 8.0
    """Passes over what was found."""
    learning_rate: float = 5e-4
    """Step size of both trainings."""


def write_log(path: Path, count: int, seed: int) -> None:
    """Has the embedded actor answer prompts, and users reply."""
    model = shared_causal_lm(DEFAULT_MODEL, LoadSettings("float32", "cpu"))
    records = read_prompts(DEFAULT_PROMPTS)
    chosen = [records[i] for i in np.random.default_rng(seed).permutation(len(records))[:count]]
    prompts = PromptSet(chosen, model.tokenizer, 64)
    with model.frozen() as lm:
        ids = continue_prompts(lm, [prompts[i] for i in range(len(chosen))], model.eos_ids, 32, seed)
    texts = [str(model.tokenizer.decode(i, skip_special_tokens=True)) for i in ids]
    kept = [i for i, text in enumerate(texts) if text.strip()]
    asked = [str(chosen[i].prompt) for i in kept]
    write_jsonl(
        path, write_conversations(asked, [texts[i] for i in kept], [ids[i][-1] in model.eos_ids for i in kept], seed)
    )


def true_responses(log: Path, target: Path) -> None:
    """Writes KTO's records as somebody who read the log would label them."""
    records = []
    for line in log.read_text(encoding="utf-8").splitlines():
        prompt, answer, reply = json.loads(line)["messages"]
        if reply["feedback"] in (POSITIVE, NEGATIVE):
            record = {"prompt": prompt["content"], "completion": answer["content"]}
            good = reply["feedback"] == POSITIVE
            records.append({**record, "label": good, "finished": answer.get("finished", True)})
    write_jsonl(target, records)


def run(command: str, *words: str) -> None:
    """Runs a command of `agents.cli`.

    Raises:
        SystemExit: it failed.
    """
    if run_here(command, words):
        raise SystemExit(f"{command} failed")


def learn(args: Args, seed: int) -> dict[str, Any]:
    """Makes a log, learns from it in three ways, and evaluates; returns the numbers."""
    folder = args.output_dir / f"seed_{seed}"
    if (folder / "numbers.json").is_file():
        return json.loads((folder / "numbers.json").read_text(encoding="utf-8"))
    log, found, true = folder / "log.jsonl", folder / "feedback", folder / "true.jsonl"
    write_log(log, args.records, seed)
    true_responses(log, true)
    run("collect_feedback", "--log", str(log), "--output-dir", str(found), "--plain-prompts")
    common = (
        *("--epochs", str(args.epochs), "--learning-rate", str(args.learning_rate), "--seed", str(seed)),
        *("--device", "cpu", "--n-samples", "0"),
    )
    trainings = {
        "KTO, rules": ("train_preference", "--loss", "kto", "--preferences", str(found / "kto.jsonl")),
        "KTO, true labels": ("train_preference", "--loss", "kto", "--preferences", str(true)),
        "SFT on the positive, rules": ("train_sft", "--texts", str(found / "texts.jsonl")),
    }
    numbers: dict[str, Any] = {"report": json.loads((found / "report.json").read_text(encoding="utf-8")), "gold": {}}
    for name, (command, *words) in trainings.items():
        target = folder / name.replace(",", "").replace(" ", "_")
        run(command, *words, *common, "--output-dir", str(target))
        run("evaluate_actor", "--actor", str(target / "actor"), "--output", str(target / "evaluation.json"))
        values = json.loads((target / "evaluation.json").read_text(encoding="utf-8"))
        numbers["gold"]["start"] = values["reference_gold_score"]
        numbers["gold"][name] = {"gold": values["gold_score"], "kl": values["kl"]}
    write_json(folder / "numbers.json", numbers)
    return numbers


def table(results: list[dict[str, Any]]) -> str:
    """The results as Markdown."""
    lines = ["| seed | class | precision | recall |", "|---|---|---|---|"]
    for seed, result in enumerate(results):
        for label in LABELS:
            both = result["report"]["compared"]["by_class"][label]
            cells = [f"{v['share']:.1%} ({v['count']} of {v['of']})" for v in (both["precision"], both["recall"])]
            lines.append(f"| {seed} | {label} | {' | '.join(cells)} |")
    names = list(results[0]["gold"])
    lines += ["", "| | gold score, each seed | KL (nats) |", "|---|---|---|"]
    for name in names:
        values = [r["gold"][name] if name == "start" else r["gold"][name]["gold"] for r in results]
        kls = ["0"] if name == "start" else [f"{r['gold'][name]['kl']['mean']:.1f}" for r in results]
        lines.append(f"| {name} | {', '.join(_shown(v) for v in values)} | {', '.join(kls)} |")
    return "\n".join(lines) + "\n"


def _shown(value: dict[str, float]) -> str:
    return str(Estimate(value["mean"], value["half_width"], value["std"]))


def main(args: Args) -> int:
    """Runs all seeds, and writes the table."""
    results = [learn(args, seed) for seed in range(args.seeds)]
    write_text(args.output_dir / "table.md", table(results))
    console.print(table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Args, description=__doc__)))
