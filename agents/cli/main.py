"""The console command ``llm-env``: its first word names what is to be done, the rest goes there."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence
from typing import NamedTuple

from agents.cli.start import start
from agents.console import quiet_end


class Command(NamedTuple):
    """A command of ``llm-env``.

    Attributes:
        module: Its module in `agents.cli`.
        about: What it does, in a line.
    """

    module: str
    about: str


COMMANDS: dict[str, dict[str, Command]] = {
    "To begin": {
        "init": Command("init", "a folder to start from: a reward function, its test, prompts, settings"),
    },
    "Reinforcement learning": {
        "train": Command("train", "PPO and its relatives on a language model; the embedded task needs no options"),
        "plan": Command(
            "plan", "what a run would need in memory, before anything is loaded, and what would make it fit"
        ),
        "evaluate": Command("evaluate_actor", "a trained actor beside its reference: scores, KL, samples"),
        "watch": Command("watch", "a page of a run while it goes on: curves, samples with colored tokens"),
        "report": Command("report", "the same page as a file, which each run writes at its end"),
        "compare": Command("compare", "a page and a picture of runs beside each other"),
        "sweep": Command("sweep", "many runs with other settings and seeds, and a table of them"),
    },
    "Around it": {
        "sft": Command("train_sft", "supervised fine-tuning on texts, or on prompts with responses"),
        "collect": Command("collect_preferences", "responses, and what judges or people say of them"),
        "feedback": Command("collect_feedback", "what users say of answers in chat logs, as training data"),
        "find-hacks": Command("find_hacks", "adversarial examples for a reward model"),
        "reward-model": Command("train_reward_model", "a reward model from preferences"),
        "preference": Command("train_preference", "DPO and its relatives, from preferences"),
        "iterate": Command("iterate", "rounds of sampling, judging and training"),
        "pipeline": Command("pipeline", "all stages from one YAML file, with a report"),
        "chat": Command("chat", "a conversation with an actor, or with two that are compared blind"),
        "ab": Command("ab", "is actor A better than actor B? A test that stops when it is sure"),
        "write-reviews": Command("write_reviews", "texts of the embedded task, to try the stages on"),
    },
    "The command itself": {
        "completion": Command("completion", "what completes commands and options with Tab, for bash or zsh"),
    },
}
"""All commands, in the groups in which ``--help`` shows them."""

EPILOG = """\
llm-env COMMAND --help explains a command. Where to begin:

  llm-env train --output-dir runs/demo                  trains the embedded task: about a minute
  llm-env evaluate --actor runs/demo/actor              what it learned
  llm-env init my-task                                  a task of your own
"""


def commands() -> dict[str, Command]:
    """All commands by their names."""
    return {name: command for group in COMMANDS.values() for name, command in group.items()}


def overview() -> str:
    """What ``llm-env --help`` prints."""
    width = max(map(len, commands())) + 2
    lines = ["usage: llm-env COMMAND [options]", "       llm-env --version"]
    for title, group in COMMANDS.items():
        lines += ["", f"{title}:", *(f"  {name:{width}}{command.about}" for name, command in group.items())]
    return "\n".join([*lines, "", EPILOG])


def main(argv: Sequence[str] | None = None) -> int:
    """Runs ``llm-env`` with a command line, by default this process's; returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        with quiet_end():
            sys.stdout.write(overview())
        return 0
    if words[0] == "--version":
        from llm_env import __version__

        sys.stdout.write(f"llm-env {__version__}\n")
        return 0
    known = commands()
    if words[0] not in known:
        close = difflib.get_close_matches(words[0], known, 1)
        meant = f" Did you mean {close[0]}?" if close else ""
        sys.stderr.write(f"error: llm-env has no command {words[0]!r}.{meant} See llm-env --help.\n")
        return 2
    # The command's own --help then shows how it is called.
    sys.argv = [f"llm-env {words[0]}", *words[1:]]
    return start(known[words[0]].module)


if __name__ == "__main__":
    sys.exit(main())
