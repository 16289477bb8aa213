"""A local page on which people rank responses: blind, in random order, ties allowed, every answer on the disk at once."""

from __future__ import annotations

import hashlib
import os
import string
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from agents.preferences.records import Candidates, Ranking, append_jsonl, drop_unfinished_line, read_rankings
from llm_env.extras import require


@dataclass(frozen=True)
class Question:
    """A prompt to be ranked, in one respect."""

    candidates: Candidates
    aspect: str | None = None

    def order(self, annotator: str) -> list[int]:
        """The order in which this annotator sees the responses: random, and the same again after a restart."""
        text = f"{annotator}\n{self.candidates.id}\n{self.aspect}"
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
        return [int(i) for i in np.random.default_rng(seed).permutation(len(self.candidates.responses))]


@dataclass
class Answers:
    """The answers of all annotators, in a file.

    Args:
        path: ``rankings.jsonl``; what is in it counts as answered.
        questions: What is asked, in this order.
    """

    path: Path
    questions: list[Question]
    given: dict[tuple[str, str, str | None], Ranking] = field(default_factory=dict)
    _skipped: dict[str, list[int]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        """Reads what is there.

        Raises:
            ValueError: the file holds something else.
        """
        drop_unfinished_line(self.path)
        if self.path.is_file() and self.path.stat().st_size:
            for ranking in read_rankings(self.path):
                self.given[ranking.annotator, ranking.candidates.id, ranking.aspect] = ranking

    def next(self, annotator: str) -> int | None:
        """The first question that the annotator has not answered; skipped ones come last. None: all are answered."""
        left = [n for n, q in enumerate(self.questions) if (annotator, q.candidates.id, q.aspect) not in self.given]
        skipped = self._skipped.get(annotator, [])
        return min(left, key=lambda n: (skipped.index(n) + 1 if n in skipped else 0, n), default=None)

    def skip(self, annotator: str, number: int) -> None:
        """Puts a question behind the annotator's others."""
        skipped = self._skipped.setdefault(annotator, [])
        if number in skipped:
            skipped.remove(number)
        skipped.append(number)

    def done(self, annotator: str) -> int:
        """How many the annotator has answered."""
        return sum((annotator, q.candidates.id, q.aspect) in self.given for q in self.questions)

    @property
    def complete(self) -> bool:
        """Whether somebody has answered each question."""
        answered = {key[1:] for key in self.given}
        return all((q.candidates.id, q.aspect) in answered for q in self.questions)

    def add(self, annotator: str, number: int, ranks: Sequence[int] | None) -> None:
        """Keeps an answer: on the disk when this returns.

        Args:
            annotator: Who.
            number: Which question.
            ranks: The rank of each response, in the candidates' order, 1 the best; None: all are bad.
        """
        question = self.questions[number]
        tiers: list[tuple[str, ...]] = []
        if ranks is not None:
            names = [r.id for r in question.candidates.responses]
            for rank in sorted(set(ranks)):
                tiers.append(tuple(n for n, r in zip(names, ranks, strict=True) if r == rank))
        ranking = Ranking(question.candidates, tuple(tiers), annotator, question.aspect, ranks is None)
        with self._lock:
            append_jsonl(self.path, ranking.to_json())
            self.given[annotator, question.candidates.id, question.aspect] = ranking


def prompt_text(candidates: Candidates) -> str:
    """What the page shows of a prompt."""
    if isinstance(candidates.prompt, str):
        return candidates.prompt
    return "\n\n".join(f"{m['role']}: {m['content']}" for m in candidates.prompt)


def build(answers: Answers) -> Any:
    """The page, a `gradio.Blocks`.

    Raises:
        ImportError: gradio is not installed.
    """
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    gr = require("gradio", "people")

    most = max(len(q.candidates.responses) for q in answers.questions)
    letters = string.ascii_uppercase

    def show(annotator: str, message: str = "") -> list[Any]:
        """Everything on the page, for an annotator's next question."""
        number = answers.next(annotator)
        total = len(answers.questions)
        status = f"{answers.done(annotator)} of {total} done"
        if number is None:
            hidden = [gr.update(visible=False) for _ in range(2 * most)]
            rest = [gr.update(visible=False) for _ in range(3)]
            return [
                None,
                f"All {total} are done. Thank you, {annotator}.",
                "",
                gr.update(visible=False),
                *hidden,
                *rest,
            ]
        question = answers.questions[number]
        order = question.order(annotator)
        count = len(order)
        texts, ranks = [], []
        for place in range(most):
            if place < count:
                text = question.candidates.responses[order[place]].text.strip()
                texts.append(gr.update(value=text, label=f"Response {letters[place]}", visible=True))
                ranks.append(gr.update(choices=[str(i + 1) for i in range(count)], value=None, visible=True))
            else:
                texts.append(gr.update(visible=False))
                ranks.append(gr.update(visible=False))
        asked = f"Which is more {question.aspect}? " if question.aspect else ""
        title = f"{asked}{status}. 1 is the best; equal numbers are ties."
        prompt = gr.update(value=prompt_text(question.candidates), visible=True)
        rest = [gr.update(visible=True) for _ in range(3)]
        return [number, title, message, prompt, *texts, *ranks, *rest]

    def stay(message: str) -> list[Any]:
        """The page as it is, with a message."""
        return [gr.skip(), gr.skip(), f"**{message}**", *[gr.skip()] * (1 + 2 * most + 3)]

    def start(name: str) -> list[Any]:
        name = (name or "").strip()
        if not name:
            gr.Warning("Please give a name: answers are kept under it.")
            return [gr.skip(), gr.skip(), gr.skip(), *stay("")]
        return [name, gr.update(visible=False), gr.update(visible=True), *show(name)]

    def submit(annotator: str, number: int | None, *ranks: str | None) -> list[Any]:
        if number is None:
            return show(annotator)
        question = answers.questions[number]
        order = question.order(annotator)
        chosen = ranks[: len(order)]
        missing = [letters[i] for i, r in enumerate(chosen) if not r]
        if missing:
            return stay(f"No rank yet for response {', '.join(missing)}.")
        own = [0] * len(order)
        for place, rank in enumerate(chosen):
            own[order[place]] = int(rank or 0)
        if len(set(own)) == 1:
            return stay("All have the same rank. If none is any good, say 'All bad'; if all are as good, skip.")
        answers.add(annotator, number, own)
        return show(annotator, "Saved.")

    def all_bad(annotator: str, number: int | None) -> list[Any]:
        if number is not None:
            answers.add(annotator, number, None)
        return show(annotator, "Saved: all bad.")

    def skip(annotator: str, number: int | None) -> list[Any]:
        if number is not None:
            answers.skip(annotator, number)
        return show(annotator, "Put to the end.")

    with gr.Blocks(title="Which response is better?", analytics_enabled=False) as page:
        annotator, current = gr.State(""), gr.State(None)
        with gr.Column(visible=True) as door:
            gr.Markdown("## Which response is better?\nYou will see a prompt and responses to it, in random order.")
            name = gr.Textbox(label="Your name", elem_id="name")
            begin = gr.Button("Begin", variant="primary", elem_id="begin")
        with gr.Column(visible=False) as room:
            title = gr.Markdown(elem_id="status")
            note = gr.Markdown(elem_id="note")
            prompt = gr.Textbox(label="Prompt", interactive=False, elem_id="prompt", lines=2)
            texts, ranks = [], []
            for place in range(most):
                with gr.Row():
                    texts.append(gr.Textbox(interactive=False, elem_id=f"response{place}", lines=2, scale=4))
                    ranks.append(gr.Radio([], label="Rank", elem_id=f"rank{place}", scale=1))
            with gr.Row():
                buttons = [
                    gr.Button("Save ranking", variant="primary", elem_id="submit"),
                    gr.Button("All bad", elem_id="all_bad"),
                    gr.Button("Skip", elem_id="skip"),
                ]
        shown = [current, title, note, prompt, *texts, *ranks, *buttons]
        begin.click(start, [name], [annotator, door, room, *shown], show_progress="hidden")
        name.submit(start, [name], [annotator, door, room, *shown], show_progress="hidden")
        buttons[0].click(submit, [annotator, current, *ranks], shown, show_progress="hidden")
        buttons[1].click(all_bad, [annotator, current], shown, show_progress="hidden")
        buttons[2].click(skip, [annotator, current], shown, show_progress="hidden")
    return page


def serve(
    candidates: Sequence[Candidates],
    path: Path,
    aspects: Sequence[str],
    host: str,
    port: int,
    console: Console,
    until_complete: bool = False,
) -> None:
    """Serves the page until Ctrl-C.

    Args:
        candidates: What to rank.
        path: Where the answers go.
        aspects: In which respects, one after the other; none: overall.
        host: Address to listen at.
        port: Port.
        console: Where to say so.
        until_complete: End as well when somebody has answered each question.

    Raises:
        ValueError: gradio is not installed, or the file of answers holds something else.
        OSError: the port is taken.
    """
    answers = Answers(path, [Question(c, a) for a in aspects or (None,) for c in candidates])
    try:
        page = build(answers)
    except ImportError as error:
        raise ValueError("--people needs gradio: pip install '.[people]'.") from error
    page.launch(server_name=host, server_port=port, prevent_thread_lock=True, quiet=True, footer_links=[])
    end = "It goes on when all are answered; Ctrl-C stops." if until_complete else "Ctrl-C ends."
    console.print(f"Rank at http://{host}:{port}  ({len(answers.questions)} prompts). {end}", highlight=False)
    try:
        while not (until_complete and answers.complete):
            time.sleep(1)
    finally:
        page.close()
        console.print(f"{len(answers.given)} answers in {path}", highlight=False)
