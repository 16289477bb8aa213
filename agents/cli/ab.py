r"""Tests whether actor A is better than actor B: both answer the same prompts, a judge or people compare.

    python scripts/ab.py --a runs/demo/actor --judge gold --output-dir runs/ab                  against the embedded actor
    python scripts/ab.py --a runs/new/actor --b runs/old/actor --prompts prompts.jsonl --by topic \
        --judge openai:http://localhost:8000/v1#NAME --output-dir runs/ab                       a language model compares
    python scripts/ab.py --a runs/new/actor --b best_of:16 --people --output-dir runs/ab-people  people do, on a page

The test is looked at after every comparison and ends when it is sure; that it was looked at so often does not raise its error
rate (docs/ab.md). Leaves ab.json and ab.md. Interrupted, the same command goes on; with more --n-prompts it adds some.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from agents.cli.arguments import parse_command_line, read_command_line
from agents.console import SAME_COMMAND, PlainConsole, attempt
from agents.files import write_json, write_text
from agents.output_folder import check_output_folder, has_files, locked
from agents.preferences.settings import CORRECTIONS, ComparisonSettings
from llm_env.lm.names import LoadSettings
from llm_env.rules import FLAG, SEED, Rule, check_settings, number, whole

if TYPE_CHECKING:
    from agents.preferences.ab import ABTest
    from agents.preferences.judge import Judge
    from agents.preferences.records import Ranking

console = PlainConsole()

AB_RULES: dict[str, Rule] = {
    "temperature": number(above=0),
    "temperature_b": number(above=0),
    "n_prompts": whole(1),
    "error": number(above=0, below=1),
    "equal_within": number(least=0, below=0.5),
    "examples": whole(0),
    **dict.fromkeys(("people", "stop_early", "trust_remote_code", "special_tokens_in_text"), FLAG),
    "seed": SEED,
}


@dataclass(frozen=True, kw_only=True)
class Args(ComparisonSettings):
    """Test A against B."""

    a: str
    """Actor A: a model folder, as RUN/actor, a hub id, a checkpoint of a run, or best_of:N:MODEL?by=REWARD_MODEL, the best of N
    responses."""
    b: str | None = None
    """Actor B, in the same way. Default: the embedded actor, of which best_of:N samples too."""
    output_dir: Path
    """Folder for responses, comparisons and the result."""
    judge: str | None = None
    """Who compares: gold (the embedded default's rule), a reward model's folder, package.module:function, verifier:NAME, the
    address of a reward server, or a language model, llm:FOLDER or openai:URL#MODEL (docs/judges.md)."""
    people: bool = False
    """Open a page on which people compare, blind and in random order."""
    temperature: float = 1.0
    """Sampling temperature."""
    temperature_b: float | None = None
    """Sampling temperature of B. Default: that of A."""
    n_prompts: int = 400
    """Compare on at most this many prompts, drawn from all over the file."""
    error: float = 0.05
    """The chance, at most, that a difference is seen where there is none."""
    equal_within: float = 0.0
    """The test may end with "equal" too, when A's win rate is within one half ± this. Default: it does not."""
    stop_early: bool = True
    """End when the test is decided. Else all n_prompts are compared."""
    by: tuple[str, ...] = ()
    """Columns of the prompts' records whose values are told apart in the report."""
    topics: tuple[str, ...] = ()
    """Regular expressions; prompts that have them are told apart in the report, for example hotel 'cafe|bakery'."""
    examples: int = 5
    """How many of the clearest wins and losses are shown."""
    device: str = "auto"
    """Where models run: auto (a GPU where there is one), cpu or cuda."""
    trust_remote_code: bool = False
    """Run model code that a hub repository brings. Only for repositories that you trust."""
    special_tokens_in_text: bool = False
    """Turn special tokens that the prompts spell out, as </s>, into those tokens. Default: they are read as characters."""
    seed: int = 0
    """Seed of the order of the prompts, of the sampling and of the judge's noise."""

    def check_values(self) -> None:
        """Checks the numbers, and that somebody compares.

        Raises:
            ValueError: one breaks its rule, or there is no judge, or both a judge and people.
        """
        self.check_collection()
        self.check_judge_prompt([] if self.judge is None else [self.judge])
        self.check_page_is_used(self.people)
        if self.page == CORRECTIONS:
            raise ValueError("page='corrections': an A/B test compares. Take ranking or stars.")
        check_settings(self, AB_RULES)
        if (self.judge is None) != self.people:
            raise ValueError("somebody has to compare: give --judge NAME or --people, one of them.")


def run(args: Args) -> int:
    """Runs the test; returns the exit status."""
    return attempt(lambda: compare(args), console, f"What was compared is on the disk. {SAME_COMMAND}")[1]


def compare(args: Args) -> None:
    """Runs the test and writes its report.

    Raises:
        FileNotFoundError, ValueError: something cannot be loaded, or a setting breaks its rule.
    """
    from agents.local_page import check_page
    from agents.preferences.ab import compared_in, keep_settings
    from agents.preferences.ab_report import check_groups
    from agents.preferences.judges import load_judge
    from agents.preferences.players import check_player
    from llm_env.lm.loading import resolve_device

    # As it is now: a judge may change the current folder.
    args = dataclasses.replace(args, output_dir=args.output_dir.absolute())
    args.check_values()
    check_output_folder(args.output_dir)
    load = LoadSettings(
        "float32", str(resolve_device(args.device)), args.trust_remote_code, args.special_tokens_in_text
    )
    test = ab_test(args)
    for option, player in zip(("a", "b"), test.players, strict=True):
        check_player(player, option, load)
    check_groups(args.by, args.topics, list(dict.fromkeys(name for r in test.records for name in r.columns)))
    if args.people:
        check_page(args.host, args.port)
    judge = load_judge(args.judge, args, load, args.seed, console) if args.judge else None
    if judge is not None:
        judge.check_prompts(test.records)
    if has_files(args.output_dir) and not (args.output_dir / "settings.json").is_file():
        raise ValueError(f"output_dir={str(args.output_dir)!r} is not empty and holds no test. Choose another folder.")
    with locked(args.output_dir):
        keep_settings(args.output_dir, described(args, test))
        name = None if judge is None else judge.name
        try:
            rankings = comparisons(args, test, judge, load)
        except KeyboardInterrupt:  # a test may be stopped at any time: what was compared until now is told
            if rankings := compared_in(test, args.output_dir, name):
                tell(args, test, name, rankings)
            raise
        tell(args, test, name, rankings)


def tell(args: Args, test: ABTest, judge: str | None, rankings: Sequence[Ranking]) -> None:
    """Writes and prints the report.

    Args:
        args: The command line.
        test: Who played, on what.
        judge: Name of the judge; None: people compared.
        rankings: What was compared, in order.
    """
    from agents.preferences.ab_report import ab_report, markdown, verdict

    report = {
        "a": test.players[0].name,
        "b": test.players[1].name,
        "judge": "people" if judge is None else judge,
        **ab_report(rankings, args.error, args.equal_within, args.by, args.topics, args.examples),
    }
    write_json(args.output_dir / "ab.json", report)
    write_text(args.output_dir / "ab.md", markdown(report))
    low, high = report["interval"]
    won = f"{report['wins']} won, {report['losses']} lost, {report['ties']} ties"
    rate = "" if report["win_rate"] is None else f"; win rate {report['win_rate']:.1%} ({low:.1%} to {high:.1%})"
    console.print(f"A: {won}{rate}")
    console.print(verdict(report))
    console.print(f"Report: {args.output_dir / 'ab.md'}   numbers: {args.output_dir / 'ab.json'}")


def ab_test(args: Args) -> ABTest:
    """The test that a command line describes.

    Raises:
        FileNotFoundError, ValueError: the prompts cannot be read, or a player's name cannot.
    """
    from agents.preferences.ab import ABTest, shuffled
    from agents.preferences.players import Games, player
    from llm_env.default_task import DEFAULT_HELDOUT_PROMPTS
    from llm_env.text.prompts import read_prompts

    records = shuffled(read_prompts(args.prompts or DEFAULT_HELDOUT_PROMPTS), args.seed, args.n_prompts)
    games = Games(args.max_prompt_length, args.max_new_tokens, args.seed)
    temperature_b = args.temperature if args.temperature_b is None else args.temperature_b
    players = (player(args.a, "a", args.temperature), player(args.b, "b", temperature_b))
    return ABTest(players, records, games, args.error, args.equal_within, args.stop_early)


def comparisons(args: Args, test: ABTest, judge: Judge | None, load: LoadSettings) -> list[Ranking]:
    """The comparisons that the test needed, by the judge or by people."""
    from agents.preferences.ab import run_with_judge, run_with_people

    if judge is not None:
        return run_with_judge(test, judge, args.output_dir, load, console)
    return run_with_people(test, args.output_dir, load, (args.host, args.port, args.page), console)


def described(args: Args, test: ABTest) -> dict[str, object]:
    """What may not change while a test goes on."""
    return {
        "a": test.players[0].name,
        "b": test.players[1].name,
        "prompts": args.prompts,
        "temperatures": [p.temperature for p in test.players],
        "max_prompt_length": args.max_prompt_length,
        "max_new_tokens": args.max_new_tokens,
        "seed": args.seed,
    }


def check(argv: Sequence[str]) -> None:
    """Checks a command line without reading or writing anything else; see `agents.pipeline.commands.check_command`."""
    read_command_line(Args, argv).check_values()


def main(argv: Sequence[str]) -> int:
    """Reads the command line and runs it; returns the exit status."""
    return run(parse_command_line(Args, argv, __doc__))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
