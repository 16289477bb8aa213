"""The embedded default task: a tiny actor, a reward model, prompts, and the rule that the reward model was trained on.

``grammar`` writes the reviews that the models were made from, ``gold`` is the rule; ``assets/`` holds the models and prompts.
"""

from __future__ import annotations

from pathlib import Path

ASSETS = Path(__file__).parent / "assets"
DEFAULT_MODEL = str(ASSETS / "actor")
DEFAULT_REWARD_MODEL = str(ASSETS / "reward_model")
DEFAULT_PROMPTS = str(ASSETS / "prompts.jsonl")
DEFAULT_HELDOUT_PROMPTS = str(ASSETS / "heldout_prompts.jsonl")
DEFAULT_GOLD = "llm_env.default_task.gold:gold_score"
