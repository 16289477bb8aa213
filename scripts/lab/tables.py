r"""Writes what docs/*.md show of result files and of the algorithms' table, and says which pages are out of date.

    python scripts/lab/tables.py                write all blocks and tables anew
    python scripts/lab/tables.py --check        only say which pages would change

A block stands between two comments, which name what is made and from what:

    <!-- made: compared compare/results.json algorithm score gold "KL (nats)=KL" -->
    <!-- end -->

Each algorithm has a page in docs/algorithms; a new one gets its page here, and its notes by hand.
"""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

import algorithm_pages
import calculator
import same_decisions
import turns
from agents.algorithms.capabilities import capability_table
from agents.algorithms.table import ALGORITHMS
from agents.cli import sweep
from agents.console import PlainConsole, print_error
from agents.files import write_text
from comparison.figures import COLUMNS, markdown_table, samples_table
from comparison.regret import cell_table, regret_table

DOCS = Path(__file__).resolve().parents[2] / "docs"
BLOCK = re.compile(r"^<!-- made: (.+?) -->\n(?:(?!<!--).*?\n)?<!-- end -->$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Args:
    """Writes the pages, or checks them."""

    check: bool = False
    """Write nothing: name the pages that are out of date, and fail if there are any."""


def read(file: str) -> Any:
    """A result file of docs."""
    return json.loads((DOCS / file).read_text(encoding="utf-8"))


def compared(file: str, *columns: str) -> str:
    """The table of a comparison, all of its columns or those named; ``name=title`` gives one another title."""
    named = dict(column.partition("=")[::2] for column in columns)
    titles = {name: title or name for name, title in named.items()}
    return markdown_table(read(file), tuple(named) or COLUMNS, titles)


def with_calculator(file: str) -> str:
    """The table of `calculator.py`, without the line below it."""
    return calculator.table(read(file), calculator.Args("")).partition("\n\n")[0] + "\n"


MAKERS: dict[str, Callable[..., str]] = {
    "about": algorithm_pages.about,
    "can-i-use": algorithm_pages.can_i_use,
    "example": algorithm_pages.example,
    "results": algorithm_pages.results,
    "replicate": algorithm_pages.replicate,
    "parameters": algorithm_pages.parameters,
    "capabilities": capability_table,
    "compared": compared,
    "calculator": with_calculator,
    "credit": lambda file: turns.table(read(file)),
    "decisions": lambda file: same_decisions.table(read(file)),
    "regrets": lambda file: regret_table(read(file)),
    "cells": lambda file, *names: cell_table(read(file), names),
    "swept": lambda file: sweep.markdown_table(read(file)),
}
"""What makes a block, by the first word of its comment; the others are its arguments."""
FILES: dict[str, tuple[Callable[[Any], str], str]] = {
    "compare/table.md": (markdown_table, "compare/results.json"),
    "compare/samples.md": (samples_table, "compare/results.json"),
    "offline/table.md": (markdown_table, "offline/results.json"),
    "offline/samples.md": (samples_table, "offline/results.json"),
    "offline/film_table.md": (markdown_table, "offline/film_results.json"),
    "offline/film_samples.md": (samples_table, "offline/film_results.json"),
    "offline/film_pairs_table.md": (markdown_table, "offline/film_pairs_results.json"),
    "offline/film_pairs_samples.md": (samples_table, "offline/film_pairs_results.json"),
    "calculator/table.md": (lambda reports: calculator.table(reports, calculator.Args("")), "calculator/results.json"),
    "turns/table.md": (turns.table, "turns/results.json"),
    "turns/transcripts.md": (turns.transcripts, "turns/results.json"),
    "feedback/table.md": (same_decisions.table, "feedback/results.json"),
    "feedback/samples.md": (same_decisions.samples, "feedback/results.json"),
}
"""What the scripts that measured wrote beside their results, by its name in docs."""


def made(text: str) -> str:
    """A page's text with its blocks made anew.

    Raises:
        ValueError: a comment names what nothing makes, or a block has no end.
    """

    def block(match: re.Match[str]) -> str:
        maker, *arguments = shlex.split(match[1])
        if maker not in MAKERS:
            raise ValueError(f"made: {maker!r} is not known; there is {', '.join(MAKERS)}.")
        return f"<!-- made: {match[1]} -->\n{MAKERS[maker](*arguments).rstrip()}\n<!-- end -->"

    if (begun := text.count("<!-- made: ")) != (found := len(BLOCK.findall(text))):
        raise ValueError(f"{begun} blocks begin, and {found} end with <!-- end --> before another comment.")
    return BLOCK.sub(block, text)


def pages() -> dict[Path, str]:
    """All that is made: the text that each page of docs should have, by its path.

    Raises:
        ValueError: a block of a page cannot be made; the page is named.
    """
    found = {DOCS / name: make(read(file)) for name, (make, file) in FILES.items()}
    new = {DOCS / "algorithms" / f"{name}.md": algorithm_pages.NEW_PAGE.format(name=name) for name in ALGORITHMS}
    for path in sorted({*DOCS.rglob("*.md"), *new} - found.keys()):
        text = path.read_text(encoding="utf-8") if path.is_file() else new[path]
        if "<!-- made: " in text:
            try:
                found[path] = made(text)
            except ValueError as error:
                raise ValueError(f"{path.relative_to(DOCS.parent)}: {error}") from None
    return found


def out_of_date() -> dict[Path, str]:
    """The pages whose text is another than it should be, with that."""
    return {
        path: text
        for path, text in pages().items()
        if not path.is_file() or path.read_text(encoding="utf-8").rstrip() != text.rstrip()
    }


def main(args: Args) -> int:
    """Writes or checks; returns the exit status."""
    console = PlainConsole()
    try:
        old = out_of_date()
    except (ValueError, LookupError, OSError) as error:
        print_error(error)
        return 1
    for path, text in old.items():
        console.print(f"{'out of date' if args.check else 'written'}: {path.relative_to(DOCS.parent)}")
        if not args.check:
            write_text(path, text)
    return 1 if old and args.check else 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Args, description=__doc__)))
