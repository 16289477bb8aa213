"""Judges: who ranks responses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from agents.preferences.records import Candidates, Ranking, Response
from llm_env.default_task import DEFAULT_GOLD
from llm_env.episode import Episode
from llm_env.lm.loading import load_tokenizer
from llm_env.lm.names import LoadSettings
from llm_env.reward.models import ClassifierReward, FunctionReward, RewardModel, load_reward_model
from llm_env.text.prompts import Prompt, RawPrompt, encode_prompt
from llm_env.text.texts import encode_response, response_after


class Judge:
    """A reward model or function that ranks.

    Args:
        name: ``gold`` for the embedded default's rule, or any name of `llm_env.reward.models`.
        load: How a model is loaded.
        noise: Temperature of the ranking: 0 ranks by score; else a ranking is drawn from the Plackett-Luce model with
            worths exp(score / noise), of which Bradley-Terry is the case of two.
        seed: Of the drawing.

    Raises:
        FileNotFoundError, ValueError: it cannot be loaded, or the noise is negative.
    """

    def __init__(self, name: str, load: LoadSettings, noise: float = 0.0, seed: int = 0) -> None:
        if not math.isfinite(noise) or noise < 0:
            raise ValueError(f"noise={noise} must be a finite number, at least 0.")
        self.name = DEFAULT_GOLD if name == "gold" else name
        is_function = ":" in self.name and not Path(self.name).exists()
        self.tokenizer = None if is_function else load_tokenizer(self.name, "judge", load.trust_remote_code)
        self.model: RewardModel = (
            FunctionReward(self.name, "judge")
            if self.tokenizer is None
            else load_reward_model(self.name, load, self.tokenizer, option="judge")
        )
        self.noise = noise
        self.rng = np.random.default_rng(seed)

    def scores(self, candidates: Sequence[Candidates]) -> list[list[float]]:
        """One score for each response of each prompt."""
        episodes = [self._episode(c.prompt, r) for c in candidates for r in c.responses]
        flat = iter(self.model.score(episodes))
        return [[next(flat) for _ in c.responses] for c in candidates]

    def rank(self, candidates: Sequence[Candidates]) -> list[Ranking]:
        """Rankings from best to worst; equal scores tie."""
        return [self._ranking(c, scores) for c, scores in zip(candidates, self.scores(candidates), strict=True)]

    def _ranking(self, candidates: Candidates, scores: list[float]) -> Ranking:
        worth = np.array(scores)
        if self.noise:  # the order of Gumbel-perturbed scores is a draw from Plackett-Luce (Yellott 1977)
            worth = worth + self.noise * self.rng.gumbel(size=len(worth))
        tiers: dict[float, list[str]] = {}
        for response, value in zip(candidates.responses, worth.tolist(), strict=True):
            tiers.setdefault(value, []).append(response.id)
        ordered = tuple(tuple(tiers[value]) for value in sorted(tiers, reverse=True))
        named = None if self.noise else dict(zip([r.id for r in candidates.responses], scores, strict=True))
        return Ranking(candidates, ordered, self.name, scores=named)

    def _episode(self, raw: RawPrompt, response: Response) -> Episode:
        if self.tokenizer is None:
            text = raw if isinstance(raw, str) else raw[-1]["content"]
            prompt = Prompt(text, (0,))
            return Episode(prompt, done=True, has_end=response.finished, response_text=response.text)
        assert isinstance(self.model, ClassifierReward)
        return episode_of(raw, response, self.model)


def episode_of(raw: RawPrompt, response: Response, model: ClassifierReward) -> Episode:
    """A response that was read from a file, as the reward model reads one."""
    tokenizer = model.tokenizer
    prompt, _ = encode_prompt(raw, tokenizer, 10**6)
    text = response.text if prompt.messages else response_after(prompt.text, response.text)
    end = [int(tokenizer.eos_token_id)] if response.finished and tokenizer.eos_token_id is not None else []
    ids = [*encode_response(text, tokenizer), *end]
    return Episode(prompt, response_ids=ids, done=True, has_end=response.finished, response_text=text)
