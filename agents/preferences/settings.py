"""Settings of collecting preferences, which `collect_preferences` and the rounds of `agents.iteration` share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llm_env.lm.names import check_choice
from llm_env.reward.judges.names import GRADE, JUDGE_RULES, MODES, PAIRWISE, JudgeOptions, is_language_judge
from llm_env.reward.limits import LIMIT_RULES, CallLimits
from llm_env.rules import TOKENS, Rule, check_settings, number, whole
from llm_env.settings import TaskSettings

RANKING, STARS, CORRECTIONS = "ranking", "stars", "corrections"
PAGES = (RANKING, STARS, CORRECTIONS)
"""What people can do on the page."""
COLLECTION_RULES: dict[str, Rule] = {
    "n_responses": whole(2),  # one response cannot be ranked
    "max_prompt_length": TOKENS,
    "max_new_tokens": TOKENS,
    "noise": number(least=0),
    **LIMIT_RULES,
    **JUDGE_RULES,
    "port": whole(0, 65_535),
}


@dataclass(frozen=True, kw_only=True)
class ComparisonSettings:
    """What is responded to, and how responses are compared. Reading it imports no torch."""

    prompts: str | None = None
    """Prompts to respond to: a .txt, .jsonl, .json, .csv or .parquet file, or a dataset id. Default: the embedded
    ones."""
    max_prompt_length: int = TaskSettings.max_prompt_length
    """Tokens of a prompt; longer prompts are cut on the left."""
    max_new_tokens: int = TaskSettings.max_new_tokens
    """Length cap of a response, in tokens."""
    noise: float = 0.0
    """Temperature of the judges: 0 ranks by score; 1 makes Bradley-Terry annotators."""
    reward_timeout: float | None = TaskSettings.reward_timeout
    """Seconds that one call of a function or server that scores may take. Default: no limit for functions, 60 for servers."""
    reward_wait: float | None = TaskSettings.reward_wait
    """Seconds for which such a call that fails is repeated, with growing pauses. Default: 0 for functions, 600 for servers."""
    judge_mode: str = PAIRWISE
    """How a language model judges (llm:…, openai:…): pairwise (each two responses in both orders; a verdict that turns with the
    order is a tie) or grade (1 to 10)."""
    judge_prompt: str | None = None
    """File with what a language model that judges is told; {prompt}, {response_a} and {response_b}, or for grade {prompt} and
    {response}, stand for the texts. Default: the instruction that is shipped."""
    judge_concurrency: int = TaskSettings.judge_concurrency
    """Requests that a judge behind a server (openai:…) is sent side by side."""
    page: str = RANKING
    """What people do on the page: rank the responses to a prompt (ranking), give each 1 to 5 stars (stars), or edit them
    (corrections)."""
    host: str = "127.0.0.1"
    """Address of the page on which people rank. 0.0.0.0 lets others in your network rank, by the token that is printed."""
    port: int = 7860
    """Port of the page on which people rank."""

    @property
    def reward_limits(self) -> CallLimits:
        """How long a call of a function or server that scores may take, and for how long one that fails is repeated."""
        return CallLimits(self.reward_timeout, self.reward_wait)

    @property
    def grading(self) -> JudgeOptions:
        """How a language model grades where no pairs can be compared: as a reward, and in evaluations."""
        return JudgeOptions(self.judge_prompt if self.judge_mode == GRADE else None, self.judge_concurrency)

    def check_judge_prompt(self, judges: Sequence[str]) -> None:
        """Refuses an instruction that nobody would read.

        Args:
            judges: The names of all judges.

        Raises:
            ValueError: there is one, and no judge is a language model.
        """
        if self.judge_prompt is not None and not any(map(is_language_judge, judges)):
            raise ValueError(
                f"judge_prompt={self.judge_prompt!r}: no judge is a language model, llm:NAME or openai:URL#MODEL. Leave it out."
            )

    def check_collection(self) -> None:
        """Checks the numbers and names.

        Raises:
            ValueError: one breaks its rule.
        """
        check_settings(self, {name: rule for name, rule in COLLECTION_RULES.items() if hasattr(self, name)})
        check_choice("judge_mode", self.judge_mode, MODES)
        check_choice("page", self.page, PAGES)

    def check_page_is_used(self, people: bool) -> None:
        """Refuses a page that nobody would see.

        Raises:
            ValueError: people do something else than ranking, and there are none.
        """
        if self.page != RANKING and not people:
            raise ValueError(f"page={self.page!r} is what people do: add --people, or in iterate --judge people.")


@dataclass(frozen=True, kw_only=True)
class CollectionSettings(ComparisonSettings):
    """The same, where several responses to each prompt are ranked."""

    n_responses: int = 4
    """Responses to each prompt, at least 2; near-duplicates are drawn anew, and left out if that does not help."""
    corrector: str | None = None
    """A stronger language model that rewrites each response: a folder, a hub id or openai:URL#MODEL. A rewritten response is
    preferred to the one before, and a text to fine-tune on (docs/feedback.md)."""
    corrector_prompt: str | None = None
    """File with what the corrector is told; {prompt} and {response} stand for the texts. Default: the one that is shipped."""

    def check_collection(self) -> None:
        """Checks the numbers and names; see `ComparisonSettings.check_collection`."""
        super().check_collection()
        if self.corrector_prompt is not None and self.corrector is None:
            raise ValueError(
                f"corrector_prompt={self.corrector_prompt!r}: there is no corrector. Give one, or leave it out."
            )
