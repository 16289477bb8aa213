"""A folder of responses and rankings that can be gone on with: ``responses.jsonl``, ``rankings.jsonl``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from agents.preferences.judge import Judge
from agents.preferences.records import (
    Candidates,
    Ranking,
    append_jsonl,
    drop_unfinished_line,
    read_candidates,
    read_rankings,
    write_jsonl,
)
from agents.preferences.sampling import Source, collect_responses
from llm_env.lm.names import LoadSettings
from llm_env.text.prompts import RawPrompt

CHUNK = 128


@dataclass(frozen=True)
class Sampling:
    """How responses are sampled.

    Attributes:
        sources: Who responds; they take turns.
        n_responses: To each prompt, at least 2.
        max_prompt_length: In tokens; longer prompts are cut on the left.
        max_new_tokens: Length cap of a response.
        seed: Of the sampling.
    """

    sources: tuple[Source, ...]
    n_responses: int
    max_prompt_length: int
    max_new_tokens: int
    seed: int


def candidates_in(
    folder: Path,
    asked: Sequence[RawPrompt],
    sampling: Sampling,
    load: LoadSettings,
    described: Mapping[str, Any],
    console: Console,
) -> list[Candidates]:
    """The responses in a folder: those that are there, and sampled ones for what is missing.

    Args:
        folder: Holds ``responses.jsonl``, and ``responses.json`` to say how far it is, how it was made and
            how many response tokens that took.
        asked: Prompts, in order.
        sampling: How.
        load: How models are loaded.
        described: What the prompts are, to tell whether the folder's responses are to the same ones.
        console: For a progress bar.

    Raises:
        FileNotFoundError, ValueError: a model cannot be loaded, or the folder's responses were sampled otherwise.
    """
    own = {
        **described,
        "actors": list(dict.fromkeys(s.name for s in sampling.sources)),
        "temperatures": list(dict.fromkeys(s.temperature for s in sampling.sources)),
        **{k: getattr(sampling, k) for k in ("n_responses", "max_prompt_length", "max_new_tokens", "seed")},
    }
    settings = json.loads(json.dumps(own))
    note, path = folder / "responses.json", folder / "responses.jsonl"
    before = json.loads(note.read_text(encoding="utf-8")) if note.is_file() else None
    if path.is_file() and before is None:
        return read_candidates(path)  # of the user's own
    if before is not None and before["settings"] != settings:
        changed = [k for k, v in settings.items() if before["settings"].get(k) != v]
        raise ValueError(
            f"{str(folder)!r} has responses that were sampled with other settings ({', '.join(changed)}). "
            "Choose another folder, or the same settings."
        )
    done, tokens = (before["asked"], before["tokens"]) if before is not None else (0, 0)
    if before is None:  # before the first response: a file without a note is somebody's own
        _note(note, settings, 0, 0)
    if done < len(asked):
        drop_unfinished_line(path)
        keep_first(path, done)
    rounds = collect_responses(
        asked,
        sampling.sources,
        load,
        sampling.n_responses,
        sampling.max_prompt_length,
        sampling.max_new_tokens,
        sampling.seed,
        done,
        CHUNK,
    )
    left = -(-(len(asked) - done) // CHUNK)
    for made in track(rounds, "responses", total=left, console=console, disable=not console.is_terminal or not left):
        for candidates in made.candidates:
            append_jsonl(path, candidates.to_json())
        done = min(done + CHUNK, len(asked))
        tokens += made.tokens
        _note(note, settings, done, tokens)
    return read_candidates(path)


def _note(path: Path, settings: dict[str, Any], asked: int, tokens: int) -> None:
    partial = path.with_suffix(".partial")
    content = {"settings": settings, "asked": asked, "tokens": tokens}
    partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


def keep_first(path: Path, asked: int) -> None:
    """Drops responses to prompts behind the first `asked`: of a chunk that was interrupted."""
    if not path.is_file():
        return
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join(x for x in lines if int(json.loads(x)["id"][1:]) < asked), encoding="utf-8")


def rank_in(folder: Path, candidates: Sequence[Candidates], judge: Judge) -> list[Ranking]:
    """Has a judge rank what it has not ranked in a folder's ``rankings.jsonl``; returns all rankings there."""
    path = folder / "rankings.jsonl"
    said = read_rankings(path) if path.is_file() else []
    done = {r.candidates.id for r in said if r.annotator == judge.name}
    left = [c for c in candidates if c.id not in done]
    if left:
        write_jsonl(path, [r.to_json() for r in [*said, *judge.rank(left)]])
    return read_rankings(path)
