"""What a reward function may do wrong, and the one line that it gets for it."""

from __future__ import annotations

import contextlib
import inspect
import math
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agents.evaluation.gold import load_gold
from llm_env.reward.functions import FunctionReward
from llm_env.reward.limits import CallLimits, OutOfTimeError, call_within
from llm_env.reward.scores import RewardModelError
from llm_env.reward.user_code import place_of, place_of_error

PROMPTS = ["How was it?", "And\x1b[31m the\nfood?", "The zoo:"]
RESPONSES = [" Good.", " Bad.", " " + "so " * 200 + "wild"]
HERE = Path(__file__).name


def scores_of(values: Any, limits: CallLimits | None = None) -> list[float]:
    return FunctionReward(lambda prompts, responses: values, limits=limits).score_texts(PROMPTS, RESPONSES)


@pytest.mark.parametrize(
    "values",
    [
        [1, 2.0, np.float32(3)],
        (True, 2, 3.0),
        np.array([1.0, 2, 3]),
        np.array([[1], [2], [3]]),
        torch.tensor([1.0, 2, 3], requires_grad=True),
        torch.tensor([[1.0], [2], [3]], dtype=torch.bfloat16),
        [torch.tensor(1.0), torch.tensor([2.0]), 3],
    ],
)
def test_numbers_in_a_list_an_array_or_a_tensor_are_scores(values: Any) -> None:
    assert scores_of(values) == [1.0, 2.0, 3.0]


def test_a_generator_is_run() -> None:
    assert FunctionReward(lambda prompts, responses: (float(len(p)) for p in prompts)).score_texts(
        ["a", "bc"], ["", ""]
    ) == [1.0, 2.0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({0: 1.0, 1: 2.0, 2: 3.0}, r"returned a dict: \{0: 1\.0"),
        ({1.0, 2.0, 3.0}, "returned a set"),
        ("123", "returned a str: '123'"),
        (None, "returned a NoneType"),
        (1.0, "returned a float"),
        (np.zeros((3, 2)), r"returned a ndarray of shape \(3, 2\) for 3 responses"),
        (np.zeros((1, 3)), r"of shape \(1, 3\)"),
        (torch.zeros(2), r"returned a Tensor of shape \(2,\) for 3 responses"),
        (torch.tensor(1.0), r"of shape \(\)"),
        ([1.0, 2.0], r"returned 2 scores for 3 responses\.$"),
        ([1.0, "2.0", 3.0], r"returned '2\.0' for prompt 'And\\x1b\[31m the\\nfood\?', response ' Bad\.'"),
        ([1.0, None, 3.0], "returned None for prompt"),
        ([[1.0], [2.0], [3.0]], r"returned \[1\.0\] for prompt 'How was it\?'"),
        ([1.0, 10**400, 3.0], "must return one float"),
    ],
)
def test_anything_else_is_no_score(values: Any, message: str) -> None:
    with pytest.raises(RewardModelError, match=message) as caught:
        scores_of(values)
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)


def test_scores_that_are_not_finite_name_count_function_prompt_and_response() -> None:
    with pytest.raises(RewardModelError) as caught:
        FunctionReward(two_are_bad).score_texts(PROMPTS, RESPONSES)
    line = inspect.getsourcelines(two_are_bad)[1]
    assert str(caught.value) == (
        f"reward_model='{__name__}:two_are_bad' ({__file__}, line {line}) returned nan for 2 of 3 responses; scores must be "
        "finite. The first is for prompt 'And\\x1b[31m the\\nfood?', response ' Bad.'."
    )
    with pytest.raises(RewardModelError, match=r"response ' so so .{20,50} … .{20,50} so wild'\.$"):
        scores_of([0.0, 1.0, -math.inf])


def two_are_bad(prompts: list[str], responses: list[str]) -> list[float]:
    return [1.0, math.nan, math.inf]


def test_a_function_that_raises_is_told_with_the_innermost_line_of_the_users_code() -> None:
    with pytest.raises(RewardModelError) as caught:
        FunctionReward(outer, "gold").score_texts(PROMPTS, RESPONSES)
    line = inspect.getsourcelines(inner)[1] + 1  # not json's own, where it was raised
    assert str(caught.value).startswith(f"gold='{__name__}:outer' raised JSONDecodeError: Expecting value")
    assert str(caught.value).endswith(f"({__file__}, line {line}).")


