"""Columns: what a prompt's record holds besides the prompt reaches whatever scores the responses."""

from __future__ import annotations

import datetime
import decimal
import functools
import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pandas as pd
import pytest

from llm_env import ENV_ID
from llm_env.default_task import DEFAULT_GOLD, DEFAULT_MODEL, DEFAULT_REWARD_MODEL
from llm_env.episode import Episode
from llm_env.reward.columns import ColumnNames
from llm_env.reward.functions import FunctionReward
from llm_env.reward.limits import CallLimits
from llm_env.reward.models import load_text_reward
from llm_env.reward.scores import RewardModelError
from llm_env.settings import TaskSettings
from llm_env.task import TextTask
from llm_env.text import records
from llm_env.text.columns import plain_columns
from llm_env.text.prompts import Prompt, PromptRecord, read_prompts
from tests.reward_servers import ScriptedServer, example_server, free_port

RECORDS = [
    {"prompt": "Two and two?", "answer": "4", "level": 1},
    {"messages": [{"role": "user", "content": "Three and four?"}], "answer": "7", "level": 2, "hint": "odd"},
]
CALLS: list[dict[str, Any]] = []


def note(prompts: list[str], responses: list[str], **columns: list[Any]) -> list[float]:
    CALLS.append({"prompts": prompts, "responses": responses, **columns})
    return [0.0] * len(responses)


def lengths_of(prompts: list[str], responses: list[str], answer: list[str]) -> list[float]:
    return [float(len(a)) for a in answer]


def with_level(prompts: list[str], responses: list[str], level: list[int] | None = None) -> list[float]:
    return [-1.0] * len(responses) if level is None else [float(v) for v in level]


def spoiler(prompts: list[str], responses: list[str], words: list[list[str]]) -> list[float]:
    total = [float(len(w)) for w in words]
    for entry in words:
        entry.clear()
    words.clear()
    return total


def scored(function: Any, *columns: dict[str, Any], **arguments: Any) -> list[float]:
    n = len(columns)
    return FunctionReward(function, **arguments).score_texts(["p"] * n, ["r"] * n, columns)


def test_a_record_keeps_its_other_fields_in_each_kind_of_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    rows = [{"question": "A?", "answer": "4", "n": "1"}, {"question": "B?", "answer": "x, y", "n": "2"}]
    want = [PromptRecord(r["question"], {"answer": r["answer"], "n": r["n"]}) for r in rows]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    pd.DataFrame(rows).to_csv(tmp_path / "p.csv", index=False)
    pd.DataFrame(rows).to_parquet(tmp_path / "p.parquet")
    monkeypatch.setattr(records, "why_not", lambda name, kind: None)
    monkeypatch.setattr(datasets, "load_dataset", lambda path, split: datasets.Dataset.from_list(rows))
    sources: list[Any] = [
        *(str(tmp_path / f"p.{kind}") for kind in ("jsonl", "csv", "parquet")),
        "some/data",
        rows,
        want,
    ]
    for source in sources:
        assert read_prompts(source) == want, source
    (tmp_path / "p.txt").write_text("A?\nB?\n")
    assert read_prompts(tmp_path / "p.txt") == [PromptRecord("A?"), PromptRecord("B?")]
    assert read_prompts(tmp_path / "p.jsonl")[1].where == f"{tmp_path / 'p.jsonl'}, line 2"


def test_columns_are_plain_values() -> None:
    record = {
        "prompt": "p",
        "array": np.array([[1, 2], [3, 4]]),
        "number": np.float32(0.5),
        "missing": float("nan"),
        "date": datetime.datetime(2026, 1, 2, 3, 4),
        "decimal": decimal.Decimal("1.50"),
        "nested": {"a": (1, {"b": np.int64(2)})},
        "bytes": b"no",
        "inside": [1, object()],
        "inf": float("inf"),
        3: "a name that is none",
    }
    plain = plain_columns(record, "prompt")
    assert plain == {
        "array": [[1, 2], [3, 4]],
        "number": 0.5,
        "missing": None,
        "date": "2026-01-02T03:04:00",
        "decimal": "1.50",
        "nested": {"a": [1, {"b": 2}]},
    }
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain


