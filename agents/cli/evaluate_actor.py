"""Compares a trained actor with its reference on held-out prompts.

    python scripts/evaluate_actor.py --actor runs/demo/actor
    python scripts/evaluate_actor.py --actor runs/demo/actor --against runs/other/actor --texts heldout_text.jsonl

For an actor inside a run's folder, the run's settings say which reference, reward model and prompts to use.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from agents.cli.arguments import parse_command_line, read_command_line
from agents.console import PlainConsole, attempt
from agents.evaluation.settings import EvaluationSettings
from agents.files import write_json
from agents.flat_settings import read_settings
from agents.output_folder import check_output_file
from agents.runs.settings import RunSettings
from llm_env.rules import TOKENS, Rule, check_settings, number, whole

if TYPE_CHECKING:
    from agents.evaluation.compare import Report

console = PlainConsole(soft_wrap=False)


@dataclass(frozen=True)
class Args:
    """Evaluate an actor."""

    actor: Path
    """Model folder, as a run leaves it in RUN/actor; or the run's folder."""
    model: str | None = None
    """Reference: model folder or hub id. Default: the run's, or the embedded model."""
    reward_model: tuple[str, ...] | None = None
    """Folder or hub id of a classifier with one label, package.module:function, or a server's address; several are summed.
    Default: the run's, or the embedded one."""
    reward_timeout: float | None = None
    """Seconds that one call of a reward function or server may take. Default: the run's."""
    reward_wait: float | None = None
    """Seconds for which a call that fails is repeated. Default: the run's."""
    prompts: str | None = None
    """Prompts to respond to: a .txt, .jsonl, .json, .csv or .parquet file, or a dataset id. Default: the run's held-out
    prompts, or the embedded ones."""
    against: Path | None = None
    """Another actor's folder: its responses to the same prompts are compared with this one's."""
    texts: Path | None = None
    """Held-out text (prompt and response, messages or text) whose perplexity is measured: what training cost the model."""
    gold: str | None = None
    """package.module:function that nobody trained on. Default: the run's, or the embedded rule."""
    n_prompts: int = 256
    """At most this many prompts."""
    max_new_tokens: int | None = None
    """Length cap of a response, in tokens. Default: the run's."""
    temperature: float | None = None
    """Sampling temperature. Default: the run's."""
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

    def check_values(self) -> None:
        """Checks the numbers.

        Raises:
            ValueError: one breaks its rule.
        """
        rules: dict[str, Rule] = {"n_prompts": whole(1), "max_new_tokens": TOKENS, "temperature": number(above=0)}
        check_settings(self, rules)
        self.sampling()

    def sampling(self) -> EvaluationSettings:
        """How the actor responds."""
        return EvaluationSettings(self.seed, self.greedy, self.n_samples, self.best_of_n)


def run(args: Args) -> int:
    """Evaluates the actor; returns the exit status."""
    return attempt(lambda: evaluate(args), console, go_on="")[1]


def evaluate(args: Args) -> None:
    """Compares the actor with its reference, prints the table and the samples, writes the JSON file.

    Raises:
        FileNotFoundError, ValueError: something cannot be loaded, or a setting breaks its rule.
    """
    from agents.evaluation.compare import compare_actors
    from agents.evaluation.gold import load_gold
    from agents.policies.text_policy import load_actor
    from llm_env.task import TextTask
    from llm_env.text.texts import encode_text, read_texts

    # All that can be wrong without a model is found before one is loaded.
    args.check_values()
    for option, folder in (("actor", args.actor), ("against", args.against)):
        if folder is not None and not folder.is_dir():
            raise FileNotFoundError(f"{option}={str(folder)!r}: there is no such folder. Name a run's RUN/actor.")
    against = None if args.against is None else actor_of(args.against)
    args = dataclasses.replace(args, actor=actor_of(args.actor), against=against)
    output = args.output or args.actor.parent / "evaluation.json"
    check_output_file("output", output)
    settings = run_settings(args)
    gold = load_gold(settings.gold_name, settings.task.reward_limits)
    records = read_texts(args.texts) if args.texts else []
    # The actor samples under the masks that it was trained under, from the model that made them.
    mask = "none"
    if settings.algorithm.algo == "maskable_ppo":
        mask = "actor" if settings.algorithm.mask_refresh else "reference"
    task = TextTask(settings.task.task_settings(settings.task.prompts))
    if gold is not None:
        gold.check_prompts(task.prompts.records)
    length = settings.task.max_prompt_length
    texts = [encode_text(record, task.tokenizer, length) for record in records]
    report = compare_actors(
        load_actor(args.actor, task, mask),
        task,
        task.prompts.spread(args.n_prompts),
        args.sampling(),
        gold=gold,
        texts=texts,
        other=(str(args.against), load_actor(args.against, task, mask)) if args.against else None,
    )
    console.print(report_table(report, args))
    if report.samples:
        console.print(samples_table(report))
    write_json(output, report.to_json())
    console.print(f"Numbers and samples: {output}")


