"""A language model that rewrites responses: a stronger one that refines what a weaker one wrote.

He et al. 2024, "From Complex to Simple: Enhancing Multi-Constraint Complex Instruction Following Ability of LLMs"
(https://arxiv.org/abs/2404.15846): the weak model's response, corrected by the strong one, is better than what the strong one
writes by itself, and the pair trains with DPO.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from agents.preferences.corrections import FILE, Corrected, is_change, read_corrections
from agents.preferences.journal import FILE as JOURNAL
from agents.preferences.journal import Journal, Question
from agents.preferences.records import Candidates, Response, append_jsonl
from agents.preferences.settings import CollectionSettings
from llm_env.lm.names import LoadSettings
from llm_env.reward.judges.asking import AskedModel, load_asked_model
from llm_env.reward.judges.instruction import Instruction, read_instruction
from llm_env.reward.judges.names import CORRECT, asked_name, check_judge_name


class Corrector:
    """A language model that rewrites responses.

    Args:
        name: ``llm:NAME`` or ``openai:URL#MODEL``. Where it is told something else than the instruction that is shipped, the
            annotator's name says so.
        model: The model, which is asked.
        instruction: What it is told.
        max_new_tokens: Length cap of a rewritten response, in tokens of the model.
        console: Where a progress bar is shown; None: nowhere.
    """

    def __init__(
        self,
        name: str,
        model: AskedModel,
        instruction: Instruction,
        max_new_tokens: int,
        console: Console | None = None,
    ) -> None:
        self.name = name if instruction.is_default else f"{name} [{CORRECT} {instruction.digest}]"
        self.model_name = name
        self.model = model
        self.instruction = instruction
        self.max_new_tokens = max_new_tokens
        self.console = console

    def correct_in(self, folder: Path, candidates: Sequence[Candidates]) -> list[Corrected]:
        """Rewrites what this corrector has not rewritten yet in a folder's ``corrections.jsonl``.

        Each reply is kept in ``judgments.jsonl`` before the next one is read, so that nothing is asked twice.

        Args:
            folder: Holds the files.
            candidates: The prompts, each of whose responses is rewritten.

        Returns:
            All corrections there, other annotators' too.

        Raises:
            RewardModelError: the model does not answer.
        """
        path = folder / FILE
        done = {c.candidates.id for c in read_corrections(path) if c.annotator == self.name}
        left = [c for c in candidates if c.id not in done]
        journal = Journal(folder / JOURNAL, self.model_name, CORRECT, ())
        self._ask([self._question(c, r) for c in left for r in c.responses], journal)
        for c in left:
            texts = []
            for response in c.responses:
                reply = journal.reply(self._question(c, response))
                assert reply is not None
                if reply.text is not None and is_change(response, reply.text):
                    texts.append(Response(response.id, reply.text, reply.finished is not False))
            append_jsonl(path, Corrected(c, tuple(texts), self.name).to_json())
        return read_corrections(path)

    def _question(self, candidates: Candidates, response: Response) -> Question:
        text = self.instruction.question(candidates.prompt, response.text)
        return Question(text, candidates.id, (response.id,))

    def _ask(self, questions: Sequence[Question], journal: Journal) -> None:
        """Asks the questions to which there is no reply, each different text once."""
        missing = list({q.text: q for q in questions if journal.reply(q) is None}.values())
        replies = self.model.written([q.text for q in missing], self.max_new_tokens)
        hidden = self.console is None or not self.console.is_terminal or not missing
        for place, reply in track(replies, "corrector", total=len(missing), console=self.console, disable=hidden):
            journal.add(missing[place], reply)


def load_corrector(settings: CollectionSettings, load: LoadSettings, console: Console | None = None) -> Corrector:
    """Loads the corrector of some settings, which name one.

    Raises:
        FileNotFoundError, ValueError: it, or the file with its instruction, cannot be loaded.
    """
    assert settings.corrector is not None
    name = asked_name(settings.corrector)
    check_judge_name(name, "corrector")
    instruction = read_instruction(CORRECT, settings.corrector_prompt, "corrector_prompt")
    model = load_asked_model(name, load, "corrector", settings.reward_limits, settings.judge_concurrency)
    return Corrector(name, model, instruction, settings.max_new_tokens, console)


def correction_counts(corrections: Sequence[Corrected]) -> dict[str, dict[str, Any]]:
    """By annotator, how many ``prompts`` and ``responses`` were gone through, how many of them ``corrected``, and ``cut``."""
    counts: dict[str, dict[str, Any]] = {}
    for c in corrections:
        of = counts.setdefault(c.annotator, {"prompts": 0, "responses": 0, "corrected": 0, "cut": 0})
        of["prompts"] += 1
        of["responses"] += len(c.candidates.responses)
        of["corrected"] += len(c.texts)
        of["cut"] += sum(not r.finished for r in c.texts)
    return counts
