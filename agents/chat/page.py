"""The chat page: a conversation with an actor, or with two that are compared blind. Texts are shown as texts."""

from __future__ import annotations

import html
import os
import time
from collections.abc import Callable
from typing import Any

from rich.console import Console

from agents.chat.log import TIE, Conversation, Turn
from agents.chat.session import NotNowError, Session
from agents.chat.speaker import Answer
from agents.console import say
from agents.local_page import launch
from agents.preferences.page import as_text
from llm_env.extras import require
from llm_env.rendering import color_of

PLAIN, KL, VALUE = "none", "KL to the reference", "the critic's value"
COLORS = (PLAIN, KL, VALUE)
VALUE_AT_FULL = 3.0
"""The score at which a value's color is strongest."""
_BOX = "border:1px solid #bbb;border-radius:6px;padding:8px;margin:4px 0;white-space:pre-wrap;overflow-wrap:anywhere;"
_SIDES = "display:grid;grid-template-columns:repeat(auto-fit,minmax(18em,1fr));gap:8px"


def answer_html(answer: Answer, color: str) -> str:
    """An answer as HTML: its text with every character of markup escaped, each token on its color where it has one."""
    if color == PLAIN or not answer.tokens:
        return html.escape(answer.text.strip())
    parts = []
    for token in answer.tokens:
        number = token.kl if color == KL else token.value
        text = html.escape(token.text)
        if number is None:
            parts.append(text)
            continue
        red, green, blue = color_of(number) if color == KL else color_of(number, VALUE_AT_FULL)
        title = f"KL {number:.3f} nats" if color == KL else f"value {number:.2f}"
        style = f"background:rgb({red},{green},{blue});color:#000"
        parts.append(f'<span class="token" style="{style}" title="{title}">{text}</span>')
    return "".join(parts).strip()


def transcript_html(conversation: Conversation | None, color: str) -> str:
    """The conversation as HTML; in the last turn two answers stand side by side until one is chosen."""
    if conversation is None:
        return ""
    parts = []
    for number, turn in enumerate(conversation.turns):
        parts.append(f'<div class="user" style="{_BOX}background:#eef;color:#000">{html.escape(turn.message)}</div>')
        order = conversation.order(number)
        # Until one is chosen, colors that one of them alone has would tell who is who.
        shown = color if not turn.is_open or all(_has(answer, color) for answer in turn.answers) else PLAIN
        boxes = [_answer_box(turn, answer, place, shown) for place, answer in enumerate(order)]
        parts.append(f'<div style="{_SIDES}">{"".join(boxes)}</div>')
    return "".join(parts)


def _has(answer: Answer, color: str) -> bool:
    """Whether an answer's tokens have what the color shows."""
    return all((token.kl if color == KL else token.value) is not None for token in answer.tokens)


def _answer_box(turn: Turn, answer: int, place: int, color: str) -> str:
    thumb = turn.thumbs.get(answer)
    marks = "" if thumb is None else "👍 " if thumb else "👎 "
    if turn.better == answer:
        marks += "★ "
    faded = ";opacity:.5" if turn.better not in (None, TIE, answer) else ""
    cut = "" if turn.answers[answer].finished else ' <span title="cut off at the length cap">…</span>'
    text = answer_html(turn.answers[answer], color)
    return f'<div class="answer" data-place="{place}" style="{_BOX}{faded}">{marks}{text}{cut}</div>'


