"""IFEval's countable instructions: what each asks of a response. The ids and arguments are the dataset's.

Zhou et al. 2023, "Instruction-Following Evaluation for Large Language Models" (https://arxiv.org/abs/2311.07911), appendix A.
``language:response_language`` is left out: a language is recognized, not counted. Sentences are counted by
`llm_env.reward.verifiers.counts`, which may differ from NLTK's by one or the other.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from llm_env.reward.verifiers.counts import sentences, words

RELATIONS = ("at least", "less than")
_CONSTRAINED = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
_FENCED = re.compile(r"```(?:json|JSON|Json)?\s*(.*?)\s*```", re.DOTALL)


def _keeps(count: int, relation: str, limit: int) -> bool:
    """Whether a count is at least, or less than, a limit."""
    if relation not in RELATIONS:
        raise ValueError(f"the relation {relation!r} is none of {', '.join(RELATIONS)}")
    return count >= limit if relation == "at least" else count < limit


def _existence(text: str, keywords: Sequence[str]) -> bool:
    return all(keyword.lower() in text.lower() for keyword in keywords)


def _frequency(text: str, keyword: str, frequency: int, relation: str) -> bool:
    return _keeps(text.lower().count(keyword.lower()), relation, frequency)


def _forbidden(text: str, forbidden_words: Sequence[str]) -> bool:
    return not any(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE) for word in forbidden_words)


def _letters(text: str, letter: str, let_frequency: int, let_relation: str) -> bool:
    return _keeps(text.lower().count(letter.lower()), let_relation, let_frequency)


def _words(text: str, num_words: int, relation: str) -> bool:
    return _keeps(words(text), relation, num_words)


def _sentences(text: str, num_sentences: int, relation: str) -> bool:
    return _keeps(sentences(text), relation, num_sentences)


def _paragraphs(text: str, num_paragraphs: int) -> bool:
    """Paragraphs with ``***`` between them; none of them is empty."""
    parts = [part.strip() for part in text.split("***")]
    if not parts[0]:
        parts = parts[1:]
    if parts and not parts[-1]:
        parts = parts[:-1]
    return len(parts) == num_paragraphs and all(parts)


def _first_word(text: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    """Paragraphs with an empty line between them, one of which begins with a word."""
    parts = [part.strip() for part in text.split("\n\n") if part.strip()]
    if len(parts) != num_paragraphs or not 1 <= nth_paragraph <= num_paragraphs:
        return False
    first = parts[nth_paragraph - 1].split()[0].lstrip("\"'“‘*(")
    return re.split(r"[^\w'’-]", first)[0].lower() == first_word.lower()


def _placeholders(text: str, num_placeholders: int) -> bool:
    return len(re.findall(r"\[[^\[\]]*\]", text)) >= num_placeholders


def _postscript(text: str, postscript_marker: str) -> bool:
    """A postscript is there: its marker's letters, with or without spaces and the last full stop."""
    letters = [c for c in postscript_marker if c.isalpha()]
    marker = r"\.\s?".join(map(re.escape, letters))
    return re.search(rf"(?<!\w)(?<!\w\.){marker}(?!\w)", text, re.IGNORECASE) is not None


def _constrained(text: str) -> bool:
    return any(answer in text for answer in _CONSTRAINED)


def _json(text: str) -> bool:
    fenced = _FENCED.fullmatch(text.strip())
    try:
        json.loads(fenced[1] if fenced else text.strip())
    except (ValueError, RecursionError):
        return False
    return True


def _sections(text: str, section_spliter: str, num_sections: int) -> bool:
    return len(re.findall(rf"(?<!\w){re.escape(section_spliter)}\s?[0-9]+", text)) >= num_sections


def _bullets(text: str, num_bullets: int) -> bool:
    return len(re.findall(r"^[ \t]*(?:\*(?!\*)|-(?!--))[ \t]*\S", text, re.MULTILINE)) == num_bullets


def _highlights(text: str, num_highlights: int) -> bool:
    double = re.findall(r"\*\*[^\n*]*[^\s*][^\n*]*\*\*", text)
    rest = re.sub(r"\*\*[^\n*]*\*\*", " ", text)
    return len(double) + len(re.findall(r"\*[^\n*]*[^\s*][^\n*]*\*", rest)) >= num_highlights


def _title(text: str) -> bool:
    return any(title.strip("< \t") for title in re.findall(r"<<([^\n]+?)>>", text))


def _capital_words(text: str, capital_frequency: int, capital_relation: str) -> bool:
    capitals = [word for word in re.findall(r"[^\W_]+(?:['’-][^\W_]+)*", text) if word.isupper()]
    return _keeps(len(capitals), capital_relation, capital_frequency)


def _repeats(text: str, prompt_to_repeat: str) -> bool:
    return text.strip().lower().startswith(prompt_to_repeat.strip().lower())


def _two(text: str) -> bool:
    """Two different responses, with ``******`` between them."""
    parts = [part.strip() for part in text.split("******")]
    parts = [part for i, part in enumerate(parts) if part or 0 < i < len(parts) - 1]
    return len(parts) == 2 and all(parts) and parts[0] != parts[1]


def _ends(text: str, end_phrase: str) -> bool:
    return text.strip().strip('"').rstrip().lower().endswith(end_phrase.strip().lower())


def _quoted(text: str) -> bool:
    text = text.strip()
    return len(text) > 1 and text.startswith('"') and text.endswith('"')


RULES: dict[str, Callable[..., Any]] = {
    "keywords:existence": _existence,
    "keywords:frequency": _frequency,
    "keywords:forbidden_words": _forbidden,
    "keywords:letter_frequency": _letters,
    "length_constraints:number_words": _words,
    "length_constraints:number_sentences": _sentences,
    "length_constraints:number_paragraphs": _paragraphs,
    "length_constraints:nth_paragraph_first_word": _first_word,
    "detectable_content:number_placeholders": _placeholders,
    "detectable_content:postscript": _postscript,
    "detectable_format:constrained_response": _constrained,
    "detectable_format:json_format": _json,
    "detectable_format:multiple_sections": _sections,
    "detectable_format:number_bullet_lists": _bullets,
    "detectable_format:number_highlighted_sections": _highlights,
    "detectable_format:title": _title,
    "change_case:english_capital": str.isupper,
    "change_case:english_lowercase": str.islower,
    "change_case:capital_word_frequency": _capital_words,
    "combination:repeat_prompt": _repeats,
    "combination:two_responses": _two,
    "punctuation:no_comma": lambda text: "," not in text,
    "startend:end_checker": _ends,
    "startend:quotation": _quoted,
}
"""Whether a response, not empty, follows each instruction, by the dataset's id; further arguments are the dataset's."""
