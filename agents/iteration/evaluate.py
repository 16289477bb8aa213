"""Evaluation of an actor on held-out prompts, with each prompt's values, so that rounds are compared prompt by prompt."""

from __future__ import annotations

from typing import Any

from agents.console import say
from agents.diversity import diversity
from agents.evaluation.gold import load_gold
from agents.evaluation.settings import SAMPLE_SEED
from agents.evaluation.statistics import Estimate
from agents.files import write_json
from agents.iteration.settings import PEOPLE
from agents.iteration.state import RoundsState, reward_name
from agents.policies.text_policy import load_actor
from llm_env.default_task import DEFAULT_MODEL, DEFAULT_REWARD_MODEL
from llm_env.task import TextTask

N_SAMPLES = 8


def evaluate(state: RoundsState, number: int) -> None:
    """Evaluates a round's actor, with its gains over the evaluation before, and writes ``evaluation.json``.

    Raises:
        FileNotFoundError, ValueError: something cannot be loaded, or no setting says what scores.
    """
    evaluation = evaluate_actor(state, number)
    earlier = [e for n in range(number) if (e := state.evaluation(n)) is not None]
    evaluation = {"round": number, **evaluation, **gains(evaluation, earlier[-1] if earlier else None)}
    write_json(state.round_folder(number) / "evaluation.json", evaluation)
    line = f"round {number}: score {evaluation['rm_score']:.2f}, KL {evaluation['kl']:.2f}"
    if "gold_score" in evaluation:
        line += f", gold {evaluation['gold_score']:.2f}"
        if (gain := evaluation.get("gold_gain")) is not None:
            line += f" ({gain[0]:+.2f} ± {gain[1]:.2f})"
    say(state.console, line)


def evaluate_actor(state: RoundsState, number: int) -> dict[str, Any]:
    """Measures score, gold score, KL to the first model and diversity of one response to each held-out prompt.

    Args:
        state: Settings, models and held-out prompts of the rounds.
        number: The round whose actor responds; 0: the model that the first round starts from.

    Returns:
        Means, half-widths of their 95 % intervals, each prompt's values, samples.

    Raises:
        FileNotFoundError, ValueError: something cannot be loaded, or no setting says what scores.
    """
    settings, actor = state.settings, state.actor(number)
    task = TextTask(
        settings.task_settings(
            model=state.first,
            reward_model=scorer_name(state),
            prompts=list(state.held_out),
            mixed_precision="no",
            device=state.load.device,
        )
    )
    prompts = task.prompts.spread(settings.n_eval)
    episodes = load_actor(actor, task).respond(task, prompts, SAMPLE_SEED)
    texts = [e.response_text for e in episodes]
    # One value for each prompt, in the prompts' order, which is the same in all rounds.
    values: dict[str, list[float]] = {
        "rm_score": [float(e.rm_score or 0.0) for e in episodes],
        "kl": [e.kl for e in episodes],
        "response_length": [float(len(e.response_ids)) for e in episodes],
    }
    if (gold := load_gold(state.gold, settings.reward_limits)) is not None:
        values["gold_score"] = gold.score(episodes)
    estimates = {name: Estimate.of(column) for name, column in values.items()}
    return {
        **{name: e.mean for name, e in estimates.items()},
        "half_widths": {name: e.half_width for name, e in estimates.items()},
        "diversity": diversity(texts),
        "eos_rate": sum(e.has_end for e in episodes) / len(episodes),
        "actor": str(actor) if str(actor) != DEFAULT_MODEL else "the embedded actor",
        "samples": [[e.prompt.text, e.response_text, round(float(e.rm_score or 0.0), 2)] for e in episodes[:N_SAMPLES]],
        "values": {name: [round(v, 5) for v in column] for name, column in values.items()},
    }


def scorer_name(state: RoundsState) -> str:
    """The name of what scores the evaluation: the setting `reward_model`, or the first judge that is not people.

    Raises:
        ValueError: people rank responses of a model of the user's, and no setting says what scores.
    """
    judges = [reward_name(j) for j in state.judges if j != PEOPLE]
    name = state.settings.reward_model or (judges[0] if judges else None)
    if name is None and state.settings.model is not None:
        raise ValueError("reward_model: people ranked; say what scores the evaluation.")
    return name or DEFAULT_REWARD_MODEL


def gains(evaluation: dict[str, Any], before: dict[str, Any] | None) -> dict[str, list[float]]:
    """How much higher the scores are than in the evaluation before, prompt by prompt.

    Args:
        evaluation: What `evaluate_actor` returned.
        before: The same of an earlier round; None: there is no gain.

    Returns:
        ``rm_gain`` and ``gold_gain``: mean and half-width of its 95 % interval.
    """
    result: dict[str, list[float]] = {}
    for name in ("rm_score", "gold_score"):
        if before is not None and name in evaluation:
            pairs = zip(evaluation["values"][name], before["values"][name], strict=True)
            estimate = Estimate.of([after - earlier for after, earlier in pairs])
            result[f"{name.removesuffix('_score')}_gain"] = [estimate.mean, estimate.half_width]
    return result
