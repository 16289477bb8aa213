"""What is made from the algorithms' table on their pages in docs/algorithms; `tables.py` writes it there.

A page without a file begins as `NEW_PAGE`, whose notes are then written by hand.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import itertools
import json
import re
import textwrap
from pathlib import Path
from typing import Any

import compare
from agents.algorithms.capabilities import FEATURES
from agents.algorithms.explanations import EXPLANATIONS, OWN_MEANING
from agents.algorithms.losses import LOSS_AGGREGATIONS
from agents.algorithms.table import TEXT_LOSS_SETTINGS, algorithm, class_settings, settings_of
from agents.algorithms.text_ppo import TextPPO
from agents.policies.critic import CRITICS
from agents.policies.q_network import BACKUPS
from agents.policies.random_search import SEARCHED
from agents.policies.settings import PolicySettings
from agents.rollouts.buffer import TokenRolloutBuffer
from agents.rules import ALGORITHM_RULES, MAPPINGS, OPTIMIZERS, SCHEDULES, WITH_A_CRITIC
from agents.runs.settings import AlgorithmSettings, TrainingSettings
from comparison.figures import COLUMNS, Results, markdown_table
from llm_env.lm.names import PRECISIONS, QUANTIZATIONS
from llm_env.reward.kl import KL_PLACES
from llm_env.rules import FLAG
from llm_env.settings import TaskSettings

DOCS = Path(__file__).resolve().parents[2] / "docs"
NEW_PAGE = """\
# `{name}`

<!-- made: about {name} -->
<!-- end -->

## Notes

## Can I use …?

<!-- made: can-i-use {name} -->
<!-- end -->

## Example

<!-- made: example {name} -->
<!-- end -->

## Results

<!-- made: results {name} -->
<!-- end -->

## How to replicate

<!-- made: replicate {name} -->
<!-- end -->

## Parameters

