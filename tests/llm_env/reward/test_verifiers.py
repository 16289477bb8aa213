"""Each verifier against cases that were decided by hand."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from llm_env.default_task import DEFAULT_MODEL
from llm_env.extras import installed
from llm_env.reward.limits import CallLimits
from llm_env.reward.models import load_text_reward, short_name
from llm_env.reward.scores import RewardModelError
from llm_env.reward.verifiers import counts
from llm_env.reward.verifiers.answers import PLACES, find_answer
from llm_env.reward.verifiers.ifeval_rules import RULES
from llm_env.reward.verifiers.named import VERIFIERS, make_verifier
from llm_env.settings import TaskSettings
from llm_env.task import TextTask
from llm_env.text.prompts import PromptRecord

IFEVAL_FILE = Path(os.environ.get("IFEVAL_FILE", "no such file"))
"""The dataset's input_data.jsonl, where there is one."""


def verdict(name: str, response: str, record: dict[str, Any] | None = None) -> float:
    """What a verifier named as in settings scores, by the whole path that training takes."""
    record = record or {}
    model = load_text_reward(f"verifier:{name}")
    model.check_prompts([PromptRecord("p", record, "here")])
    (score,) = model.score_texts(["p"], [response], [record])
    return score


@pytest.mark.parametrize(
    ("text", "place", "answer"),
    [
        ("so #### 18", "auto", "18"),
        ("#### 1\n#### 2 \nmore", "auto", "2"),
        (r"\boxed{1} then \boxed{\frac{1}{2}}.", "auto", r"\frac{1}{2}"),
        (r"\boxed{a\}b{c}}", "boxed", r"a\}b{c}"),
        (r"\boxed{4} and \boxed{5", "boxed", "4"),  # cut off
        (r"\fbox{7}", "auto", "7"),
        ("<answer> 3\n</answer> #### 4", "auto", "4"),
        ("#### 4 <answer>3</answer>", "tag", "3"),
        ("It goes into <answer> tags. <answer>3</answer>", "auto", "3"),
        (r"#### 4 then \boxed{5}", "auto", "5"),
        ("no mark", "auto", None),
        ("one\ntwo\n\n", "last_line", "two"),
        (" all of it ", "whole", "all of it"),
        (r"\boxed{}", "auto", ""),
    ],
)
def test_marked_answers(text: str, place: str, answer: str | None) -> None:
    assert find_answer(text, place) == answer


