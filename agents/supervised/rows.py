"""Rankings as rows to train on: split, encoded, whole or in pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from agents.preferences.records import Ranking, check_leaks, prompt_key, read_rankings
from llm_env.text.prompts import encode_prompt
from llm_env.text.split import split_indices
from llm_env.text.texts import encode_response, response_after


def read_split(
    preferences: str, eval_preferences: str | None, share: float, seed: int
) -> tuple[list[Ranking], list[Ranking]]:
    """Training and held-out preferences; a prompt stands on one side only.

    Args:
        preferences: File of rankings or pairs.
        eval_preferences: Held-out ones; None: those of a share of the prompts.
        share: That share.
        seed: Of the split.

    Raises:
        FileNotFoundError, ValueError: as `read_rankings`; a side is empty; a prompt is on both sides of two files.
    """
    rankings = read_rankings(preferences)
    if eval_preferences is not None:
        held_out = read_rankings(eval_preferences)
        check_leaks(rankings, held_out)
        return rankings, held_out
    prompts = list(dict.fromkeys(prompt_key(r.candidates.prompt) for r in rankings))
    train, test = split_indices(len(prompts), share, seed)
    if not train or not test:
        raise ValueError(
            f"preferences={preferences!r} has {len(prompts)} different prompt(s); with fewer than two none can be held out."
        )
    kept = {prompts[i] for i in train}
    sides: tuple[list[Ranking], list[Ranking]] = ([], [])
    for ranking in rankings:
        sides[prompt_key(ranking.candidates.prompt) not in kept].append(ranking)
    return sides


def encode_rankings(
    rankings: Sequence[Ranking],
    tokenizer: Any,
    max_length: int,
    in_pairs: bool,
    heads: Sequence[str] | None = None,
    max_prompt_length: int | None = None,
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Training rows of rankings: ids, prompt lengths, tiers, head.

    Args:
        rankings: Checked ones.
        tokenizer: The model's.
        max_length: In tokens; a longer prompt is cut on the left, a longer response on the right.
        in_pairs: Whether each pair is a row, the better response first; else each ranking is.
        heads: The heads' names, or None.
        max_prompt_length: Longer prompts are cut on the left; None: only those that leave no room for a response.

    Returns:
        The rows, and how many records were left out, by reason.

    Raises:
        ValueError: an aspect is none of the heads.
    """
    rows: list[dict[str, Any]] = []
    left_out = {"all bad": 0, "all tied": 0, "equal texts": 0, "cut": 0}
    for ranking in rankings:
        head = -1
        if ranking.aspect is not None and heads is not None:
            if ranking.aspect not in heads:
                raise ValueError(f"{ranking.where}: aspect {ranking.aspect!r} is none of the heads {', '.join(heads)}.")
            head = list(heads).index(ranking.aspect)
        ranks = ranking.ranks()
        if len(ranks) < 2:
            left_out["all bad"] += 1
            continue
        if len(set(ranks.values())) < 2:
            left_out["all tied"] += 1
            continue
        prompt, _ = encode_prompt(ranking.candidates.prompt, tokenizer, max_prompt_length or max_length - 1)
        encoded: dict[str, tuple[list[int], int]] = {}
        for name in ranks:
            response = ranking.candidates.response(name)
            text = response.text if prompt.messages else response_after(prompt.text, response.text)
            end = [int(tokenizer.eos_token_id)] if response.finished and tokenizer.eos_token_id is not None else []
            ids = [*prompt.ids, *encode_response(text, tokenizer), *end]
            left_out["cut"] += len(ids) > max_length
            encoded[name] = (ids[:max_length], len(prompt.ids))
        groups = [list(ranks)]
        if in_pairs:
            groups = [[better.id, worse.id] for better, worse, _ in ranking.pairs()]
        for names in groups:
            if len({tuple(encoded[n][0]) for n in names}) < 2:
                left_out["equal texts"] += 1
                continue
            rows.append(
                {
                    "ids": [encoded[n][0] for n in names],
                    "prompt_length": encoded[names[0]][1],
                    "tiers": [ranks[n] for n in names],
                    "head": head,
                    "margin": float("nan") if ranking.margin is None else ranking.margin,
                }
            )
    return rows, left_out
