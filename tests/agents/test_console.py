"""What the commands read and print, and the exit status of a stage."""

from __future__ import annotations

import dataclasses
import io
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from rich.console import Console
from rich.table import Table

from agents.cli import write_reviews
from agents.cli.arguments import parse_command_line
from agents.console import (
    PlainConsole,
    attempt,
    named_values,
    plain_warnings,
    print_error,
    print_left_out,
    print_samples,
    say,
)
from agents.runs.figure import draw_report
from llm_env import RewardModelError
from llm_env.text.printable import printable
from tests.conftest import ROOT


def console() -> Console:
    return Console(file=io.StringIO(), soft_wrap=True)


def printed(on: Console) -> str:
    assert isinstance(on.file, io.StringIO)
    return on.file.getvalue()


@pytest.mark.parametrize(
    ("raised", "status", "message"),
    [
        (None, 0, ""),
        (KeyboardInterrupt(), 130, "Go on with the same command and --resume\n"),
        (ValueError("beta=-1 must be above 0."), 1, "error: beta=-1 must be above 0."),
        (FileNotFoundError("x.jsonl: there is no such file."), 1, "error: x.jsonl: there is no such file."),
        (RewardModelError("gold='a:b' returned nan"), 1, "error: gold='a:b' returned nan"),
    ],
)
def test_a_stage_ends_with_its_report_or_with_a_line_and_a_status(
    raised: BaseException | None, status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def stage() -> dict[str, Any]:
        if raised is not None:
            raise raised
        return {"loss": 1.0}

    before = warnings.showwarning
    on = console()
    assert attempt(stage, on) == ({"loss": 1.0} if raised is None else None, status)
    assert warnings.showwarning is before
    assert message in printed(on) + capsys.readouterr().err


def test_a_stage_that_goes_on_with_the_same_command_says_so() -> None:
    def stage() -> None:
        raise KeyboardInterrupt

    on = console()
    assert attempt(stage, on, "The same command goes on.") == (None, 130)
    assert printed(on) == "Stopped. The same command goes on.\n"


def test_a_mistake_of_ours_is_not_hidden() -> None:
    def stage() -> dict[str, Any]:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        attempt(stage, console())


def test_texts_are_printed_as_they_are() -> None:
    on = console()
    print_samples([{"prompt": "Say [bold]:", "response": " [/dim] [1]"}], on)
    assert printed(on) == "Say [bold]: [/dim] [1]\n"


NASTY = "a\x1b[31m\x07 [red]m[/nope] :smile: \u202egnp\u2066 \x9b0m \ud800 \u2028\r"
SHOWN = r"a\x1b[31m\x07 [red]m[/nope] :smile: \u202egnp\u2066 \x9b0m \ud800 \u2028\x0d"


def test_what_steers_a_terminal_is_shown_by_its_number() -> None:
    assert printable(NASTY) == SHOWN
    kept = "Grüße 日本 👨‍👩‍👧 [b] tab\t\nline שלום"
    assert printable(kept) == kept


@pytest.mark.parametrize("kind", [Console, PlainConsole])
def test_users_texts_are_shown_as_they_are_everywhere(kind: type[Console], capsys: pytest.CaptureFixture[str]) -> None:
    on = kind(file=io.StringIO(), soft_wrap=True, width=500)
    say(on, NASTY)
    print_samples([{"prompt": NASTY, "response": NASTY}], on)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        plain_warnings(on)
        warnings.warn(NASTY, UserWarning, stacklevel=1)
    print_left_out({NASTY: 1}, on)
    lines = f"{SHOWN}\n{SHOWN}{SHOWN}\nnote: {SHOWN}\nTraining records, noted: 1 {SHOWN}.\n"
    assert printed(on) == lines
    print_error(ValueError("a\x1b[31m [red]m[/nope]\n:smile:"))
    assert capsys.readouterr().err == "error: a\\x1b[31m [red]m[/nope] :smile:\n"


def test_a_commands_console_shows_tables_and_rules_as_they_are() -> None:
    on = PlainConsole(file=io.StringIO(), width=200)
    table = Table(NASTY, title=NASTY)
    table.add_row(NASTY)
    on.print(NASTY)
    on.print(table)
    on.rule(NASTY)
    assert printed(on).count(SHOWN) == 5
    assert not any(c in printed(on) for c in "\x1b\x07\u202e\x9b\ud800")


def test_no_command_prints_on_another_console() -> None:
    for path in [*(ROOT / "agents" / "cli").glob("*.py"), *(ROOT / "scripts").rglob("*.py")]:
        code = path.read_text(encoding="utf-8").replace("Console(quiet=True)", "").replace("PlainConsole(", "")
        assert "Console(" not in code, path
        assert " print(" not in code, path


def test_a_folder_may_have_any_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "[red]m[/nope] $x_{"
    assert write_reviews.main(["--output-dir", str(folder), "--reviews", "20", "--heldout-reviews", "5"]) == 0
    assert "[red]m[/nope] $x_{" in " ".join(capsys.readouterr().out.split())
    columns = {"rollout/tokens": np.arange(3.0), "rollout/rm_score": np.arange(3.0)}
    draw_report(columns, tmp_path / "report.png", folder.name)
    assert (tmp_path / "report.png").is_file()


def test_an_episode_is_drawn_without_the_texts_own_escapes() -> None:
    env = gym.make("LLMText-v0", render_mode="ansi", max_new_tokens=1)
    env.reset(seed=0, options={"prompt": "a\x1b]0;title\x07b"})
    assert r"a\x1b]0;title\x07b" in str(env.render())


def test_only_reasons_that_occurred_are_printed() -> None:
    on = console()
    print_left_out({"all bad": 0, "cut": 3}, on)
    print_left_out({"all bad": 0}, on)
    assert printed(on) == "Training records, noted: 3 cut.\n"


def test_warnings_are_notes_and_those_to_developers_are_not_shown() -> None:
    on = console()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        plain_warnings(on)
        warnings.warn("3 prompts are cut", UserWarning, stacklevel=1)
        warnings.warn("another name soon", DeprecationWarning, stacklevel=1)
    assert printed(on) == "note: 3 prompts are cut\n"


@dataclasses.dataclass(frozen=True)
class Page:
    open_page: bool = False
    port: int = 1


@dataclasses.dataclass(frozen=True)
class Options:
    people: bool = False
    blind: bool = True
    names: tuple[str, ...] = ()
    page: Page = Page()


def test_booleans_are_flags() -> None:
    assert parse_command_line(Options, [], None) == Options()
    parsed = parse_command_line(Options, ["--people", "--no-blind", "--names", "a", "True"], None)
    assert parsed == Options(people=True, blind=False, names=("a", "True"))
    assert parse_command_line(Options, ["--no-people"], None, default=Options(people=True)) == Options()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--people", "True"], "--people True: booleans are flags now: --people or --no-people"),
        (["--people=false"], "--people false: booleans are flags now: --people or --no-people"),
        (["--no-blind", "True"], "--no-blind True: booleans are flags now: --blind or --no-blind"),
        (
            ["--names", "a", "--open_page", "True"],
            "--open-page True: booleans are flags now: --open-page or --no-open-page",
        ),
        (["--normalise-on", "x.jsonl"], "--normalise-on is called --normalize-on now."),
        (["--centring=0.1"], "--centring is called --center-rewards-coefficient now."),
        (["--nobody"], "Unrecognized options: --nobody"),
    ],
)
def test_old_forms_of_options_are_errors_that_name_the_new_ones(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_status:
        parse_command_line(Options, argv, None)
    assert exit_status.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_named_values_are_yaml() -> None:
    assert named_values("extra", ["a=3e-4", "b = true", "c=text", "d=[1, 2]"]) == {
        "a": 3e-4,
        "b": True,
        "c": "text",
        "d": [1, 2],
    }
    with pytest.raises(ValueError, match="extra: 'a' must be name=value"):
        named_values("extra", ["a"])
    with pytest.raises(ValueError, match="extra: a is given twice"):
        named_values("extra", ["a=1", "a=2"])