@pytest.mark.parametrize(
    ("right", "response", "score"),
    [
        ("#### 18", "She makes 9 * 2 = $18 every day.", 1),
        ("16 - 3 = 13\n#### 13", "#### 13", 1),
        ("#### 13", "#### 31", 0),
        ("1,234,567", "It is 1234567.", 1),
        ("1234.5", "#### $1,234.50", 1),
        ("4", "4.0", 1),
        ("4", "4.01", 0),
        ("-3", "x = -3", 1),
        ("-3", "x = 3", 0),
        ("-3", "the result is −3", 1),
        ("-5", "-$5", 1),
        ("-5", "$-5", 1),
        ("3", "5-3", 1),  # a minus between two numbers is none of a negative number
        ("2", "5 - 3 = 2", 1),
        ("0.5", "1/2", 1),
        ("1/2", r"\boxed{\frac{1}{2}}", 1),
        ("1/2", r"\boxed{\dfrac12}", 1),
        ("-1/2", r"\boxed{-\frac{1}{2}}", 1),
        ("3.5", "3 1/2", 1),
        ("3.5", r"\boxed{3\frac{1}{2}}", 1),
        ("1/3", "0.333", 0),
        ("1/3", "0.33333333", 1),
        ("7", "7/0", 0),
        ("50", "50%", 1),
        ("50%", "0.5", 1),
        ("50%", r"\boxed{50\%}", 1),
        ("50%", "0.5%", 0),
        ("12", "12 apples", 1),
        ("12", "12 apples and 3 pears", 0),
        ("12", r"\boxed{12\text{ apples}} of the 20", 1),
        ("18", r"\boxed{17} no, \boxed{18}", 1),
        ("1000", r"\boxed{1{,}000}", 1),
        ("1000", r"\boxed{1\,000}", 1),
        ("80000", "He paid $80,000", 1),
        ("23", "1,23", 1),  # no thousands separator
        ("1e3", "1000", 1),
        (".5", "0.5", 1),
        (18, "18", 1),
        (2.5, "5/2", 1),
        ("18", "eighteen", 0),
        ("18", "", 0),
        ("18", "9" * 5000, 0),
        ("18", "1e999999999", 0),
        ("18", "18.", 1),
        ("3", "version 1.2.3", 1),
        ("2024", "on 2023-01-02 in 2024", 1),
        ("12", "12 m^2", 1),
        (r"12 \text{ cm}^{2}", r"\boxed{12}", 1),
        ("2", "12 m^2", 0),
        ("3", "10^3", 0),  # a power
        ("5", r"\boxed{2 \times 10^{5}}", 0),
        ("10", "10²", 0),
        ("2", r"\boxed{\sqrt{2}}", 0),  # roots, and fractions of others than whole numbers
        ("2", r"\boxed{3\sqrt[3]2}", 0),
        ("2", "√2", 0),
        ("2", r"\boxed{\frac{\sqrt{2}}{2}}", 0),
        ("2", r"\sqrt{4} = 2", 1),
        ("2", "It is H2O.", 0),  # names
        ("12", "12 tons of CO2.", 1),
        ("12", "12 m2", 1),
        ("12", "x1 = 12, and PM2.5 rises", 1),
        ("3.5", r"x\approx3.5", 1),
        ("5", "3x5", 1),
        ("5", "USD5", 1),
        ("5", "答案是5", 1),
        ("10000", "10 000", 1),  # thousands
        ("10000", "-10 000", 0),
        ("-10000.5", "10\u202f000,5 or -10\u00a0000.5", 1),
        ("1234567", "$1\u20092345 or 1\u2009234\u2009567 people", 1),
        ("3400", "3 400", 1),
        ("10 000", "10,000", 1),
        ("100", "in 2024 100 people", 1),
        ("200", "2024 100 200", 1),
        ("35", "1 200 35", 1),
        ("500", "0 500", 1),
        ("3.5", "3 100/200", 1),
        ("-5", "–5", 1),  # an en dash
        ("-5", "\u20115", 1),
        ("5", "3–5", 1),
    ],
)
def test_numbers(right: Any, response: str, score: float) -> None:
    assert verdict("number?column=answer", response, {"answer": right}) == score


def test_options_of_numbers() -> None:
    record = {"target": 10, "answer": "none"}
    assert verdict("number?column=target&tolerance=0.1", "10.9", record) == 1
    assert verdict("number?column=target&tolerance=0.05", "10.9", record) == 0
    assert verdict("number?column=target&extract=hash", "10", record) == 0
    assert verdict("number?column=target&extract=tag", "<answer>$10</answer> 11", record) == 1
    assert verdict("number?tolerance=0", "0.1", {"answer": 0.1}) == 1