def actor_of(folder: Path) -> Path:
    """The actor's folder, where a run's was named.

    Raises:
        ValueError: the run has no actor yet.
    """
    if not (folder / "run.json").is_file():
        return folder
    if not (folder / "actor").is_dir():
        raise ValueError(f"{str(folder)!r} is a run that has not ended: it has no actor yet. Go on with it: --resume.")
    return folder / "actor"


def run_settings(args: Args) -> RunSettings:
    """Gives the settings of the actor's run, or the defaults where it is in no run's folder, with the command line's changes.

    Raises:
        ValueError: the run's ``config.yaml`` is broken.
    """
    run = args.actor.parent
    config = run / "config.yaml"
    settings = read_settings(RunSettings, config) if config.is_file() else RunSettings()
    names = ("model", "reward_model", "reward_timeout", "reward_wait", "max_new_tokens", "temperature")
    changes = {name: value for name in names if (value := getattr(args, name)) is not None}
    if "reward_model" in changes:
        changes["reward_weights"] = None  # the run's weights belong to the run's reward models
    prompts = args.prompts or held_out_prompts(run, settings)
    task = dataclasses.replace(settings.task, **changes, prompts=prompts, device=args.device)
    folder = settings.folder if args.gold is None else dataclasses.replace(settings.folder, gold=args.gold)
    return dataclasses.replace(settings, task=task, folder=folder)


def held_out_prompts(run: Path, settings: RunSettings) -> str | None:
    """Finds a run's held-out prompts: a file or a dataset id; None where a world has none."""
    from agents.runs.prompts import HELD_OUT_FILE, TRAIN_FILE
    from llm_env.default_task import DEFAULT_HELDOUT_PROMPTS

    if settings.folder.eval_prompts is not None:
        return settings.folder.eval_prompts
    for name in (HELD_OUT_FILE, TRAIN_FILE):  # of a few prompts none is held out
        if (run / name).is_file():
            return str(run / name)
    if settings.task.world is not None:
        return settings.task.prompts  # without any, the world begins each episode by itself
    return settings.task.prompts or DEFAULT_HELDOUT_PROMPTS


def report_table(report: Report, args: Args) -> Table:
    """Makes the table of all numbers, the reference's beside the actor's."""
    table = Table(title=f"{args.actor} on {report.n_prompts} prompts (mean, 95 % interval)")
    for column in ("", "reference", "actor"):
        table.add_column(column, justify="left" if not column else "right")
    table.add_row("reward-model score", str(report.reference_rm_score), str(report.rm_score))
    for name, (score, reference_score) in report.parts.items():
        table.add_row(f"score of {name}", str(reference_score), str(score))
    if report.gold_score is not None:
        table.add_row("gold score", str(report.reference_gold_score), str(report.gold_score))
    table.add_row("win rate", "", rate(report.win_rate, report.win_rate_interval))
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
        against = rate(report.against["win_rate"], report.against["win_rate_interval"])
        table.add_row(f"win rate against {args.against}", "", against)
    return table


def rate(value: float, interval: tuple[float, float]) -> str:
    """Formats a win rate with its interval, in percent."""
    return f"{value:.1%} ({interval[0]:.1%} to {interval[1]:.1%})"


def samples_table(report: Report) -> Table:
    """Makes the table of responses, the reference's beside the actor's, with their scores."""
    table = Table(title="Samples", show_lines=True)
    for column in ("prompt", "reference", "actor"):
        table.add_column(column, ratio=1)
    for sample in report.samples:
        before = f"{sample['reference_response'].strip()} ({sample['reference_rm_score']:.2f})"
        after = f"{sample['response'].strip()} ({sample['rm_score']:.2f})"
        table.add_row(sample["prompt"], before, after)
    return table


def check(argv: Sequence[str]) -> None:
    """Checks a command line without reading or writing anything else; see `agents.pipeline.commands.check_command`."""
    read_command_line(Args, argv).check_values()


def main(argv: Sequence[str]) -> int:
    """Reads the command line and runs it; returns the exit status."""
    return run(parse_command_line(Args, argv, __doc__))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
