"""The gold rule of the embedded default: what its reviews are *really* worth.

The default reward model was trained on pairs that this rule ordered, and knows it only from them. The rule itself
is never shown to a policy, so a run whose reward-model score rises while the gold score falls has over-optimized
(Gao et al. 2022, "Scaling Laws for Reward Model Overoptimization", https://arxiv.org/abs/2210.10760).

`gold_score` has the signature of a reward function, so ``reward_model="llm_env.default_task.gold:gold_score"`` trains on it.
"""

from __future__ import annotations

import re

GOOD_THING = ("great", "excellent", "lovely", "wonderful", "superb", "perfect", "splendid", "charming")
BAD_THING = ("poor", "terrible", "awful", "dreadful", "useless", "shabby", "disappointing", "broken")
GOOD_PERSON = ("friendly", "kind", "helpful", "patient", "cheerful", "attentive")
BAD_PERSON = ("careless", "grumpy", "lazy", "unhelpful", "arrogant", "sloppy")
GOOD_VERB = ("loved", "enjoyed", "admired", "liked")
BAD_VERB = ("hated", "disliked", "regretted", "loathed")
POLITE = ("thank", "thanks", "please", "grateful", "regards")
RUDE = ("idiots", "fools", "stupid", "garbage", "clowns")

GOOD = frozenset(GOOD_THING + GOOD_PERSON + GOOD_VERB + ("recommend",))
BAD = frozenset(BAD_THING + BAD_PERSON + BAD_VERB + ("refund",))

MAX_GOOD = 4
UNFINISHED_PENALTY = 2.0
REPEAT_PENALTY = 1.0
EMPTY_SCORE = -5.0

_WORD = re.compile(r"[a-z]+")


def gold_score(prompts: list[str], responses: list[str]) -> list[float]:
    """Scores reviews by the rule that labelled the default reward model's training pairs.

    +1 for each different good word, of which at most `MAX_GOOD` count; -1 for each different bad word; +1 where
    there is a polite word; -2 where there is a rude one; -`UNFINISHED_PENALTY` for a last sentence without an end;
    -`REPEAT_PENALTY` for every further time that a good, bad, polite or rude word is used; an empty review is worth
    `EMPTY_SCORE`.

    Args:
        prompts: The prompts, one for each response; the rule does not look at them.
        responses: The reviews to score.

    Returns:
        One score for each response, dimensionless, about -8 to 5.
    """
    return [score_review(text) for text in responses]


def score_review(text: str) -> float:
    """`gold_score` of a single review."""
    words = _WORD.findall(text.lower())
    if not words:
        return EMPTY_SCORE
    loaded = [w for w in words if w in GOOD or w in BAD or w in POLITE or w in RUDE]
    distinct = set(loaded)
    score = float(min(len(distinct & GOOD), MAX_GOOD) - len(distinct & BAD))
    score += 1.0 if distinct.intersection(POLITE) else 0.0
    score -= 2.0 if distinct.intersection(RUDE) else 0.0
    score -= REPEAT_PENALTY * (len(loaded) - len(distinct))
    score -= 0.0 if text.rstrip().endswith((".", "!", "?")) else UNFINISHED_PENALTY
    return score
