"""A/B tests: two actors answer the same prompts, a judge or people compare, and the test stops when it is sure.

OUT/settings.json      who plays, on what, how
OUT/responses.jsonl    A's response (r0) and B's (r1) to each prompt, as far as the test went
OUT/rankings.jsonl     the comparisons; judgments.jsonl and judges.json beside them, of a language model
OUT/ab.json, ab.md     the result
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress

from agents.checksums import read_object
from agents.console import say
from agents.evaluation.sequential import first_decision
from agents.files import write_json
from agents.preferences.folder import rank_in
from agents.preferences.judge import Judge
from agents.preferences.judge_report import FILE as JUDGES_FILE
from agents.preferences.judge_report import keep_report
from agents.preferences.players import Games, answers
from agents.preferences.records import (
    Candidates,
    Ranking,
    append_jsonl,
    drop_unfinished_line,
    read_candidates,
    read_rankings,
)
from agents.preferences.sampling import Source
from llm_env.lm.names import LoadSettings
from llm_env.text.prompts import PromptRecord

CHUNK = 32
"""Prompts that are answered and judged between two looks at the test."""
A, B = "r0", "r1"
"""Ids of the two responses."""


@dataclass(frozen=True)
class ABTest:
    """What is compared, and when it ends.

    Attributes:
        players: A and B.
        records: The prompts, in the order in which they are asked.
        games: How both respond.
        error: α of the test.
        equal_within: See `agents.evaluation.sequential.first_decision`.
        look: Whether the test ends when it is decided; else all prompts are compared.
    """

    players: tuple[Source, Source]
    records: Sequence[PromptRecord]
    games: Games
    error: float = 0.05
    equal_within: float = 0.0
    look: bool = True

    def decided(self, rankings: Sequence[Ranking]) -> bool:
        """Whether the test may end."""
        return self.look and first_decision(outcomes(rankings), self.error, self.equal_within)[0] is not None


def outcome(ranking: Ranking) -> float:
    """1 where A's response is better, 0 where B's is, one half where they tie, or are both bad."""
    ranks = ranking.ranks()
    if ranking.all_bad or ranks[A] == ranks[B]:
        return 0.5
    return float(ranks[A] < ranks[B])


def outcomes(rankings: Sequence[Ranking]) -> list[float]:
    """The outcome of each comparison, in order."""
    return [outcome(r) for r in rankings]


def first_answers(rankings: Sequence[Ranking], annotators: Callable[[str], bool]) -> list[Ranking]:
    """The first comparison of each prompt, in the order in which they were made: a prompt counts once, whoever judged it.

    Args:
        rankings: All comparisons of a folder.
        annotators: Whose comparisons count, by name.
    """
    first: dict[str, Ranking] = {}
    for ranking in rankings:
        if annotators(ranking.annotator):
            first.setdefault(ranking.candidates.id, ranking)
    return list(first.values())


def compared_in(test: ABTest, folder: Path, judge: str | None) -> list[Ranking]:
    """The first comparison of each of the test's prompts that a folder holds, in the order in which they were made.

    Args:
        test: Who plays, on what.
        folder: Holds the comparisons.
        judge: Name of the judge whose comparisons count; None: all people's, whom no report of judges names.
    """
    path = folder / "rankings.jsonl"
    rankings = read_rankings(path) if path.is_file() and path.stat().st_size else []
    judges = set(read_object(folder / JUDGES_FILE)) if judge is None and (folder / JUDGES_FILE).is_file() else set()
    ids = {f"p{i}" for i in range(len(test.records))}
    first = first_answers(rankings, lambda name: name not in judges if judge is None else name == judge)
    return [r for r in first if r.candidates.id in ids]


def keep_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Writes who plays and how, or compares it with what the folder says.

    Raises:
        ValueError: the folder holds another test, or something else.
    """
    path = folder / "settings.json"
    settings = json.loads(json.dumps(settings))
    if not path.is_file():
        write_json(path, settings)
        return
    before = read_object(path)
    changed = [k for k in settings if before.get(k) != settings[k]]
    if changed:
        raise ValueError(
            f"output_dir={str(folder)!r} has a test with other settings ({', '.join(changed)}). Choose another folder, or the "
            "same settings."
        )


