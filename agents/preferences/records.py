"""The files of preference data: responses, rankings and pairs.

``responses.jsonl`` holds the responses that are to be ranked, a prompt a line:

    {"id": "p0", "prompt": "How was it?", "responses": [{"id": "a", "text": " Good.", "finished": true, "source": "…"}, …]}

``rankings.jsonl`` holds rankings by people or judges, one a line, with the responses, so that it is complete in itself:

    {"id": "p0", "prompt": "How was it?", "responses": [as above], "ranking": [["a"], ["c", "b"]], "all_bad": false,
     "annotator": "ann", "aspect": null}

Where the prompt's record had further fields, they stand there as ``"columns": {…}``, in pairs too, for judges and gold.

A ranking lists response ids from best to worst, ties together; responses that it leaves out were not ranked. An aspect
(helpful, polite, …) says in which respect the responses were compared. ``finished`` is false where a response was cut off at
the length cap. A judge that scores adds ``"scores": {"a": 1.2, …}``.

Stars, 1 to 5, stand in either of two forms; responses with equally many tie:

    {"id": "p0", "prompt": "How was it?", "responses": [as above], "stars": {"a": 5, "b": 2}, "annotator": "ann"}
    {"prompt": "How was it?", "response": " Good.", "stars": 4, "annotator": "ann"}

Lines of the second form that have prompt, annotator and aspect in common become one ranking. ``"ranking"`` may stand beside the
stars of the first form and must say the same.

Pairs are TRL's format, ``{"prompt": …, "chosen": …, "rejected": …}``, with an optional ``margin``, and with
``"chosen_finished": false`` (``rejected_finished``) where a side was cut off; they are read wherever rankings are. Sides may be
messages, which may begin with the prompt's.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from agents.files import write_text
from agents.preferences.fields import aspect_of, columns_of, given_fields, margin_of, scores_of
from agents.preferences.stars import checked_star, checked_stars, tiers_by_stars
from llm_env.text.prompts import Message, RawPrompt, checked_prompt
from llm_env.text.records import read_records
from llm_env.text.texts import checked_finished


@dataclass(frozen=True)
class Response:
    """One response to a prompt.

    Attributes:
        id: Name of the response, unique among those to the same prompt.
        text: The text as it was generated.
        finished: Whether it ended by itself; False where it was cut off at the length cap.
        source: The model that responded and its temperature, for example ``runs/sft/actor at 0.7``.
    """

    id: str
    text: str
    finished: bool = True
    source: str = ""


@dataclass(frozen=True)
class Candidates:
    """A prompt and the responses to it that are to be ranked.

    Attributes:
        id: Name of the prompt, unique in its file.
        prompt: The prompt, a text or chat messages.
        responses: At least two responses.
        columns: The other fields of the prompt's record.
    """

    id: str
    prompt: RawPrompt
    responses: tuple[Response, ...]
    columns: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def to_json(self) -> dict[str, Any]:
        """Makes the record for a line of ``responses.jsonl``."""
        responses = [vars(r) for r in self.responses]
        return {"id": self.id, "prompt": self.prompt, **self.columns_json(), "responses": responses}

    def columns_json(self) -> dict[str, Any]:
        """Makes the field that keeps the columns; none where there are no columns."""
        return {"columns": dict(self.columns)} if self.columns else {}

    def response(self, name: str) -> Response:
        """The response whose id is `name`."""
        return next(r for r in self.responses if r.id == name)


@dataclass(frozen=True)
class Ranking:
    """A ranking of a prompt's responses by one annotator.

    Attributes:
        candidates: The prompt and the responses.
        tiers: Response ids from best to worst, ties together.
        annotator: Name of the person or judge who ranked.
        aspect: The respect in which the responses were compared, for example ``polite``; None: overall.
        all_bad: Whether the annotator found no response any good.
        margin: How much better the first response of a pair is, in the annotator's unit; None: not recorded.
        scores: Score of each response by its id, where the judge gives scores; None: not recorded.
        stars: Stars of each response by its id, 1 to 5, where the annotator gave some; None: a ranking without.
        where: File and line that the ranking was read from, for errors.
    """

    candidates: Candidates
    tiers: tuple[tuple[str, ...], ...]
    annotator: str = ""
    aspect: str | None = None
    all_bad: bool = False
    margin: float | None = None
    scores: Mapping[str, float] | None = None
    stars: Mapping[str, int] | None = None
    where: str = field(default="", compare=False)

    def to_json(self) -> dict[str, Any]:
        """Makes the record for a line of ``rankings.jsonl``."""
        verdict: dict[str, Any] = {
            "ranking": [list(tier) for tier in self.tiers],
            "all_bad": self.all_bad,
            "annotator": self.annotator,
            "aspect": self.aspect,
        }
        if self.margin is not None:
            verdict["margin"] = self.margin
        if self.scores is not None:
            verdict["scores"] = dict(self.scores)
        if self.stars is not None:
            verdict["stars"] = dict(self.stars)
        return {**self.candidates.to_json(), **verdict}

    def ranks(self) -> dict[str, int]:
        """The tier of each ranked response by its id, 0 the best."""
        return {name: place for place, tier in enumerate(self.tiers) for name in tier}

    def pairs(self) -> list[tuple[Response, Response, int]]:
        """All pairs of ranked responses, as (better, worse, how many tiers lie from one to the other); ties make none."""
        pairs = []
        for (i, better), (j, worse) in itertools.combinations(enumerate(self.tiers), 2):
            for one, other in itertools.product(better, worse):
                pairs.append((self.candidates.response(one), self.candidates.response(other), j - i))
        return pairs


def prompt_key(prompt: RawPrompt) -> str:
    """A text that is the same for equal prompts, to recognize a prompt by."""
    return prompt if isinstance(prompt, str) else json.dumps(prompt, sort_keys=True, ensure_ascii=False)


def read_candidates(path: str | Path) -> list[Candidates]:
    """Reads ``responses.jsonl``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a record is broken (its line is named), or there are no records.
    """
    by_id: dict[str, Candidates] = {}
    for where, record in read_records(path, "responses"):
        candidates = read_candidate_record(where, record)
        if candidates.id in by_id:
            raise ValueError(f"{where}: the id {candidates.id!r} stands there a second time.")
        by_id[candidates.id] = candidates
    if not by_id:
        raise ValueError(f"responses={str(path)!r} is empty.")
    return list(by_id.values())


def read_rankings(path: str | Path, option: str = "preferences") -> list[Ranking]:
    """Reads a file of rankings, of pairs, of stars, or of all of them.

    Args:
        path: The file, or a dataset id.
        option: The option that it came from, for error messages.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a record is broken, names unknown responses or has fewer than two, or a pair's sides are equal, or stars are
            out of range; file and line are named.
    """
    rankings: list[Ranking] = []
    starred: dict[tuple[str, str, str | None], int] = {}  # places in `rankings` of those made of single responses
    for where, record in read_records(path, option):
        if not isinstance(record, dict):
            raise ValueError(f"{where}: a preference is an object with 'ranking', or with 'chosen' and 'rejected'.")
        record = given_fields(record)
        if "ranking" in record or ("stars" in record and "responses" in record):
            rankings.append(_ranking(where, record))
        elif "stars" in record:
            one = _starred(where, record)
            place = starred.setdefault((prompt_key(one.candidates.prompt), one.annotator, one.aspect), len(rankings))
            if place == len(rankings):
                rankings.append(one)
            else:
                rankings[place] = _with_starred(rankings[place], one)
        elif "chosen" in record and "rejected" in record:
            rankings.append(_pair(where, record))
        else:
            raise ValueError(
                f"{where}: needs 'ranking', 'stars', or 'chosen' and 'rejected'; it has {', '.join(map(str, record))}."
            )
    if not rankings:
        raise ValueError(f"{option}={str(path)!r} is empty; at least one is needed.")
    return rankings


def read_candidate_record(where: str, record: Any, least: int = 2) -> Candidates:
    """Reads the prompt and the responses of a record, `least` of them; `where` names its file and line in errors."""
    if not isinstance(record, dict) or "prompt" not in record or not isinstance(record.get("responses"), list):
        raise ValueError(f"{where}: needs 'prompt' and a list of 'responses'.")
    prompt = checked_prompt(where, record["prompt"])
    responses = []
    for i, entry in enumerate(record["responses"]):
        if not isinstance(entry, dict) or not isinstance(entry.get("text"), str) or not entry.get("id"):
            raise ValueError(f"{where}: response {i} needs an 'id' and a 'text'; got {entry!r:.80}.")
        finished = checked_finished(f"{where}: response {i}", entry)
        responses.append(Response(str(entry["id"]), entry["text"], finished, str(entry.get("source") or "")))
    ids = [r.id for r in responses]
    if len(ids) < least:
        raise ValueError(f"{where}: has {len(ids)} response; a ranking needs at least two.")
    if len(set(ids)) < len(ids):
        raise ValueError(f"{where}: two responses have the same id; the ids are {', '.join(ids)}.")
    name = str(record.get("id", prompt_key(prompt)))
    return Candidates(name, prompt, tuple(responses), columns_of(where, record))


def _ranking(where: str, record: dict[str, Any]) -> Ranking:
    """Reads a line of ``rankings.jsonl``."""
    candidates = read_candidate_record(where, record, 1 if "stars" in record else 2)
    ids = {r.id for r in candidates.responses}
    stars = None if record.get("stars") is None else checked_stars(where, record["stars"], ids)
    by_stars = None if stars is None else [list(tier) for tier in tiers_by_stars(stars)]
    entries = record.get("ranking", by_stars)
    if not isinstance(entries, list) or not all(isinstance(entry, str | list) for entry in entries):
        raise ValueError(f"{where}: 'ranking' must be a list of response ids, or of lists of ids that tie.")
    tiers = tuple((t,) if isinstance(t, str) else tuple(map(str, t)) for t in entries if t)
    ranked = [name for tier in tiers for name in tier]
    unknown = sorted(set(ranked) - ids)
    if unknown:
        raise ValueError(
            f"{where}: the ranking names {', '.join(unknown)}, but the responses are {', '.join(sorted(ids))}."
        )
    if len(set(ranked)) < len(ranked):
        raise ValueError(f"{where}: the ranking names a response twice: {', '.join(ranked)}.")
    all_bad = bool(record.get("all_bad", False))
    if by_stars is not None and list(map(set, tiers)) != list(map(set, by_stars)):
        raise ValueError(
            f"{where}: 'ranking' and 'stars' contradict each other: {entries!r:.80} and {dict(stars or {})}."
        )
    if len(ranked) < 2 and not all_bad and stars is None:
        raise ValueError(f"{where}: the ranking holds {len(ranked)} response; it needs at least two.")
    aspect = aspect_of(where, record)
    annotator, margin, scores = (
        str(record.get("annotator", "")),
        margin_of(where, record),
        scores_of(where, record, ids),
    )
    return Ranking(candidates, tiers, annotator, aspect, all_bad, margin, scores, stars, where)


def _starred(where: str, record: dict[str, Any]) -> Ranking:
    """Reads a single response and its stars as a ranking of one response."""
    text, finished = record.get("response"), checked_finished(where, record)
    if "prompt" not in record or not isinstance(text, str) or not text.strip():
        raise ValueError(f"{where}: 'stars' need a 'prompt' and a 'response' that is not empty, or 'responses'.")
    prompt, star = checked_prompt(where, record["prompt"]), checked_star(where, record["stars"])
    response = Response("r0", text, finished, str(record.get("source", "")))
    name, annotator = str(record.get("id", prompt_key(prompt))), str(record.get("annotator", ""))
    candidates = Candidates(name, prompt, (response,), columns_of(where, record))
    return Ranking(candidates, (("r0",),), annotator, aspect_of(where, record), stars={"r0": star}, where=where)


def _with_starred(ranking: Ranking, one: Ranking) -> Ranking:
    """A ranking by stars with one more response."""
    (response,), (star,) = one.candidates.responses, (one.stars or {}).values()
    responses = ranking.candidates.responses
    new = replace(response, id=f"r{len(responses)}")
    stars = {**(ranking.stars or {}), new.id: star}
    candidates = replace(ranking.candidates, responses=(*responses, new))
    return replace(ranking, candidates=candidates, tiers=tiers_by_stars(stars), stars=stars)


def _pair(where: str, record: dict[str, Any]) -> Ranking:
    """Reads a pair in TRL's format as a ranking of two responses."""
    prompt = record.get("prompt")
    sides, starts = [], []
    for name in ("chosen", "rejected"):
        value = record[name]
        if isinstance(value, list):  # messages: the last is the response, what stands before it the prompt
            messages = checked_prompt(f"{where}: {name}", value)
            assert not isinstance(messages, str)
            if messages[-1]["role"] != "assistant":
                raise ValueError(f"{where}: the last message of {name!r} must be the assistant's.")
            starts += [messages[:-1]] if len(messages) > 1 else []
            value = messages[-1]["content"]
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"{where}: {name!r} must be a text that is not empty; got {value!r:.80}.")
        sides.append(value)
    if starts:
        prompt = _shared_start(where, prompt, starts)
    if prompt is None:
        raise ValueError(
            f"{where}: a pair needs a 'prompt', or 'chosen' and 'rejected' as messages that begin with it."
        )
    if sides[0].strip() == sides[1].strip():
        raise ValueError(
            f"{where}: 'chosen' and 'rejected' are the same: nothing can be learned from it. Remove the pair."
        )
    finished = [checked_finished(where, record, f"{name}_finished") for name in ("chosen", "rejected")]
    responses = (Response("chosen", sides[0], finished[0]), Response("rejected", sides[1], finished[1]))
    name, columns = str(record.get("id", where)), columns_of(where, record)
    candidates = Candidates(name, checked_prompt(where, prompt), responses, columns)
    tiers = (("chosen",), ("rejected",))
    annotator, aspect, margin = str(record.get("annotator", "")), aspect_of(where, record), margin_of(where, record)
    return Ranking(candidates, tiers, annotator, aspect, False, margin, where=where)


