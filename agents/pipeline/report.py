"""The page of a pipeline: one HTML file with plots, tables and samples of all stages."""

from __future__ import annotations

import base64
import html
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from agents.figures import DPI, can_draw, new_figure
from agents.pipeline.stages import Pipeline, Stage
from agents.runs.figure import read_progress
from llm_env.text.records import jsonl_lines

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1080px; margin: 2em auto; padding: 0 1em; color: #1c1c1c; }
h1 { font-size: 1.7em; } h2 { margin-top: 2.2em; border-bottom: 1px solid #ccc; } img { max-width: 100%; height: auto; }
table { border-collapse: collapse; margin: 1em 0; }
th, td { border-bottom: 1px solid #ddd; padding: .3em .7em; text-align: left; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; } td { vertical-align: top; overflow-wrap: anywhere; }
pre { overflow-x: auto; background: #f6f6f6; padding: 1em; } .dim { color: #777; }
"""


def write_page(pipeline: Pipeline, config: Path) -> Path:
    """Writes ``report.html`` to the pipeline's folder.

    Args:
        pipeline: The pipeline, all of whose stages are done.
        config: Its configuration file, which the page shows.

    Returns:
        The page's path.
    """
    sections = [summary(pipeline)]
    # Stages with a section of their own first, in their order; then all runs together, then all evaluations together.
    for stage in pipeline.stages:
        folder = pipeline.folders[stage.name]
        make = SECTIONS.get(stage.script)
        if make is not None:
            sections.append(make(stage, folder))
    runs = [s for s in pipeline.stages if s.script == "train"]
    if runs:
        sections.append(training(pipeline, runs))
    evaluations = [s for s in pipeline.stages if s.script == "evaluate_actor"]
    if evaluations:
        sections.append(evaluation(pipeline, evaluations))
    sections.append(f"<h2>Configuration</h2><pre>{html.escape(config.read_text(encoding='utf-8'))}</pre>")
    page = (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'><title>RLHF report</title>"
        f"<link rel='icon' href='data:,'><style>{STYLE}</style></head><body><h1>RLHF, stage by stage</h1>"
        + "\n".join(sections)
        + "</body></html>\n"
    )
    path = pipeline.folder / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def table(head: list[str], rows: list[list[Any]], numbers: bool = True) -> str:
    """Makes an HTML table.

    Args:
        head: Headings of the columns, one for each entry of a row.
        rows: The cells, each row as long as the head.
        numbers: Whether all columns but the first hold numbers, which are aligned on the right.
    """
    mark = [" class='n'" if numbers and i else "" for i in range(len(head))]
    lines = [
        "<table><thead><tr>",
        *(f"<th{m}>{html.escape(h)}</th>" for m, h in zip(mark, head, strict=True)),
        "</tr></thead>",
    ]
    for row in rows:
        cells = "".join(f"<td{m}>{html.escape(str(c))}</td>" for m, c in zip(mark, row, strict=True))
        lines.append(f"<tr>{cells}</tr>")
    return "".join(lines) + "</table>"


def image(path: Path, alt: str) -> str:
    """Embeds a PNG file in the page; nothing where the stage drew none."""
    return embedded(path.read_bytes(), alt) if path.is_file() else ""


def embedded(content: bytes, alt: str) -> str:
    """Makes an ``img`` element of the bytes of a PNG, so that the page needs no other file."""
    return f"<img alt='{html.escape(alt)}' src='data:image/png;base64,{base64.b64encode(content).decode()}'>"


def load(path: Path) -> dict[str, Any]:
    """Reads a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def heading(stage: Stage, what: str) -> str:
    """Makes a stage's heading.

    Args:
        stage: The stage that the section is about.
        what: What the stage does, which stands behind the name if it is another word.
    """
    return f"<h2>{html.escape(stage.name if stage.name == what else f'{stage.name}: {what}')}</h2>"


def summary(pipeline: Pipeline) -> str:
    """Makes the table of all stages and the time that each took."""
    rows = []
    for stage in pipeline.stages:
        note = pipeline.note(stage)
        rows.append([stage.name, f"{stage.script}.py", f"{note.seconds:.0f} s" if note else ""])
    total = sum(note.seconds for s in pipeline.stages if (note := pipeline.note(s)) is not None)
    return table(["stage", "script", "time"], [*rows, ["all", "", f"{total:.0f} s"]])


def sft(stage: Stage, folder: Path) -> str:
    """Makes the section of a supervised fine-tuning: perplexity, loss, samples."""
    report = load(folder / "sft.json")
    text = (
        f"<p>{report['train_texts']:,} texts; perplexity of {report['heldout_texts']:,} held-out ones "
        f"{report['perplexity_before']:.2f} before, <b>{report['perplexity']:.2f}</b> after.</p>"
    )
    samples = table(["prompt", "response"], [[s["prompt"], s["response"]] for s in report["samples"]], numbers=False)
    return f"{heading(stage, 'supervised fine-tuning')}{text}{image(folder / 'sft.png', 'loss')}{samples}"


def preferences(stage: Stage, folder: Path) -> str:
    """Makes the section of collected preferences: who ranked, how well they agree, an example."""
    path = folder / "rankings.jsonl"
    if not path.is_file():  # corrections, or responses that nobody ranked yet
        return heading(stage, "preferences") + "<p>Nobody ranked.</p>"
    lines = jsonl_lines(path.read_text(encoding="utf-8"))
    agreement = load(folder / "agreement.json")
    pairs = len(jsonl_lines((folder / "pairs.jsonl").read_text(encoding="utf-8")))
    text = f"<p>{len(lines):,} rankings by {html.escape(', '.join(agreement['annotators']))}; {pairs:,} pairs."
    if agreement["pairs_judged_twice"]:
        text += (
            f" Krippendorff's α = {agreement['alpha']:.2f} on {agreement['pairs_judged_twice']:,} pairs judged twice."
        )
    # The first ranking as an example: a row for each response, tied ones with the same rank.
    first = json.loads(lines[0])
    texts = {r["id"]: r["text"] for r in first["responses"]}
    rows = [[place, texts[name]] for place, tier in enumerate(first["ranking"], 1) for name in tier]
    example = f"<p class='dim'>For example: {html.escape(str(first['prompt']))}</p>" + table(
        ["rank", "response"], rows, False
    )
    return f"{heading(stage, 'preferences')}{text}</p>{example}"


def reward_model(stage: Stage, folder: Path) -> str:
    """Makes the section of a reward model: accuracy, calibration, its surest mistakes."""
    report = load(folder / "report.json")
    rows = []
    if report["pairs"]:  # single responses with stars make none
        low, high = report["accuracy_interval"]
        rows = [
            ["held-out accuracy", f"{report['accuracy']:.1%} ({low:.1%} to {high:.1%})"],
            ["calibration error", f"{report['calibration_error']:.3f}"],
            ["rank correlation of score and length", f"{report['length_correlation']:.2f}"],
            ["accuracy of 'the longer is better'", f"{report['longer_is_better']:.1%}"],
        ]
    if "stars" in report:
        rows.append(["rank correlation of score and stars", f"{report['stars']['correlation']:.2f}"])
    if "gold_accuracy" in report:
        rows.append(["accuracy of the gold order", f"{report['gold_accuracy']:.1%}"])
    mistakes = [
        [m["prompt"], m["preferred"], m["model_prefers"], f"{m['by']:.2f}"] for m in report["worst_mistakes"][:6]
    ]
    return (
        heading(stage, f"reward model ({report['loss']})")
        + table(["", "value"], rows)
        + image(folder / "report.png", "calibration, accuracy by margin, accuracy over training")
        + "<h3>Where it is surest and wrong</h3>"
        + table(["prompt", "preferred", "the model prefers", "by"], mistakes, numbers=False)
    )


def preference(stage: Stage, folder: Path) -> str:
    """Makes the section of a training on preferences: accuracy, curves, samples."""
    report = load(folder / "preference.json")
    accuracy = report["heldout"].get("rewards/accuracies")
    text = f"<p>{html.escape(report['source'])}; β = {report['beta']:g}; "
    text += f"{report['pairs']:,} pairs" if "pairs" in report else f"{report['responses']:,} responses"
    if accuracy is not None:
        text += f"; <b>{accuracy:.1%}</b> of {report['heldout_pairs']:,} held-out ones in the right order"
    samples = table(["prompt", "response"], [[s["prompt"], s["response"]] for s in report["samples"]], numbers=False)
    return f"{heading(stage, report['loss'])}{text}.</p>{image(folder / 'preference.png', 'training')}{samples}"


def rounds(stage: Stage, folder: Path) -> str:
    """Makes the section of rounds of generating, ranking and training: scores and gains by round, samples of the last."""
    evaluations = json.loads((folder / "rounds.json").read_text(encoding="utf-8"))

    def gain(entry: dict[str, Any], name: str) -> str:
        return "" if name not in entry else f"{entry[name][0]:+.2f} ± {entry[name][1]:.2f}"

    rows = []
    for e in evaluations:
        gold = f"{e['gold_score']:.2f}" if "gold_score" in e else ""
        rows.append(
            [e["round"], f"{e['rm_score']:.2f}", gain(e, "rm_gain"), gold, gain(e, "gold_gain"), f"{e['kl']:.2f}"]
        )
    last = table(["prompt", "response", "score"], evaluations[-1]["samples"], numbers=False)
    head = ["round", "score", "gain", "gold", "gain", "KL to the first"]
    return f"{heading(stage, 'rounds')}{image(folder / 'rounds.png', 'rounds')}{table(head, rows)}<h3>Last round</h3>{last}"


SECTIONS: dict[str, Any] = {
    "train_sft": sft,
    "collect_preferences": preferences,
    "train_reward_model": reward_model,
    "train_preference": preference,
    "iterate": rounds,
}
"""The function that makes the section of a stage, by the stage's script; train and evaluate have one section for all."""


def training(pipeline: Pipeline, runs: list[Stage]) -> str:
    """Makes the section of all training runs: score against KL of all of them, and the curves of each."""
    parts = [
        "<h2>Reinforcement learning</h2>",
        embedded(score_against_kl(pipeline, runs), "score and gold score against KL") if can_draw() else "",
    ]
    parts.append(
        "<p>Lines: the score of the learned reward model, which is trained on. Dashed: the gold score, which nobody trains on. "
        "Where the first rises and the second falls, the policy has found what the reward model gets wrong.</p>"
    )
    for stage in runs:
        folder = pipeline.folders[stage.name]
        parts.append(f"<h3>{stage.name}</h3>{image(folder / 'report.png', stage.name)}")
        best = folder / "best" / "best.json"
        if best.is_file():
            timestep = load(best)["timestep"]
            parts.append(f"<p class='dim'>Best by held-out evaluation: step {timestep:,}.</p>")
    return "".join(parts)


def score_against_kl(pipeline: Pipeline, runs: list[Stage]) -> bytes:
    """Draws learned and gold score over the KL to the reference, a color for each run; returns the PNG's bytes."""
    figure = new_figure(8, 4.2)
    axes = figure.add_subplot()
    for number, stage in enumerate(runs):
        folder = pipeline.folders[stage.name]
        settings = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        run = read_progress(folder / "progress.csv")
        label = f"β = {settings['kl_coef']:g}"
        axes.plot(run["rollout/kl"], smooth(run["rollout/rm_score"]), color=f"C{number}", label=label)
        if "rollout/gold_score" in run:
            axes.plot(run["rollout/kl"], smooth(run["rollout/gold_score"]), color=f"C{number}", linestyle="--")
    axes.set(xlabel="KL to the reference (nats per response)", ylabel="score")
    axes.grid(alpha=0.3)
    axes.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=DPI, format="png")
    return buffer.getvalue()


def smooth(values: np.ndarray, width: int = 3) -> np.ndarray:
    """Running mean.

    Args:
        values: One value an iteration, shape (n,).
        width: Iterations that a mean is over; at the ends there are fewer.

    Returns:
        The means, shape (n,).
    """
    return np.array([values[max(0, i - width // 2) : i + width // 2 + 1].mean() for i in range(len(values))])


def evaluation(pipeline: Pipeline, stages: list[Stage]) -> str:
    """Makes the section of all evaluations: one table, a column for each, and samples of each."""
    reports = [load(pipeline.folders[s.name] / "evaluation.json") for s in stages]
    parts = [f"<h2>Evaluation on {reports[0]['n_prompts']} held-out prompts</h2>"]
    parts.append(table(["", "reference", *(s.name for s in stages)], evaluation_rows(reports)))
    for stage, report in zip(stages, reports, strict=True):
        samples = [
            [
                s["prompt"],
                f"{s['reference_response'].strip()} ({s['reference_rm_score']:.2f})",
                f"{s['response'].strip()} ({s['rm_score']:.2f})",
            ]
            for s in report["samples"]
        ]
        parts.append(
            f"<h3>{stage.name}: samples</h3>" + table(["prompt", "reference (score)", "actor (score)"], samples, False)
        )
    return "".join(parts)


def evaluation_rows(reports: list[dict[str, Any]]) -> list[list[Any]]:
    """Makes the rows of the evaluations' table: a label, the reference's value, and the value of each actor.

    A row without any value is left out.

    Args:
        reports: The evaluations (`agents.evaluation.compare.Report` as JSON). The reference is the same in all; its values are
            taken from the first.
    """

    def row(label: str, ours: Any, reference: Any) -> list[Any]:
        return [label, reference(reports[0]), *(ours(r) for r in reports)]

    # Functions of a report that format one of its values; an empty text where it has none.
    def estimate(name: str) -> Any:
        return lambda r: "" if r[name] is None else f"{r[name]['mean']:.2f} ± {r[name]['half_width']:.2f}"

    def number(name: str) -> Any:
        return lambda r: "" if r[name] is None else f"{r[name]:.2f}"

    def diversity(side: str, name: str) -> Any:
        return lambda r: f"{r[side][name]:.3f}"

    def against(r: dict[str, Any]) -> str:
        other = r["against"]
        return f"{other['win_rate']:.1%} ({Path(other['actor']).parent.name})" if other else ""

    rows = [
        row("reward-model score", estimate("rm_score"), estimate("reference_rm_score")),
        row("gold score", estimate("gold_score"), estimate("reference_gold_score")),
        row("win rate against the reference", lambda r: f"{r['win_rate']:.1%}", lambda r: ""),
        row("KL, nats per response", estimate("kl"), lambda r: "0"),
        row("length, tokens", estimate("response_length"), estimate("reference_response_length")),
        row("self-BLEU", diversity("diversity", "self_bleu"), diversity("reference_diversity", "self_bleu")),
        row(
            "distinct word pairs", diversity("diversity", "distinct_2"), diversity("reference_diversity", "distinct_2")
        ),
        row("perplexity of held-out text", number("perplexity"), number("reference_perplexity")),
        row("win rate against another actor", against, lambda r: ""),
    ]
    return [cells for cells in rows if any(cells[1:])]
