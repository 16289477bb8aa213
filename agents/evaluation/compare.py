"""An actor beside its reference, on the same prompts: scores, win rate, KL, lengths, samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from agents.algorithms.best_of_n import best_of_n, best_of_n_kl
from agents.callbacks.metrics import GoldFunction
from agents.evaluation.diversity import distinct_n, self_bleu
from agents.evaluation.statistics import Estimate, wilson_interval, wins
from agents.policies.text_policy import Actor, actor_respond
from llm_env.episode import Episode
from llm_env.lm.causal_lm import CausalLM
from llm_env.lm.perplexity import perplexity
from llm_env.lm.registry import SharedLM
from llm_env.rollout import respond
from llm_env.task import TextTask
from llm_env.text.prompts import Prompt
from llm_env.text.texts import EncodedText


@dataclass(frozen=True)
class Report:
    """What `compare` found. Scores, KL (nats per response) and lengths (tokens) are means over prompts."""

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
    against: dict[str, Any] | None = None
    """Beside another actor: its name, score, and how often this one's response to a prompt scores higher."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def compare(
    actor: Actor,
    task: TextTask,
    prompts: Sequence[Prompt],
    seed: int,
    gold: GoldFunction | None = None,
    deterministic: bool = False,
    n_samples: int = 8,
    mask: str = "none",
    n: int = 1,
    texts: Sequence[EncodedText] = (),
    other: tuple[str, Actor] | None = None,
) -> Report:
    """Lets the actor and the task's reference respond to the same prompts, and compares them.

    Args:
        actor: The trained model.
        task: Gives reference, reward model and sizes.
        prompts: Preferably held out from training.
        seed: Of the sampling, the same for both.
        gold: A second score that nobody trained on.
        deterministic: Take the likeliest tokens.
        n_samples: The first prompts, whose two responses are kept.
        mask: The masks that the actor was trained under; see `llm_env.rollout.respond`.
        texts: Held-out text, whose perplexity tells what the training cost the model as a language model.
        other: Another actor, with a name for the report.
        n: Keep the best of that many responses of the actor; its KL is then at most what is reported.

    Raises:
        ValueError: best of n of an actor that is no language model, or n below 1.
    """
    bound = best_of_n_kl(n)
    half = task.settings.mixed_precision
    if n == 1:
        ours = actor_respond(actor, task, prompts, seed, deterministic, mask)
    elif isinstance(actor, CausalLM):
        ours = best_of_n(actor, task, prompts, n, seed)
    else:
        raise ValueError(f"best_of_n={n} samples from a language model; this actor is none.")
    with task.model.frozen() as reference:
        theirs = respond(reference, task, prompts, seed, deterministic=deterministic)
    scores, reference_scores = _scores(ours), _scores(theirs)
    sampled = ours if n == 1 else actor_respond(actor, task, prompts, seed)  # unselected: their KL is that of the actor
    won = wins(scores, reference_scores)
    against = None
    if other is not None:
        rivals = _scores(actor_respond(other[1], task, prompts, seed, deterministic, mask))
        beaten = wins(scores, rivals)
        against = {
            "actor": other[0],
            "rm_score": asdict(Estimate.of(rivals)),
            "win_rate": beaten / len(prompts),
            "win_rate_interval": wilson_interval(beaten, len(prompts)),
        }
    mean, reference_mean = Estimate.of(scores), Estimate.of(reference_scores)
    golden = (
        [gold([e.prompt.text for e in es], [e.response_text for e in es]) for es in (ours, theirs)] if gold else None
    )
    return Report(
        n_prompts=len(prompts),
        rm_score=mean,
        reference_rm_score=reference_mean,
        gain_in_reference_stds=(mean.mean - reference_mean.mean) / max(reference_mean.std, 1e-8),
        win_rate=won / len(prompts),
        win_rate_interval=wilson_interval(won, len(prompts)),
        kl=Estimate.of([bound + sum(e.log_probs) - sum(e.ref_log_probs) for e in sampled]),
        response_length=Estimate.of([len(e.response_ids) for e in ours]),
        reference_response_length=Estimate.of([len(e.response_ids) for e in theirs]),
        eos_rate=float(np.mean([e.has_end for e in ours])),
        reference_eos_rate=float(np.mean([e.has_end for e in theirs])),
        gold_score=Estimate.of(golden[0]) if golden else None,
        reference_gold_score=Estimate.of(golden[1]) if golden else None,
        diversity=diversity([e.response_text for e in ours]),
        reference_diversity=diversity([e.response_text for e in theirs]),
        perplexity=perplexity(lend(actor, task), texts, half) if texts and isinstance(actor, CausalLM) else None,
        reference_perplexity=perplexity(task.model, texts, half) if texts else None,
        against=against,
        samples=[
            {
                "prompt": a.prompt.text,
                "response": a.response_text,
                "rm_score": a.rm_score,
                "kl": sum(a.log_probs) - sum(a.ref_log_probs),
                "reference_response": b.response_text,
                "reference_rm_score": b.rm_score,
            }
            for a, b in list(zip(ours, theirs, strict=True))[:n_samples]
        ],
    )


def diversity(texts: Sequence[str]) -> dict[str, float]:
    """Distinct-1, distinct-2 and self-BLEU; see `agents.evaluation.diversity`."""
    return {"distinct_1": distinct_n(texts, 1), "distinct_2": distinct_n(texts, 2), "self_bleu": self_bleu(texts)}


def lend(actor: CausalLM, task: TextTask) -> SharedLM:
    """An actor as what the frozen models are."""
    return SharedLM(actor, task.tokenizer, task.eos_ids, task.settings.load)


def _scores(episodes: list[Episode]) -> list[float]:
    return [e.rm_score for e in episodes if e.rm_score is not None]
