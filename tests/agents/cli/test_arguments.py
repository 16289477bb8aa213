from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from agents.cli import evaluate_actor, iterate, sweep, train
from agents.cli.arguments import parse_command_line, read_command_line


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--reward-model"], "--reward-model needs at least one value"),
        (["--reward-model", "--kl-coef", "1"], "--reward-model needs at least one value"),
        (["--reward_model"], "--reward_model needs at least one value"),
        (["--model", ""], "--model '' is empty"),
        (["--model="], "--model '' is empty"),
        (["--reward-model", ""], "--reward-model '' is empty"),
    ],
)
@pytest.mark.parametrize("command", [train, evaluate_actor])
def test_an_option_without_its_value_is_no_default(
    argv: list[str], message: str, command: object, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    if command is evaluate_actor:
        argv = ["--actor", str(tmp_path), *(a.replace("kl-coef", "n-prompts") for a in argv)]
    with pytest.raises(SystemExit) as stop:
        command.main(argv)  # type: ignore[attr-defined]
    assert stop.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_lists_of_other_commands_too(capsys: pytest.CaptureFixture[str]) -> None:
    for command, argv in ((iterate, ["--output-dir", "out", "--judge"]), (sweep, ["--output-dir", "out", "--seeds"])):
        with pytest.raises(SystemExit):
            command.main(argv)
        assert f"{argv[-1]} needs at least one value" in " ".join(capsys.readouterr().err.split())
    args = parse_command_line(sweep.Args, ["--output-dir", "out", "--vary", "", "--vary", "critic=head"], None)
    assert args.vary == ("", "critic=head")  # the configuration as it is, and a change


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of each kind."""

    a_name: str | None = None
    """Which ``one`` of
    3. None: the first."""
    names: tuple[str, ...] | None = None
    """Some of `them`."""
    count: int | None = 4
    """How many."""


def test_the_help_is_plain_and_none_can_still_be_said(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_command_line(Options, ["--help"], None)
    out = capsys.readouterr().out
    assert "Which one of 3. Default: the first." in out  # on one line
    said = " ".join(re.sub("[│╭╮╰╯─]", "", out).split())
    assert "--a-name STR Which one of 3. Default: the first. --names STR [STR ...] Some of them. --count INT" in said
    assert "--count INT How many. (default: 4)" in said
    assert parse_command_line(Options, ["--count", "None"], None).count is None
    assert parse_command_line(Options, ["--names", "a", "b", "--count", "2"], None) == Options(None, ("a", "b"), 2)
    with pytest.raises(ValueError, match="count"):
        read_command_line(Options, ["--count", "x"])


def test_options_are_flat_and_the_help_has_groups(capsys: pytest.CaptureFixture[str]) -> None:
    args = parse_command_line(train.Args, ["--kl-coef", "0.3", "--no-whiten-rewards", "--n-envs", "4"], None)
    assert (args.settings.task.kl_coef, args.settings.training.n_envs) == (0.3, 4)
    with pytest.raises(SystemExit):
        train.main(["--help"])
    out = capsys.readouterr().out
    for group in ("task options", "algorithm options", "training options", "folder options"):
        assert group in out
    for flag in (
        "--algo", "--model", "--reward-model", "--prompts", "--total-timesteps", "--n-envs", "--max-new-tokens",
        "--kl-coef", "--learning-rate", "--seed", "--device", "--output-dir", "--config", "--resume",
    ):  # fmt: skip
        assert flag in out
