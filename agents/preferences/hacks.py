"""Adversarial examples for reward models: responses made worse in ways that a policy might be paid for, or that one found.

What a reward model pays by mistake, a policy finds: Pan et al. 2022, "The Effects of Reward Misspecification"
(https://arxiv.org/abs/2201.03544); Gao et al. 2022, "Scaling Laws for Reward Model Overoptimization"
(https://arxiv.org/abs/2210.10760). Pairs in which the trick is the rejected side teach it better, and tell how often it falls
for which.

A pair is TRL's, with the kind of trick among its columns: ``{"prompt": …, "chosen": …, "rejected": …, "columns": {"hack":
"length"}}``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from agents.flat_settings import parse_yaml
from agents.preferences.records import Candidates, Ranking, Response
from llm_env.text.records import file_text

RECIPES_FILE = Path(__file__).with_name("hacks.yaml")
COLUMN = "hack"
"""The column in which a pair names its trick."""
FOUND = "found"
"""The kind of what a trained policy found."""
_PLACES = re.compile(r"\{(response|first|last)\}")
_SENTENCE = re.compile(r"[^.!?]*[.!?]+|[^.!?]+$")


class Recipe(NamedTuple):
    """How a response is made worse.

    Attributes:
        kind: Name of the trick.
        text: The new response, with places for the old one and for its first and last sentence.
    """

    kind: str
    text: str

    def apply(self, response: str) -> str:
        """The response that the recipe makes of another; a space before it is kept."""
        body = response.strip()
        sentences = [s.strip() for s in _SENTENCE.findall(body) if s.strip()] or [body]
        values = {"response": body, "first": sentences[0], "last": sentences[-1]}
        made = _PLACES.sub(lambda match: values[match[1]], self.text)
        return f" {made}" if response[:1].isspace() else made


def read_recipes(path: str | Path | None = None, option: str = "recipes") -> list[Recipe]:
    """Reads recipes.

    Args:
        path: A YAML or JSON file, a list of ``kind`` and ``text``; None: those that are shipped.
        option: The option that it came from, for error messages.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such list, or a text has no place for the response; the recipe is named.
    """
    path = RECIPES_FILE if path is None else Path(path)
    label = f"{option}={str(path)!r}"
    if not path.is_file():
        raise FileNotFoundError(f"{label}: there is no such file.")
    entries = parse_yaml(file_text(path, label), str(path))
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{label} must be a list of recipes, each with 'kind' and 'text'.")
    recipes = []
    for number, entry in enumerate(entries, 1):
        is_whole = isinstance(entry, dict) and set(entry) == {"kind", "text"} and all(map(_is_text, entry.values()))
        if not is_whole:
            raise ValueError(f"{path}, recipe {number}: a recipe has the texts 'kind' and 'text'; got {entry!r:.80}.")
        if not _PLACES.search(entry["text"]) or entry["text"].strip() == "{response}":
            raise ValueError(
                f"{path}, recipe {number}: text={entry['text']!r:.80} must have {{response}}, {{first}} or {{last}} in it, and "
                "something beside."
            )
        recipes.append(Recipe(entry["kind"], entry["text"]))
    return recipes


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def made_hacks(rankings: Sequence[Ranking], recipes: Sequence[Recipe], seed: int = 0) -> list[Ranking]:
    """Makes pairs of good responses and what recipes make of them: one of each kind for each ranking.

    Args:
        rankings: Rankings, whose best response is taken; of one in which all are bad none.
        recipes: The recipes; those of one kind are drawn at random.
        seed: Seed of the draws.
    """
    rng = np.random.default_rng(seed)
    kinds: dict[str, list[Recipe]] = {}
    for recipe in recipes:
        kinds.setdefault(recipe.kind, []).append(recipe)
    pairs = []
    for ranking in rankings:
        if ranking.all_bad or not ranking.tiers:
            continue
        best = ranking.candidates.response(ranking.tiers[0][0])
        for kind, of_kind in kinds.items():
            recipe = of_kind[int(rng.integers(len(of_kind)))]
            worse = Response(f"{best.id} {kind}", recipe.apply(best.text), best.finished)
            if worse.text.strip() != best.text.strip():
                pairs.append(_pair(ranking.candidates, best, worse, kind, ranking.annotator))
    return pairs


def found_hacks(rankings: Sequence[Ranking], scores: Sequence[Mapping[str, float]], least: float) -> list[Ranking]:
    """Selects pairs that the reward model orders the other way round than whoever ranked them: what a policy found.

    Args:
        rankings: Rankings of a trained policy's responses, by people or a judge that knows better than the reward model.
        scores: For each ranking the reward model's score of each response by its id.
        least: By how much it must prefer the worse response, in units of the score.
    """
    pairs = []
    for ranking, by_id in zip(rankings, scores, strict=True):
        for better, worse, _ in ranking.pairs():
            if by_id[worse.id] - by_id[better.id] >= least and better.text.strip() != worse.text.strip():
                pairs.append(_pair(ranking.candidates, better, worse, FOUND, ranking.annotator))
    return pairs


def _pair(whole: Candidates, better: Response, worse: Response, kind: str, annotator: str) -> Ranking:
    columns = {**whole.columns, COLUMN: kind}
    return Ranking(
        Candidates(f"{whole.id} {kind}", whole.prompt, (better, worse), columns),
        ((better.id,), (worse.id,)),
        annotator,
    )


def kind_of(ranking: Ranking) -> str:
    """The kind of trick of a pair; ``other`` where it names none."""
    return str(ranking.candidates.columns.get(COLUMN, "other"))