def outer(prompts: list[str], responses: list[str]) -> list[float]:
    return inner(responses)


def inner(responses: list[str]) -> list[float]:
    return [__import__("json").loads("nonsense")]


def lazy(prompts: list[str], responses: list[str]) -> Iterator[float]:
    yield 1.0
    raise LookupError("in\nthe \x1b[2J middle")


def leaves(prompts: list[str], responses: list[str]) -> list[float]:
    sys.exit(0)


def test_errors_in_a_generator_and_the_end_of_the_process_are_errors_of_the_function() -> None:
    with pytest.raises(RewardModelError, match=r"raised LookupError: in the \\x1b\[2J middle \(.*, line \d+\)"):
        FunctionReward(lazy).score_texts(PROMPTS, RESPONSES)
    with pytest.raises(RewardModelError, match=rf":leaves': it called sys.exit\(0\) \(.*{HERE}, line \d+\); a reward"):
        FunctionReward(leaves).score_texts(PROMPTS, RESPONSES)


def test_ctrl_c_is_no_error_of_the_function() -> None:
    def interrupted(prompts: list[str], responses: list[str]) -> list[float]:
        raise KeyboardInterrupt

    for limits in (None, CallLimits(timeout=60, wait=60)):
        with pytest.raises(KeyboardInterrupt):
            FunctionReward(interrupted, limits=limits).score_texts(PROMPTS, RESPONSES)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def score(:\n", r"cannot be imported: SyntaxError: .* \(.*bad_reward\.py, line 1\)"),
        ("\n\n1 / 0\n", r"cannot be imported: ZeroDivisionError: division by zero \(.*bad_reward\.py, line 3\)"),
        ("import sys\nsys.exit(0)\n", r"it called sys.exit\(0\) \(.*bad_reward\.py, line 2\)"),
        ("x = 1\nimport no_such_library\n", r"\(No module named 'no_such_library' \(.*bad_reward\.py, line 2\)\)"),
        ("x = 1\n", "has no 'score'"),
    ],
)
def test_a_module_that_fails_is_one_line_with_file_and_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, message: str
) -> None:
    (tmp_path / "bad_reward.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        for option in ("reward_model", "gold", "judge"):
            with pytest.raises(ValueError, match=f"^{option}='bad_reward:score': .*{message}"):
                FunctionReward("bad_reward:score", option)
    finally:
        sys.modules.pop("bad_reward", None)


def test_a_module_that_is_not_there_has_no_line() -> None:
    with pytest.raises(ValueError, match=r"\(No module named 'no_such_module'\)"):
        FunctionReward("no_such_module:score")


def test_the_place_of_what_has_no_code_is_left_out() -> None:
    assert place_of(max) == ""
    assert place_of_error(ValueError()) == ""
    assert f"{HERE}, line" in place_of(Callable())
    assert f"{HERE}, line" in place_of(Callable().method)


class Callable:
    def __call__(self, prompts: list[str], responses: list[str]) -> list[float]:
        return []

    def method(self, prompts: list[str], responses: list[str]) -> list[float]:
        return []


def test_a_gold_function_is_checked_wherever_it_is_used() -> None:
    gold = load_gold(f"{__name__}:two_are_bad")
    assert gold is not None
    with pytest.raises(RewardModelError, match=r"^gold='.*:two_are_bad' \(.*\) returned nan for 2 of 3"):
        gold.score_texts(PROMPTS, RESPONSES)
    with pytest.raises(ValueError, match=r"^gold='http://:1/' must be http"):
        load_gold("http://:1/")
    assert load_gold(None) is None


# Time limits. `time.sleep` stands for what hangs; no test waits for it to end.


def sleeps(prompts: list[str], responses: list[str]) -> list[float]:
    time.sleep(600)
    return []


def spins(prompts: list[str], responses: list[str]) -> list[float]:
    while True:
        pass


def backtracks(prompts: list[str], responses: list[str]) -> list[float]:
    re.match(r"(a+)+b", "a" * 60)  # exponential: it holds the interpreter's lock all the while
    return []


def swallows(prompts: list[str], responses: list[str]) -> list[float]:
    with contextlib.suppress(BaseException):
        time.sleep(600)
    return [0.0] * len(responses)


def renames(prompts: list[str], responses: list[str]) -> list[float]:
    try:
        time.sleep(600)
    except BaseException as error:
        raise ValueError("something else") from error
    return []


@pytest.mark.parametrize("function", [sleeps, spins, backtracks, swallows, renames])
def test_a_function_that_hangs_is_stopped_and_told_where_it_was(function: Any) -> None:
    before = signal.getsignal(signal.SIGALRM)
    with pytest.raises(RewardModelError, match=r"did not return within 0\.05 s \(reward_timeout\)") as caught:
        FunctionReward(function, limits=CallLimits(timeout=0.05)).score_texts(PROMPTS, RESPONSES)
    if function in (sleeps, spins, backtracks):
        first = inspect.getsourcelines(function)[1]
        line = re.search(rf"{HERE}, line (\d+)\)", str(caught.value))
        assert line is not None
        assert first < int(line[1]) <= first + 3
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_without_a_limit_nothing_is_armed_and_no_thread_runs() -> None:
    seen: list[Any] = []

    def look(prompts: list[str], responses: list[str]) -> list[float]:
        seen.append((signal.getitimer(signal.ITIMER_REAL), threading.active_count(), threading.current_thread()))
        return [0.0] * len(responses)

    threads = threading.active_count()
    FunctionReward(look).score_texts(PROMPTS, RESPONSES)
    FunctionReward(look, limits=CallLimits(timeout=600)).score_texts(PROMPTS, RESPONSES)
    assert seen[0] == ((0.0, 0.0), threads, threading.main_thread())
    assert seen[1][0][0] > 500
    assert seen[1][1:] == (threads, threading.main_thread())


def test_an_alarm_that_was_set_before_goes_on() -> None:
    rang: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda number, frame: rang.append(number))
    try:
        signal.setitimer(signal.ITIMER_REAL, 300)
        assert call_within(60, lambda: "done") == "done"
        assert 200 < signal.getitimer(signal.ITIMER_REAL)[0] <= 300
        with pytest.raises(OutOfTimeError):
            call_within(0.02, lambda: time.sleep(600))
        assert 200 < signal.getitimer(signal.ITIMER_REAL)[0] <= 300
        assert not rang
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_in_another_thread_a_limit_is_refused_in_one_line() -> None:
    caught: list[Exception] = []

    def score() -> None:
        try:
            FunctionReward(two_are_bad, limits=CallLimits(timeout=1)).score_texts(PROMPTS, RESPONSES)
        except RewardModelError as error:
            caught.append(error)

    thread = threading.Thread(target=score)
    thread.start()
    thread.join()
    assert "only the main thread" in str(caught[0])


