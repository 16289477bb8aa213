"""How actors are compared."""

from __future__ import annotations

from dataclasses import dataclass

from llm_env.rules import FLAG, SEED, Rule, check_settings, whole

SAMPLE_SEED = 12_345
"""Seed of responses to held-out prompts wherever a run or a round evaluates itself: with the same draws each time, what
differs comes from the weights."""

EVALUATION_RULES: dict[str, Rule] = {"seed": SEED, "greedy": FLAG, "n_samples": whole(0), "best_of_n": whole(1)}


@dataclass(frozen=True)
class EvaluationSettings:
    """How an actor and its reference respond when they are compared.

    Attributes:
        seed: Seed of the sampling, the same for both.
        greedy: Take the likeliest token instead of sampling.
        n_samples: The first prompts whose two responses are kept in the report.
        best_of_n: Responses that the actor samples to each prompt, of which the reward model's favorite is kept. The KL that
            is reported is then an upper bound (`agents.algorithms.best_of_n.best_of_n_kl`).
    """

    seed: int = 0
    greedy: bool = False
    n_samples: int = 8
    best_of_n: int = 1

    def __post_init__(self) -> None:
        """Checks the numbers.

        Raises:
            ValueError: one breaks its rule, or `best_of_n` is above 1 although there is one greedy response only.
        """
        check_settings(self, EVALUATION_RULES)
        if self.best_of_n > 1 and self.greedy:
            raise ValueError(f"best_of_n={self.best_of_n} must be without --greedy, which has one response.")
