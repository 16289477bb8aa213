"""The same conversation in a terminal."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console
from rich.text import Text

from agents.chat.log import TIE, Conversation
from agents.chat.session import NotNowError, Session
from agents.chat.speaker import Answer
from agents.console import say
from llm_env.rendering import color_of
from llm_env.text.printable import printable

HELP = "/up /down (of two: /up1 /up2 /down1 /down2)   /1 /2 /tie which is better   /new another conversation   /quit"


def talk(session: Session, person: str, console: Console, read: Callable[[str], str] = input) -> None:
    """Reads messages and commands until ``/quit`` or the end of the input; goes on with the person's last conversation.

    Args:
        session: The actors and the log.
        person: The name under which the conversation is kept.
        console: Where answers are printed, each token on the color of its KL where there is a reference.
        read: Reads a line; raises EOFError at the end.
    """
    for note in session.notes:
        say(console, note)
    say(console, HELP)
    conversation = session.log.newest(person) or session.log.begin(person)
    for number, turn in enumerate(conversation.turns):
        say(console, f"> {turn.message}")
        _print_answers(conversation, number, console)
    while True:
        try:
            line = read("> ").strip()
        except EOFError:
            return
        if line == "/quit":
            return
        try:
            if line == "/new":
                conversation = session.log.begin(person)
            elif line.startswith("/"):
                _command(session, conversation, line)
                say(console, "Saved.")
            else:
                session.say(conversation, line)
                _print_answers(conversation, len(conversation.turns) - 1, console)
        except NotNowError as error:
            say(console, str(error))


def _command(session: Session, conversation: Conversation, line: str) -> None:
    if line in ("/1", "/2", "/tie"):
        session.choose(conversation, TIE if line == "/tie" else int(line[1:]) - 1)
        return
    word, place = line.rstrip("12"), line[-1]
    if word not in ("/up", "/down"):
        raise NotNowError(f"{line!r} is no command. {HELP}")
    session.thumb(conversation, int(place) - 1 if place in "12" else 0, word == "/up")


def _print_answers(conversation: Conversation, number: int, console: Console) -> None:
    turn = conversation.turns[number]
    for place, answer in enumerate(conversation.order(number)):
        text = Text(f"{place + 1}: " if len(turn.answers) > 1 else "", style="dim")
        console.print(text.append_text(_painted(turn.answers[answer])))


def _painted(answer: Answer) -> Text:
    if not any(token.kl is not None for token in answer.tokens):
        return Text(printable(answer.text.strip()))
    text = Text()
    for token in answer.tokens:
        red, green, blue = color_of(token.kl or 0.0)
        text.append(printable(token.text), style=f"black on rgb({red},{green},{blue})")
    return text
