"""A local page on which people rank responses, give them stars, or edit them: blind, in random order, ties allowed."""

from __future__ import annotations

import os
import re
import string
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from agents.console import say
from agents.local_page import launch
from agents.preferences.answers import Answers, Question
from agents.preferences.corrections import CorrectionAnswers
from agents.preferences.records import Candidates
from agents.preferences.settings import CORRECTIONS, STARS
from agents.preferences.stars import MOST
from llm_env.extras import require


def prompt_text(candidates: Candidates) -> str:
    """A prompt as the page shows it: the text, or chat messages with their roles."""
    if isinstance(candidates.prompt, str):
        return candidates.prompt
    return "\n\n".join(f"{m['role']}: {m['content']}" for m in candidates.prompt)


def as_text(text: str) -> str:
    """A text as Markdown that shows it as it is: neither markup nor links, images or HTML."""
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", text)  # a backslash before each punctuation mark of ASCII


def letters(place: int) -> str:
    """What a place is called: A to Z, then AA, AB and so on."""
    before, letter = divmod(place, len(string.ascii_uppercase))
    return (letters(before - 1) if before else "") + string.ascii_uppercase[letter]


class RankingPage:
    """The page: what it shows for each question, and what its buttons do.

    Each handler returns a list of updates, one for each component in the order of `layout`'s ``shown``: the number of the
    question, status, note, prompt, responses, ranks, buttons.

    Args:
        answers: The questions, and the file that answers go to.

    Raises:
        ImportError: gradio is not installed.
    """

    heading = "Which response is better?"
    rule = "1 is the best; equal numbers are ties."
    label = "Rank"
    takes_all_bad = True
    all_label = "All bad"
    edits = False

    def __init__(self, answers: Answers) -> None:
        # Set for the whole process: gradio's threads ask the environment before they report errors and look for versions,
        # whatever `analytics_enabled` of the page says.
        os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
        self.gr = require("gradio", "people")
        self.answers = answers
        self.places = max(len(q.candidates.responses) for q in answers.questions)
        self.letters = [letters(place) for place in range(self.places)]

    def show(self, annotator: str, message: str = "") -> list[Any]:
        """Shows an annotator's next question, or thanks where none is left."""
        if not annotator:  # the server was started again, or forgot a page that was away for an hour
            return self.stay("This page does not know any more who you are: reload it.")
        number = self.answers.next(annotator)
        total = len(self.answers.questions)
        if number is None:
            hidden = [self.gr.update(visible=False) for _ in range(1 + 2 * self.places + 3)]
            return [None, f"All {total} are done. Thank you.", "", *hidden]
        question = self.answers.questions[number]
        title = f"{self.asked(question)}{self.answers.done(annotator)} of {total} done. {self.rule}"
        prompt = self.gr.update(value=prompt_text(question.candidates), visible=True)
        texts, ranks = self._responses(question, annotator)
        save, all_bad, skip = (self.gr.update(visible=visible) for visible in (True, self.takes_all_bad, True))
        return [number, title, message, prompt, *texts, *ranks, save, all_bad, skip]

    def asked(self, question: Question) -> str:
        """What is asked about a question's aspect; nothing where it has none."""
        return f"Which is more {as_text(question.aspect)}? " if question.aspect else ""

    def choices(self, count: int) -> list[str]:
        """What can be chosen for each of a question's responses: as many ranks as there are responses."""
        return [str(i + 1) for i in range(count)]

    def _responses(self, question: Question, annotator: str) -> tuple[list[Any], list[Any]]:
        """Updates of the places for responses and of those for ranks; places that are not needed are hidden."""
        order = question.order(annotator)
        choices = self.choices(len(order))
        texts, ranks = [], []
        for place in range(self.places):
            if place < len(order):
                text = question.candidates.responses[order[place]].text.strip()
                texts.append(self.gr.update(value=text, label=f"Response {self.letters[place]}", visible=True))
                ranks.append(self.gr.update(choices=choices, value=None, visible=True))
            else:
                texts.append(self.gr.update(visible=False))
                ranks.append(self.gr.update(visible=False))
        return texts, ranks

    def stay(self, message: str) -> list[Any]:
        """Leaves the page as it is, with a message."""
        skip = self.gr.skip()
        return [skip, skip, f"**{message}**", *[skip] * (1 + 2 * self.places + 3)]

    def start(self, name: str) -> list[Any]:
        """Takes an annotator's name, and opens the first question."""
        name = (name or "").strip()
        if not name:
            self.gr.Warning("Please give a name: answers are kept under it.")
            return [self.gr.skip(), self.gr.skip(), self.gr.skip(), *self.stay("")]
        return [name, self.gr.update(visible=False), self.gr.update(visible=True), *self.show(name)]

    def submit(self, annotator: str, number: int | None, *choices: str | None) -> list[Any]:
        """Keeps a ranking, unless a rank is missing or all are the same.

        Args:
            annotator: Name of who answers.
            number: Number of the question; None where none is open.
            choices: The rank chosen at each place, from top to bottom; None where none was.
        """
        if number is None or self.answers.has(annotator, number):
            return self.show(annotator)
        order = self.answers.questions[number].order(annotator)
        choices = choices[: len(order)]
        missing = [self.letters[i] for i, choice in enumerate(choices) if not choice]
        if missing:
            return self.stay(f"No {self.label.lower()} yet for response {', '.join(missing)}.")
        chosen = [0] * len(order)
        for place, choice in enumerate(choices):  # back from the annotator's order to the candidates'
            chosen[order[place]] = int(choice or 0)
        return self.keep(annotator, number, chosen)

    def keep(self, annotator: str, number: int, ranks: list[int]) -> list[Any]:
        """Keeps the ranks of the candidates, in their order, unless all are the same."""
        if len(set(ranks)) == 1 and not self.answers.may_tie:
            return self.stay("All have the same rank. If none is any good, say 'All bad'; if all are as good, skip.")
        self.answers.add(annotator, number, ranks)
        return self.show(annotator, "Saved.")

    def all_bad(self, annotator: str, number: int | None) -> list[Any]:
        """Keeps that no response is any good."""
        if number is None or self.answers.has(annotator, number):
            return self.show(annotator)
        self.answers.add(annotator, number, None)
        return self.show(annotator, "Saved: all bad.")

    def skip(self, annotator: str, number: int | None) -> list[Any]:
        """Puts the question behind the others."""
        if number is not None:
            self.answers.skip(annotator, number)
        return self.show(annotator, "Put to the end.")

    def layout(self) -> Any:
        """Builds the page, a `gradio.Blocks`: first the question for a name, then the questions."""
        gr = self.gr
        with gr.Blocks(title=self.heading, analytics_enabled=False) as page:
            annotator, current = gr.State(""), gr.State(None)
            with gr.Column(visible=True) as entrance:
                gr.Markdown(f"## {self.heading}\nYou will see a prompt and responses to it, in random order.")
                name = gr.Textbox(label="Your name", elem_id="name")
                begin = gr.Button("Begin", variant="primary", elem_id="begin")
            with gr.Column(visible=False) as ranking:
                title = gr.Markdown(elem_id="status")
                note = gr.Markdown(elem_id="note")
                prompt = gr.Textbox(label="Prompt", interactive=False, elem_id="prompt", lines=2)
                texts, ranks = [], []
                for place in range(self.places):
                    with gr.Row():
                        texts.append(gr.Textbox(interactive=self.edits, elem_id=f"response{place}", lines=2, scale=4))
                        ranks.append(gr.Radio([], label=self.label, elem_id=f"rank{place}", scale=1))
                with gr.Row():
                    save = gr.Button("Save", variant="primary", elem_id="submit")
                    bad = gr.Button(self.all_label, elem_id="all_bad")
                    skip = gr.Button("Skip", elem_id="skip")
            # Called by the page alone: no part of an API that others could ask for.
            quiet: Any = {"show_progress": "hidden", "api_visibility": "private"}
            shown = [current, title, note, prompt, *texts, *ranks, save, bad, skip]
            begin.click(self.start, [name], [annotator, entrance, ranking, *shown], **quiet)
            name.submit(self.start, [name], [annotator, entrance, ranking, *shown], **quiet)
            save.click(self.submit, [annotator, current, *(texts if self.edits else ranks)], shown, **quiet)
            bad.click(self.all_bad, [annotator, current], shown, **quiet)
            skip.click(self.skip, [annotator, current], shown, **quiet)
        return page


