"""Judges that are language models: they compare each two responses in both orders, or grade each.

Zheng et al. 2023, "Judging LLM-as-a-Judge with MT-Bench and Chatbot Arena" (https://arxiv.org/abs/2306.05685), section 3.4:
judges prefer a place, so both orders are asked, and what turns with the order is a tie. Lee et al. 2023, "RLAIF"
(https://arxiv.org/abs/2309.00267): labels of such judges train as those of people do.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from agents.preferences.journal import FILE, Journal, Question
from agents.preferences.judge import Judge
from agents.preferences.judge_report import Pair, grades_report, pairs_report
from agents.preferences.records import Candidates
from llm_env.reward.judges.asking import AskedModel, Readable
from llm_env.reward.judges.instruction import Instruction
from llm_env.reward.judges.names import GRADE
from llm_env.reward.judges.reading import LOWEST_GRADE, Reply, grade_of
from llm_env.text.prompts import PromptRecord


class LanguageJudge(Judge):
    """A language model that ranks.

    Pairwise, a response's score is how many of the others it beats in both orders, ties counting one half; a reply without a
    verdict makes a tie. By grades, its score is its grade, and a reply without one counts as the lowest.

    Args:
        name: ``llm:NAME`` or ``openai:URL#MODEL``. Where the judge does something else than comparing with the instruction that
            is shipped, the annotator's name says so: rankings of one kind are not taken for the other's.
        model: The model, which is asked.
        instruction: What it is told.
        noise: As in `Judge`.
        seed: Seed of the draws, which only noise needs.
        console: Where a progress bar is shown; None: nowhere.
    """

    def __init__(
        self,
        name: str,
        model: AskedModel,
        instruction: Instruction,
        noise: float = 0.0,
        seed: int = 0,
        console: Console | None = None,
    ) -> None:
        about = [instruction.mode, *([] if instruction.is_default else [instruction.digest])]
        is_plain = instruction.mode != GRADE and instruction.is_default
        super().__init__(name if is_plain else f"{name} [{' '.join(about)}]", noise, seed)
        self.model_name = name
        self.model = model
        self.instruction = instruction
        self.console = console

    def check_prompts(self, records: Sequence[PromptRecord]) -> None:
        """See `Judge.check_prompts`: any prompt can be judged."""

    def scores(self, candidates: Sequence[Candidates], folder: Path | None = None) -> list[list[float]]:
        """Asks what is not in the folder's ``judgments.jsonl``, and keeps each reply there; see `Judge.scores`.

        Raises:
            RewardModelError: the judge did not answer, or most of its replies cannot be read.
        """
        journal = self._journal(folder)
        if self.instruction.mode == GRADE:
            by_response = [[self._grade_question(c, i) for i in range(len(c.responses))] for c in candidates]
            self._ask([q for questions in by_response for q in questions], journal)
            grades = [[grade_of(_answered(journal, q)) for q in questions] for questions in by_response]
            return [[LOWEST_GRADE if g is None else g for g in of_prompt] for of_prompt in grades]
        self._ask([q for c in candidates for q in self._pair_questions(c)], journal)
        return [self._wins(c, journal) for c in candidates]

    def report(self, candidates: Sequence[Candidates], folder: Path) -> dict[str, Any]:
        """Counts ties and position bias, or grades, with what cannot be read; see `agents.preferences.judge_report`."""
        journal = self._journal(folder)
        about = {"judge": self.name, "mode": self.instruction.mode, "prompts": len(candidates)}
        if self.instruction.mode == GRADE:
            questions = [[self._grade_question(c, i) for i in range(len(c.responses))] for c in candidates]
            return about | grades_report([[_answered(journal, q) for q in of_prompt] for of_prompt in questions])
        pairs = []
        for c in candidates:
            replies = iter([_answered(journal, q) for q in self._pair_questions(c)])
            pairs += [Pair(one, other) for one, other in zip(replies, replies, strict=True)]
        return about | pairs_report(pairs)

    def _journal(self, folder: Path | None) -> Journal:
        path = None if folder is None else folder / FILE
        return Journal(path, self.model_name, self.instruction.mode, self.instruction.options)

    def _grade_question(self, candidates: Candidates, i: int) -> Question:
        response = candidates.responses[i]
        return Question(self.instruction.question(candidates.prompt, response.text), candidates.id, (response.id,))

    def _pair_questions(self, candidates: Candidates) -> list[Question]:
        """Two questions for each two responses: in their order, and turned round."""
        questions = []
        for one, other in itertools.combinations(candidates.responses, 2):
            for a, b in ((one, other), (other, one)):
                text = self.instruction.question(candidates.prompt, a.text, b.text)
                questions.append(Question(text, candidates.id, (a.id, b.id)))
        return questions

    def _ask(self, questions: Sequence[Question], journal: Journal) -> None:
        """Asks the questions to which there is no reply, each different text once."""
        readable = Readable(self.instruction, self.model.label)
        missing = list({q.text: q for q in questions if journal.reply(q) is None}.values())
        replies = self.model.replies([q.text for q in missing], self.instruction.options)
        hidden = self.console is None or not self.console.is_terminal or not missing
        for place, reply in track(replies, "judge", total=len(missing), console=self.console, disable=hidden):
            journal.add(missing[place], reply)
            readable.check(reply)

    def _wins(self, candidates: Candidates, journal: Journal) -> list[float]:
        """How many of the others each response beats, ties counting one half."""
        replies = iter([_answered(journal, q) for q in self._pair_questions(candidates)])
        wins = [0.0] * len(candidates.responses)
        for i, j in itertools.combinations(range(len(wins)), 2):
            share = Pair(next(replies), next(replies)).share_of_first
            wins[i] += share
            wins[j] += 1 - share
        return wins


def _answered(journal: Journal, question: Question) -> Reply:
    reply = journal.reply(question)
    assert reply is not None
    return reply
