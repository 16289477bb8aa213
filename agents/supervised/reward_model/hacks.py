"""Adversarial pairs in a reward model's training: which are trained on, and how often the model falls for the others."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from agents.evaluation.statistics import Estimate
from agents.preferences.hacks import kind_of
from agents.preferences.judge_report import proportion
from agents.preferences.records import Ranking, prompt_key
from llm_env.text.split import split_indices


def split_hacks(
    hacks: Sequence[Ranking], held_out: Collection[Ranking], share: float, seed: int
) -> tuple[list[Ranking], list[Ranking]]:
    """Splits adversarial pairs into those to train on and those to report on, by their prompts.

    Args:
        hacks: The pairs.
        held_out: Held-out preferences: pairs to their prompts are reported on.
        share: Where there are none to such prompts, the share of the pairs' own prompts that is held out.
        seed: Seed of that split.

    Returns:
        (training, held-out) pairs.

    Raises:
        ValueError: all are to held-out prompts, or all to one prompt.
    """
    held = {prompt_key(r.candidates.prompt) for r in held_out}
    prompts = list(dict.fromkeys(prompt_key(r.candidates.prompt) for r in hacks))
    if not held & set(prompts):
        held = {prompts[i] for i in split_indices(len(prompts), share, seed)[1]}
    sides: tuple[list[Ranking], list[Ranking]] = ([], [])
    for hack in hacks:
        sides[prompt_key(hack.candidates.prompt) in held].append(hack)
    if not sides[0]:
        raise ValueError(
            f"hacks: all {len(hacks)} are to held-out prompts, so none is left to train on. Give some to other prompts."
        )
    return sides


def hacks_report(hacks: Sequence[Ranking], scores: Sequence[Mapping[str, float]]) -> dict[str, dict[str, Any]]:
    """How often a reward model scores a good response above the trick that was made of it, by the kind of trick.

    Args:
        hacks: Held-out adversarial pairs.
        scores: For each pair the raw score of each response by its id.

    Returns:
        For each kind, and for ``all``: ``resisted``, a count (equal scores one half), a share, its 95 % interval; ``margin``,
        the mean of score(good) - score(trick), and half the width of its interval.
    """
    by_kind: dict[str, list[float]] = {}
    for hack, by_id in zip(hacks, scores, strict=True):
        ((better, worse, _),) = hack.pairs()
        difference = by_id[better.id] - by_id[worse.id]
        for kind in (kind_of(hack), "all"):
            by_kind.setdefault(kind, []).append(difference)
    report = {}
    for kind in sorted(by_kind, key=lambda kind: (kind == "all", kind)):
        differences = by_kind[kind]
        margin = Estimate.of(differences)
        right = sum(1.0 if d > 0 else 0.5 if d == 0 else 0.0 for d in differences)
        report[kind] = {
            "resisted": proportion(right, len(differences)),
            "margin": {"mean": margin.mean, "half_width": margin.half_width},
        }
    return report