@pytest.mark.parametrize(
    ("name", "right", "response", "score"),
    [
        ("exact", "Paris", " Paris. ", 1),
        ("exact", "Paris", "paris", 0),
        ("exact?ignore_case=true", "Paris", "PARIS", 1),
        ("exact", "New  York", "It is <answer>New\nYork</answer>", 1),
        ("exact", ["UK", "United Kingdom"], "#### United Kingdom", 1),
        ("exact", ["UK", "United Kingdom"], "#### Kingdom", 0),
        ("exact", 4, "4", 1),
        ("exact", "4", "4.0", 0),
        ("exact?extract=last_line", "b", "a\nb\n", 1),
        ("exact?extract=hash", "b", "b", 0),
        ("choice", "B", "B", 1),
        ("choice", "B", "B.", 1),
        ("choice", "B", "B) Paris", 1),
        ("choice", "b", "(B)", 1),
        ("choice", 1, "The answer is (B).", 1),
        ("choice", "(C)", "Answer: **C**", 1),
        ("choice", "B", "The answer is A. No, the answer is B.", 1),
        ("choice", "A", "A cat is an animal.", 0),  # an article
        ("choice", "A", "(A) is wrong, so it is (B).", 0),
        ("choice", "D", r"\boxed{D}", 1),
        ("choice", "D", r"\boxed{\text{(D)}}", 1),
        ("choice", "E", "#### E", None),
        ("choice?letters=ABCDE", "E", "#### E", 1),
        ("choice", "B", "Because B'nai", 0),
        ("choice", "B", "The correct answer is: B", 1),
        ("choice", "B", "**Answer:** B", 1),
        ("choice", "B", "**Answer**: (B) Paris", 1),
        ("choice", "B", r"\boxed{\text{B}}", 1),
        ("choice", "B", "the answer is b\nfor it is", 1),
        ("choice", "B", "The answer is a mammal, so (B).", 1),  # an article
        ("choice", "A", "The answer is a mammal.", 0),
        ("choice", "B", "", 0),
    ],
)
def test_exact_answers_and_choices(name: str, right: Any, response: str, score: float | None) -> None:
    if score is None:
        with pytest.raises(ValueError, match=r"here: answer='E' is none of A, B, C, D"):
            verdict(name, response, {"answer": right})
    else:
        assert verdict(name, response, {"answer": right}) == score


@pytest.mark.skipif(not installed("math_verify"), reason="math-verify is not installed")
@pytest.mark.parametrize(
    ("right", "response", "score"),
    [
        (r"\frac{1}{2}", r"\boxed{0.5}", 1),
        (r"\frac{1}{2}", r"\boxed{\dfrac{2}{4}}", 1),
        ("x^2+2x+1", r"so \boxed{(x+1)^2}", 1),
        ("x^2+2x+1", r"so \boxed{(x-1)^2}", 0),
        (r"\sqrt{8}", r"\boxed{2\sqrt{2}}", 1),
        (r"the answer is \boxed{2^{10}}", r"\boxed{1024}", 1),
        ("-3", r"\boxed{3}", 0),
        ("(1,2)", r"\boxed{(1, 2)}", 1),
        (r"\{1,2\}", r"\boxed{\{2,1\}}", 1),
        (r"\pi", r"$\pi$", 1),
        ("5", r"\boxed{}", 0),
        ("5", "I do not know", 0),
        ("5", r"\boxed{5}} \boxed{", 1),
        ("5", r"\boxed{" + "1+" * 400 + "1}", 0),
        ("5", r"\boxed{9^{9^{9^{9}}}}", 0),
        ("5", r"\boxed{10^{100000000}}", 0),
        ("5", r"\boxed{(99999999!)!}", 0),
        ("5", r"\boxed{\sum_{i=1}^{1000000000} i}", 0),
    ],
)
def test_formulas(right: str, response: str, score: float) -> None:
    began = time.monotonic()
    assert verdict("math", response, {"answer": right}) == score
    assert time.monotonic() - began < 10


@pytest.mark.skipif(not installed("math_verify"), reason="math-verify is not installed")
def test_what_would_fill_the_memory_is_not_computed() -> None:
    from llm_env.reward.verifiers.formula import _formulas, _is_small

    for text in (
        "9^{9^{9}}",
        "10^{5000}",
        "10^{-5000}",
        "2^{3!}",
        "5000!",
        "(9!)!",
        r"\sum_{i=1}^{n} i",
        "1+(2^{2^{2}})^{2}",
    ):
        (formula,) = _formulas(text)
        assert not _is_small(formula), text
    for text in ("9^{9}", r"\sqrt[3]{2}", r"e^{x^{2}}", r"x^{\frac{1}{2}}", "20!", "10^{-3}"):
        (formula,) = _formulas(text)
        assert _is_small(formula), text