class ChatPage:
    """The page: what it shows, and what its buttons do.

    Each handler returns a list of updates in the order of `layout`'s ``shown``: the conversation's name, transcript, note,
    message, thumbs, choices.

    Args:
        session: The actors and the log.

    Raises:
        ImportError: gradio is not installed.
    """

    def __init__(self, session: Session) -> None:
        # Set for the whole process, as `agents.preferences.page` says.
        os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
        self.gr = require("gradio", "people")
        self.session = session
        self.sides = len(session.speakers)

    def show(self, person: str, name: str | None, color: str, note: str = "", keep: bool = False) -> list[Any]:
        """Shows a conversation; `keep` leaves the message that is being written."""
        conversation = self._conversation(person, name)
        has_answer = conversation is not None and bool(conversation.turns)
        message = self.gr.skip() if keep else self.gr.update(value="")
        thumbs = [self.gr.update(visible=has_answer) for _ in range(2 * self.sides)]
        choices = [self.gr.update(visible=has_answer) for _ in range(3 if self.sides > 1 else 0)]
        note = f"**{as_text(note)}**" if note else ""
        return [
            conversation and conversation.id,
            transcript_html(conversation, color),
            note,
            message,
            *thumbs,
            *choices,
        ]

    def start(self, person: str, color: str) -> list[Any]:
        """Takes a person's name, and shows their last conversation."""
        person = (person or "").strip()
        if not person:
            self.gr.Warning("Please give a name: conversations are kept under it.")
            nothing = [self.gr.skip()] * (3 + 4 + 2 * self.sides + (3 if self.sides > 1 else 0))
            return nothing
        last = self.session.log.newest(person)
        shown = self.show(person, None if last is None else last.id, color)
        return [person, self.gr.update(visible=False), self.gr.update(visible=True), *shown]

    def send(self, person: str, name: str | None, message: str, color: str) -> list[Any]:
        """Has a message answered."""
        if not person:  # the server was started again, or forgot a page that was away for an hour
            return self.show(person, name, color, "This page does not know any more who you are: reload it.", keep=True)
        conversation = self._conversation(person, name) or self.session.log.begin(person)
        return self._try(person, conversation, color, lambda: self.session.say(conversation, message or ""))

    def thumb(self, person: str, name: str | None, color: str, place: int, good: bool) -> list[Any]:
        """Keeps a thumb for the last answer at a place."""
        conversation = self._conversation(person, name)
        if conversation is None:
            return self.show(person, name, color)
        return self._try(person, conversation, color, lambda: self.session.thumb(conversation, place, good), "Saved.")

    def choose(self, person: str, name: str | None, color: str, place: int) -> list[Any]:
        """Keeps which of the last answers is better."""
        conversation = self._conversation(person, name)
        if conversation is None:
            return self.show(person, name, color)
        return self._try(person, conversation, color, lambda: self.session.choose(conversation, place), "Saved.")

    def recolor(self, person: str, name: str | None, color: str) -> list[Any]:
        """Shows the conversation in other colors."""
        return self.show(person, name, color, keep=True)

    def new(self, person: str, color: str) -> list[Any]:
        """Begins a new conversation; the one before is kept."""
        return self.show(person, None, color)

    def _conversation(self, person: str, name: str | None) -> Conversation | None:
        """A conversation by its name, if it is this person's."""
        conversation = self.session.log.conversations.get(name or "")
        return conversation if conversation is not None and conversation.person == person else None

    def _try(
        self, person: str, conversation: Conversation, color: str, act: Callable[[], Any], note: str = ""
    ) -> list[Any]:
        try:
            act()
        except NotNowError as error:
            return self.show(person, conversation.id, color, str(error), keep=True)
        except (ValueError, FloatingPointError, OSError) as error:  # of a chat template, weights, a full disk
            return self.show(person, conversation.id, color, f"That could not be done: {error}", keep=True)
        return self.show(person, conversation.id, color, note, keep=bool(note))

    def layout(self) -> Any:
        """Builds the page, a `gradio.Blocks`: first the question for a name, then the conversation."""
        gr = self.gr
        with gr.Blocks(title="Chat", analytics_enabled=False) as page:
            person, current = gr.State(""), gr.State(None)
            with gr.Column(visible=True) as entrance:
                gr.Markdown("## Chat\nWhat you write, the answers and what you find of them are kept.")
                name = gr.Textbox(label="Your name", elem_id="name")
                begin = gr.Button("Begin", variant="primary", elem_id="begin")
            with gr.Column(visible=False) as talk:
                gr.Markdown(as_text(" ".join(self.session.notes)), elem_id="notes")
                color = gr.Radio(list(COLORS), value=PLAIN, label="Colors of the tokens", elem_id="color")
                transcript = gr.HTML(elem_id="transcript")
                note = gr.Markdown(elem_id="note")
                buttons = self._buttons()
                message = gr.Textbox(label="Message", lines=3, elem_id="message")
                with gr.Row():
                    send = gr.Button("Send", variant="primary", elem_id="send")
                    new = gr.Button("New conversation", elem_id="new")
            quiet: Any = {"show_progress": "hidden", "api_visibility": "private"}
            shown = [current, transcript, note, message, *(b for b, _ in buttons)]
            for event in (begin.click, name.submit):
                event(self.start, [name, color], [person, entrance, talk, *shown], **quiet)
            send.click(self.send, [person, current, message, color], shown, **{**quiet, "show_progress": "minimal"})
            new.click(self.new, [person, color], shown, **quiet)
            color.change(self.recolor, [person, current, color], shown, **quiet)
            for button, act in buttons:
                button.click(act, [person, current, color], shown, **quiet)
        return page

    def _buttons(self) -> list[tuple[Any, Callable[..., list[Any]]]]:
        """The buttons for thumbs and choices, hidden at first, with what they do."""
        gr, buttons = self.gr, []
        sides = ("",) if self.sides == 1 else (" (left)", " (right)")

        def thumb(place: int, good: bool) -> Callable[..., list[Any]]:
            return lambda person, name, color: self.thumb(person, name, color, place, good)

        def choice(place: int) -> Callable[..., list[Any]]:
            return lambda person, name, color: self.choose(person, name, color, place)

        with gr.Row():
            for place, side in enumerate(sides):
                for good, sign in ((True, "👍 good"), (False, "👎 bad")):
                    name = f"{'up' if good else 'down'}{place}"
                    buttons.append((gr.Button(f"{sign}{side}", visible=False, elem_id=name), thumb(place, good)))
        if self.sides > 1:
            with gr.Row():
                for label, place, name in (
                    ("Left is better", 0, "better0"),
                    ("Right is better", 1, "better1"),
                    ("As good", TIE, "tie"),
                ):
                    buttons.append((gr.Button(label, visible=False, elem_id=name), choice(place)))
        return buttons


def serve(session: Session, host: str, port: int, console: Console) -> None:
    """Serves the page until Ctrl-C.

    Raises:
        ValueError: gradio is not installed.
        OSError: the port is taken.
    """
    try:
        page = ChatPage(session).layout()
    except ImportError as error:
        raise ValueError("The chat page needs gradio: pip install '.[people]'. --terminal does without.") from error
    address = launch(page, host, port)
    say(console, f"The page: {address}  Ctrl-C ends.")
    try:
        while True:
            time.sleep(1)
    finally:
        page.close()
        say(console, f"{len(session.log.conversations)} conversations in {session.log.folder}")