def test_a_function_gets_what_it_names() -> None:
    one, two = {"answer": "4", "level": 3, "hint": "h"}, {"answer": "42", "level": 5}
    assert scored(lengths_of, one, two) == [1.0, 2.0]
    assert scored(with_level, one, two) == [3.0, 5.0]
    assert scored(with_level, one, {"answer": "42"}) == [-1.0, -1.0]  # not all have it: the default stands
    assert scored(lambda prompts, responses: [1.0] * len(prompts), one, two) == [1.0, 1.0]
    assert scored(lambda *texts: [float(len(texts))] * 2, one, two) == [2.0, 2.0]
    CALLS.clear()
    scored(note, one, two)
    assert CALLS == [{"prompts": ["p", "p"], "responses": ["r", "r"], "answer": ["4", "42"], "level": [3, 5]}]


def test_methods_partial_functions_and_limits_are_no_different() -> None:
    class Judge:
        def __call__(self, prompts: list[str], responses: list[str], *, answer: list[str]) -> list[float]:
            return lengths_of(prompts, responses, answer)

        def method(self, questions: list[str], texts: list[str], answer: list[str], scale: float = 2.0) -> list[float]:
            return [scale * v for v in lengths_of(questions, texts, answer)]

    columns = {"answer": "42", "prompts": "a name that is taken", "questions": "this one too"}
    assert scored(Judge(), columns) == [2.0]
    assert scored(Judge().method, columns) == [4.0]
    assert scored(functools.partial(Judge().method, scale=3.0), columns) == [6.0]
    assert scored(lengths_of, columns, limits=CallLimits(timeout=5.0, wait=1.0)) == [2.0]
    assert ColumnNames.of(Judge().method) == ColumnNames(("answer",), ("scale",), False, ("questions", "texts"))


def test_what_a_function_does_to_its_columns_stays_with_it() -> None:
    columns = {"words": ["a", "b"]}
    model = FunctionReward(spoiler)
    assert [model.score_texts(["p", "p"], ["r", "r"], [columns, columns]) for _ in range(2)] == [[2.0, 2.0]] * 2
    assert columns == {"words": ["a", "b"]}


def test_a_missing_column_is_named_with_file_and_line_before_anything_is_generated(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "a", "answer": "1", "n": 1}\n{"prompt": "b", "n": 2}\n')
    with pytest.raises(
        ValueError,
        match=rf"^{path}, line 2: has no column 'answer' \(it has n\), which reward_model='.*:lengths_of' takes\.$",
    ):
        gym.make(ENV_ID, model=DEFAULT_MODEL, prompts=str(path), reward_model=lengths_of)
    with pytest.raises(ValueError, match=r"^prompts\[0\]: has no column 'answer' \(it has the prompt alone\), which"):
        TextTask(TaskSettings(DEFAULT_MODEL, [[with_level, 1.0], [lengths_of, 0.5]], ["How was it?"]))
    with pytest.raises(RewardModelError, match=r"^reward_model='.*': the record of prompt 'p' has no column 'answer'"):
        scored(lengths_of, {"level": 1})


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (lambda completions, answer: [], "it has 'completions' in the place of the prompts"),
        (lambda prompts: [], "it has no place for prompts and responses"),
        (lambda *, prompts, responses: [], "it has no place for prompts and responses"),
        (eval("lambda prompts, responses, answer, /: []"), "it takes no name for 'answer'"),
    ],
)
def test_a_function_that_cannot_be_called_so_is_refused(function: Any, why: str) -> None:
    with pytest.raises(ValueError, match=rf"is called as function\(prompts, responses\).*{why}\. Wrap one"):
        FunctionReward(function)


