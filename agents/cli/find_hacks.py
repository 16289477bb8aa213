r"""Makes adversarial examples for a reward model: repetition, flattery, length, and what a trained policy found.

    python scripts/find_hacks.py --preferences runs/preferences/rankings.jsonl --output-dir runs/hacks
    python scripts/collect_preferences.py --actors runs/ppo/actor runs/sft/actor --judge gold --output-dir runs/policy
    python scripts/find_hacks.py --preferences runs/preferences/rankings.jsonl --output-dir runs/hacks \
        --judged runs/policy/rankings.jsonl --reward-model runs/reward/reward_model
    python scripts/train_reward_model.py --preferences runs/preferences/rankings.jsonl --hacks runs/hacks/hacks.jsonl \
        --output-dir runs/reward-2

Writes hacks.jsonl: pairs in which a good response is preferred to what a recipe made of it, and pairs of --judged that the
reward model orders the other way round than whoever ranked them.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from agents.cli.arguments import parse_command_line, read_command_line
from agents.console import PlainConsole, attempt, say
from agents.output_folder import check_output_folder, locked
from llm_env.rules import SEED, check_settings, number

if TYPE_CHECKING:
    from agents.preferences.records import Ranking

console = PlainConsole()


@dataclass(frozen=True, kw_only=True)
class Args:
    """Make adversarial examples for a reward model."""

    preferences: str | None = None
    """Rankings, pairs or stars, whose best responses are made worse by each kind of recipe."""
    output_dir: Path
    """Folder for hacks.jsonl."""
    recipes: str | None = None
    """YAML or JSON file of recipes, each a kind and a text with {response}, {first} and {last}. Default: the shipped ones."""
    judged: str | None = None
    """Rankings of a trained policy's responses, by people or by a judge that knows better than the reward model."""
    reward_model: str | None = None
    """The reward model's folder that the policy was trained on, with --judged."""
    margin: float = 0.0
    """By how much the reward model must prefer the worse response, in standard deviations of its score."""
    device: str = "auto"
    """Where the reward model runs: auto (a GPU where there is one), cpu or cuda."""
    seed: int = 0
    """Seed of the draws among recipes of a kind."""

    def check_values(self) -> None:
        """Checks the numbers, and that there is something to make pairs of.

        Raises:
            ValueError: one breaks its rule, or there is nothing.
        """
        check_settings(self, {"margin": number(least=0), "seed": SEED})
        if (self.judged is None) != (self.reward_model is None):
            raise ValueError("judged and reward_model go together: what a policy found is where they disagree.")
        if self.preferences is None and self.judged is None:
            raise ValueError("there is nothing to make pairs of: give --preferences, or --judged with --reward-model.")


def run(args: Args) -> int:
    """Makes the pairs; returns the exit status."""
    return attempt(lambda: find(args), console, go_on="")[1]


def find(args: Args) -> None:
    """Makes the pairs and writes them.

    Raises:
        FileNotFoundError, ValueError: something cannot be read or loaded, or there are no pairs.
    """
    from agents.preferences.hacks import kind_of, made_hacks, read_recipes
    from agents.preferences.records import read_rankings, write_jsonl
    from agents.preferences.selection import pair_records

    args.check_values()
    check_output_folder(args.output_dir)
    recipes = read_recipes(args.recipes)
    pairs = made_hacks(read_rankings(args.preferences), recipes, args.seed) if args.preferences is not None else []
    if args.judged is not None:
        pairs += found(args)
    if not pairs:
        raise ValueError("nothing was found: the reward model agrees with whoever ranked, by more than the margin.")
    with locked(args.output_dir):
        write_jsonl(args.output_dir / "hacks.jsonl", pair_records(pairs))
    counts = Counter(map(kind_of, pairs))
    say(
        console,
        ", ".join(f"{count:,} {kind}" for kind, count in counts.items()) + f": {args.output_dir / 'hacks.jsonl'}",
    )


def found(args: Args) -> list[Ranking]:
    """The pairs of ``judged`` that the reward model orders the other way round.

    Raises:
        FileNotFoundError, ValueError: something cannot be read or loaded.
    """
    from agents.preferences.hacks import found_hacks
    from agents.preferences.judge import RewardJudge
    from agents.preferences.records import read_rankings
    from llm_env.lm.loading import resolve_device
    from llm_env.lm.names import LoadSettings

    assert args.judged is not None
    assert args.reward_model is not None
    rankings = read_rankings(args.judged, "judged")
    judge = RewardJudge(
        args.reward_model, LoadSettings("float32", str(resolve_device(args.device))), option="reward_model"
    )
    scores = judge.scores([r.candidates for r in rankings])
    by_id = [
        dict(zip([c.id for c in r.candidates.responses], s, strict=True)) for r, s in zip(rankings, scores, strict=True)
    ]
    hacks = found_hacks(rankings, by_id, args.margin)
    pairs = sum(len(r.pairs()) for r in rankings)
    say(
        console,
        f"{args.reward_model} orders {len(hacks):,} of {pairs:,} pairs the other way round than whoever ranked them.",
    )
    return hacks


def check(argv: Sequence[str]) -> None:
    """Checks a command line without reading or writing anything else; see `agents.pipeline.commands.check_command`."""
    read_command_line(Args, argv).check_values()


def main(argv: Sequence[str]) -> int:
    """Reads the command line and runs it; returns the exit status."""
    return run(parse_command_line(Args, argv, __doc__))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
