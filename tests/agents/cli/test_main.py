from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import agents.cli
from agents.cli.main import commands, main, overview
from agents.cli.start import called_as
from agents.console import quiet_end
from llm_env import __version__

FOLDER = Path(agents.cli.__file__).parent
NO_COMMANDS = ("__init__", "arguments", "help_text", "main", "start")


def test_each_command_is_there_once_and_is_explained() -> None:
    modules = [command.module for command in commands().values()]
    assert sorted(modules) == sorted(path.stem for path in FOLDER.glob("*.py") if path.stem not in NO_COMMANDS)
    for name, command in commands().items():
        assert f"  {name} " in overview()
        assert command.about in overview()
        assert callable(importlib.import_module(f"agents.cli.{command.module}").main)


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"], ["help"]])
def test_help(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 0
    assert capsys.readouterr().out == overview()


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"llm-env {__version__}\n"


@pytest.mark.parametrize(("word", "meant"), [("trian", "Did you mean train?"), ("xyz", "See llm-env --help.")])
def test_a_command_that_is_not_there(word: str, meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([word]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: llm-env has no command '{word}'.")
    assert meant in said
    assert said.count("\n") == 1


def test_the_rest_goes_to_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["llm-env"])
    with pytest.raises(SystemExit) as stop:
        main(["ab", "--help"])
    assert stop.value.code == 0
    assert "usage: llm-env ab " in capsys.readouterr().out


HELP = """
import contextlib, io, sys
from agents.cli.main import main
from agents.console import quiet_end
for command in sys.argv[1:]:
    with contextlib.suppress(SystemExit):
        main([command, "--help"] if command != "--help" else [command])
sys.stderr.write(" ".join({"torch", "transformers", "stable_baselines3", "trl", "datasets"} & set(sys.modules)))
"""


def test_help_loads_nothing_that_takes_long_and_speaks_plainly() -> None:
    words = [sys.executable, "-c", HELP, "--help", *commands()]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    for name in commands():
        assert f"usage: llm-env {name} " in done.stdout
    for word in ("{None}", "default: None", "SEQUENCE", "``", "python scripts/"):
        assert word not in done.stdout


def test_the_overview_waits_for_no_parser() -> None:
    code = "import sys; from agents.cli.main import main; main(['--help']); print('tyro' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("False\n")


@pytest.mark.parametrize(
    ("name", "words"), [("scripts/train.py", "python scripts/train.py"), ("llm-env train", "llm-env train")]
)
def test_a_hint_calls_the_command_as_it_was_called(name: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [name, "--resume"])
    assert called_as() == words


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["completion", "bash"]], ids=" ".join)
def test_a_reader_that_leaves_is_no_error(words: list[str]) -> None:
    """As behind ``| head``: nothing is said, and the status is that of a command that SIGPIPE ended."""
    command = [sys.executable, "-m", "agents.cli.main", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        running.stdout.close()
        assert running.stderr.read() == ""
    assert running.returncode == 141


def test_another_pipe_that_breaks_is_an_error() -> None:
    with pytest.raises(BrokenPipeError, match="of a server"), quiet_end():
        raise BrokenPipeError("of a server")
