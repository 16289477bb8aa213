"""Judges: reward models and functions that rank responses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agents.preferences.records import Candidates, Ranking, Response
from agents.preferences.settings import COLLECTION_RULES
from llm_env.default_task import DEFAULT_GOLD
from llm_env.episode import Episode
from llm_env.lm.loading import load_tokenizer
from llm_env.lm.names import LoadSettings
from llm_env.reward.limits import CallLimits
from llm_env.reward.models import ClassifierReward, RewardModel, load_reward_model, load_text_reward, reads_texts
from llm_env.text.prompts import Prompt, PromptRecord, RawPrompt, encode_prompt
from llm_env.text.texts import TextRecord, encode_text

UNLIMITED = 10**6
"""Tokens: prompts that were read with their responses are not cut."""


class Judge(ABC):
    """What ranks responses by scores.

    Args:
        name: Stands in the rankings as the annotator.
        noise: Temperature of the ranking: 0 ranks by score; else a ranking is drawn from the Plackett-Luce model with
            worths exp(score / noise), of which Bradley-Terry is the case of two.
        seed: Seed of the draws, which only noise needs.

    Raises:
        ValueError: the noise is negative.
    """

    def __init__(self, name: str, noise: float = 0.0, seed: int = 0) -> None:
        COLLECTION_RULES["noise"].check("noise", noise)
        self.name = name
        self.noise = noise
        self.rng = np.random.default_rng(seed)

    @abstractmethod
    def scores(self, candidates: Sequence[Candidates], folder: Path | None = None) -> list[list[float]]:
        """Scores each response of each prompt, in the order of the responses.

        Args:
            candidates: The prompts and their responses.
            folder: Where a judge that is asked for each keeps what it was told; None: nowhere.
        """

    @abstractmethod
    def check_prompts(self, records: Sequence[PromptRecord]) -> None:
        """Makes sure, before anything is sampled, that responses to these prompts can be judged.

        Raises:
            ValueError: a record lacks what is needed; its file and line are named.
        """

    def report(self, candidates: Sequence[Candidates], folder: Path) -> dict[str, Any]:
        """What there is to tell about the judge, after it ranked: values for ``judges.json``."""
        return {"judge": self.name}

    def rank(self, candidates: Sequence[Candidates], folder: Path | None = None) -> list[Ranking]:
        """Ranks the responses of each prompt from best to worst; equal scores tie."""
        scores = self.scores(candidates, folder)
        return [self._ranking(c, of_prompt) for c, of_prompt in zip(candidates, scores, strict=True)]

    def _ranking(self, candidates: Candidates, scores: list[float]) -> Ranking:
        worth = np.array(scores)
        if self.noise:  # the order of Gumbel-perturbed scores is a draw from Plackett-Luce (Yellott 1977)
            worth = worth + self.noise * self.rng.gumbel(size=len(worth))
        tiers: dict[float, list[str]] = {}
        for response, value in zip(candidates.responses, worth.tolist(), strict=True):
            tiers.setdefault(value, []).append(response.id)
        ordered = tuple(tuple(tiers[value]) for value in sorted(tiers, reverse=True))
        # with noise the scores are left out: margins that are made of them would tell more than the verdicts do
        by_id = None if self.noise else dict(zip([r.id for r in candidates.responses], scores, strict=True))
        return Ranking(candidates, ordered, self.name, scores=by_id)


class RewardJudge(Judge):
    """A reward model or function that ranks.

    Args:
        name: ``gold`` for the embedded default's rule, a reward model's folder or hub id, ``package.module:function``, or the
            address of a reward server.
        load: How a model is loaded.
        noise: As in `Judge`.
        seed: Seed of the draws, which only noise needs.
        limits: How long a call of a function or server may take, and for how long one that fails is repeated.
        option: The option that the name came from, for error messages.

    Raises:
        FileNotFoundError, ValueError: it cannot be loaded, or the noise is negative.
    """

    def __init__(
        self,
        name: str,
        load: LoadSettings,
        noise: float = 0.0,
        seed: int = 0,
        limits: CallLimits | None = None,
        option: str = "judge",
    ) -> None:
        super().__init__(DEFAULT_GOLD if name == "gold" else name, noise, seed)
        is_text_reward = reads_texts(self.name)
        self.tokenizer = (
            None
            if is_text_reward
            else load_tokenizer(self.name, option, load.trust_remote_code, load.special_tokens_in_text)
        )
        self.model: RewardModel = (
            load_text_reward(self.name, option, limits)
            if self.tokenizer is None
            else load_reward_model(self.name, load, self.tokenizer, option=option)
        )

    def check_prompts(self, records: Sequence[PromptRecord]) -> None:
        """See `Judge.check_prompts`."""
        self.model.check_prompts(records)

    def scores(self, candidates: Sequence[Candidates], folder: Path | None = None) -> list[list[float]]:
        """See `Judge.scores`."""
        episodes = [self._episode(c, r) for c in candidates for r in c.responses]
        flat = iter(self.model.score(episodes))
        return [[next(flat) for _ in c.responses] for c in candidates]

    def _episode(self, candidates: Candidates, response: Response) -> Episode:
        raw = candidates.prompt
        if self.tokenizer is None:  # a function or server reads texts; the ids are never looked at
            text = raw if isinstance(raw, str) else raw[-1]["content"]
            prompt = Prompt(text, (0,), columns=candidates.columns)
            return Episode(prompt, done=True, has_end=response.finished, response_text=response.text)
        assert isinstance(self.model, ClassifierReward)
        return episode_of(raw, response, self.model)


def episode_of(raw: RawPrompt, response: Response, model: ClassifierReward) -> Episode:
    """Makes the episode that a response from a file would have been, in the reward model's own tokens.

    Args:
        raw: The prompt, a text or chat messages.
        response: The response; one that finished gets an end token.
        model: The reward model that will score the episode.
    """
    prompt, _ = encode_prompt(raw, model.tokenizer, UNLIMITED)
    encoded = encode_text(TextRecord(raw, response.text, response.finished), model.tokenizer, UNLIMITED)
    response_ids = encoded.ids[encoded.start :]
    return Episode(prompt, response_ids=response_ids, done=True, has_end=response.finished, response_text=response.text)
