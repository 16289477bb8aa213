"""From a chat log to training data: texts to fine-tune on, and good and bad responses for KTO.

OUT/feedback.jsonl    each user's turn behind an answer, and what it says of it
OUT/texts.jsonl       the answers that users were content with, for train_sft
OUT/kto.jsonl         those, and the ones that they were not content with, for train_preference --loss kto
OUT/report.json, report.md   counts and examples of each class
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agents.conversations.classifiers import Classifier
from agents.conversations.log import NEGATIVE, NONE, POSITIVE, Turn
from agents.conversations.report import as_markdown, feedback_report
from agents.files import write_json, write_text
from agents.preferences.labeled import Labeled
from agents.preferences.records import write_jsonl


def collect_feedback(
    turns: Sequence[Turn], classifier: Classifier, folder: Path, plain: bool = False, examples: int = 5
) -> dict[str, Any]:
    """Classifies turns, and writes the files.

    Args:
        turns: The turns of a log.
        classifier: Says what each says of the answer before it.
        folder: Where the files are written.
        plain: Write prompts as texts, for models without a chat template. Answers within a conversation are left out then.
        examples: How many examples of each class the report shows.

    Returns:
        What ``report.json`` holds.

    Raises:
        RewardModelError: a classifier that is a language model does not answer; what it answered is kept.
    """
    labels = classifier.classify(turns, folder)
    report = feedback_report(turns, labels, classifier.name, examples)
    responses, left_out = labeled_responses(turns, labels, plain)
    report |= {
        "texts": sum(r.is_good for r in responses),
        "responses": len(responses),
        "without_plain_prompt": left_out,
    }
    write_jsonl(
        folder / "feedback.jsonl", [_record(t, said, classifier.name) for t, said in zip(turns, labels, strict=True)]
    )
    texts = [r.text for r in responses if r.is_good]
    write_jsonl(folder / "texts.jsonl", [t._asdict() for t in texts])
    write_jsonl(folder / "kto.jsonl", [r.to_json() for r in responses])
    write_json(folder / "report.json", report)
    write_text(folder / "report.md", as_markdown(report))
    return report


def labeled_responses(turns: Sequence[Turn], labels: Sequence[str | None], plain: bool) -> tuple[list[Labeled], int]:
    """The answers of which users say something.

    Args:
        turns: The turns behind the answers.
        labels: What each says.
        plain: As for `collect_feedback`.

    Returns:
        The answers, and how many more there are whose prompt cannot be written as a text.
    """
    responses, left_out = [], 0
    for turn, label in zip(turns, labels, strict=True):
        if label not in (POSITIVE, NEGATIVE):
            continue
        prompt = turn.raw_prompt(plain)
        if prompt is None:
            left_out += 1
        else:
            responses.append(Labeled(prompt, turn.answer, label == POSITIVE, turn.finished))
    return responses, left_out


def _record(turn: Turn, label: str | None, name: str) -> dict[str, Any]:
    """A line of ``feedback.jsonl``."""
    record: dict[str, Any] = {
        "conversation": turn.conversation,
        "message": turn.place,
        "feedback": label or NONE,
        "by": name,
    }
    return {**record, "prompt": list(turn.prompt), "answer": turn.answer, "reply": turn.reply}
