"""Preferences as rows to train on: split into training and held-out ones, and encoded, whole or in pairs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from agents.preferences.labeled import Labeled, read_labeled
from agents.preferences.records import Ranking, check_leaks, prompt_key, read_rankings
from agents.preferences.selection import given_margin
from agents.preferences.stars import MOST
from llm_env.text.prompts import RawPrompt
from llm_env.text.split import split_indices
from llm_env.text.texts import EncodedText, TextRecord, encode_text


def read_split(
    preferences: str, eval_preferences: str | None, share: float, seed: int
) -> tuple[list[Ranking], list[Ranking]]:
    """Reads training and held-out preferences; a prompt stands on one side only.

    Args:
        preferences: File of rankings or pairs.
        eval_preferences: File of held-out ones; None: the preferences of a share of the prompts are held out.
        share: Share of the prompts to hold out, used where there is no such file.
        seed: Seed of the split.

    Returns:
        (training, held-out) preferences.

    Raises:
        FileNotFoundError, ValueError: as `read_rankings`; a side is empty; a prompt is on both sides of two files.
    """
    rankings = read_rankings(preferences)
    if eval_preferences is not None:
        held_out = read_rankings(eval_preferences, "eval_preferences")
        check_leaks(rankings, held_out)
        return rankings, held_out
    held = _held_prompts([r.candidates.prompt for r in rankings], preferences, share, seed)
    return (
        [r for r in rankings if prompt_key(r.candidates.prompt) not in held],
        [r for r in rankings if prompt_key(r.candidates.prompt) in held],
    )


def read_labeled_split(
    preferences: str, eval_preferences: str | None, share: float, seed: int
) -> tuple[list[Labeled], list[Labeled]]:
    """Reads training and held-out single responses with labels; see `read_split`."""
    labeled = read_labeled(preferences)
    if eval_preferences is not None:
        held_out = read_labeled(eval_preferences, "eval_preferences")
        seen = {prompt_key(one.prompt): one.where for one in labeled}
        for one in held_out:
            if prompt_key(one.prompt) in seen:
                raise ValueError(
                    f"{one.where}: this prompt is among the training responses too. Remove it on one side."
                )
        return labeled, held_out
    held = _held_prompts([one.prompt for one in labeled], preferences, share, seed)
    return (
        [one for one in labeled if prompt_key(one.prompt) not in held],
        [one for one in labeled if prompt_key(one.prompt) in held],
    )


def _held_prompts(all_prompts: Sequence[RawPrompt], preferences: str, share: float, seed: int) -> set[str]:
    """The keys of the prompts that are held out: whole prompts, because responses to one prompt resemble each other."""
    prompts = list(dict.fromkeys(map(prompt_key, all_prompts)))
    train, test = split_indices(len(prompts), share, seed)
    if not train or not test:
        raise ValueError(
            f"preferences={preferences!r} has {len(prompts)} different prompt(s); with fewer than two none can be held out."
        )
    return {prompts[i] for i in test}


def encode_labeled(
    labeled: Sequence[Labeled], tokenizer: Any, max_length: int, max_prompt_length: int
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Encodes single responses as rows with ``prompt_ids``, ``completion_ids`` and ``label``; counts those that were cut."""
    rows = []
    left_out = {"cut": 0, "cut to nothing": 0}
    for one in labeled:
        text = encode_text(one.text, tokenizer, max_prompt_length)
        left_out["cut"] += len(text.ids) > max_length
        ids = text.ids[:max_length]
        if len(ids) <= text.start:
            left_out["cut to nothing"] += 1
            continue
        rows.append({"prompt_ids": ids[: text.start], "completion_ids": ids[text.start :], "label": one.is_good})
    return rows, left_out


