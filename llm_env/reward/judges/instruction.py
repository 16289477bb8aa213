"""Instructions of judges: a file of plain text with places for the prompt and the responses.

Two ways to judge (Zheng et al. 2023, "Judging LLM-as-a-Judge", https://arxiv.org/abs/2306.05685, section 3.1):
``pairwise``, which of two responses is better, and ``grade``, how good one is, from 1 to 10. And two other things that a
language model is asked for: ``correct``, to rewrite a response, and ``feedback``, what a user's message says of one.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from llm_env.lm.names import check_choice
from llm_env.reward.judges.names import CORRECT, FEEDBACK, GRADE, PAIRWISE
from llm_env.text.prompts import RawPrompt

PLACES: Mapping[str, tuple[str, ...]] = {
    PAIRWISE: ("prompt", "response_a", "response_b"),
    GRADE: ("prompt", "response"),
    CORRECT: ("prompt", "response"),
    FEEDBACK: ("prompt", "response", "reply"),
}
"""The placeholders of an instruction, by the way of judging; each must stand in it."""
OPTIONS: Mapping[str, tuple[str, ...]] = {
    PAIRWISE: ("A", "B"),
    GRADE: tuple(str(grade) for grade in range(1, 11)),
    CORRECT: (),
    FEEDBACK: ("A", "B", "C"),
}
"""What may be answered; any text where there is nothing."""
DEFAULT_FILES = {mode: Path(__file__).with_name(f"{mode}.txt") for mode in PLACES}


@dataclass(frozen=True)
class Instruction:
    """What a judge is told.

    Attributes:
        mode: ``pairwise``, ``grade``, ``correct`` or ``feedback``.
        text: The instruction with its placeholders.
        is_default: Whether it is the one that is shipped.
    """

    mode: str
    text: str
    is_default: bool

    @property
    def options(self) -> tuple[str, ...]:
        """What the judge may answer: letters, or grades; nothing for any text."""
        return OPTIONS[self.mode]

    @property
    def digest(self) -> str:
        """Eight characters that tell this instruction from others."""
        return hashlib.sha256(self.text.encode("utf-8", "surrogatepass")).hexdigest()[:8]

    def question(self, prompt: RawPrompt, *responses: str) -> str:
        """The instruction with a prompt and one response, or two in the order A, B, or a response and the reply to it.

        Placeholders that stand in a prompt or response are left as they are.
        """
        names = PLACES[self.mode]
        values = dict(zip(names, (conversation(prompt), *responses), strict=True))
        pattern = "|".join(re.escape(f"{{{name}}}") for name in names)
        return re.sub(pattern, lambda match: values[match[0][1:-1]], self.text)


def read_instruction(mode: str, path: str | Path | None = None, option: str = "judge_prompt") -> Instruction:
    """Reads an instruction.

    Args:
        mode: ``pairwise``, ``grade``, ``correct`` or ``feedback``.
        path: A UTF-8 text file; None: the instruction that is shipped.
        option: The option that the file came from, for error messages.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no UTF-8 text, lacks a placeholder, or is an instruction of the other way of judging.
    """
    check_choice("judge_mode", mode, tuple(PLACES))
    if path is None:
        return Instruction(mode, DEFAULT_FILES[mode].read_text(encoding="utf-8").strip(), True)
    if not Path(path).is_file():
        raise FileNotFoundError(f"{option}={str(path)!r}: there is no such file.")
    try:
        text = Path(path).read_text(encoding="utf-8").strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"{option}={str(path)!r} is not UTF-8 text. Save it as UTF-8.") from error
    missing = [f"{{{name}}}" for name in PLACES[mode] if f"{{{name}}}" not in text]
    if missing:
        needed = ", ".join(f"{{{name}}}" for name in PLACES[mode])
        raise ValueError(
            f"{option}={str(path)!r} lacks {', '.join(missing)}: an instruction for {mode} needs {needed} where the texts go."
        )
    return Instruction(mode, text, False)


def conversation(prompt: RawPrompt | Sequence[tuple[str, str]]) -> str:
    """A prompt as a judge reads it: a text, or of several messages each with its role before it."""
    if isinstance(prompt, str):
        return prompt
    messages = [(m["role"], m["content"]) if isinstance(m, Mapping) else m for m in prompt]
    if len(messages) == 1:
        return messages[0][1]
    return "\n\n".join(f"{role}: {content}" for role, content in messages)