@pytest.mark.skipif(not installed("math_verify"), reason="math-verify is not installed")
def test_formulas_execute_nothing(tmp_path: Path) -> None:
    for code in (f"__import__('pathlib').Path('{tmp_path}/owned').touch()", f"open('{tmp_path}/owned','w')"):
        for text in (code, rf"\boxed{{{code}}}", f"${code}$", rf"\text{{{code}}}"):
            verdict("math", text, {"answer": "5"})
    assert not list(tmp_path.iterdir())


SCHEMA = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 1}}, "required": ["n"]}


@pytest.mark.skipif(not installed("jsonschema"), reason="jsonschema is not installed")
@pytest.mark.parametrize(
    ("response", "any_json", "by_schema"),
    [
        ('{"n": 3}', 1, 1),
        (' {"n": 0}\n', 1, 0),
        ('{"m": 3}', 1, 0),
        ('Here it is:\n```json\n{"n": 3}\n```\nDone.', 1, 1),
        ('```\n{"n": "3"}\n```', 1, 0),
        ("[1, 2]", 1, 0),
        ('{"n": 3', 0, 0),
        ('{"n": NaN}', 0, 0),
        ("The answer is 3.", 0, 0),
        ("", 0, 0),
        ("[" * 100_000, 0, 0),
    ],
)
def test_json(tmp_path: Path, response: str, any_json: float, by_schema: float) -> None:
    path = tmp_path / "schema.json"
    path.write_text(json.dumps(SCHEMA))
    assert verdict("json", response) == any_json
    assert verdict(f"json?schema={path}", response) == by_schema
    assert verdict("json?column=schema", response, {"schema": SCHEMA}) == by_schema
    assert verdict("json?column=schema", response, {"schema": json.dumps(SCHEMA)}) == by_schema


@pytest.mark.skipif(not installed("jsonschema"), reason="jsonschema is not installed")
def test_a_schema_fetches_nothing_and_must_be_one() -> None:
    reference = {"properties": {"a": {"$ref": "http://127.0.0.1:9/schema.json#/b"}}}
    with pytest.raises(
        ValueError, match=r"^here: s refers to 'http://127\.0\.0\.1:9/schema\.json#/b', which is no part of it"
    ):
        verdict("json?column=s", "{}", {"s": reference})
    within = {"$defs": {"n": {"$id": "http://x/n", "type": "integer"}}, "$ref": "http://x/n"}
    assert verdict("json?column=s", "3", {"s": within}) == 1
    assert verdict("json?column=s", "[3]", {"s": within}) == 0
    local = {"$defs": {"n": {"type": "integer"}}, "items": {"$ref": "#/$defs/n"}}
    assert verdict("json?column=s", "[3]", {"s": local}) == 1
    assert verdict("json?column=s", '["3"]', {"s": local}) == 0
    with pytest.raises(ValueError, match=r"^here: s is no JSON schema: 'nothing' is not valid"):
        verdict("json?column=s", "{}", {"s": {"type": "nothing"}})
    with pytest.raises(ValueError, match=r"^here: s is no JSON schema: \[1\]"):
        verdict("json?column=s", "{}", {"s": [1]})
    for of_whom in (5, ["x"], None):
        with pytest.raises(ValueError, match=r"^here: s is no JSON schema: '\$schema' is an address, not "):
            verdict("json?column=s", "{}", {"s": {"$schema": of_whom}})
    for reference, name in (("#/$defs/m", "http://x/y"), ("#m", "")):
        with pytest.raises(
            ValueError, match=rf"^here: s refers to '{reference}', which is no part of it".replace("$", r"\$")
        ):
            verdict("json?column=s", "{}", {"s": {"$id": name, "$defs": {"n": {}}, "items": {"$ref": reference}}})
    assert verdict("json?column=s", "[3]", {"s": {**local, "$id": "http://x/y"}}) == 1


@pytest.mark.skipif(not installed("jsonschema"), reason="jsonschema is not installed")
def test_a_number_beyond_all_floats_keeps_no_schema_and_ends_nothing() -> None:
    for response in ("1e400", "9" * 400):
        assert verdict("json?column=s", response, {"s": {"multipleOf": 0.01}}) == 0


