"""Writes the default task's text: reviews to learn from, and prompts, with some topics held out.

    python scripts/write_reviews.py --output-dir runs/text

Leaves ``reviews.jsonl`` and ``heldout_reviews.jsonl`` (prompt and response), ``prompts.jsonl`` and
``heldout_prompts.jsonl``. No topic stands on both sides, unless --all-topics lets the reviews mention them.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from agents.cli.arguments import parse_command_line, read_command_line
from agents.console import PlainConsole, attempt
from agents.files import write_text
from agents.output_folder import check_output_folder, locked
from llm_env.default_task.grammar import HELD_OUT_TOPICS, all_prompts, topic_of, write_review
from llm_env.rules import SEED, check_settings, whole


@dataclass(frozen=True)
class Args:
    """Write reviews."""

    output_dir: Path
    """Folder to write to."""
    reviews: int = 20_000
    """Number of reviews to learn from."""
    heldout_reviews: int = 500
    """Number of held-out reviews."""
    all_topics: bool = False
    """Let the reviews, held-out ones too, mention all topics; only the prompts stay apart. For a model that starts from new
    weights, which has to have seen the words."""
    seed: int = 0
    """Seed of the prompts' draw and of the reviews' text."""

    def check_values(self) -> None:
        """Checks the numbers.

        Raises:
            ValueError: one breaks its rule.
        """
        check_settings(self, {"reviews": whole(1), "heldout_reviews": whole(1), "seed": SEED})


def run(args: Args) -> int:
    """Writes the four files; returns the exit status."""
    return attempt(lambda: write_all(args), PlainConsole(), go_on="")[1]


def write_all(args: Args) -> None:
    """Draws the prompts, writes the reviews, and puts both into four files.

    Raises:
        ValueError, OSError: a number breaks its rule, or the folder cannot be written to.
    """
    args.check_values()
    check_output_folder(args.output_dir)
    rng = random.Random(args.seed)
    held_out = [p for p in all_prompts() if topic_of(p) in HELD_OUT_TOPICS]
    kept = [p for p in all_prompts() if topic_of(p) not in HELD_OUT_TOPICS]
    with locked(args.output_dir):
        for name, prompts, count in (("", kept, args.reviews), ("heldout_", held_out, args.heldout_reviews)):
            # All prompts are drawn before the first review is written: the seed's text depends on that order.
            drawn = [rng.choice(all_prompts() if args.all_topics else prompts) for _ in range(count)]
            reviews = [{"prompt": p, "response": " " + write_review(rng, p)} for p in drawn]
            write(args.output_dir / f"{name}reviews.jsonl", reviews)
            write(args.output_dir / f"{name}prompts.jsonl", [{"prompt": p} for p in prompts])
    PlainConsole().print(f"{args.reviews:,} reviews in {args.output_dir}")


def write(path: Path, records: list[dict[str, str]]) -> None:
    """Writes records as JSON, one a line."""
    write_text(path, "".join(json.dumps(r) + "\n" for r in records))


def check(argv: Sequence[str]) -> None:
    """Checks a command line without reading or writing anything else; see `agents.pipeline.commands.check_command`."""
    read_command_line(Args, argv).check_values()


def main(argv: Sequence[str]) -> int:
    """Reads the command line and runs it; returns the exit status."""
    return run(parse_command_line(Args, argv, __doc__))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
