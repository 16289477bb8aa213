"""Classifiers of user turns: rules in a file that users can change, or a language model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from rich.console import Console
from rich.progress import track

from agents.conversations.log import LABELS, NEGATIVE, NONE, POSITIVE, Turn
from agents.flat_settings import parse_yaml
from agents.preferences.journal import FILE as JOURNAL
from agents.preferences.journal import Journal, Question
from llm_env.reward.judges.asking import AskedModel, Readable
from llm_env.reward.judges.instruction import Instruction
from llm_env.reward.judges.names import FEEDBACK
from llm_env.reward.judges.reading import letter_of
from llm_env.text.records import file_text

RULES_FILE = Path(__file__).with_name("rules.yaml")
BY_LETTER = {"A": POSITIVE, "B": NEGATIVE, "C": NONE}
"""What the letters mean that the instruction for language models asks for."""


class Classifier(Protocol):
    """Says what users' turns say of the answers before them.

    Attributes:
        name: What classified, for the report.
    """

    name: str

    def classify(self, turns: Sequence[Turn], folder: Path) -> list[str | None]:
        """One of `LABELS` for each turn; None where the classifier gave nothing that can be read.

        Args:
            turns: Users' turns behind an answer, in the log's order.
            folder: Where a classifier that is asked for each keeps what it was told.
        """


class Rule(NamedTuple):
    """A pattern, and what a turn says in which it is found."""

    label: str
    pattern: re.Pattern[str]


class RuleClassifier:
    """Rules: the first whose pattern is found in a turn decides; where none is, the turn says nothing.

    Args:
        path: A YAML or JSON file, a list of ``label`` and ``pattern``; None: the rules that are shipped.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such list; the rule is named.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self.rules = read_rules(RULES_FILE if path is None else Path(path))
        self.name = "rules" if path is None else str(path)

    def classify(self, turns: Sequence[Turn], folder: Path) -> list[str | None]:
        """See `Classifier.classify`."""
        return [self.label(turn.reply) for turn in turns]

    def label(self, reply: str) -> str:
        """What a user's message says of the answer before it."""
        text = " ".join(reply.replace("’", "'").split())
        return next((rule.label for rule in self.rules if rule.pattern.search(text)), NONE)


def read_rules(path: Path, option: str = "classifier") -> list[Rule]:
    """Reads a file of rules; see `RuleClassifier`."""
    label = f"{option}={str(path)!r}"
    if not path.is_file():
        raise FileNotFoundError(f"{label}: there is no such file.")
    entries = parse_yaml(file_text(path, label), str(path))  # JSON is YAML
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{label} must be a list of rules, each with 'label' and 'pattern'.")
    rules = []
    for number, entry in enumerate(entries, 1):
        where = f"{path}, rule {number}"
        if not isinstance(entry, dict) or set(entry) != {"label", "pattern"} or not isinstance(entry["pattern"], str):
            raise ValueError(f"{where}: a rule has 'label' and 'pattern'; got {entry!r:.80}.")
        if entry["label"] not in LABELS:
            raise ValueError(f"{where}: label={entry['label']!r:.80} must be one of {', '.join(LABELS)}.")
        try:
            rules.append(Rule(entry["label"], re.compile(entry["pattern"], re.IGNORECASE)))
        except re.error as error:
            raise ValueError(
                f"{where}: pattern={entry['pattern']!r:.80} is not a regular expression ({error})."
            ) from error
    return rules


class LanguageClassifier:
    """A language model that says, for each turn, A (content), B (not content) or C (neither).

    Args:
        name: ``llm:NAME`` or ``openai:URL#MODEL``.
        model: The model, which is asked.
        instruction: What it is told.
        console: Where a progress bar is shown; None: nowhere.
    """

    def __init__(self, name: str, model: AskedModel, instruction: Instruction, console: Console | None = None) -> None:
        self.name = name if instruction.is_default else f"{name} [{FEEDBACK} {instruction.digest}]"
        self.model_name = name
        self.model = model
        self.instruction = instruction
        self.console = console

    def classify(self, turns: Sequence[Turn], folder: Path) -> list[str | None]:
        """Asks what is not in the folder's ``judgments.jsonl``, and keeps each reply there; see `Classifier.classify`.

        Raises:
            RewardModelError: the model did not answer, or most of its replies cannot be read.
        """
        journal = Journal(folder / JOURNAL, self.model_name, FEEDBACK, self.instruction.options)
        questions = [self._question(turn) for turn in turns]
        readable = Readable(self.instruction, self.model.label)
        missing = list({q.text: q for q in questions if journal.reply(q) is None}.values())
        replies = self.model.replies([q.text for q in missing], self.instruction.options)
        hidden = self.console is None or not self.console.is_terminal or not missing
        for place, reply in track(replies, "turns", total=len(missing), console=self.console, disable=hidden):
            journal.add(missing[place], reply)
            readable.check(reply)
        labels: list[str | None] = []
        for question in questions:
            answered = journal.reply(question)
            assert answered is not None
            letter = letter_of(answered, self.instruction.options)
            labels.append(None if letter is None else BY_LETTER[letter])
        return labels

    def _question(self, turn: Turn) -> Question:
        text = self.instruction.question(list(turn.prompt), turn.answer, turn.reply)
        return Question(text, turn.conversation, (str(turn.place),))