def _shared_start(where: str, prompt: Any, starts: Sequence[list[Message]]) -> list[Message]:
    """The prompt of a pair whose sides are messages that begin with it.

    Args:
        where: Names the record's file and line in errors.
        prompt: The record's own prompt, which must be the same, or the text of its last message; None: it has none.
        starts: The messages before the response, of each side that has some.
    """
    start = starts[0]
    own = start if prompt is None else checked_prompt(where, prompt)
    is_same = starts == [start] * 2 and (own == start or [own] == [m["content"] for m in start[-1:]])
    if not is_same:
        raise ValueError(
            f"{where}: 'chosen' and 'rejected' must be one message each, or both begin with the prompt's messages, and differ "
            "in the last one only."
        )
    return start


def check_leaks(train: Sequence[Ranking], held_out: Sequence[Ranking]) -> None:
    """Checks that no prompt stands on both sides.

    Raises:
        ValueError: a prompt does; both lines are named.
    """
    seen = {prompt_key(r.candidates.prompt): r.where for r in train}
    leaks = [(r.where, seen[key]) for r in held_out if (key := prompt_key(r.candidates.prompt)) in seen]
    if leaks:
        here, there = leaks[0]
        raise ValueError(
            f"{here}: this prompt is among the training preferences too ({there}), so the held-out accuracy would tell "
            f"nothing; {len(leaks)} of {len(held_out)} held-out records are. Remove them on one side."
        )


def write_jsonl(path: Path, records: Sequence[dict[str, Any]]) -> None:
    """Writes records, one a line, whole or not at all."""
    write_text(path, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records))


def append_jsonl(path: Path, record: dict[str, Any]) -> None:
    """Adds a record, and returns when it is on the disk. A line that a crash left unfinished is cut off first."""
    drop_unfinished_line(path)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())


def drop_unfinished_line(path: Path) -> None:
    """Cuts off what stands behind the last line end where it is no whole record: a process that died left it there."""
    if not path.is_file():
        return
    with path.open("rb+") as file:
        size = file.seek(0, os.SEEK_END)
        if not size:
            return
        file.seek(size - 1)
        if file.read(1) == b"\n":
            return
        file.seek(0)
        content = file.read()
        start = content.rfind(b"\n") + 1
        try:
            json.loads(content[start:])
        except ValueError:
            file.truncate(start)
        else:  # all but the line end, which an editor may have left out
            file.write(b"\n")
