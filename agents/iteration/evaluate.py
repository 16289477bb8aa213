"""How an actor does on held-out prompts, with each prompt's values, so that rounds can be compared prompt by prompt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agents.evaluation.compare import diversity
from agents.evaluation.statistics import Estimate
from agents.iteration.settings import IterationSettings
from agents.policies.text_policy import actor_respond, load_actor
from llm_env.default_task import DEFAULT_MODEL, DEFAULT_REWARD_MODEL
from llm_env.lm.names import LoadSettings
from llm_env.reward.models import FunctionReward
from llm_env.settings import TaskSettings
from llm_env.task import TextTask
from llm_env.text.prompts import RawPrompt

SAMPLE_SEED = 12_345


def evaluate_actor(
    actor: Path,
    first: str,
    scorer: str | None,
    gold: str | None,
    prompts: Sequence[RawPrompt],
    settings: IterationSettings,
    load: LoadSettings,
) -> dict[str, Any]:
    """Score, gold score, KL to the first model and diversity of one response to each prompt.

    Args:
        actor: Its folder, or the name of the first model.
        first: What the KL is to.
        scorer: Reward model; None: the embedded one.
        gold: package.module:function, or None.
        prompts: Held out.
        settings: Sizes.
        load: How models are loaded.

    Returns:
        Means, half-widths of their 95 % intervals, each prompt's values, samples.

    Raises:
        FileNotFoundError, ValueError: something cannot be loaded.
    """
    task = TextTask(
        TaskSettings(
            model=first,
            reward_model=scorer or DEFAULT_REWARD_MODEL,
            prompts=list(prompts),
            max_prompt_length=settings.max_prompt_length,
            max_new_tokens=settings.max_new_tokens,
            temperature=settings.temperature,
            mixed_precision="no",
            device=load.device,
            trust_remote_code=load.trust_remote_code,
        )
    )
    chosen = task.prompts.spread(settings.n_eval)
    episodes = actor_respond(load_actor(actor, task), task, chosen, SAMPLE_SEED)
    values: dict[str, list[float]] = {
        "rm_score": [float(e.rm_score or 0.0) for e in episodes],
        "kl": [float(sum(e.log_probs) - sum(e.ref_log_probs)) for e in episodes],
        "response_length": [float(len(e.response_ids)) for e in episodes],
    }
    texts = [e.response_text for e in episodes]
    if gold is not None:
        score: Any = FunctionReward(gold).function
        values["gold_score"] = [float(v) for v in score([e.prompt.text for e in episodes], texts)]
    estimates = {name: Estimate.of(some) for name, some in values.items()}
    return {
        **{name: e.mean for name, e in estimates.items()},
        "half_widths": {name: e.half_width for name, e in estimates.items()},
        "diversity": diversity(texts),
        "eos_rate": sum(e.has_end for e in episodes) / len(episodes),
        "actor": str(actor) if str(actor) != DEFAULT_MODEL else "the embedded actor",
        "samples": [[e.prompt.text, e.response_text, round(float(e.rm_score or 0.0), 2)] for e in episodes[:8]],
        "values": {name: [round(v, 5) for v in some] for name, some in values.items()},
    }
