from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from agents.algorithms.table import ALGORITHMS
from agents.cli.completion import BEGINNINGS, choices_of_options, script
from agents.cli.main import commands
from agents.rules import ALGORITHM_NAMES

# Asks bash what Tab would offer behind a command line.
ASK = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}
complete -p llm-env
_llm_env
printf '%s\\n' "${COMPREPLY[@]}"
"""


def completed(tmp_path: Path, *words: str) -> list[str]:
    file = tmp_path / "completion.bash"
    file.write_text(script("bash"), encoding="utf-8")
    done = subprocess.run(
        ["bash", "-c", ASK, "bash", str(file), "llm-env", *words],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert done.stderr == ""
    first, *offered = done.stdout.splitlines()
    assert first.endswith("_llm_env llm-env")
    return [word for word in offered if word]


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["tr"], ["train"]),
        (["rew"], ["reward-model"]),
        (["train", "--kl-t"], ["--kl-target"]),
        (["train", "--no-pl"], ["--no-planned"]),
        (["train", "--algo", "dr"], ["dr_grpo"]),
        (["preference", "--output-dir", "x", "--loss", "tdpo"], ["tdpo1", "tdpo2"]),
        (["reward-model", "--loss", "k"], ["k_wise"]),
        (["completion", ""], ["bash", "zsh"]),
        (["train", "--prompts", "f"], []),  # a file, which bash completes
        (["no-command", "--a"], []),
    ],
)
def test_bash_offers(words: list[str], offered: list[str], tmp_path: Path) -> None:
    (tmp_path / "file.jsonl").touch()
    assert completed(tmp_path, *words) == offered


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_offers_all_commands_and_each_commands_options(tmp_path: Path) -> None:
    assert completed(tmp_path, "") == [*commands(), "--help", "--version"]
    for name in commands():
        assert "--help" in completed(tmp_path, name, "--"), name
    assert {"--output-dir", "--resume"} <= set(completed(tmp_path, "sft", "--"))
    assert "--shell" not in completed(tmp_path, "completion", "--")


@pytest.mark.skipif(shutil.which("zsh") is None, reason="no zsh")
def test_zsh_reads_its_script(tmp_path: Path) -> None:
    file = tmp_path / "completion.zsh"
    file.write_text(script("zsh"), encoding="utf-8")
    done = subprocess.run(["zsh", "-f", "-c", f"source {file}; print $_comps[llm-env]"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("shell", BEGINNINGS)
def test_the_script_loads_no_torch(shell: str) -> None:
    code = f"import sys; from agents.cli.completion import script; script({shell!r}); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_the_values_are_those_that_there_are() -> None:
    assert set(ALGORITHM_NAMES) == set(ALGORITHMS)
    for command, _, values in choices_of_options():
        assert command in commands()
        assert values