@pytest.mark.parametrize(
    ("name", "response", "record", "score"),
    [
        (r"regex?pattern=^\d+$", "42", {}, 1),
        (r"regex?pattern=\d+", "a 42", {}, 1),
        (r"regex?pattern=\d+&whole=true", "a 42", {}, 0),
        (r"regex?pattern=\d%2B%25&whole=true", " 42% ", {}, 1),
        (r"regex?pattern=\d+%25&whole=true", " 42% ", {}, 1),
        ("regex?pattern=YES&ignore_case=true", "yes", {}, 1),
        ("regex?column=p", "b", {"p": "a|b"}, 1),
        ("regex?column=p", "c", {"p": "a|b"}, 0),
        ("regex?pattern=a=b?", "a=", {}, 1),
        ("format", "<think>x</think>\n<answer>y</answer>", {}, 1),
        ("format", " <think>x\n\nz</think><answer>y</answer>\n", {}, 1),
        ("format", "<think>x</think><answer></answer>", {}, 0),
        ("format", "<think> </think><answer>y</answer>", {}, 0),
        ("format", "<answer>y</answer><think>x</think>", {}, 0),
        ("format", "Well, <think>x</think><answer>y</answer>", {}, 0),
        ("format", "<think>x</think><answer>y</answer> So.", {}, 0),
        ("format", "<think>x</think><think>x</think><answer>y</answer>", {}, 0),
        ("format", "<think>x<answer>y</answer>", {}, 0),
        ("format?tags=a", "<a>1</a>", {}, 1),
        ("length?least=2", "one two", {}, 1),
        ("length?least=3", "one two", {}, 0),
        ("length?most=2", "one two three", {}, 0),
        ("length?least=1&most=3&unit=characters", "abc", {}, 1),
        ("length?most=1&unit=sentences", "Dr. A. B. Smith is in. He waits!", {}, 0),
        ("length?least=2&most=2&unit=lines", "a\n\nb\n", {}, 1),
        ("length?least=2&most=2&unit=paragraphs", "a\nb\n\nc", {}, 1),
    ],
)
def test_patterns_formats_and_lengths(name: str, response: str, record: dict[str, Any], score: float) -> None:
    assert verdict(name, response, record) == score


def test_sentences() -> None:
    cases = {"": 0, "One": 1, "One. Two? Three!": 3, "3.5 is one.": 1, "Mr. X came. Then he left": 2, "...": 0}
    for text, count in {**cases, "Wait... what?": 2, '"Yes." She left.': 2}.items():
        assert counts.sentences(text) == count, text


