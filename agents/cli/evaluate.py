"""Compares a trained actor with its reference on held-out prompts.

    python scripts/evaluate_actor.py --actor runs/demo/actor
    python scripts/evaluate_actor.py --actor runs/demo/actor --against runs/other/actor --texts heldout_text.jsonl

For an actor inside a run's folder, the run's settings say which reference, reward model and prompts to use.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from agents.console import plain_warnings, print_error
from agents.runs.settings import RunSettings

console = Console(soft_wrap=False)


@dataclass(frozen=True)
class Args:
    """Evaluate an actor."""

    actor: Path
    """Model folder, as a run leaves it in RUN/actor."""
    model: str | None = None
    """Reference. Default: the run's, or the embedded model."""
    reward_model: tuple[str, ...] | None = None
    """Default: the run's, or the embedded one."""
    prompts: str | None = None
    """Default: the run's held-out prompts, or the embedded ones."""
    against: Path | None = None
    """Another actor's folder: who scores higher, prompt by prompt?"""
    texts: Path | None = None
    """Held-out text (prompt and response, messages or text) whose perplexity is measured: what training cost the model."""
    gold: str | None = None
    """package.module:function that nobody trained on. Default: the run's, or the embedded rule."""
    n_prompts: int = 256
    """At most this many prompts."""
    max_new_tokens: int | None = None
    """Default: the run's."""
    temperature: float | None = None
    """Default: the run's."""
    best_of_n: int = 1
    """Sample that many responses to each prompt and keep the one that the reward model likes best."""
    greedy: bool = False
    """Take the likeliest token instead of sampling."""
    n_samples: int = 6
    """Responses to print side by side."""
    seed: int = 0
    """Seed of the sampling."""
    device: str = "auto"
    """auto, cpu, cuda."""
    output: Path | None = None
    """JSON file to write. Default: evaluation.json beside the actor's folder."""


def run(args: Args) -> int:
    """Evaluates; returns the exit status."""
    plain_warnings(console)
    try:
        evaluate(args)
    except (ValueError, TypeError, OSError, ImportError, RuntimeError) as error:
        print_error(error)
        return 1
    return 0


def evaluate(args: Args) -> None:
    """Compares, prints the table and the samples, writes the JSON file.

    Raises:
        FileNotFoundError, ValueError: something cannot be loaded.
    """
    import dataclasses

    from agents.evaluation.compare import compare
    from agents.policies.text_policy import load_actor
    from llm_env.default_task import DEFAULT_GOLD
    from llm_env.reward.models import FunctionReward
    from llm_env.settings import TaskSettings
    from llm_env.task import TextTask
    from llm_env.text.texts import encode_text, read_texts

    if args.n_prompts < 1:
        raise ValueError(f"n_prompts={args.n_prompts} must be at least 1.")
    run = args.actor.parent
    settings = RunSettings.read(run / "config.yaml") if (run / "config.yaml").is_file() else RunSettings()
    given = {name: getattr(args, name) for name in ("model", "reward_model", "max_new_tokens", "temperature")}
    changes = {name: value for name, value in given.items() if value is not None}
    if "reward_model" in changes:
        changes["reward_weights"] = None
    prompts = args.prompts or held_out_prompts(run, settings)
    settings = dataclasses.replace(settings, **changes, prompts=prompts, device=args.device)
    task = TextTask(TaskSettings(**settings.task_arguments(prompts=prompts)))
    if args.best_of_n < 1 or (args.best_of_n > 1 and args.greedy):
        raise ValueError(
            f"best_of_n={args.best_of_n} must be at least 1, and without --greedy, which has one response."
        )
    actor = load_actor(args.actor, task)
    default_rewards = settings.reward_model is None and settings.model is None
    gold_name = args.gold or settings.gold or (DEFAULT_GOLD if default_rewards else None)
    gold = FunctionReward(gold_name).function if gold_name else None
    chosen = task.prompts.spread(args.n_prompts)
    mask = "none"
    if settings.algo == "maskable_ppo":
        mask = "actor" if settings.mask_refresh else "reference"
    texts = (
        [encode_text(t, task.tokenizer, settings.max_prompt_length) for t in read_texts(args.texts)]
        if args.texts
        else []
    )
    other = (str(args.against), load_actor(args.against, task)) if args.against else None
    report = compare(
        actor,
        task,
        chosen,
        args.seed,
        gold,
        args.greedy,
        args.n_samples,
        mask,
        args.best_of_n,
        texts,
        other,  # type: ignore[arg-type]
    )

    table = Table(title=f"{args.actor} on {report.n_prompts} prompts (mean, 95 % interval)")
    for column in ("", "reference", "actor"):
        table.add_column(column, justify="left" if not column else "right")
    table.add_row("reward-model score", str(report.reference_rm_score), str(report.rm_score))
    if report.gold_score is not None:
        table.add_row("gold score", str(report.reference_gold_score), str(report.gold_score))
    low, high = report.win_rate_interval
    table.add_row("win rate", "", f"{report.win_rate:.1%} ({low:.1%} to {high:.1%})")
    table.add_row("gain, in the reference's standard deviations", "", f"{report.gain_in_reference_stds:.2f}")
    table.add_row("KL to the reference, nats per response", "0", str(report.kl))
    table.add_row("response length, tokens", str(report.reference_response_length), str(report.response_length))
    table.add_row("ended by an end token", f"{report.reference_eos_rate:.1%}", f"{report.eos_rate:.1%}")
    for name, label in (
        ("distinct_1", "distinct words"),
        ("distinct_2", "distinct word pairs"),
        ("self_bleu", "self-BLEU"),
    ):
        table.add_row(label, f"{report.reference_diversity[name]:.3f}", f"{report.diversity[name]:.3f}")
    if report.perplexity is not None:
        table.add_row("perplexity of held-out text", f"{report.reference_perplexity:.2f}", f"{report.perplexity:.2f}")
    if report.against is not None:
        low, high = report.against["win_rate_interval"]
        table.add_row(
            f"win rate against {args.against}", "", f"{report.against['win_rate']:.1%} ({low:.1%} to {high:.1%})"
        )
    console.print(table)
    samples = Table(title="Samples", show_lines=True)
    for column in ("prompt", "reference", "actor"):
        samples.add_column(column, ratio=1)
    for sample in report.samples:
        before = f"{escape(sample['reference_response'].strip())} [dim]({sample['reference_rm_score']:.2f})[/dim]"
        after = f"{escape(sample['response'].strip())} [dim]({sample['rm_score']:.2f})[/dim]"
        samples.add_row(escape(sample["prompt"]), before, after)
    if report.samples:
        console.print(samples)
    output = args.output or run / "evaluation.json"
    output.write_text(json.dumps(report.to_json(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    console.print(f"Numbers and samples: {output}", highlight=False)


def held_out_prompts(run: Path, settings: RunSettings) -> str:
    """Where a run's held-out prompts are."""
    from llm_env.default_task import DEFAULT_HELDOUT_PROMPTS

    if settings.eval_prompts is not None:
        return settings.eval_prompts
    for name in ("heldout_prompts.jsonl", "train_prompts.jsonl"):
        if (run / name).is_file():
            return str(run / name)
    return settings.prompts or DEFAULT_HELDOUT_PROMPTS


def main(argv: Sequence[str]) -> int:
    """Reads the command line and runs it; returns the exit status."""
    return run(tyro.cli(Args, args=argv, description=__doc__))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
