"""Prints a shell script by which the Tab key completes llm-env's commands, options and the values that can be listed.

In ~/.bashrc: source <(llm-env completion bash)      in ~/.zshrc: source <(llm-env completion zsh)
"""

from __future__ import annotations

import importlib
import sys
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import tyro

from agents.cli.arguments import parse_command_line, read_command_line
from agents.cli.main import commands
from agents.flat_settings import flat_types

SCRIPT = """\
_llm_env() {{
    local word="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}" words=""
    COMPREPLY=()
    if [ "$COMP_CWORD" -eq 1 ]; then
        COMPREPLY=($(compgen -W "{commands} --help --version" -- "$word"))
        return
    fi
    if [[ "$word" == -* ]]; then
        case "${{COMP_WORDS[1]}}" in
{options}
        esac
    else
        case "${{COMP_WORDS[1]}} $before" in
{values}
        esac
    fi
    # Where no words are known, the shell completes names of files.
    COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o default -F _llm_env llm-env
"""
BEGINNINGS = {
    "bash": "",
    "zsh": "autoload -U +X compinit && compinit -i\nautoload -U +X bashcompinit && bashcompinit\n",
}
"""What each shell's script begins with; zsh understands bash's completion after it."""


@dataclass(frozen=True)
class Args:
    """Print a script for the shell."""

    shell: tyro.conf.Positional[Literal["bash", "zsh"]]
    """The shell."""


def script(shell: str) -> str:
    """The completion script.

    Args:
        shell: A key of `BEGINNINGS`.
    """
    values, options = [], []
    for name, command in commands().items():
        words = " ".join(options_of(importlib.import_module(f"agents.cli.{command.module}").Args))
        options.append(f'            {name}) words="{words} --help" ;;')
    for name, before, choices in choices_of_options():
        values.append(f'            "{name} {before}") words="{" ".join(choices)}" ;;')
    return BEGINNINGS[shell] + SCRIPT.format(
        commands=" ".join(commands()), values="\n".join(values), options="\n".join(options)
    )


def options_of(cls: type[Any]) -> Iterator[str]:
    """A command's options, of a flag the negative one too; arguments without a name are left out.

    Args:
        cls: The command's `Args`.
    """
    hints = typing.get_type_hints(cls, include_extras=True)
    for name, kind in flat_types(cls).items():
        if tyro.conf.Positional in getattr(hints.get(name), "__metadata__", ()):
            continue
        yield f"--{name.replace('_', '-')}"
        if kind is bool:
            yield f"--no-{name.replace('_', '-')}"


def choices_of_options() -> Iterator[tuple[str, str, Sequence[str]]]:
    """What can stand behind a word, where that is one of a few: the command, the word, the values."""
    from agents.iteration.settings import SELECTIONS
    from agents.preferences.settings import PAGES
    from agents.rules import ALGORITHM_NAMES, WITH_A_CRITIC
    from agents.runs.settings import BEST_BY, EPISODES, REPORTS
    from agents.supervised.preference.methods import METHODS
    from agents.supervised.settings import MARGINS, REWARD_LOSSES
    from llm_env.lm.names import PRECISIONS
    from llm_env.settings import WORLD_ERRORS

    yield "completion", "completion", tuple(BEGINNINGS)
    yield "train", "--algo", ALGORITHM_NAMES
    yield "train", "--advantages", WITH_A_CRITIC
    yield "train", "--episodes", EPISODES
    yield "train", "--best-by", BEST_BY
    yield "train", "--report-to", REPORTS
    yield "train", "--world-errors", WORLD_ERRORS
    yield "preference", "--loss", tuple(METHODS)
    yield "reward-model", "--loss", REWARD_LOSSES
    yield "reward-model", "--margins", MARGINS
    yield "collect", "--page", PAGES
    yield "iterate", "--select", SELECTIONS
    for command in ("train", "sft", "preference", "reward-model"):
        yield command, "--mixed-precision", PRECISIONS
        yield command, "--device", ("auto", "cpu", "cuda")


def check(argv: Sequence[str]) -> None:
    """Checks a command line without printing anything; see `agents.pipeline.commands.check_command`."""
    read_command_line(Args, argv)


def main(argv: Sequence[str]) -> int:
    """Prints the script; returns the exit status."""
    sys.stdout.write(script(parse_command_line(Args, argv, __doc__).shell))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