I = "instruction_id_list"  # noqa: E741
IFEVAL: list[tuple[str, dict[str, Any], list[str], list[str]]] = [
    # id, arguments, responses that follow it, responses that do not
    ("keywords:existence", {"keywords": ["mom", "Mother"]}, ["My Mom, a mother"], ["mom", "moth"]),
    ("keywords:frequency", {"keyword": "war", "frequency": 2, "relation": "at least"}, ["war. War!"], ["war"]),
    ("keywords:frequency", {"keyword": "war", "frequency": 2, "relation": "less than"}, ["war"], ["war war"]),
    ("keywords:forbidden_words", {"forbidden_words": ["rock", "c++"]}, ["rocket"], ["A Rock.", "in C++ too"]),
    ("keywords:letter_frequency", {"letter": "#", "let_frequency": 2, "let_relation": "at least"}, ["# #"], ["#"]),
    ("keywords:letter_frequency", {"letter": "t", "let_frequency": 2, "let_relation": "less than"}, ["t"], ["tT"]),
    ("length_constraints:number_words", {"num_words": 3, "relation": "at least"}, ["a b c"], ["a, b!"]),
    ("length_constraints:number_sentences", {"num_sentences": 2, "relation": "less than"}, ["One."], ["One. Two."]),
    (
        "length_constraints:number_paragraphs",
        {"num_paragraphs": 2},
        ["a\n***\nb", "***\na\n***\nb\n***"],
        ["a\n\nb", "a\n***\n***\nb", "a *** b *** c"],
    ),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "weekend"},
        ['a\n\n"Weekend," he said'],
        ["a\n\nThe weekend", "a\n\nWeekends are", "weekend\n\nb", "a\n\nweekend\n\nc"],
    ),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, ["[name] at [address]"], ["[name]", "[name"]),
    (
        "detectable_content:postscript",
        {"postscript_marker": "P.S."},
        ["Bye.\n\nP.S. Call me", "p. s. x", "P.S x"],
        ["Bye.", "P.P.S. x"],
    ),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, ["Bye\nP.P.S. More", "P.P.S More"], ["P.S. x"]),
    ("detectable_format:constrained_response", {}, ["Well. My answer is no."], ["My answer is perhaps.", "no"]),
    ("detectable_format:json_format", {}, ['{"a": 1}', '```json\n{"a": [1]}\n```'], ['Here: {"a": 1}', "{a: 1}"]),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "SECTION", "num_sections": 2},
        ["SECTION 1\na\nSECTION 2\nb"],
        ["SECTION 1 a", "Section 1 Section 2"],
    ),
    (
        "detectable_format:number_bullet_lists",
        {"num_bullets": 2},
        ["* a\n* b", "x\n- a\n  - b\ny"],
        ["* a", "* a\n* b\n* c", "**a**\n* b"],
    ),
    (
        "detectable_format:number_highlighted_sections",
        {"num_highlights": 2},
        ["*a* and **b**", "*a b* *c*"],
        ["*a*", "**a**", "* a\n* b"],
    ),
    ("detectable_format:title", {}, ["<<A title>>\ntext"], ["<<>>", "<title>", "<< >>"]),
    ("change_case:english_capital", {}, ["ALL OF IT 1!"], ["All of it", "12"]),
    ("change_case:english_lowercase", {}, ["all of it 1!"], ["All of it"]),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": "at least"},
        ["THIS is BIG"],
        ["THIS is big"],
    ),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": "less than"},
        ["THIS is big"],
        ["A BIG"],
    ),
    (
        "combination:repeat_prompt",
        {"prompt_to_repeat": "Write a poem."},
        ["write a poem. Roses"],
        ["Roses. Write a poem."],
    ),
    ("combination:two_responses", {}, ["a\n******\nb"], ["a", "a\n******\na", "a******b******c", "a\n******\n"]),
    ("punctuation:no_comma", {}, ["a; b"], ["a, b"]),
    ("startend:end_checker", {"end_phrase": "Any questions?"}, ['Bye. "any questions?" '], ["Any questions? No."]),
    ("startend:quotation", {}, [' "All of it" '], ['"', 'Say "it"']),
]


@pytest.mark.parametrize(("name", "arguments", "follow", "fail"), IFEVAL, ids=[row[0] for row in IFEVAL])
def test_instructions(name: str, arguments: dict[str, Any], follow: list[str], fail: list[str]) -> None:
    record = {I: [name], "kwargs": [{**arguments, "other": None}]}
    for text in follow:
        assert verdict("ifeval", text, record) == 1, text
    for text in [*fail, "", " \n"]:
        assert verdict("ifeval", text, record) == 0, text


def test_each_instruction_has_a_case_and_several_are_counted_together() -> None:
    assert {row[0] for row in IFEVAL} == RULES.keys()
    record = {
        I: ["punctuation:no_comma", "detectable_format:title"],
        "kwargs": json.dumps([{}, None]),  # as from a .csv file
    }
    assert verdict("ifeval", "<<T>> a, b", record) == 0.5
    assert verdict("ifeval?score_by=all", "<<T>> a, b", record) == 0
    assert verdict("ifeval?score_by=all", "<<T>> a b", record) == 1
    first_line = "Sure, here it is:\n<<T>> a b"
    assert verdict("ifeval?score_by=all", first_line, record) == 0
    assert verdict("ifeval?score_by=all&mode=loose", first_line, record) == 1


