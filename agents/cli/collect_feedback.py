r"""Finds in chat logs what users say of the answers they got, and makes it training data.

    python scripts/collect_feedback.py --log chats.jsonl --output-dir runs/feedback
    python scripts/collect_feedback.py --log chats.jsonl --output-dir runs/feedback \
        --classifier openai:http://localhost:8000/v1#NAME
    python scripts/train_preference.py --loss kto --preferences runs/feedback/kto.jsonl --output-dir runs/kto
    python scripts/train_sft.py --texts runs/feedback/texts.jsonl --output-dir runs/sft

A log is JSONL, a conversation a line: {"messages": [{"role": …, "content": …}, …]}. A user's turn behind an answer is positive,
negative or says nothing of it, by rules in a file that you can change or by a language model. Writes feedback.jsonl,
texts.jsonl, kto.jsonl, report.json and report.md. A language model's replies are kept at once; the same command goes on.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from agents.cli.arguments import parse_command_line, read_command_line
from agents.console import SAME_COMMAND, PlainConsole, attempt, say
from agents.output_folder import check_output_folder, locked
from llm_env.reward.judges.names import CONCURRENCY, JUDGE_RULES, check_judge_name, is_language_judge
from llm_env.reward.limits import LIMIT_RULES, CallLimits
from llm_env.rules import Rule, check_settings, whole

if TYPE_CHECKING:
    from agents.conversations.classifiers import Classifier

RULES = "rules"
FEEDBACK_RULES: dict[str, Rule] = {"examples": whole(0), **LIMIT_RULES, **JUDGE_RULES}

console = PlainConsole()


@dataclass(frozen=True, kw_only=True)
class Args:
    """Find feedback in chat logs."""

    log: str
    """Chat log: JSONL of conversations (or Parquet, or a dataset id), each with a list of messages."""
    output_dir: Path
    """Folder for the files; what it holds of an earlier call is made anew, a language model's replies are kept."""
    classifier: str = RULES
    """What says whether a turn is positive, negative or neither: rules (the ones that are shipped), a YAML or JSON file of
    rules, or a language model, llm:FOLDER or openai:URL#MODEL."""
    classifier_prompt: str | None = None
    """File with what a language model is told; {prompt}, {response} and {reply} stand for the texts, and it answers A, B or C.
    Default: the instruction that is shipped."""
    plain_prompts: bool = False
    """Write prompts as plain texts, for models without a chat template; only answers to a first message can be used then."""
    examples: int = 5
    """Examples of each class in the report."""
    judge_concurrency: int = CONCURRENCY
    """Requests that a server is sent side by side."""
    reward_timeout: float | None = None
    """Seconds that a request may take. Default: 60."""
    reward_wait: float | None = None
    """Seconds for which a request that fails is repeated, with growing pauses. Default: 600."""
    device: str = "auto"
    """Where a model on this machine runs: auto (a GPU where there is one), cpu or cuda."""
    trust_remote_code: bool = False
    """Run model code that a hub repository brings. Only for repositories that you trust."""

    def check_values(self) -> None:
        """Checks the numbers and names.

        Raises:
            ValueError: one breaks its rule.
        """
        check_settings(self, FEEDBACK_RULES)
        if is_language_judge(self.classifier):
            check_judge_name(self.classifier, "classifier")
        elif self.classifier_prompt is not None:
            raise ValueError(
                f"classifier_prompt={self.classifier_prompt!r} is what a language model is told, and the classifier is none. "
                "Leave it out."
            )


def run(args: Args) -> int:
    """Collects; returns the exit status."""
    return attempt(lambda: collect(args), console, f"What was asked is on the disk. {SAME_COMMAND}")[1]


def collect(args: Args) -> None:
    """Reads the log, classifies, and writes the files.

    Raises:
        FileNotFoundError, ValueError: something cannot be read or loaded, or a setting breaks its rule.
        RewardModelError: a language model does not answer.
    """
    from agents.conversations.collect import collect_feedback
    from agents.conversations.log import read_log
    from agents.conversations.report import described

    args.check_values()
    check_output_folder(args.output_dir)
    turns = read_log(args.log)
    classifier = load_classifier(args)
    with locked(args.output_dir):
        report = collect_feedback(turns, classifier, args.output_dir, args.plain_prompts, args.examples)
    for line in described(report):
        say(console, line)
    if report["without_plain_prompt"]:
        say(
            console,
            f"{report['without_plain_prompt']:,} answers within a conversation have no plain prompt and are left out.",
        )
    say(
        console,
        f"Files: {args.output_dir / 'texts.jsonl'} ({report['texts']:,}), {args.output_dir / 'kto.jsonl'} "
        f"({report['responses']:,}), {args.output_dir / 'report.md'}",
    )


def load_classifier(args: Args) -> Classifier:
    """The classifier that the command line names.

    Raises:
        FileNotFoundError, ValueError: it cannot be loaded.
    """
    from agents.conversations.classifiers import LanguageClassifier, RuleClassifier

    if not is_language_judge(args.classifier):
        return RuleClassifier(None if args.classifier == RULES else args.classifier)
    from llm_env.lm.loading import resolve_device
    from llm_env.lm.names import LoadSettings
    from llm_env.reward.judges.asking import load_asked_model
    from llm_env.reward.judges.instruction import read_instruction
    from llm_env.reward.judges.names import FEEDBACK

    instruction = read_instruction(FEEDBACK, args.classifier_prompt, "classifier_prompt")
    load = LoadSettings("float32", str(resolve_device(args.device)), args.trust_remote_code)
    limits = CallLimits(args.reward_timeout, args.reward_wait)
    model = load_asked_model(args.classifier, load, "classifier", limits, args.judge_concurrency)
    return LanguageClassifier(args.classifier, model, instruction, console)


def check(argv: Sequence[str]) -> None:
    """Checks a command line without reading or writing anything else; see `agents.pipeline.commands.check_command`."""
    read_command_line(Args, argv).check_values()


def main(argv: Sequence[str]) -> int:
    """Reads the command line and runs it; returns the exit status."""
    return run(parse_command_line(Args, argv, __doc__))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
