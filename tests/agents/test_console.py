"""What the scripts print, and the exit status of a stage."""

from __future__ import annotations

import io
import warnings
from typing import Any

import pytest
from rich.console import Console

from agents.console import attempt, print_left_out, print_samples


def console() -> Console:
    return Console(file=io.StringIO(), soft_wrap=True)


def printed(on: Console) -> str:
    assert isinstance(on.file, io.StringIO)
    return on.file.getvalue()


@pytest.mark.parametrize(
    ("raised", "status", "said"),
    [
        (None, 0, ""),
        (KeyboardInterrupt(), 130, "--resume True"),
        (ValueError("beta=-1 must be above 0."), 1, "error: beta=-1 must be above 0."),
        (FileNotFoundError("x.jsonl: there is no such file."), 1, "error: x.jsonl: there is no such file."),
    ],
)
def test_a_stage_ends_with_its_report_or_with_a_line_and_a_status(
    raised: BaseException | None, status: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def stage() -> dict[str, Any]:
        if raised is not None:
            raise raised
        return {"loss": 1.0}

    with warnings.catch_warnings():
        on = console()
        assert attempt(stage, on) == ({"loss": 1.0} if raised is None else None, status)
    assert said in printed(on) + capsys.readouterr().err


def test_a_mistake_of_ours_is_not_hidden() -> None:
    def stage() -> dict[str, Any]:
        raise RuntimeError("a bug")

    with warnings.catch_warnings(), pytest.raises(RuntimeError, match="a bug"):
        attempt(stage, console())


def test_texts_are_printed_as_they_are() -> None:
    on = console()
    print_samples([{"prompt": "Say [bold]:", "response": " [/dim] [1]"}], on)
    assert printed(on) == "Say [bold]: [/dim] [1]\n"


def test_only_what_was_left_out_is_told() -> None:
    on = console()
    print_left_out({"all bad": 0, "cut": 3}, on)
    print_left_out({"all bad": 0}, on)
    assert printed(on) == "Training records, noted: 3 cut.\n"