@pytest.mark.parametrize(
    ("ids", "kwargs", "message"),
    [
        (
            ["language:response_language"],
            [{"language": "kn"}],
            "'language:response_language' is none of the instructions",
        ),
        (["punctuation:no_comma"], [{"x": 1}], r"kwargs: punctuation:no_comma cannot be counted with \{'x': 1\}"),
        (["length_constraints:number_words"], [{"num_words": 3}], r"cannot be counted with \{'num_words': 3\}"),
        (["length_constraints:number_words"], [{"num_words": 3, "relation": "over"}], "'over' is none of at least"),
        (["length_constraints:number_words"], [{"num_words": "3", "relation": "at least"}], "cannot be counted"),
        (["punctuation:no_comma"], [], "must be lists of ids and of objects, one for each id"),
        ([], [], "must be lists"),
        ("punctuation:no_comma", [{}], "not valid JSON"),
    ],
)
def test_instructions_that_cannot_be_counted_are_named(ids: Any, kwargs: Any, message: str) -> None:
    with pytest.raises(ValueError, match=rf"^here: .*{message}"):
        verdict("ifeval", "text", {I: ids, "kwargs": kwargs})


@pytest.mark.skipif(not IFEVAL_FILE.is_file(), reason="IFEVAL_FILE names no copy of the dataset's input_data.jsonl")
def test_the_whole_dataset_can_be_counted_but_for_languages() -> None:
    from llm_env.text.prompts import read_prompts

    verifier, refused = make_verifier("verifier:ifeval"), Counter[str]()
    for record in read_prompts(IFEVAL_FILE):
        try:
            verifier.check(record.columns)
        except ValueError as error:
            refused[str(error).split("'")[1]] += 1
    assert refused == {"language:response_language": 31}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("numbr", "there is no verifier 'numbr'. Did you mean 'number'?"),
        ("", "there is no verifier ''. There are number, exact"),
        ("number?colum=x", "number has no option 'colum'; it has column, extract, tolerance."),
        ("number?column", "'column' must be option=value"),
        ("number?column=a&column=b", "the option 'column' stands there twice"),
        ("number?tolerance=much", "tolerance='much' must be a number"),
        ("number?tolerance=nan", "tolerance=nan must be a finite number, at least 0"),
        ("number?extract=here", f"extract='here' is not known; use one of {', '.join(PLACES)}"),
        ("length", "needs least or most"),
        ("length?least=1.5", "least='1.5' must be a whole number"),
        ("length?least=3&most=2", "most=2 must be at least least=3"),
        ("length?least=3&unit=miles", "unit='miles'"),
        ("regex", "needs a pattern, or a column"),
        ("regex?pattern=(", "pattern='(' is no regular expression"),
        (f"regex?pattern=a{{{10**20}}}", "is no regular expression (the repetition number is too large)"),
        ("regex?pattern=a&whole=maybe", "whole='maybe' must be true or false"),
        ("choice?letters=1", "letters='1' must be at least two different letters"),
        ("format?tags=a b", "tags='a b' must be different names with commas"),
        ("format?tags=a,a", "tags='a,a' must be different names with commas"),
        ("json?schema=nowhere.json", "schema='nowhere.json': there is no such file"),
        ("ifeval?mode=lax", "mode='lax'"),
    ],
)
def test_a_wrong_name_or_option_is_told_before_anything_is_loaded(name: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        TaskSettings("no/such/model", [[f"verifier:{name}", 1.0]], ["p"])
    text = str(caught.value)
    assert text.startswith(f"reward_model='verifier:{name}': ")
    assert message in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("name", "record", "message"),
    [
        ("number", {}, "here: has no column 'answer'"),
        ("number", {"answer": "none"}, "here: answer='none' has no number"),
        ("number", {"answer": None}, "here: answer=None has no number"),
        ("number", {"answer": True}, "here: answer=True has no number"),
        ("number", {"answer": "10^3"}, r"here: answer='10\^3' has no number"),
        ("math", {"answer": None}, "here: answer=None is no formula"),
        ("math", {"answer": ["5"]}, r"here: answer=\['5'\] is no formula"),
        ("exact", {"answer": []}, r"here: answer=\[\] is no answer"),
        ("exact", {"answer": ""}, "here: answer='' is no answer"),
        ("choice", {"answer": 4}, "here: answer=4 is none of A, B, C, D"),
        ("regex?column=p", {"p": "("}, "here: p='\\(' is no regular expression"),
        ("reasoning_gym", {"reasoning_gym": 3}, "here: reasoning_gym=3 must say task"),
    ],
)
def test_a_record_that_nothing_can_be_verified_against(name: str, record: dict[str, Any], message: str) -> None:
    if name == "math":
        pytest.importorskip("math_verify")
    with pytest.raises(ValueError, match=f"^{message}"):
        verdict(name, "text", record)


