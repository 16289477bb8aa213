"""A folder of responses and rankings that a command can continue: ``responses.jsonl``, ``rankings.jsonl``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from agents.console import say
from agents.files import write_json, write_text
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
from agents.preferences.sampling import CHUNK, Sampling, collect_responses
from llm_env.lm.names import LoadSettings
from llm_env.text.prompts import PromptRecord, RawPrompt


def candidates_in(
    folder: Path,
    prompts: Sequence[RawPrompt | PromptRecord],
    sampling: Sampling,
    load: LoadSettings,
    described: Mapping[str, Any],
    console: Console,
) -> list[Candidates]:
    """Reads a folder's responses, after sampling those that are missing.

    Args:
        folder: Holds ``responses.jsonl``, and ``responses.json``, a note of the settings, of how many prompts were done and of
            the response tokens generated. Responses without a note are the user's own, and are returned as they are.
        prompts: The prompts to respond to, in order.
        sampling: The models that respond, and how.
        load: How models are loaded.
        described: Settings that say which prompts these are; a folder with other ones is refused.
        console: Where a progress bar is shown, or where it is no terminal a line at each tenth.

    Raises:
        FileNotFoundError, ValueError: a model cannot be loaded, or the folder's responses were sampled with other settings.
    """
    settings = _sampling_settings(sampling, described)
    note, path = folder / "responses.json", folder / "responses.jsonl"
    before = json.loads(note.read_text(encoding="utf-8")) if note.is_file() else None
    if path.is_file() and before is None:
        return read_candidates(path)
    if before is not None and before["settings"] != settings:
        changed = [k for k, v in settings.items() if before["settings"].get(k) != v]
        raise ValueError(
            f"{str(folder)!r} has responses that were sampled with other settings ({', '.join(changed)}). "
            "Choose another folder, or the same settings."
        )
    done, tokens = (before["asked"], before["tokens"]) if before is not None else (0, 0)
    if before is None:  # before the first response, because a file without a note is the user's own
        _write_note(note, settings, 0, 0)
    if done < len(prompts):
        drop_unfinished_line(path)
        keep_first(path, done)
    chunks = collect_responses(prompts, sampling, load, done)
    left = -(-(len(prompts) - done) // CHUNK)
    for chunk in track(chunks, "responses", total=left, console=console, disable=not console.is_terminal or not left):
        for candidates in chunk.candidates:
            append_jsonl(path, candidates.to_json())
        before_chunk, done = done, min(done + CHUNK, len(prompts))
        tokens += chunk.tokens
        if not console.is_terminal and 10 * done // len(prompts) > 10 * before_chunk // len(prompts):
            say(console, f"responded to {done:,} of {len(prompts):,} prompts")
        _write_note(note, settings, done, tokens)  # after the responses: a crash in between makes the chunk anew
    return read_candidates(path)


def _sampling_settings(sampling: Sampling, described: Mapping[str, Any]) -> dict[str, Any]:
    """What the note records of the settings, as JSON gives it back."""
    settings = {
        **described,
        "actors": list(dict.fromkeys(s.name for s in sampling.sources)),
        "temperatures": list(dict.fromkeys(s.temperature for s in sampling.sources)),
        **{k: getattr(sampling, k) for k in ("n_responses", "max_prompt_length", "max_new_tokens", "seed")},
    }
    as_json: dict[str, Any] = json.loads(json.dumps(settings))
    return as_json


def _write_note(path: Path, settings: dict[str, Any], done: int, tokens: int) -> None:
    """Writes how the responses were sampled, to how many prompts, and the response tokens that were generated."""
    write_json(path, {"settings": settings, "asked": done, "tokens": tokens})


def keep_first(path: Path, count: int) -> None:
    """Drops responses to prompts behind the first `count`, which belong to a chunk that was interrupted."""
    if not path.is_file():
        return
    with path.open(
        encoding="utf-8", newline="\n"
    ) as file:  # not `splitlines`: a text may hold U+2028, which it splits at
        write_text(path, "".join(line for line in file if int(json.loads(line)["id"][1:]) < count))


def rank_in(folder: Path, candidates: Sequence[Candidates], judge: Judge) -> list[Ranking]:
    """Has a judge rank what it has not ranked yet in a folder's ``rankings.jsonl``; returns all rankings there."""
    path = folder / "rankings.jsonl"
    rankings = read_rankings(path) if path.is_file() else []
    done = {r.candidates.id for r in rankings if r.annotator == judge.name}
    left = [c for c in candidates if c.id not in done]
    if left:
        write_jsonl(path, [r.to_json() for r in [*rankings, *judge.rank(left, folder)]])
    return read_rankings(path)


def labeled_candidates(folder: Path, labels: Sequence[Ranking], option: str = "labels") -> list[Candidates]:
    """The responses that people ranked, as those to rank; they are written to the folder's ``responses.jsonl``.

    Args:
        folder: Where they are written, unless they stand there.
        labels: What people ranked; several may have ranked the same.
        option: The option that the labels came from, for error messages.

    Raises:
        ValueError: two labels have the same id and other responses, or the folder has other responses.
    """
    by_id: dict[str, Candidates] = {}
    for label in labels:
        known = by_id.setdefault(label.candidates.id, label.candidates)
        if known != label.candidates:
            raise ValueError(f"{label.where}: the id {known.id!r} stands for another prompt or other responses before.")
    candidates, path = list(by_id.values()), folder / "responses.jsonl"
    if path.is_file() and read_candidates(path) != candidates:
        raise ValueError(f"{str(folder)!r} has other responses than {option}. Choose another folder.")
    write_jsonl(path, [c.to_json() for c in candidates])
    return candidates
