"""An actor beside its reference, on the same prompts: scores, win rate, KL, lengths, samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from agents.algorithms.best_of_n import best_of_n, best_of_n_kl
from agents.callbacks.metrics import GoldFunction
from agents.diversity import diversity
from agents.evaluation.settings import EvaluationSettings
from agents.evaluation.statistics import Estimate, wilson_interval, wins
from agents.policies.text_policy import LoadedActor, Responder
from llm_env.episode import Episode
from llm_env.lm.causal_lm import CausalLM
from llm_env.lm.perplexity import perplexity
from llm_env.lm.registry import SharedLM
from llm_env.reward.models import load_text_reward
from llm_env.rollout import respond
from llm_env.task import TextTask
from llm_env.text.prompts import Prompt
from llm_env.text.texts import EncodedText


@dataclass(frozen=True)
class Report:
    """The result of `compare_actors`. Scores, KL (nats per response) and lengths (tokens) are means over prompts."""

    n_prompts: int
    rm_score: Estimate
    reference_rm_score: Estimate
    gain_in_reference_stds: float
    win_rate: float
    win_rate_interval: tuple[float, float]
    kl: Estimate
    response_length: Estimate
    reference_response_length: Estimate
    eos_rate: float
    reference_eos_rate: float
    gold_score: Estimate | None
    reference_gold_score: Estimate | None
    diversity: dict[str, float]
    reference_diversity: dict[str, float]
    samples: list[dict[str, Any]]
    perplexity: float | None = None
    reference_perplexity: float | None = None
    parts: dict[str, tuple[Estimate, Estimate]] = field(default_factory=dict)
    """Of several reward models, each one's score by its short name: the actor's and the reference's, unweighted."""
    against: dict[str, Any] | None = None
    """Beside another actor: its name, score, and how often this one's response to a prompt scores higher."""

    def to_json(self) -> dict[str, Any]:
        """Gives the report as plain values."""
        return asdict(self)


def compare_actors(
    actor: Responder,
    task: TextTask,
    prompts: Sequence[Prompt | None],
    settings: EvaluationSettings | None = None,
    gold: GoldFunction | None = None,
    texts: Sequence[EncodedText] = (),
    other: tuple[str, Responder] | None = None,
) -> Report:
    """Lets an actor and the task's reference respond to the same prompts, and compares the responses.

    Args:
        actor: The trained model, or any other that responds to prompts.
        task: Gives reference, reward model and sizes.
        prompts: The prompts to respond to, preferably held out from training.
        settings: How both respond. None: `EvaluationSettings` with its defaults.
        gold: A second score that nobody trained on.
        texts: Held-out texts, whose perplexity tells what the training cost the model as a language model.
        other: Another actor to compare with too, with a name for the report.

    Raises:
        ValueError: best of n of an actor that is no language model.
    """
    settings = settings or EvaluationSettings()
    # Both respond to the same prompts with the same seed.
    ours, sampled = _respond(actor, task, prompts, settings)
    with task.model.frozen() as reference:
        theirs = respond(reference, task, prompts, settings.seed, deterministic=settings.greedy)
    scores, reference_scores = _scores(ours), _scores(theirs)
    mean, reference_mean = Estimate.of(scores), Estimate.of(reference_scores)
    win_rate, win_rate_interval = _win_rate(scores, reference_scores)
    bound = best_of_n_kl(settings.best_of_n)  # nats that selecting adds to the actor's KL, at most; 0 for n = 1
    half = task.settings.mixed_precision
    return Report(
        n_prompts=len(prompts),
        rm_score=mean,
        reference_rm_score=reference_mean,
        # The floor keeps a reference whose scores are all equal from dividing by 0.
        gain_in_reference_stds=(mean.mean - reference_mean.mean) / max(reference_mean.std, 1e-8),
        win_rate=win_rate,
        win_rate_interval=win_rate_interval,
        kl=Estimate.of([bound + e.kl for e in sampled]),
        response_length=Estimate.of([len(e.response_ids) for e in ours]),
        reference_response_length=Estimate.of([len(e.response_ids) for e in theirs]),
        eos_rate=float(np.mean([e.has_end for e in ours])),
        reference_eos_rate=float(np.mean([e.has_end for e in theirs])),
        gold_score=_gold_score(ours, gold),
        reference_gold_score=_gold_score(theirs, gold),
        diversity=diversity([e.response_text for e in ours]),
        reference_diversity=diversity([e.response_text for e in theirs]),
        perplexity=perplexity(as_shared(actor.lm, task), texts, half)
        if texts and isinstance(actor, LoadedActor)
        else None,
        reference_perplexity=perplexity(task.model, texts, half) if texts else None,
        parts={
            name: (Estimate.of([e.part_scores[name] for e in ours]), Estimate.of([e.part_scores[name] for e in theirs]))
            for name in ours[0].part_scores
        },
        against=_against(other, scores, task, prompts, settings) if other else None,
        samples=[_sample(a, b) for a, b in list(zip(ours, theirs, strict=True))[: settings.n_samples]],
    )