def test_a_function_that_fails_now_and_then_is_called_again_where_that_is_asked_for(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llm_env.reward.limits.FIRST_PAUSE", 0.001)
    calls: list[int] = []

    def flaky(prompts: list[str], responses: list[str]) -> list[float]:
        calls.append(len(responses))
        responses.clear()  # it may spoil its own lists
        if len(calls) < 3:
            raise ConnectionError("no line")
        return [1.0, 2.0, 3.0]

    with pytest.raises(RewardModelError, match=r"raised ConnectionError: no line \(.*\)\.$"):
        FunctionReward(flaky).score_texts(PROMPTS, RESPONSES)
    assert calls == [3]
    assert FunctionReward(flaky, limits=CallLimits(wait=60)).score_texts(PROMPTS, RESPONSES) == [1.0, 2.0, 3.0]
    assert calls == [3, 3, 3]
    messages = [r.getMessage() for r in caplog.records]
    assert [("asked again for up to 60 s" in m, "answers again" in m) for m in messages] == [
        (True, False),
        (False, True),
    ]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"timeout": 0}, "reward_timeout=0 must be a finite number above 0"),
        ({"timeout": math.nan}, "reward_timeout=nan"),
        ({"timeout": True}, "reward_timeout=True"),
        ({"timeout": "5"}, "reward_timeout='5'"),
        ({"wait": -1}, "reward_wait=-1 must be a finite number, at least 0"),
        ({"wait": math.inf}, "reward_wait=inf"),
    ],
)
def test_limits_are_numbers_of_seconds(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CallLimits(**values)