<!-- made: parameters {name} -->
<!-- end -->
"""
FROM_TASK = {
    "n_steps": "`rounds` x `max_new_tokens`",
    "batch_size": "a quarter of a rollout",
    "gae_lambda": "0.9 with the critic `reward_model`, else 0.95",
    "target_kl": "0.1 / (β · `max_new_tokens`); with β = 0 none",
    "train_freq": "`rounds` x `max_new_tokens`",
    "whiten_advantages": "`True`, but `False` with `normalize_advantage` or a KL in the loss",
    "n_eval_episodes": "`n_envs`",
    "q_scale": "β",
    "critic": "the first that fits: `reward_model`, with LoRA `detached_head`, `actor`",
}
"""Defaults that follow from the environment, or from another setting; see `agents.algorithms.wiring`."""
CHOICES = {
    "advantages": WITH_A_CRITIC,
    "critic": tuple(name for name in CRITICS if name != "none"),
    "kl_in": KL_PLACES,
    "loss_aggregation": LOSS_AGGREGATIONS,
    "mixed_precision": PRECISIONS,
    "optimizer": OPTIMIZERS,
    "base_quantization": QUANTIZATIONS,
    "backup": BACKUPS,
    "searched": SEARCHED,
}
"""Settings that are one of several names."""
EXAMPLES: dict[str, dict[str, Any]] = {
    "maskable_ppo": {"env_kwargs": {"top_p": 0.95}},
    "grpo": {"group_size": 8},
    "dr_grpo": {"group_size": 8},
    "rloo": {"group_size": 8},
    "ars": {"n_envs": 16},
}
"""What examples set beside the defaults."""


# ----------------------------------------------------------------------------------------------------------- parts of a page
def about(name: str) -> str:
    """What the algorithm is, with its paper; whose class it is, and what it runs on."""
    row = algorithm(name)
    text = re.sub(r"\((https://(?:arxiv\.org/abs|doi\.org)/(\S+?))\)", r"([\2](\1))", row.about)
    library = row.cls.__module__.partition(".")[0]
    kind = f"The class is the library's own, `{library}.{row.cls.__name__}`;"
    if row.cls is TextPPO:
        kind = "The class is `agents.TextPPO`, a subclass of stable-baselines3's `PPO`;"
    kind += f" the policy is `{row.policy.__name__}`."
    if row.cls is not TextPPO and row.text_loss:
        kind += f" With one of `{'`, `'.join(TEXT_LOSS_SETTINGS)}`, or the KL in the loss, it is `agents.TextPPO`, a subclass."
    return f"{text}.\n\n{textwrap.fill(kind, 120)}\n"


def can_i_use(name: str) -> str:
    """Its row of the capability table, upright, with the reasons."""
    row = algorithm(name)
    lines = ["| | | why not |", "|---|---|---|"]
    for feature, title in FEATURES.items():
        reason = row.reason(feature)
        lines.append(f"| {title} | {'yes' if reason is None else '**no**'} | {reason or ''} |")
    return "\n".join(lines) + "\n"


def example(name: str) -> str:
    """The same run in Python and on the command line."""
    given = {key: value for key, value in EXAMPLES.get(name, {}).items() if key != "n_envs"}
    flat = given | given.get("env_kwargs", {})
    flat.pop("env_kwargs", None)
    n_envs = EXAMPLES.get(name, {}).get("n_envs", 64)
    words = ["llm-env", "train", "--algo", name, "--output-dir", f"runs/{name}", "--total-timesteps", str(n_envs * 640)]
    words += ["--n-envs", str(n_envs)] if n_envs != 64 else []
    for setting, value in flat.items():
        words += [f"--{setting.replace('_', '-')}", str(value)]
    evaluate = f"llm-env evaluate --actor runs/{name}/actor"
    return f"```python\n{python_example(name)}```\n\n```bash\n{' '.join(words)}\n{evaluate}\n```\n"


def python_example(name: str, n_envs: int | None = None, rollouts: int = 20, **smaller: Any) -> str:
    """Python that trains, with as many slots and rollouts; `smaller` are further settings, for a test in a hurry."""
    given = {**EXAMPLES.get(name, {}), **smaller}
    n_envs = n_envs or given.pop("n_envs", 64)
    given.pop("n_envs", None)
    arguments = [f'"{name}"', f"n_envs={n_envs}", "seed=0"]
    arguments += [
        f"{key}={json.dumps(value) if isinstance(value, dict) else repr(value)}" for key, value in given.items()
    ]
    return (
        "from agents import TextMetricsCallback, make_algorithm\n\n"
        f"model = make_algorithm({', '.join(arguments)})\n"
        f"model.learn({n_envs} * 32 * {rollouts}, callback=TextMetricsCallback(verbose=1))  # a line a rollout\n"
        "responses, _ = model.predict(model.get_env().reset())  # the first token of each\n"
        f'model.save("{name}.zip")\n'
    )


def results(name: str) -> str:
    """Its rows of the comparisons whose results are in docs, between the reference and TRL's trainer of the same name."""
    parts = []
    for file, title, section in (
        ("compare/results.json", "On the embedded task", "algorithms.md#all-of-them-with-the-same-budget"),
        ("offline/results.json", "With a reward model fitted to 900 noisy preference labels", "offline.md#beside-ppo"),
        ("offline/film_results.json", "SmolLM2-135M on film reviews", "offline.md#the-same-on-a-real-model"),
    ):
        found: Results = json.loads((DOCS / file).read_text(encoding="utf-8"))
        shown = [r for r in found if r["algo"] in ("reference", "best_of_16", name, f"trl_{name}")]
        if any(r["algo"] == name for r in shown):
            columns = [c for c in COLUMNS if c not in ("tokens/s", "seconds", "above the reference")]
            budget = f"{max(r['tokens'] for r in shown):,} tokens each"
            gold = "; gold is VADER, which nobody trains on" if "film" in file else ""
            told = markdown_table(shown, columns)
            parts.append(f"{title}, {budget} ([all of them](../{section})){gold}:\n\n{told}")
    return "\n".join(parts) or "Not measured yet.\n"


def replicate(name: str) -> str:
    """The commands that give the first of the results, and the settings that the recorded search found."""
    found: Results = json.loads((DOCS / "compare/results.json").read_text(encoding="utf-8"))
    own = next((r for r in found if r["algo"] == name), None)
    if own is None:
        command = f"python scripts/lab/compare.py --output-dir runs/compare --algos {name}"
        return f"A search, then the comparison:\n\n```bash\n{command} --search\n{command}\n```\n"
    params = compare.best_settings(DOCS / "compare", name)
    flat = params | params.get("env_kwargs", {})
    flat.pop("env_kwargs", None)
    settings = ", ".join(
        f"`{key}={value:.3g}`" if isinstance(value, float) else f"`{key}={value}`" for key, value in flat.items()
    )
    trials = sum(t["algo"] == name for t in compare.read_lines(DOCS / "compare" / "search.jsonl"))
    text = f"On the embedded task the search of {trials} trials found {settings}. With its record, this trains as in the table:"
    return (
        f"{textwrap.fill(text, 120, break_on_hyphens=False)}\n\n"
        "```bash\n"
        "mkdir -p runs/compare\n"
        "cp docs/compare/search.jsonl runs/compare/\n"
        f"python scripts/lab/compare.py --output-dir runs/compare --algos {name} --tokens {own['tokens']}\n"
        "```\n"
    )