def shuffled(records: Sequence[PromptRecord], seed: int, count: int | None) -> list[PromptRecord]:
    """At most `count` of the prompts, in random order, so that a test that ends early has seen all kinds; None: all."""
    return [records[i] for i in np.random.default_rng(seed).permutation(len(records))[:count]]


def responses_to(test: ABTest, count: int, folder: Path, load: LoadSettings) -> list[Candidates]:
    """Both players' responses to the first prompts: those in the folder's ``responses.jsonl``, and what is missing there.

    Args:
        test: Who plays, on what.
        count: How many prompts must be answered.
        folder: Where responses are kept. Interrupted, the same ones are drawn again.
        load: How models are loaded.

    Raises:
        FileNotFoundError, ValueError: a model cannot be loaded.
    """
    path = folder / "responses.jsonl"
    drop_unfinished_line(path)
    kept = read_candidates(path) if path.is_file() and path.stat().st_size else []
    for start in range(len(kept) // CHUNK * CHUNK, min(count, len(test.records)), CHUNK):
        records = test.records[start : start + CHUNK]
        both = [answers(p, place, records, test.games, load, start) for place, p in enumerate(test.players)]
        for i, (record, a, b) in enumerate(zip(records, *both, strict=True), start):
            if i >= len(kept):
                kept.append(Candidates(f"p{i}", record.prompt, (a, b), record.columns))
                append_jsonl(path, kept[-1].to_json())
    return kept


def run_with_judge(test: ABTest, judge: Judge, folder: Path, load: LoadSettings, console: Console) -> list[Ranking]:
    """Answers and judges, `CHUNK` prompts at a time, until the test is decided or no prompt is left.

    Returns:
        The judge's comparisons, in order.

    Raises:
        FileNotFoundError, ValueError, RewardModelError: a model cannot be loaded, or the judge fails.
    """
    rankings: list[Ranking] = []
    # Each chunk has noise of its own, whether or not those before were judged in this process.
    noises = iter(judge.rng.spawn(len(test.records) // CHUNK + 1))
    with Progress(console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("comparisons", total=len(test.records))
        for end in range(CHUNK, len(test.records) + CHUNK, CHUNK):
            judge.rng = next(noises)
            candidates = responses_to(test, end, folder, load)
            shown = candidates[: min(end, len(test.records))]
            ids = {c.id for c in shown}
            own = first_answers(rank_in(folder, shown, judge), lambda name: name == judge.name)
            rankings = [r for r in own if r.candidates.id in ids]
            progress.update(task, completed=len(rankings))
            if test.decided(rankings):
                break
    report = judge.report([r.candidates for r in rankings], folder)
    keep_report(folder, report)
    return rankings


def run_with_people(
    test: ABTest, folder: Path, load: LoadSettings, page: tuple[str, int, str], console: Console
) -> list[Ranking]:
    """Answers all prompts, and opens a page on which people compare, until the test is decided.

    Args:
        test: Who plays, on what.
        folder: Holds responses and comparisons.
        load: How models are loaded.
        page: Address and port of the page, and what people do on it.
        console: Where the page's address is printed.

    Returns:
        The first comparison of each prompt, in order; those of judges that are no people are left out.

    Raises:
        FileNotFoundError, ValueError, OSError: a model cannot be loaded, or the page not be opened.
    """
    from agents.preferences.page import serve  # needs gradio

    host, port, kind = page
    candidates = responses_to(test, len(test.records), folder, load)[: len(test.records)]
    say(console, "The page closes when the test is decided." if test.look else "All prompts are compared.")
    serve(
        candidates,
        folder / "rankings.jsonl",
        (),
        host,
        port,
        console,
        kind,
        until=lambda answers: answers.complete or test.decided(compared_in(test, folder, None)),
        may_tie=True,
    )
    return compared_in(test, folder, None)