class StarPage(RankingPage):
    """The page on which people give each response 1 to 5 stars. All may have the same: stars are absolute."""

    heading = "How good is each response?"
    rule = f"Stars for each response, 1 (bad) to {MOST} (very good)."
    label = "Stars"
    takes_all_bad = False

    def asked(self, question: Question) -> str:
        """See `RankingPage.asked`."""
        return f"How {as_text(question.aspect)} is each? " if question.aspect else ""

    def choices(self, count: int) -> list[str]:
        """1 to 5, however many responses there are."""
        return [str(star) for star in range(1, MOST + 1)]

    def keep(self, annotator: str, number: int, ranks: list[int]) -> list[Any]:
        """Keeps the stars of the candidates, in their order."""
        self.answers.add_stars(annotator, number, ranks)
        return self.show(annotator, "Saved.")


class CorrectionPage(RankingPage):
    """The page on which people edit responses where they stand."""

    heading = "How should the responses be?"
    rule = "Edit what should be different, as much as you like, and save."
    all_label = "Nothing to correct"
    edits = True
    answers: CorrectionAnswers

    def _responses(self, question: Question, annotator: str) -> tuple[list[Any], list[Any]]:
        """See `RankingPage._responses`; there are no ranks."""
        texts, ranks = super()._responses(question, annotator)
        return texts, [self.gr.update(visible=False) for _ in ranks]

    def submit(self, annotator: str, number: int | None, *choices: str | None) -> list[Any]:
        """Keeps the responses as they are now, unless one is empty, or none was changed.

        Args:
            annotator: Name of who answers.
            number: Number of the question; None where none is open.
            choices: The text at each place, from top to bottom.
        """
        if number is None or self.answers.has(annotator, number):
            return self.show(annotator)
        question = self.answers.questions[number]
        order = question.order(annotator)
        texts = [""] * len(order)
        for place, text in enumerate(choices[: len(order)]):  # back from the annotator's order to the candidates'
            texts[order[place]] = text or ""
            if not (text or "").strip():
                return self.stay(f"Response {self.letters[place]} is empty. Write it anew, or put back what was there.")
        before = [r.text.strip() for r in question.candidates.responses]
        if [text.strip() for text in texts] == before:
            return self.stay(f"Nothing was changed. If that is as it should be, say '{self.all_label}'.")
        count = self.answers.add_texts(annotator, number, texts)
        return self.show(annotator, f"Saved: {count} corrected.")

    def all_bad(self, annotator: str, number: int | None) -> list[Any]:
        """Keeps that there is nothing to correct."""
        if number is None or self.answers.has(annotator, number):
            return self.show(annotator)
        texts = [r.text for r in self.answers.questions[number].candidates.responses]
        self.answers.add_texts(annotator, number, texts)
        return self.show(annotator, "Saved: nothing to correct.")


