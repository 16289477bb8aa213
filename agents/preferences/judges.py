"""Judges by name."""

from __future__ import annotations

from rich.console import Console

from agents.preferences.judge import Judge, RewardJudge
from agents.preferences.language_judge import LanguageJudge
from agents.preferences.settings import ComparisonSettings
from llm_env.lm.names import LoadSettings
from llm_env.reward.judges.asking import load_asked_model
from llm_env.reward.judges.instruction import read_instruction
from llm_env.reward.judges.names import check_judge_name, is_language_judge


def load_judge(
    name: str, settings: ComparisonSettings, load: LoadSettings, seed: int, console: Console | None = None
) -> Judge:
    """Loads a judge.

    Args:
        name: As `RewardJudge` takes it, or ``llm:NAME`` or ``openai:URL#MODEL``.
        settings: Noise, time limits, and how language models judge.
        load: How a model on this machine is loaded.
        seed: Seed of the noise.
        console: Where a language model's progress is shown; None: nowhere.

    Raises:
        FileNotFoundError, ValueError: the judge, or the file with its instruction, cannot be loaded.
    """
    if not is_language_judge(name):
        return RewardJudge(name, load, settings.noise, seed, settings.reward_limits)
    check_judge_name(name, "judge")
    instruction = read_instruction(settings.judge_mode, settings.judge_prompt)
    model = load_asked_model(name, load, "judge", settings.reward_limits, settings.judge_concurrency)
    return LanguageJudge(name, model, instruction, settings.noise, seed, console)
