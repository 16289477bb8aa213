"""Corrections: responses rewritten by people or by a stronger model, and the two kinds of training data that they are.

``corrections.jsonl`` has a line for each prompt that somebody went through, with the responses, and those of them that were
rewritten, which may be none:

    {"id": "p0", "prompt": "How was it?", "responses": [as in responses.jsonl], "annotator": "ann",
     "corrections": [{"of": "a", "text": "Very good.", "finished": true}]}

A correction is a pair, in which it is preferred to the response that it corrects (``corrected_pairs.jsonl``, TRL's format), and
a text to fine-tune on (``corrected_texts.jsonl``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agents.preferences.answers import Answers, Question
from agents.preferences.records import (
    Candidates,
    Ranking,
    Response,
    drop_unfinished_line,
    read_candidate_record,
    write_jsonl,
)
from agents.preferences.selection import pair_records
from llm_env.text.records import read_records
from llm_env.text.texts import TextRecord, checked_finished

FILE, PAIRS_FILE, TEXTS_FILE = "corrections.jsonl", "corrected_pairs.jsonl", "corrected_texts.jsonl"


@dataclass(frozen=True)
class Corrected:
    """A prompt whose responses somebody went through.

    Attributes:
        candidates: The prompt and the responses as they were.
        texts: The rewritten responses, each with the id of the one that it corrects.
        annotator: Who corrected.
    """

    candidates: Candidates
    texts: tuple[Response, ...]
    annotator: str = ""

    def to_json(self) -> dict[str, Any]:
        """Makes the record for a line of ``corrections.jsonl``."""
        texts = [{"of": r.id, "text": r.text, "finished": r.finished} for r in self.texts]
        return {**self.candidates.to_json(), "corrections": texts, "annotator": self.annotator}

    def rankings(self) -> list[Ranking]:
        """Each correction as a ranking in which it stands above the response that it corrects."""
        rankings = []
        for text in self.texts:
            original = self.candidates.response(text.id)
            better = Response(f"{text.id} corrected", text.text, text.finished, f"corrected by {self.annotator}")
            whole = self.candidates
            pair = Candidates(f"{whole.id} {text.id} corrected", whole.prompt, (better, original), whole.columns)
            rankings.append(Ranking(pair, ((better.id,), (original.id,)), self.annotator))
        return rankings


def is_change(response: Response, text: str) -> bool:
    """Whether a text is another one than a response's, and not empty."""
    return bool(text.strip()) and text.strip() != response.text.strip()


def read_corrections(path: Path) -> list[Corrected]:
    """Reads ``corrections.jsonl``; where there is no such file, there are none. A line that a crash left unfinished is dropped.

    Raises:
        ValueError: a record is broken; file and line are named.
    """
    drop_unfinished_line(path)
    if not path.is_file() or not path.stat().st_size:
        return []
    return [_corrected(where, record) for where, record in read_records(path, "corrections")]


def _corrected(where: str, record: Any) -> Corrected:
    candidates = read_candidate_record(where, record, least=1)
    ids = {r.id for r in candidates.responses}
    entries = record.get("corrections")
    if not isinstance(entries, list):
        raise ValueError(f"{where}: 'corrections' must be a list; got {entries!r:.80}.")
    texts = []
    for entry in entries:
        if not isinstance(entry, dict) or entry.get("of") not in ids or not isinstance(entry.get("text"), str):
            raise ValueError(
                f"{where}: a correction needs 'of', one of {', '.join(sorted(ids))}, and 'text'; got {entry!r:.80}."
            )
        finished = checked_finished(where, entry)
        if not is_change(candidates.response(entry["of"]), entry["text"]):
            raise ValueError(f"{where}: the correction of {entry['of']!r} is empty, or the same text. Remove it.")
        texts.append(Response(entry["of"], entry["text"], finished))
    return Corrected(candidates, tuple(texts), str(record.get("annotator", "")))


def correction_rankings(corrections: Sequence[Corrected]) -> list[Ranking]:
    """All corrections as rankings of two responses."""
    return [ranking for corrected in corrections for ranking in corrected.rankings()]


def correction_texts(corrections: Sequence[Corrected]) -> list[TextRecord]:
    """All corrections as texts to fine-tune on."""
    return [TextRecord(c.candidates.prompt, r.text, r.finished) for c in corrections for r in c.texts]


def write_training_files(folder: Path, corrections: Sequence[Corrected]) -> None:
    """Writes ``corrected_pairs.jsonl`` and ``corrected_texts.jsonl``."""
    write_jsonl(folder / PAIRS_FILE, pair_records(correction_rankings(corrections)))
    texts = correction_texts(corrections)
    write_jsonl(
        folder / TEXTS_FILE, [{"prompt": t.prompt, "response": t.response, "finished": t.finished} for t in texts]
    )


class CorrectionAnswers(Answers):
    """The corrections of all annotators, kept in ``corrections.jsonl``; see `Answers`."""

    def read(self) -> None:
        """See `Answers.read`."""
        for corrected in read_corrections(self.path):
            self.answered.add((corrected.annotator, corrected.candidates.id, None))

    def add_texts(self, annotator: str, number: int, texts: Sequence[str]) -> int:
        """Keeps what somebody made of the responses; it is on the disk when this returns.

        Args:
            annotator: Name of who answered.
            number: Number of the question.
            texts: Each response as it is now, in the candidates' order.

        Returns:
            How many of them were changed.
        """
        candidates = self.questions[number].candidates
        changed = tuple(
            Response(r.id, text.strip())
            for r, text in zip(candidates.responses, texts, strict=True)
            if is_change(r, text)
        )
        self.keep(Question(candidates), annotator, Corrected(candidates, changed, annotator).to_json())
        return len(changed)
