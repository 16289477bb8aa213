from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from transformers import AutoTokenizer

from llm_env.default_task import DEFAULT_MODEL
from llm_env.text import records
from llm_env.text.prompts import PromptOrder, PromptSet, read_prompts

MESSAGES = [{"role": "user", "content": "How was it?"}]
TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}[me]{% endif %}"
)


def texts_of(source: Any) -> list[Any]:
    return [record.prompt for record in read_prompts(source)]


@pytest.fixture
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(DEFAULT_MODEL)


@pytest.mark.parametrize("kind", ["txt", "jsonl", "csv", "parquet"])
def test_every_file_kind_gives_the_same_prompts(tmp_path: Path, kind: str) -> None:
    texts = ["How was the hotel?", 'A "quoted", one', "Grüße"]
    path = tmp_path / f"p.{kind}"
    if kind == "txt":
        path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    elif kind == "jsonl":
        path.write_text("".join(json.dumps({"prompt": t}) + "\n" for t in texts), encoding="utf-8")
    elif kind == "csv":
        pd.DataFrame({"id": range(3), "text": texts}).to_csv(path, index=False)
    else:
        pd.DataFrame({"prompt": texts}).to_parquet(path)
    assert texts_of(path) == texts


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"prompt": "x"}\n{"prompt": \n', r"a\.jsonl, line 2: not valid JSON"),
        ("a.jsonl", '{"prompt": "x"}\n\n{"prompt": "y"}\n', r"line 2: the line is empty"),
        ("a.jsonl", '{"prompt": "x"}\n{"quest": "y"}\n', r"line 2: needs a field named .*it has \['quest'\]"),
        ("a.jsonl", '{"prompt": "  "}\n', r"line 1: the prompt is empty"),
        ("a.jsonl", '{"prompt": [{"role": "user"}]}\n', r"line 1: message 0 needs a 'content'"),
        ("a.jsonl", '{"prompt": 3}\n', r"line 1: a prompt is a text or a list of messages; got int"),
        ("a.txt", "x\n\ny\n", r"a\.txt, line 2: the prompt is empty"),
        ("a.txt", "", r"is empty; at least one prompt"),
        ("a.csv", "prompt,n\nx,1\n,2\n", r"a\.csv, line 3: the prompt is empty"),
        ("a.csv", "quest\nx\n", r"needs a field named"),
        ("a.yaml", "[]", r"ending must be one of"),
    ],
)
def test_broken_files_are_named_with_their_line(tmp_path: Path, name: str, content: str, message: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        read_prompts(str(path))


def test_a_dataset_id_with_a_split(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked = []

    def load(path: str, split: str) -> Any:
        asked.append((path, split))
        return datasets.Dataset.from_dict({"label": [0, 1], "text": ["one", "two"]})

    monkeypatch.setattr(records, "why_not", lambda name, kind: None)
    monkeypatch.setattr(datasets, "load_dataset", load)
    assert texts_of("someone/reviews:test") == ["one", "two"]
    assert texts_of("someone/reviews") == ["one", "two"]
    assert asked == [("someone/reviews", "test"), ("someone/reviews", "train")]

    def missing(path: str, split: str) -> Any:
        raise ConnectionError("no network\nmore")

    monkeypatch.setattr(datasets, "load_dataset", missing)
    with pytest.raises(ValueError, match=r"neither a file .* nor a dataset that could be loaded \(no network\)"):
        read_prompts("someone/reviews")


def test_missing_file_and_empty_list() -> None:
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_prompts("nowhere/prompts.jsonl")
    with pytest.raises(ValueError, match="empty"):
        read_prompts([])
    with pytest.raises(ValueError, match=r"prompts\[1\]: the prompt is empty"):
        read_prompts(["x", ""])


def test_long_prompts_are_cut_on_the_left_with_one_warning(tokenizer: Any) -> None:
    texts = [
        "How was the hotel?",
        "How was the very old hotel in the market? " * 3,
        "one two three four five six seven",
    ]
    with pytest.warns(UserWarning, match=r"^prompts: 2 of 3 prompts are longer than max_prompt_length=6") as caught:
        prompts = PromptSet(texts, tokenizer, 6)
    assert len(caught) == 1
    assert prompts[1].ids == tuple(tokenizer(texts[1])["input_ids"][-6:])
    assert prompts[0].ids == tuple(tokenizer(texts[0])["input_ids"])


def test_chat_messages_are_rendered_by_the_template(tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="no chat template"):
        PromptSet([MESSAGES], tokenizer, 64)
    tokenizer.chat_template = TEMPLATE
    prompt = PromptSet([MESSAGES], tokenizer, 64)[0]
    assert prompt.text == "[user] How was it?\n[me]"
    assert tokenizer.decode(prompt.ids) == prompt.text  # no second start token
    assert prompt.messages == (("user", "How was it?"),)


def test_order_asks_each_once_a_pass_and_goes_on_where_it_was() -> None:
    order = PromptOrder(7, np.random.default_rng(0))
    first, second = [order.next() for _ in range(7)], [order.next() for _ in range(7)]
    assert sorted(first) == sorted(second) == list(range(7))
    assert first != second
    order.next()
    saved = json.loads(json.dumps(order.state_dict()))
    rest = [order.next() for _ in range(20)]
    other = PromptOrder(7, np.random.default_rng(99))
    other.load_state_dict(saved)
    assert [other.next() for _ in range(20)] == rest


def test_errors_name_the_option_that_the_user_gave() -> None:
    with pytest.raises(FileNotFoundError, match=r"^eval_prompts='nowhere/prompts\.jsonl'"):
        read_prompts("nowhere/prompts.jsonl", option="eval_prompts")
    with pytest.raises(ValueError, match=r"^eval_prompts\[1\]"):
        read_prompts(["x", ""], option="eval_prompts")
