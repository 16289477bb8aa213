"""What a policy writes to a run's held-out prompts: samples to read, and the evaluation that finds the best actor."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import numpy as np

from agents.callbacks.metrics import mean_of_parts
from agents.evaluation.settings import SAMPLE_SEED
from agents.policies.text_policy import Responder
from agents.rollouts.sample_tokens import TokenCritic, token_columns
from llm_env.episode import Episode
from llm_env.reward.scores import TextReward
from llm_env.task import TextTask
from llm_env.text.prompts import NoPrompts, PromptSet


class HeldOutPrompts:
    """Held-out prompts, which the policy responds to with the same seed each time.

    Args:
        prompts: Held-out prompts, encoded for the actor; samples are of the first ones. Where a world begins each episode by
            itself, there are none, and its seeds are the same each time.
        task: Gives the sizes, the models and the reward.
        gold: A second score that is only reported, or None.

    Raises:
        ValueError: a prompt's record has no column that the reward model or the gold function needs.
    """

    def __init__(self, prompts: PromptSet | NoPrompts, task: TextTask, gold: TextReward | None) -> None:
        for scorer in (task.reward_model, gold):
            if scorer is not None:
                scorer.check_prompts(prompts.records)
        self.prompts = prompts
        self.task = task
        self.gold = gold

    @functools.cached_property
    def first_task(self) -> TextTask:
        """The task with the reference that the run began with; it shares the models' memory."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is to be said of the prompts, the run's task has said
            return TextTask(self.task.settings)

    def sample(
        self, policy: Responder, timestep: int, count: int, critic: TokenCritic | None = None
    ) -> list[dict[str, Any]]:
        """Gives records of prompt, response, score, KL and tokens for some of the prompts, evenly spread.

        Args:
            policy: The policy in training.
            timestep: Kept in each record.
            count: Number of prompts, at most.
            critic: Has values and advantages of the tokens; None: there are none.
        """
        prompts = self.prompts.spread(count)
        if not prompts:
            return []
        episodes = policy.respond(self.task, prompts, SAMPLE_SEED)
        judged = [None] * len(episodes) if critic is None else critic.judge(self.task, episodes)
        return [
            {
                "timestep": timestep,
                "prompt": episode.prompt.text,
                **({"columns": dict(episode.prompt.columns)} if episode.prompt.columns else {}),
                "response": episode.response_text,
                "rm_score": episode.rm_score,
                **({"reward_parts": episode.part_scores} if episode.part_scores else {}),
                "kl": episode.kl,
                **({} if self.task.make_world is None else {"end": episode.end, "turns": _turns(episode)}),
                "tokens": token_columns(self.task, episode, of_tokens),
            }
            for episode, of_tokens in zip(episodes, judged, strict=True)
        ]

    def evaluate(self, policy: Responder, count: int, kl_coef: float) -> dict[str, float]:
        """Gives mean score, KL, objective and gold score of responses to some of the prompts, evenly spread.

        Args:
            policy: The policy in training.
            count: Number of prompts, at most.
            kl_coef: β of the objective, score - β KL. The KL, in nats per response, is to the reference that the run began
                with, even where the reference has followed the actor since.
        """
        episodes = policy.respond(self.first_task, self.prompts.spread(count), SAMPLE_SEED)
        scores = [e.rm_score for e in episodes if e.rm_score is not None]
        kl = float(np.mean([e.kl for e in episodes]))
        values = {"rm_score": float(np.mean(scores)), "kl": kl}
        values |= {f"reward/{name}": v for name, v in mean_of_parts([e.part_scores for e in episodes]).items()}
        values["objective"] = values["rm_score"] - kl_coef * kl
        if self.gold is not None:
            values["gold_score"] = float(np.mean(self.gold.score(episodes)))
        return values


def _turns(episode: Episode) -> list[dict[str, Any]]:
    """The turns of an episode: what the policy said, what the world answered and paid."""
    return [{"said": t.text, "answer": t.reply, "reward": t.reward} for t in episode.turns]
