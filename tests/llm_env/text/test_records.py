"""Files of records that are not what they should be: one line names the file, the line, and what to do."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from agents.preferences.label_studio import import_rankings
from agents.preferences.records import read_candidates, read_rankings
from llm_env.text.prompts import read_prompts
from llm_env.text.records import read_records
from llm_env.text.texts import read_texts

ODD_ENDS = "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg"
"""Text with characters that Unicode, but not JSONL, takes for the ends of lines; the last three as JSON writes them."""

READERS: list[Any] = [read_prompts, read_texts, read_candidates, read_rankings]


def test_lines_end_at_line_feeds_only(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    for line_end in ("\n", "\r\n"):
        lines = [json.dumps({"prompt": text}, ensure_ascii=False) for text in (ODD_ENDS, "next")]
        path.write_bytes("".join(line + line_end for line in lines).encode())
        assert [r.prompt for r in read_prompts(path)] == [ODD_ENDS, "next"]
    text_file = tmp_path / "p.txt"
    text_file.write_text("a\u2028b\x85c\nd\n", encoding="utf-8")
    assert [r.prompt for r in read_prompts(text_file)] == ["a\u2028b\x85c", "d"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", "[" * 100_000, r"a\.jsonl, line 1: JSON that is nested too deeply"),
        ("a.jsonl", '{"prompt": ' + "1" * 5000 + "}", r"line 1: not valid JSON \(Exceeds the limit"),
        ("a.jsonl", '{"prompt": NaN}', r"line 1: not valid JSON \(NaN is no number"),
        ("a.jsonl", '{"prompt": "x"}\n{"prompt": "\\ud800"}', r"line 2: a lone surrogate"),
        ("a.jsonl", '{"prompt": "x"}\n{"prompt": "a\0b"}', r"line 2: a NUL character"),
        ("a.jsonl", '{"prompt": "x"} {"prompt": "y"}', r"line 1: not valid JSON \(Extra data"),
        ("a.txt", "x\ny\0\n", r"a\.txt, line 2: a NUL character"),
        ("a.txt", "grüße\n".encode("latin-1"), r"a\.txt, line 1: not UTF-8 text"),
        ("a.jsonl", b'{"prompt": "x"}\n\xff', r"line 2: not UTF-8 text"),
        ("a.csv", "prompt\nx\n".encode("utf-16"), r"is UTF-16 text\. Save it as UTF-8"),
        ("a.csv", "prompt\nx\n".encode("utf-16-le"), r"line 1: a NUL character"),
        ("a.csv", "prompt,n\nHello, you,1\n", r"a\.csv, line 2: more fields than the first line names \(2\)"),
        ("a.csv", 'prompt\n"never closed\nx\n', r"a\.csv, line 3: not valid CSV"),
        ("a.parquet", "no parquet", r"a\.parquet' cannot be read as parquet"),
        ("a.parquet", "", r"a\.parquet' cannot be read as parquet"),
    ],
)
@pytest.mark.parametrize("read", READERS)
def test_what_is_no_text_is_one_line(tmp_path: Path, read: Any, name: str, content: Any, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message) as caught:
        read(path)
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


@pytest.mark.parametrize("read", READERS)
def test_what_is_no_file_is_one_line(tmp_path: Path, read: Any) -> None:
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(ValueError, match=r"folder\.jsonl' is a folder; give a file in it"):
        read(tmp_path / "folder.jsonl")
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        read(tmp_path / "link.jsonl")
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(ValueError, match="is empty"):
        read(tmp_path / "empty.jsonl")


def test_a_file_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text("{}")

    def refuse(self: Path) -> bytes:  # a file without permissions does not stop root, as whom the tests may run
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(OSError, match=r"prompts='.*p\.jsonl' cannot be read: Permission denied"):
        read_prompts(path)


def test_long_fields_byte_order_marks_and_links_are_fine(tmp_path: Path) -> None:
    long = "word " * 100_000
    path = tmp_path / "p.csv"
    path.write_text(f'prompt,n\n"{long}",1\n"two\r\nlines, quoted",2\n', encoding="utf-8-sig", newline="")
    (tmp_path / "link.csv").symlink_to(path)
    assert [r.prompt for r in read_prompts(tmp_path / "link.csv")] == [long, "two\r\nlines, quoted"]
    (tmp_path / "p.jsonl").write_text('{"prompt": "🙂 \\ud83d\\ude42 \\u0000"}', encoding="utf-8-sig")
    assert read_records(tmp_path / "p.jsonl", "prompts")[0][1] == {"prompt": "🙂 🙂 \0"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('"margin": 1e999', r"line 1: margin=inf must be a finite number"),
        ('"margin": 1' + "0" * 400, r"line 1: margin=10+ must be a finite number"),
    ],
)
def test_numbers_in_preferences_are_finite(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(f'{{"prompt": "x", "chosen": "a", "rejected": "b", {line}}}')
    with pytest.raises(ValueError, match=message):
        read_rankings(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[" * 100_000, "nested too deeply"),
        ("[1]", "task 1: its data.id="),
        ('[{"data": 3}]', "task 1: its data.id="),
        ('[{"data": {"id": "p0"}, "annotations": 3}]', "task 1: its annotations are not as Label Studio exports them"),
        ('[{"data": {"id": "p0"}, "annotations": [{"result": [3]}]}]', "task 1: its annotations are not as"),
    ],
)
def test_an_export_of_another_make_is_one_line(tmp_path: Path, content: str, message: str) -> None:
    responses = tmp_path / "responses.jsonl"
    record = {"id": "p0", "prompt": "x", "responses": [{"id": "a", "text": "a"}, {"id": "b", "text": "b"}]}
    responses.write_text(json.dumps(record) + "\n")
    export = tmp_path / "export.json"
    export.write_text(content)
    with pytest.raises(ValueError, match=message):
        import_rankings(export, read_candidates(responses))


def test_an_array_of_records_is_a_file_too(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_text('[{"prompt": "a", "answer": 1},\n "b"]', encoding="utf-8")
    assert [record.prompt for record in read_prompts(path)] == ["a", "b"]
    path.write_text('["a", 5]', encoding="utf-8")
    with pytest.raises(ValueError, match=r"p\.json, entry 2: "):
        read_prompts(path)
    path.write_text('{"prompt": "a"}\n{"prompt": "b"}', encoding="utf-8")
    with pytest.raises(ValueError, match=r"p\.json: not valid JSON \(Extra data at line 2"):
        read_prompts(path)
    path.write_text('{"prompt": "a"}', encoding="utf-8")
    with pytest.raises(
        ValueError, match=r"p\.json: a \.json file holds one array of records; one record a line is \.jsonl"
    ):
        read_prompts(path)
