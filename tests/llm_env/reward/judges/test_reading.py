"""What a judge's reply says, and what it is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_env.reward.judges.instruction import conversation, read_instruction
from llm_env.reward.judges.names import check_judge_name, is_language_judge, served_name
from llm_env.reward.judges.reading import Reply, grade_of, verdict_of, without_thoughts


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("A", "A"),
        (" b", None),
        ("**B**.", "B"),
        ("Answer: B", "B"),
        ("The better response is B.", "B"),
        ("Response A", "A"),
        ("tie", "tie"),
        ("Verdict: Tie.", "tie"),
        ("A better answer would name the hotel. [[B]]", "B"),
        ("[[A]] no, rather [[B]]", "B"),
        ("B\n\nResponse B names the hotel; A does not.", "B"),
        ("A says more than B.\n\nFinal answer: A", "A"),
        ("A\nmore words\nB", None),
        ("B is better than A", None),
        ("A better answer would name the hotel.", None),
        ("I cannot judge this.", None),
        ("AB", None),
        ("", None),
    ],
)
def test_a_verdict_is_read_where_a_line_is_nothing_else(text: str, verdict: str | None) -> None:
    assert verdict_of(Reply(text=text)) == verdict


def test_a_verdict_of_probabilities_is_the_larger_one() -> None:
    assert verdict_of(Reply({"A": 0.4, "B": 0.6})) == "B"
    assert verdict_of(Reply({"A": 0.6, "B": 0.4})) == "A"
    assert verdict_of(Reply({"A": 0.5, "B": 0.5})) == "tie"


@pytest.mark.parametrize(
    ("text", "grade"),
    [
        ("7", 7),
        ("10", 10),
        ("Grade: 8/10", 8),
        ("Grade: 8 out of 10", 8),
        ("The grade of the response is 6.5.", 6.5),
        ("It is short. [[3]]", 3),
        ("4\n\nIt does not say where.", 4),
        ("0", None),
        ("-3", None),
        ("11", None),
        ("100", None),
        ("between 3 and 4", None),
        ("1e9", None),
        ("good", None),
        ("", None),
    ],
)
def test_a_grade_is_a_number_from_one_to_ten_that_stands_alone(text: str, grade: float | None) -> None:
    assert grade_of(Reply(text=text)) == grade


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("<think>\nA?\n</think>\n\nB", "B"),
        ("A is short.\n</think>\n\nB", "B"),  # the template has begun the thought
        ("<think>\nIt begins well:\nB", ""),  # cut off
        (" B ", "B"),
        ("B, I think", "B, I think"),
    ],
)
def test_thoughts_are_left_aside(text: str, left: str) -> None:
    assert without_thoughts(text) == left


def test_a_grade_of_probabilities_is_the_expected_value_whatever_was_written() -> None:
    shares = {str(g): 0.0 for g in range(1, 11)} | {"1": 0.25, "7": 0.25, "10": 0.5}
    assert grade_of(Reply(shares, text="10")) == pytest.approx(0.25 * 1 + 0.25 * 7 + 0.5 * 10)


def test_the_shipped_instructions_take_texts_and_do_not_fill_in_what_stands_in_them() -> None:
    pairwise, grade = read_instruction("pairwise"), read_instruction("grade")
    text = pairwise.question("Compare {response_b}", "one {prompt} {", "two")
    assert "[Prompt]\nCompare {response_b}\n[" in text
    assert "[Response A]\none {prompt} {\n[" in text
    assert "[Response B]\ntwo\n[" in text
    assert "[Response]\none\n[" in grade.question("How?", "one")
    assert pairwise.is_default
    assert (pairwise.options, grade.options[-1]) == (("A", "B"), "10")
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}]
    assert conversation(messages[:1]) == "Hi"
    assert (
        conversation([("user", "Hi"), ("assistant", "Yes?")]) == conversation(messages) == "user: Hi\n\nassistant: Yes?"
    )


def test_an_instruction_of_the_users_is_known_by_its_text(tmp_path: Path) -> None:
    path = tmp_path / "judge.txt"
    path.write_text('{prompt} {response} {"json": 1} {response}\n')
    one = read_instruction("grade", path)
    assert one.question("P", "R") == 'P R {"json": 1} R'
    assert not one.is_default
    path.write_text("{prompt}: {response}")
    assert read_instruction("grade", path).digest != one.digest


@pytest.mark.parametrize(
    ("mode", "content", "message"),
    [
        ("pairwise", b"{prompt} {response_a}", r"lacks \{response_b\}: an instruction for pairwise needs \{prompt\}, \{resp"),
        ("pairwise", b"{prompt} {response}", r"lacks \{response_a\}, \{response_b\}"),
        ("grade", b"{prompt} {response_a} {response_b}", r"lacks \{response\}"),
        ("grade", b"", r"lacks \{prompt\}, \{response\}"),
        ("grade", b"\xff\xfe{", "is not UTF-8 text"),
        ("best", b"", "judge_mode='best'"),
    ],
)  # fmt: skip
def test_an_instruction_without_places_for_the_texts_is_refused(
    tmp_path: Path, mode: str, content: bytes, message: str
) -> None:
    path = tmp_path / "judge.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_instruction(mode, path)
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(FileNotFoundError, match=r"judge_prompt='nosuch.txt': there is no such file"):
        read_instruction("grade", "nosuch.txt")


def test_names_of_judges() -> None:
    assert is_language_judge("llm:a/b")
    assert is_language_judge("openai:http://h/v1#m")
    assert not is_language_judge("my_module:openai")
    assert served_name("openai:http://h:8000/v1#org/m:7b", "judge") == ("http://h:8000/v1/chat/completions", "org/m:7b")
    assert served_name("openai:https://h/x/chat/completions?v=1#m", "judge").url == "https://h/x/chat/completions?v=1"
    for name, message in [
        ("openai:http://h/v1", "names no model. Give openai:URL#MODEL"),
        ("openai:http://h/v1#", "names no model"),
        ("openai:#m", "must be http://HOST"),
        ("openai:h/v1#m", "must be http://HOST"),
        ("openai:http://me:s3cret@h/v1#m", "has a user or a password in it"),
        ("llm:", "names no model. Give llm:FOLDER"),
    ]:
        with pytest.raises(ValueError, match=f"^judge.*{message}") as caught:
            check_judge_name(name, "judge")
        assert "s3cret" not in str(caught.value)