# ----------------------------------------------------------------------------------------------------------- the parameters
def parameters(name: str) -> str:
    """Every setting: its default, what it must be, what it is; those that the algorithm's row sets first."""
    own = {*algorithm(name).defaults, *OWN_MEANING.get(name, {})}
    of_task = {"seed", "device", "mixed_precision", "offload", "base_quantization", "kl_in"}
    options = {f.name for f in dataclasses.fields(AlgorithmSettings)} | of_task
    lines = ["| setting | default | must be | what it is |", "|---|---|---|---|"]
    for setting in sorted(settings_of(name), key=lambda s: (s not in own, s)):
        mark = "" if setting in options else " ²" if setting in _PYTHON_ONLY else " ¹"
        cells = (f"`{setting}`{mark}", default_of(name, setting), rule_of(name, setting), explanation(name, setting))
        lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
    return "\n".join([*lines, "", _HOW_TO_SET]) + "\n"


_PYTHON_ONLY = {*MAPPINGS, "optimizer_class", "tensorboard_log", "stats_window_size", "verbose"}
_HOW_TO_SET = """\
In Python: `make_algorithm(name, setting=value)`. On the command line an option, `--learning-rate 0.0003`; ¹ with
`--algo-kwargs name=value`; ² not there. Defaults are the library's where the algorithm's row of
[`agents/algorithms/table.py`](../../agents/algorithms/table.py) has no other."""


def default_of(name: str, setting: str) -> str:
    """A setting's default in words: of the table, of the environment, of the policy, the buffer or the class."""
    row = algorithm(name)
    places: list[Any] = [row.defaults]
    if setting in FROM_TASK and setting not in row.defaults and setting in _wired(name):
        return FROM_TASK[setting]
    if row.policy_settings and setting in row.policy_settings:
        if "lora_rank" in row.policy_settings:
            places.append({f.name: f.default for f in dataclasses.fields(PolicySettings)})
        places.append(class_settings(row.policy))
    places += [class_settings(row.cls), class_settings(TextPPO), class_settings(TokenRolloutBuffer)]
    if setting in ("kl_in", "group_size"):
        places.append({"kl_in": "reward", "group_size": 1})
    value = next(place[setting] for place in places if setting in place)
    if isinstance(value, type):
        return f"`{value.__name__}`"
    return "" if value is None else f"`{value}`"


def _wired(name: str) -> set[str]:
    """The settings whose default `agents.algorithms.wiring` takes from the environment, of one algorithm."""
    row = algorithm(name)
    kinds = {
        "on_policy": {"n_steps", "batch_size", "critic", "whiten_advantages", "target_kl", "gae_lambda"},
        "recurrent": {"n_steps", "batch_size"},
        "value_based": {"train_freq", "q_scale", "critic"},
        "black_box": {"n_eval_episodes"},
    }
    return kinds[row.wire.__name__]


def rule_of(name: str, setting: str) -> str:
    """What a setting must be, in words."""
    if setting in CHOICES:
        ours = [choice for choice in CHOICES[setting] if choice != "top_layers" or algorithm(name).rollouts]
        return ", ".join(f"`{choice}`" for choice in ours)
    rule = ALGORITHM_RULES.get(setting)
    words = "" if rule is None else "True or False" if rule is FLAG else str(rule)
    return f"{words}, or a function of the progress that remains" if setting in SCHEDULES else words


def explanation(name: str, setting: str) -> str:
    """What a setting is.

    Raises:
        LookupError: it is explained nowhere.
    """
    row = algorithm(name)
    own = OWN_MEANING.get(name, {})
    explained = (PolicySettings, TaskSettings, row.policy, TextPPO, TokenRolloutBuffer)
    fields = map(_fields_explained, (AlgorithmSettings, TrainingSettings))
    sources = [own, EXPLANATIONS, *fields, *map(_arguments_explained, explained)]
    for source in sources:
        if setting in source:
            return re.sub(r"``(.+?)``", r"`\1`", source[setting])
    raise LookupError(f"{name}: {setting} is explained nowhere; say what it is in agents/algorithms/explanations.py.")


@functools.cache
def _fields_explained(cls: type[Any]) -> dict[str, str]:
    """The text below each field of a dataclass, by the field's name."""
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0].body  # type: ignore[attr-defined]
    found = {}
    for field, text in itertools.pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            found[field.target.id] = " ".join(str(text.value.value).split())  # type: ignore[union-attr]
    return found


@functools.cache
def _arguments_explained(cls: type[Any]) -> dict[str, str]:
    """What the docstring's section of arguments or attributes says, by name."""
    section = re.search(r"^(?:Args|Attributes):\n(.*?)(?=^\S|\Z)", inspect.getdoc(cls) or "", re.S | re.M)
    entries = re.findall(r"^    (\w+): (.*?)(?=^    \w|\Z)", section[1] if section else "", re.S | re.M)
    return {name: " ".join(text.split()) for name, text in entries}