def test_time_limits_hold_for_verifiers_too() -> None:
    model = load_text_reward("verifier:regex?pattern=(a|a)*b", limits=CallLimits(timeout=0.2))
    with pytest.raises(RewardModelError, match=r"verifier:regex.* did not return within 0\.2 s \(reward_timeout\)"):
        model.score_texts(["p"], ["a" * 40], [{}])


def test_verifiers_are_summed_and_each_part_is_kept() -> None:
    from llm_env.episode import Episode

    source = [["verifier:number", 2.0], ["verifier:length?most=1", -0.5], ["verifier:length?least=9", 1.0]]
    prompts = [{"prompt": "Two and two?", "answer": "4"}]
    task = TextTask(TaskSettings(DEFAULT_MODEL, source, prompts))
    episode = Episode(task.prompts[0], response_ids=[5, 2], done=True, has_end=True, response_text="4")
    task.score_responses([episode])
    assert episode.rm_score == 1.5
    assert episode.part_scores == {"number": 1.0, "length": 1.0, "length_2": 0.0}
    assert task.final_info(episode)["reward_parts"] == episode.part_scores


def test_short_names() -> None:
    names = ["verifier:number?column=a", "pkg.mod:score", "http://host:80/score/", "runs/x/reward_model"]
    assert [short_name(n) for n in names] == ["number", "score", "host:80/score", "reward_model"]
    assert short_name(verdict) == "verdict"
    assert set(VERIFIERS) >= {"number", "exact", "math", "choice", "json", "regex", "ifeval", "format", "length"}


@pytest.mark.skipif(not installed("reasoning_gym"), reason="reasoning-gym is not installed")
def test_reasoning_gym_gives_prompts_and_scores() -> None:
    from llm_env.text.prompts import read_prompts

    name = "reasoning_gym:basic_arithmetic?size=5&seed=3&min_terms=2&max_terms=2"
    records = read_prompts(name)
    assert records == read_prompts(name)
    assert len({r.prompt for r in records}) > 1
    model = load_text_reward("verifier:reasoning_gym")
    model.check_prompts(records)
    rights = [f"So <answer>{r.columns['answer']}</answer>" for r in records]
    columns = [r.columns for r in records]
    prompts = [str(r.prompt) for r in records]
    assert model.score_texts(prompts, rights, columns) == [1.0] * 5
    assert max(model.score_texts(prompts, ["<answer>-123456</answer>"] * 5, columns)) < 1
    assert json.loads(json.dumps([r.to_json() for r in records])) == [r.to_json() for r in records]
    with pytest.raises(ValueError, match=r"^prompts='reasoning_gym:nothing': reasoning-gym has no such task"):
        read_prompts("reasoning_gym:nothing")
    with pytest.raises(ValueError, match="reasoning-gym has no such task or setting"):
        read_prompts("reasoning_gym:basic_arithmetic?sise=5")


@pytest.mark.skipif(installed("reasoning_gym"), reason="reasoning-gym is installed")
def test_reasoning_gym_that_is_not_installed_is_one_line() -> None:
    from llm_env.text.prompts import read_prompts

    with pytest.raises(ImportError, match=r"is not installed: pip install reasoning-gym$"):
        read_prompts("reasoning_gym:basic_arithmetic")