def _respond(
    actor: Responder, task: TextTask, prompts: Sequence[Prompt | None], settings: EvaluationSettings
) -> tuple[list[Episode], list[Episode]]:
    """An actor's responses to compare, and those whose KL is reported: with best of n the unselected ones, else the same."""
    if settings.best_of_n == 1:
        episodes = actor.respond(task, prompts, settings.seed, settings.greedy)
        return episodes, episodes
    if not isinstance(actor, LoadedActor):
        raise ValueError(f"best_of_n={settings.best_of_n} samples from a language model; this actor is none.")
    # A selected response's log-probs are the actor's, not those of best-of-n: `compare_actors` takes the actor's KL from
    # unselected responses, and adds the bound of the selection.
    selected = best_of_n(actor.lm, task, prompts, settings.best_of_n, settings.seed)
    return selected, LoadedActor(actor.lm).respond(task, prompts, settings.seed)


def _against(
    other: tuple[str, Responder],
    scores: list[float],
    task: TextTask,
    prompts: Sequence[Prompt | None],
    settings: EvaluationSettings,
) -> dict[str, Any]:
    """Another actor's name and score, and how often `scores` are above its scores of the same prompts."""
    name, actor = other
    other_scores = _scores(actor.respond(task, prompts, settings.seed, settings.greedy))
    win_rate, interval = _win_rate(scores, other_scores)
    score = asdict(Estimate.of(other_scores))
    return {"actor": name, "rm_score": score, "win_rate": win_rate, "win_rate_interval": interval}


def _win_rate(scores: list[float], other_scores: list[float]) -> tuple[float, tuple[float, float]]:
    """The share of prompts with the higher score, and its 95 % interval."""
    won = wins(scores, other_scores)
    return won / len(scores), wilson_interval(won, len(scores))


def _gold_score(episodes: list[Episode], gold: GoldFunction | None) -> Estimate | None:
    return None if gold is None else Estimate.of(load_text_reward(gold, "gold").score(episodes))


def _sample(ours: Episode, theirs: Episode) -> dict[str, Any]:
    """The actor's and the reference's response to one prompt, with their scores."""
    return {
        "prompt": ours.prompt.text,
        **({"columns": dict(ours.prompt.columns)} if ours.prompt.columns else {}),
        "response": ours.response_text,
        "rm_score": ours.rm_score,
        "kl": ours.kl,
        "reference_response": theirs.response_text,
        "reference_rm_score": theirs.rm_score,
    }


def as_shared(actor: CausalLM, task: TextTask) -> SharedLM:
    """Wraps an actor, with the task's tokenizer, in the class of the task's own models, which `perplexity` takes."""
    return SharedLM(actor, task.tokenizer, task.eos_ids, task.settings.load)


def _scores(episodes: list[Episode]) -> list[float]:
    return [e.rm_score for e in episodes if e.rm_score is not None]
