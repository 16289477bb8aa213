"""Mistakes around judges that are language models."""

from __future__ import annotations

from tests.mistakes import Mutation

_LOCAL = ("tests/llm_env/reward/judges/test_local.py",)
_READING = ("tests/llm_env/reward/judges/test_reading.py",)
_SERVED = ("tests/llm_env/reward/judges/test_served.py",)
_RANKING = ("tests/agents/preferences/test_language_judge.py",)
_HTTP = "llm_env/reward/endpoint.py"
_JUDGE = "agents/preferences/language_judge.py"
_REPORT = "agents/preferences/judge_report.py"
_JOURNAL = "agents/preferences/journal.py"

JUDGES = [
    Mutation(
        "each two responses are compared in one order, twice",
        _JUDGE,
        "for a, b in ((one, other), (other, one)):",
        "for a, b in ((one, other), (one, other)):",
        _RANKING,
    ),
    Mutation(
        "a verdict that turns with the order is a win",
        _REPORT,
        '{("A", "B"): 1.0, ("B", "A"): 0.0}.get(',
        '{("A", "B"): 1.0, ("B", "A"): 0.0, ("A", "A"): 1.0}.get(',
        _RANKING,
    ),
    Mutation(
        "position bias counts the second place",
        _REPORT,
        '"turned_to_first": proportion(to_first, turned)',
        '"turned_to_first": proportion(to_second, turned)',
        _RANKING,
    ),
    Mutation(
        "people's ties and the judge's are one",
        _REPORT,
        "proportion(agreed, agreed + disagreed)",
        "proportion(agreed, pairs)",
        _RANKING,
    ),
    Mutation(
        "a reply is kept when all are there",
        _JUDGE,
        "            journal.add(missing[place], reply)\n            readable.check(reply)",
        "            readable.check(reply)\n        journal.add(missing[place], reply)",
        _RANKING,
    ),
    Mutation(
        "what was asked is asked again",
        _JUDGE,
        "for q in questions if journal.reply(q) is None}",
        "for q in questions}",
        _RANKING,
    ),
    Mutation(
        "a judge told something else keeps its name",
        _JUDGE,
        "super().__init__(name if is_plain else f\"{name} [{' '.join(about)}]\", noise, seed)",
        "super().__init__(name, noise, seed)",
        _RANKING,
    ),
    Mutation(
        "a half line of a crash spoils the judgments",
        _JOURNAL,
        "        drop_unfinished_line(path)\n",
        "",
        ("tests/agents/preferences/test_language_judge.py::test_a_half_line_is_asked_again",),
    ),
    Mutation(
        "replies of another judge count",
        _JOURNAL,
        'if record.get("judge") == judge and record',
        "if record",
        _RANKING,
    ),
    Mutation(
        "a one that goes on to ten is a one",
        "llm_env/reward/judges/local.py",
        "total -= sum(",
        "total -= 0 * sum(",
        _LOCAL,
    ),
    Mutation(
        "an answer behind a line's end is spelled as one behind a space",
        "llm_env/reward/judges/local.py",
        'for before, text in (("\\n", option), (":", f" {option}")):',
        'for before, text in ((":", f" {option}"),):',
        _LOCAL,
    ),
    Mutation(
        "a chat model is asked in plain text",
        "llm_env/reward/judges/local.py",
        "has_template = tokenizer.chat_template is not None",
        "has_template = False",
        _LOCAL,
    ),
    Mutation(
        "a grade is the most probable one",
        "llm_env/reward/judges/reading.py",
        "return sum(float(grade) * share for grade, share in reply.shares.items())",
        "return float(max(reply.shares, key=reply.shares.__getitem__))",
        _READING,
    ),
    Mutation(
        "a thought that a template has begun is the reply",
        "llm_env/reward/judges/reading.py",
        r'r"^.*?</think>|^\s*<think>.*"',
        r'r"^\s*<think>.*?</think>"',
        _READING,
    ),
    Mutation(
        "a number anywhere is the grade",
        "llm_env/reward/judges/reading.py",
        "if not pattern.fullmatch(last) or any(",
        "if not pattern.fullmatch(last) or all(",
        _READING,
    ),
    Mutation(
        "placeholders in a response are filled in",
        "llm_env/reward/judges/instruction.py",
        "return re.sub(pattern, lambda match: values[match[0][1:-1]], self.text)",
        "text = self.text\n        for name in names:\n"
        '            text = text.replace(f"{{{name}}}", values[name])\n        return text',
        _READING,
    ),
    Mutation(
        "a digit one is a one though ten may follow",
        "llm_env/reward/judges/served.py",
        'weights["1"] > UNDECIDED * total:',
        'weights["1"] > 2 * total:',
        _SERVED,
    ),
    Mutation(
        "an answer's error repeats the key",
        _HTTP,
        'error_text(self.redacted(answer.decode(errors="replace")))',
        'error_text(answer.decode(errors="replace"))',
        _SERVED,
    ),
    Mutation(
        "a reply that repeats the key is written down",
        "llm_env/reward/judges/served.py",
        'self.endpoint.redacted(content or "")',
        '(content or "")',
        _RANKING,
    ),
    Mutation(
        "each thread says that it waits",
        "llm_env/reward/limits.py",
        "            if not self._is_told:\n",
        "            if True:\n",
        _SERVED,
    ),
    Mutation(
        "what others brought is lost when one fails",
        "llm_env/reward/judges/side_by_side.py",
        "failure, deadline = error, time.monotonic() + patience",
        "raise error",
        _SERVED,
    ),
    Mutation(
        "a reply without a grade counts as a good one",
        "llm_env/reward/judges/grade.py",
        "LOWEST_GRADE if grade is None else grade",
        "5.5 if grade is None else grade",
        _SERVED,
    ),
]