def build(answers: Answers) -> Any:
    """Builds the page for some questions, a `gradio.Blocks`.

    Raises:
        ImportError: gradio is not installed.
    """
    if isinstance(answers, CorrectionAnswers):
        return CorrectionPage(answers).layout()
    return (StarPage if answers.in_stars else RankingPage)(answers).layout()


def serve(
    candidates: Sequence[Candidates],
    path: Path,
    aspects: Sequence[str],
    host: str,
    port: int,
    console: Console,
    kind: str,
    until: Callable[[Answers], bool] | None = None,
    may_tie: bool = False,
) -> None:
    """Serves the page until Ctrl-C.

    Args:
        candidates: Prompts with the responses to rank.
        path: ``rankings.jsonl``, or ``corrections.jsonl``, where the answers go.
        aspects: Respects in which people rank, one after the other; an empty sequence: overall only.
        host: Address to listen at.
        port: Port to listen at.
        console: Where the page's address, and in the end the number of answers, is printed.
        kind: What people do, one of `agents.preferences.settings.PAGES`.
        until: Return as well when this says so of the answers, which it is asked each second.
        may_tie: Whether a ranking in which all responses tie is an answer.

    Raises:
        ValueError: gradio is not installed, or the file of answers holds something else.
        OSError: the port is taken.
    """
    questions = [Question(c, a) for a in aspects or (None,) for c in candidates]
    is_stars = kind == STARS
    answers = CorrectionAnswers(path, questions) if kind == CORRECTIONS else Answers(path, questions, is_stars, may_tie)
    try:
        page = build(answers)
    except ImportError as error:
        raise ValueError("--people needs gradio: pip install '.[people]'.") from error
    address = launch(page, host, port)
    end = "Ctrl-C ends." if until is None else "It goes on when enough is answered; Ctrl-C stops."
    say(console, f"The page: {address}  ({len(answers.questions)} prompts). {end}")
    try:
        while until is None or not until(answers):
            time.sleep(1)
    except KeyboardInterrupt:
        if until is not None:  # something waits for the answers
            raise
    finally:
        page.close()
        say(console, f"{len(answers.answered)} answers in {path}")
