from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llm_env.default_task import DEFAULT_MODEL
from llm_env.lm.loading import load_tokenizer
from llm_env.text.prompts import encode_prompt
from llm_env.text.texts import TextRecord, encode_text, end_ids, read_texts, response_after


def written(path: Path, *records: Any) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    return path


def test_all_forms_are_read(tmp_path: Path) -> None:
    user, answer = {"role": "user", "content": "How?"}, {"role": "assistant", "content": "Good."}
    path = written(
        tmp_path / "t.jsonl",
        {"prompt": "How?", "response": "Good."},
        {"prompt": [user], "completion": "Good."},
        {"messages": [user, answer]},
        {"text": "All of it."},
        "All of it.",
    )
    assert read_texts(path) == [
        TextRecord("How?", "Good."),
        TextRecord([user], "Good."),
        TextRecord([user], "Good."),
        TextRecord(None, "All of it."),
        TextRecord(None, "All of it."),
    ]
    (tmp_path / "t.txt").write_text("One.\nTwo.\n")
    assert [t.response for t in read_texts(tmp_path / "t.txt")] == ["One.", "Two."]
    (tmp_path / "t.csv").write_text('prompt,response\n"How?","Good, really."\n')
    assert read_texts(tmp_path / "t.csv") == [TextRecord("How?", "Good, really.")]


def test_a_line_separator_inside_a_text_is_no_line_end(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(b'{"text": "one\xe2\x80\xa8two"}\r\n{"text": "three"}\n')  # U+2028, which JSON need not escape
    assert [text.response for text in read_texts(path)] == ["one\u2028two", "three"]
    (tmp_path / "t.csv").write_text('text\n"one\nand a half"\ntwo\n')
    assert [text.response for text in read_texts(tmp_path / "t.csv")] == ["one\nand a half", "two"]


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\u0085"])
def test_errors_behind_a_line_separator_name_the_right_line(tmp_path: Path, separator: str) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(f'{{"text": "one{separator}two"}}\n{{"text": ""}}\n', encoding="utf-8")
    with pytest.raises(ValueError, match=r"t\.jsonl, line 2: 'text' must be"):
        read_texts(path)
    table = tmp_path / "t.csv"
    table.write_text(f'text\n"one{separator}two\nand a half"\n" "\n', encoding="utf-8")
    with pytest.raises(ValueError, match=r"t\.csv, line 4: 'text' must be"):  # a record's line is its last one
        read_texts(table)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"prompt": "How?"}, "needs 'prompt' and 'response'"),
        ({"prompt": "How?", "response": " "}, "'response' must be a text that is not empty"),
        ({"prompt": "", "response": "Good."}, "the prompt is empty"),
        (
            {"messages": [{"role": "user", "content": "How?"}]},
            "the last of at least two messages must be the assistant's",
        ),
        (7, "a record is an object"),
    ],
)
def test_broken_records_are_named(tmp_path: Path, record: Any, message: str) -> None:
    path = written(tmp_path / "t.jsonl", {"text": "fine"}, record)
    with pytest.raises(ValueError, match=rf"t\.jsonl, line 2: .*{message}"):
        read_texts(path)


def test_nothing_to_read(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text("")
    with pytest.raises(ValueError, match="is empty"):
        read_texts(tmp_path / "t.jsonl")
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        read_texts(tmp_path / "no.jsonl")


def test_a_text_is_encoded_as_the_environment_asks_for_it() -> None:
    tokenizer = load_tokenizer(DEFAULT_MODEL)
    prompt, _ = encode_prompt("How was the hotel?", tokenizer, 99)
    for response in (" The room was great.", "The room was great."):  # the gap is put in where it lacks
        text = encode_text(TextRecord("How was the hotel?", response), tokenizer)
        assert tuple(text.ids[: text.start]) == prompt.ids
        assert tokenizer.decode(text.ids[text.start : -1]) == " The room was great."
        assert text.ids[-1] == tokenizer.eos_token_id
    cut = encode_text(TextRecord("How was the hotel?", " Fine."), tokenizer, max_prompt_length=3)
    assert cut.ids[: cut.start] == list(prompt.ids[-3:])
    plain = encode_text(TextRecord(None, "How was it?"), tokenizer)
    assert plain.start == 1
    assert plain.ids[-1] == tokenizer.eos_token_id


def test_errors_name_the_option_that_the_user_gave(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"^ptx_texts='.*no\.jsonl'"):
        read_texts(tmp_path / "no.jsonl", option="ptx_texts")
    (tmp_path / "empty.txt").write_text("", encoding="utf-8")
    with pytest.raises(ValueError, match=r"^ptx_texts='.*empty\.txt' is empty"):
        read_texts(tmp_path / "empty.txt", option="ptx_texts")


def test_end_and_gap() -> None:
    tokenizer = load_tokenizer(DEFAULT_MODEL)
    assert end_ids(tokenizer) == [tokenizer.eos_token_id]
    assert end_ids(tokenizer, finished=False) == []
    assert response_after("How was it?", "Good.") == " Good."
    assert response_after("How was it? ", "Good.") == "Good."
    assert response_after("How was it?", " Good.") == " Good."
    assert response_after("How was it?", "") == ""