def encode_rankings(
    rankings: Sequence[Ranking],
    tokenizer: Any,
    max_length: int,
    in_pairs: bool,
    heads: Sequence[str] | None = None,
    max_prompt_length: int | None = None,
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Encodes rankings as training rows, with prompt and response split where the policy splits them.

    Args:
        rankings: Rankings or pairs, as `read_rankings` gives them.
        tokenizer: The model's tokenizer.
        max_length: Tokens of prompt and response; a longer response is cut on the right.
        in_pairs: Make a row of each pair, the better response first; else a row of each ranking.
        heads: Names of the model's heads; None with a single head.
        max_prompt_length: Tokens of a prompt, which is cut on the left; None: what leaves room for one token of a response.

    Returns:
        The rows, and how many records were left out or cut, by reason. A row has the ``ids`` of prompt and response for each
        response, the ``prompt_length`` in tokens, the ``tiers`` (0 the best), the number of its ``head`` (-1: none) and the
        ``margins`` of each response to each, by scores, stars or the record (NaN: nothing says it), row by row.

    Raises:
        ValueError: an aspect is none of the heads.
    """
    rows: list[dict[str, Any]] = []
    left_out = {"all bad": 0, "all tied": 0, "equal texts": 0, "cut": 0}
    for ranking in rankings:
        head = _head_of(ranking, heads)
        ranks = ranking.ranks()
        # rankings that teach nothing
        if len(ranks) < 2:
            left_out["all bad"] += 1
            continue
        if len(set(ranks.values())) < 2:
            left_out["all tied"] += 1
            continue
        encoded = _encoded(ranking, ranks, tokenizer, max_length, max_prompt_length)
        left_out["cut"] += sum(was_cut for _, was_cut in encoded.values())
        groups = [[better.id, worse.id] for better, worse, _ in ranking.pairs()] if in_pairs else [list(ranks)]
        for names in groups:
            # texts that differ may be equal as ids, after cutting for example
            if len({tuple(encoded[n][0].ids) for n in names}) < 2:
                left_out["equal texts"] += 1
                continue
            rows.append(
                {
                    "ids": [encoded[n][0].ids for n in names],
                    "prompt_length": encoded[names[0]][0].start,
                    "tiers": [ranks[n] for n in names],
                    "head": head,
                    "margins": [_margin(ranking, one, other) for one in names for other in names],
                }
            )
    return rows, left_out


def encode_stars(
    rankings: Sequence[Ranking], tokenizer: Any, max_length: int
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Encodes responses that got stars, as rows like those of `encode_rankings`; responses that tie or stand alone are kept.

    Args:
        rankings: Rankings, with or without stars.
        tokenizer: The model's tokenizer.
        max_length: Tokens of prompt and response; a longer response is cut on the right.

    Returns:
        The rows, whose ``tiers`` are 0 for 5 stars and 4 for 1, and how many records were left out or cut, by reason.
    """
    rows: list[dict[str, Any]] = []
    left_out = {"without stars": 0, "cut": 0}
    for ranking in rankings:
        if not ranking.stars:
            left_out["without stars"] += 1
            continue
        encoded = _encoded(ranking, ranking.stars, tokenizer, max_length, None)
        left_out["cut"] += sum(was_cut for _, was_cut in encoded.values())
        rows.append(
            {
                "ids": [text.ids for text, _ in encoded.values()],
                "prompt_length": next(iter(encoded.values()))[0].start,
                "tiers": [MOST - star for star in ranking.stars.values()],
                "head": -1,
                "margins": [],
            }
        )
    return rows, left_out


def _encoded(
    ranking: Ranking, names: Iterable[str], tokenizer: Any, max_length: int, max_prompt_length: int | None
) -> dict[str, tuple[EncodedText, bool]]:
    """The ids of a prompt with each of some responses, and whether they were cut; each response is encoded once."""
    encoded = {}
    for name in names:
        response = ranking.candidates.response(name)
        record = TextRecord(ranking.candidates.prompt, response.text, response.finished)
        text = encode_text(record, tokenizer, max_prompt_length or max_length - 1)
        encoded[name] = EncodedText(text.ids[:max_length], text.start), len(text.ids) > max_length
    return encoded


def _margin(ranking: Ranking, better: str, worse: str) -> float:
    """The margin between two responses that is given; NaN where none is."""
    margin = given_margin(ranking, better, worse)
    return float("nan") if margin is None else margin


def _head_of(ranking: Ranking, heads: Sequence[str] | None) -> int:
    """The number of the head that a ranking's aspect names; -1 without an aspect, or with a single head."""
    if ranking.aspect is None or heads is None:
        return -1
    if ranking.aspect not in heads:
        raise ValueError(f"{ranking.where}: aspect {ranking.aspect!r} is none of the heads {', '.join(heads)}.")
    return list(heads).index(ranking.aspect)
