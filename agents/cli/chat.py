r"""A conversation with a trained actor, or with two that are compared blind, on a page or in the terminal.

    python scripts/chat.py --actor runs/demo --output-dir runs/chat
    python scripts/chat.py --actor runs/new --other runs/old --output-dir runs/chat      which is better?
    python scripts/chat.py --actor runs/demo --terminal --output-dir runs/chat
    python scripts/train_preference.py --loss kto --preferences runs/chat/thumbs.jsonl --output-dir runs/kto

Every answer, thumb and choice is on the disk at once: conversations.jsonl, thumbs.jsonl (KTO), rankings.jsonl. The same command
goes on where it stopped. Tokens can be shown on the color of their KL to the reference, or the critic's value (docs/chat.md).
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from agents.cli.arguments import parse_command_line, read_command_line
from agents.console import SAME_COMMAND, PlainConsole, attempt
from agents.output_folder import check_output_folder, has_files, locked
from llm_env.lm.names import LoadSettings
from llm_env.rules import FLAG, SEED, TOKENS, Rule, check_settings, number, whole
from llm_env.settings import TaskSettings

if TYPE_CHECKING:
    from agents.chat.speaker import Speaker

console = PlainConsole()

CHAT_RULES: dict[str, Rule] = {
    "temperature": number(above=0),
    "max_prompt_length": TOKENS,
    "max_new_tokens": TOKENS,
    "port": whole(0, 65_535),
    "seed": SEED,
    **dict.fromkeys(("terminal", "trust_remote_code", "special_tokens_in_text"), FLAG),
}


@dataclass(frozen=True, kw_only=True)
class Args:
    """Talk with an actor."""

    output_dir: Path
    """Folder for what is said and found. What it holds already is kept."""
    actor: str | None = None
    """A run's folder, a model folder, a hub id, or a checkpoint of a run. Default: the embedded tiny actor."""
    other: str | None = None
    """Another one, which answers too: the two are shown blind, in random order, and one says which is better."""
    reference: str | None = None
    """Model folder or hub id that tokens' KL is to. Default: the run's reference."""
    system: str | None = None
    """A system message that conversations begin with, for actors with a chat template."""
    temperature: float = 1.0
    """Sampling temperature."""
    max_prompt_length: int = 2048
    """Tokens of a conversation that are read, the last ones."""
    max_new_tokens: int = TaskSettings.max_new_tokens
    """Length cap of an answer, in tokens."""
    terminal: bool = False
    """Talk in the terminal instead of on a page."""
    person: str = "me"
    """In the terminal: the name under which the conversation is kept."""
    host: str = "127.0.0.1"
    """Address of the page. 0.0.0.0 lets others in your network talk, by the token that is printed."""
    port: int = 7860
    """Port of the page."""
    device: str = "auto"
    """Where models run: auto (a GPU where there is one), cpu or cuda."""
    trust_remote_code: bool = False
    """Run model code that a hub repository brings. Only for repositories that you trust."""
    special_tokens_in_text: bool = False
    """Turn special tokens that messages spell out, as </s>, into those tokens. Default: they are read as characters."""
    seed: int = 0
    """Seed of the sampling."""

    def check_values(self) -> None:
        """Checks the numbers.

        Raises:
            ValueError: one breaks its rule.
        """
        check_settings(self, CHAT_RULES)


def run(args: Args) -> int:
    """Talks; returns the exit status."""
    return attempt(lambda: chat(args), console, f"What was said is on the disk. {SAME_COMMAND}")[1]


def chat(args: Args) -> None:
    """Serves the page, or talks in the terminal.

    Raises:
        FileNotFoundError, ValueError: something cannot be loaded, or a setting breaks its rule.
    """
    from agents.chat.log import ChatLog
    from agents.chat.session import Session

    args = dataclasses.replace(args, output_dir=args.output_dir.absolute())
    args.check_values()
    check_output_folder(args.output_dir)
    if has_files(args.output_dir) and not (args.output_dir / "events.jsonl").is_file():
        raise ValueError(f"output_dir={str(args.output_dir)!r} is not empty and holds no chat. Choose another folder.")
    if not args.terminal:
        from agents.local_page import check_page

        check_page(args.host, args.port)
    actors = speakers(args)
    with locked(args.output_dir):
        session = Session(actors, ChatLog(args.output_dir), args.system, args.seed)
        if args.terminal:
            from agents.chat.terminal import talk

            talk(session, args.person, console)
        else:
            from agents.chat.page import serve

            serve(session, args.host, args.port, console)


def speakers(args: Args) -> list[Speaker]:
    """The actors that answer.

    Raises:
        FileNotFoundError, ValueError: one cannot be loaded, or the system message has no place in it.
    """
    from agents.chat.speaker import Speaker, SpeakerSettings, find_actor
    from agents.preferences.players import EMBEDDED
    from llm_env.lm.loading import resolve_device

    load = LoadSettings(
        "float32", str(resolve_device(args.device)), args.trust_remote_code, args.special_tokens_in_text
    )
    settings = SpeakerSettings(args.temperature, args.max_prompt_length, args.max_new_tokens, load, args.reference)
    names = [("actor", args.actor), *([("other", args.other)] if args.other is not None else [])]
    found = [(name or EMBEDDED, find_actor(name, option)) for option, name in names]
    actors = [Speaker(name, place, settings) for name, place in found]
    templates = {speaker.has_template for speaker in actors}
    if len(templates) > 1:
        raise ValueError("other: one actor has a chat template and one has none; they cannot be asked the same.")
    if args.system is not None and templates == {False}:
        raise ValueError(f"system={args.system!r:.80}: {actors[0].name} has no chat template that it could stand in.")
    return actors


def check(argv: Sequence[str]) -> None:
    """Checks a command line without reading or writing anything else; see `agents.pipeline.commands.check_command`."""
    read_command_line(Args, argv).check_values()


def main(argv: Sequence[str]) -> int:
    """Reads the command line and runs it; returns the exit status."""
    return run(parse_command_line(Args, argv, __doc__))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