def test_columns_come_with_step_and_with_weights_and_only_those_that_all_records_have() -> None:
    settings = TaskSettings(
        DEFAULT_MODEL,
        [[note, 1.0], [lengths_of, 2.0], [DEFAULT_GOLD, 0.0], [DEFAULT_REWARD_MODEL, 0.0]],
        RECORDS[:1] * 2,
    )
    task = TextTask(settings)
    CALLS.clear()
    prompt = task.prompts[1]
    assert prompt.columns == {"answer": "4", "level": 1}
    episode = Episode(prompt, response_ids=[5, 2], done=True, has_end=True, response_text=" Four.")
    task.score_responses([episode])
    assert episode.rm_score == 2.0
    assert CALLS == [{"prompts": ["Two and two?"], "responses": [" Four."], "answer": ["4"], "level": [1]}]
    mixed = TextTask(TaskSettings(DEFAULT_MODEL, note, [RECORDS[0], {"text": "And?", "answer": "x"}]))
    assert [p.columns for p in mixed.prompts.prompts] == [{"answer": "4"}, {"answer": "x"}]


def test_a_prompt_from_reset_brings_its_columns() -> None:
    env = gym.make(
        ENV_ID, model=DEFAULT_MODEL, prompts=RECORDS[:1], reward_model=lengths_of, max_new_tokens=2, kl_coef=0.0
    )
    env.reset(seed=0, options={"prompt": {"prompt": "Nine and ninety?", "answer": "108"}})
    env.step(7)
    assert env.step(7)[1] == 3.0
    with pytest.raises(ValueError, match=r"^options\['prompt'\]: has no column 'answer'"):
        env.reset(options={"prompt": "Nine and ninety?"})


def test_slots_keep_the_columns_of_a_prompt_from_outside() -> None:
    from llm_env.slots import EpisodeSlots

    task = TextTask(TaskSettings(DEFAULT_MODEL, lengths_of, RECORDS[:1]))
    slots = EpisodeSlots(task, 2)
    slots.begin(0, task.encode({"text": "Nine?", "answer": "108", "more": [1, None]}))
    slots.begin(1)
    state = json.loads(json.dumps(slots.state_dict()))
    again = EpisodeSlots(task, 2)
    again.load_state_dict(state)
    prompts = [e.prompt for e in again.episodes if e is not None]
    assert prompts[0].columns == {"answer": "108", "more": [1, None]}
    assert prompts == [e.prompt for e in slots.episodes if e is not None]


def test_prompts_can_be_put_in_sets_and_differ_by_their_columns() -> None:
    one, two = Prompt("p", (1,), columns={"a": [1]}), Prompt("p", (1,), columns={"a": [2]})
    assert len({one, two, Prompt("p", (1,), columns={"a": [1]})}) == 2


def test_a_server_is_sent_all_columns() -> None:
    answer = 200, {}, json.dumps({"scores": [1.0, 2.0]}).encode()
    with ScriptedServer(answer) as server:
        model = load_text_reward(server.url)
        columns = [{"answer": "4", "responses": "taken", "a": 1}, {"answer": "ü", "responses": "taken"}]
        assert model.score_texts(["p", "q"], ["r", "s"], columns) == [1.0, 2.0]
        assert model.score_texts(["p", "q"], ["r", "s"], [{}, {}]) == [1.0, 2.0]
    bodies = [json.loads(body) for _, _, body in server.requests]
    texts = {"prompts": ["p", "q"], "responses": ["r", "s"]}
    assert bodies == [{**texts, "answer": ["4", "ü"]}, texts]


@pytest.mark.slow
def test_the_example_server_gives_a_function_what_it_names() -> None:
    columns = [{"answer": "4", "level": 2}, {"answer": "12", "level": 3}]
    for name, want in (("lengths_of", [1.0, 2.0]), ("with_level", [2.0, 3.0]), ("note", [0.0, 0.0])):
        port = free_port()
        with example_server(port, "--function", f"{__name__}:{name}"):
            url = f"http://127.0.0.1:{port}/"
            assert load_text_reward(url).score_texts(["p", "q"], ["r", "s"], columns) == want
