"""A language model's grades as a reward: RLAIF without a reward model, "direct RLAIF".

Lee et al. 2023, "RLAIF vs. RLHF" (https://arxiv.org/abs/2309.00267), section 2.3.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from llm_env.episode import Episode
from llm_env.reward.judges.asking import AskedModel, Readable
from llm_env.reward.judges.instruction import Instruction, conversation
from llm_env.reward.judges.reading import LOWEST_GRADE, grade_of
from llm_env.reward.scores import TextReward
from llm_env.text.prompts import PromptRecord

logger = logging.getLogger(__name__)


class GradeReward(TextReward):
    """Grades from 1 to 10 as scores.

    A reply without a grade counts as the lowest one, with a warning, so that a response gains nothing by confusing the judge.

    Args:
        model: The language model that grades.
        instruction: What it is told, an instruction for grades.
    """

    def __init__(self, model: AskedModel, instruction: Instruction) -> None:
        self.model = model
        self.instruction = instruction

    def score(self, episodes: Sequence[Episode]) -> list[float]:
        """Grades finished episodes; of a chat the judge reads the messages, not the template's text."""
        return self.score_texts(
            [conversation(e.prompt.messages or e.prompt.text) for e in episodes], [e.response_text for e in episodes]
        )

    def check_prompts(self, records: Sequence[PromptRecord]) -> None:
        """See `RewardModel.check_prompts`: any prompt can be graded."""

    def score_texts(
        self, prompts: Sequence[str], responses: Sequence[str], columns: Sequence[Mapping[str, Any]] | None = None
    ) -> list[float]:
        """Grades responses; the same question is asked once. Columns are not looked at. See `TextReward.score_texts`.

        Raises:
            RewardModelError: the judge did not answer, or most replies have no grade.
        """
        questions = [self.instruction.question(p, r) for p, r in zip(prompts, responses, strict=True)]
        different = list(dict.fromkeys(questions))
        grades: dict[str, float] = {}
        readable = Readable(self.instruction, self.model.label)
        for place, reply in self.model.replies(different, self.instruction.options):
            readable.check(reply)
            grade = grade_of(reply)
            grades[different[place]] = LOWEST_GRADE if grade is None else grade
        if readable.unreadable:
            logger.warning(
                "%s: %d of %d replies have no grade that can be read; they count as %g.",
                *(self.model.label, readable.unreadable, len(different), LOWEST_GRADE),
            )
        return [grades[question] for question in questions]
