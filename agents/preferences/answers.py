"""The questions that people answer on the page, and the file of their answers: every answer is on the disk at once."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from agents.preferences.records import Candidates, Ranking, append_jsonl, drop_unfinished_line, read_rankings
from agents.preferences.stars import tiers_by_stars


@dataclass(frozen=True)
class Question:
    """A prompt whose responses are to be ranked.

    Attributes:
        candidates: The prompt and its responses.
        aspect: In which respect they are ranked, for example ``polite``; None: overall.
    """

    candidates: Candidates
    aspect: str | None = None

    @property
    def key(self) -> tuple[str, str | None]:
        """(prompt id, aspect): the same for the same question in a later session."""
        return self.candidates.id, self.aspect

    def order(self, annotator: str) -> list[int]:
        """The order in which this annotator sees the responses: random, and the same again after a restart."""
        text = f"{annotator}\n{self.candidates.id}\n{self.aspect}"
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
        return [int(i) for i in np.random.default_rng(seed).permutation(len(self.candidates.responses))]


@dataclass
class Answers:
    """The answers of all annotators, kept in a file.

    Args:
        path: ``rankings.jsonl``; what is in it counts as answered.
        questions: The questions, in the order in which they are put.
        in_stars: Whether only answers in stars count; else a ranking by stars counts as a ranking.
        may_tie: Whether a ranking in which all responses tie is an answer.
        rankings: The answers by (annotator, prompt id, aspect); filled from the file.
        answered: The keys of all answers.
    """

    path: Path
    questions: list[Question]
    in_stars: bool = False
    may_tie: bool = False
    rankings: dict[tuple[str, str, str | None], Ranking] = field(default_factory=dict)
    answered: set[tuple[str, str, str | None]] = field(default_factory=set)
    _skipped: dict[str, list[int]] = field(
        default_factory=dict
    )  # by annotator: numbers of questions, in order of skipping
    _lock: threading.Lock = field(default_factory=threading.Lock)  # gradio answers requests in threads

    def __post_init__(self) -> None:
        """Reads the answers that the file holds; see `read`."""
        self.read()

    def read(self) -> None:
        """Reads the answers that the file holds.

        Raises:
            ValueError: the file holds something else.
        """
        drop_unfinished_line(self.path)
        if self.path.is_file() and self.path.stat().st_size:
            for ranking in read_rankings(self.path):
                if self.in_stars and ranking.stars is None:
                    continue
                self.rankings[ranking.annotator, ranking.candidates.id, ranking.aspect] = ranking
        self.answered |= set(self.rankings)

    def next(self, annotator: str) -> int | None:
        """The number of the first question that the annotator has not answered; skipped ones come last. None: none is left."""
        left = [n for n, q in enumerate(self.questions) if (annotator, *q.key) not in self.answered]
        skipped = self._skipped.get(annotator, [])
        return min(left, key=lambda n: (skipped.index(n) + 1 if n in skipped else 0, n), default=None)

    def has(self, annotator: str, number: int) -> bool:
        """Whether the annotator has answered a question, perhaps in another window, or somebody else under the same name."""
        return (annotator, *self.questions[number].key) in self.answered

    def skip(self, annotator: str, number: int) -> None:
        """Puts a question behind the annotator's others."""
        skipped = self._skipped.setdefault(annotator, [])
        if number in skipped:
            skipped.remove(number)
        skipped.append(number)

    def done(self, annotator: str) -> int:
        """How many of the questions the annotator has answered."""
        return sum((annotator, *q.key) in self.answered for q in self.questions)

    @property
    def complete(self) -> bool:
        """Whether somebody has answered each question."""
        with self._lock:
            answered = {key[1:] for key in self.answered}
        return all(q.key in answered for q in self.questions)

    def add(self, annotator: str, number: int, ranks: Sequence[int] | None) -> None:
        """Keeps an answer; it is on the disk when this returns.

        Args:
            annotator: Name of who answered.
            number: Number of the question.
            ranks: Rank of each response, in the candidates' order, 1 the best, equal ranks tie; None: all are bad.
        """
        question = self.questions[number]
        tiers: list[tuple[str, ...]] = []
        if ranks is not None:
            names = [r.id for r in question.candidates.responses]
            for rank in sorted(set(ranks)):
                tiers.append(tuple(n for n, r in zip(names, ranks, strict=True) if r == rank))
        self._keep(Ranking(question.candidates, tuple(tiers), annotator, question.aspect, all_bad=ranks is None))

    def add_stars(self, annotator: str, number: int, stars: Sequence[int]) -> None:
        """Keeps an answer in stars; it is on the disk when this returns.

        Args:
            annotator: Name of who answered.
            number: Number of the question.
            stars: Stars of each response, 1 to 5, in the candidates' order.
        """
        question = self.questions[number]
        by_id = dict(zip([r.id for r in question.candidates.responses], stars, strict=True))
        self._keep(Ranking(question.candidates, tiers_by_stars(by_id), annotator, question.aspect, stars=by_id))

    def _keep(self, ranking: Ranking) -> None:
        question = Question(ranking.candidates, ranking.aspect)
        self.keep(question, ranking.annotator, ranking.to_json())
        self.rankings[ranking.annotator, *question.key] = ranking

    def keep(self, question: Question, annotator: str, record: dict[str, Any]) -> None:
        """Adds an answer to the file; it is on the disk when this returns."""
        with self._lock:
            append_jsonl(self.path, record)
            self.answered.add((annotator, *question.key))
