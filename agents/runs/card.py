"""The model card of a trained actor: README.md in its folder, as model hubs show it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from agents.flat_settings import to_flat
from agents.runs.ending import Ending
from agents.runs.settings import RunSettings

METRICS = {
    "rollout/rm_score": "score of the rollout",
    "rollout/kl": "KL to the reference, nats per response",
    "rollout/gold_score": "gold score, which nobody trains on",
    "rollout/response_length": "tokens of a response",
    "eval/rm_score": "score on held-out prompts",
    "eval/kl": "KL on held-out prompts, nats per response",
    "rollout/tokens": "tokens generated in training",
}
MOST_SAMPLES = 4


def model_card(
    settings: RunSettings,
    name: str,
    last: Mapping[str, float],
    samples: Sequence[Mapping[str, Any]],
    version: str,
    library: str = "transformers",
    ending: Ending | None = None,
) -> str:
    """Writes the card in Markdown: how the actor was trained, what came out, what it writes.

    Args:
        settings: The run's settings.
        name: The run's name.
        last: The row of its metrics that is about this actor, the last one.
        samples: Samples on held-out prompts, the latest last.
        version: The version of this project.
        library: What loads the folder: ``transformers``, or ``peft`` where it holds adapters alone.
        ending: What ended the run, where its steps were not used up.
    """
    algo = settings.algorithm.algo
    base = settings.task.model
    head: dict[str, Any] = {"library_name": library, "pipeline_tag": "text-generation"}
    if base is not None and not Path(base).expanduser().exists():  # a hub's id
        head["base_model"] = base
    head["tags"] = ["llm-env", "reinforcement-learning", algo]
    defaults = to_flat(RunSettings())
    changed = {k: v for k, v in to_flat(settings).items() if v != defaults.get(k)}
    rows = [
        f"| {about} | {last[key]:,.2f} |" for key, about in METRICS.items() if not math.isnan(last.get(key, math.nan))
    ]
    latest = samples[-1]["timestep"] if samples else None
    shown = [sample for sample in samples if sample["timestep"] == latest][:MOST_SAMPLES]
    texts = [f"{s['prompt']}\n--> {s['response']}\n    score {s['rm_score']:.2f}" for s in shown]
    of_when = "the last of training" if ending is None or ending.kept is None else "of this actor"
    what = "LoRA adapters of a" if library == "peft" else "A"
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---",
        f"# {name}",
        f"{what} causal language model, trained with `{algo}` by llm-env {version}: token by token in `LLMText-v0`, against a "
        "frozen reward and a KL penalty to the model that it started from.",
        *([] if ending is None else [f"{ending.sentence()}."]),
        "## Settings",
        "What differs from the defaults; `config.yaml` beside this folder has everything.",
        f"```yaml\n{yaml.safe_dump(_plain(changed), sort_keys=True, allow_unicode=True)}```",
        *(["## Result", "| | |\n|---|---|\n" + "\n".join(rows)] if rows else []),
        *(["## Samples", f"On held-out prompts, {of_when}, as they came.", _fenced("\n\n".join(texts))] * bool(texts)),
    ]
    return "\n\n".join(parts) + "\n"


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as plain values; what is none is written as text."""
    return json.loads(json.dumps(dict(settings), default=str))


def _fenced(text: str) -> str:
    """A text in a block of code that nothing in it can end."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}text\n{text}\n{fence}"
