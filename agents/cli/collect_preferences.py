r"""Collects preferences: samples responses, and has a judge or people rank them.

    python scripts/collect_preferences.py --output-dir runs/preferences --judge gold
    python scripts/collect_preferences.py --output-dir runs/preferences --judge runs/reward/reward_model \
        --actors runs/sft/actor runs/demo/checkpoints/step_000000102400 --temperatures 0.7 1.0 --prompts prompts.jsonl
    python scripts/collect_preferences.py --output-dir runs/preferences --people     a page to rank on, in the browser
    python scripts/collect_preferences.py --output-dir runs/stars --people --page stars     the same with 1 to 5 stars
    python scripts/collect_preferences.py --output-dir runs/corrected --corrector openai:http://localhost:8000/v1#NAME
    python scripts/collect_preferences.py --output-dir runs/judged --labels people.jsonl \
        --judge openai:http://localhost:8000/v1#NAME                                 a language model, compared with people

Writes responses.jsonl, rankings.jsonl, pairs.jsonl (TRL's format), agreement.json and judges.json to the folder, and of
corrections corrections.jsonl, corrected_pairs.jsonl and corrected_texts.jsonl. What is there
is not made again; a page goes on where it stopped. For Label Studio: --export-tasks, and later --import-export FILE.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from agents.cli.arguments import parse_command_line, read_command_line
from agents.console import SAME_COMMAND, PlainConsole, attempt
from agents.output_folder import check_output_folder, locked
from agents.preferences.records import Candidates, Ranking
from agents.preferences.settings import CORRECTIONS, CollectionSettings
from llm_env.lm.names import LoadSettings
from llm_env.rules import SEED, Each, Rule, check_settings, number, whole

if TYPE_CHECKING:
    from agents.preferences.corrector import Corrector
    from agents.preferences.judge import Judge

console = PlainConsole()


@dataclass(frozen=True, kw_only=True)
class Args(CollectionSettings):
    """Collect preferences."""

    output_dir: Path
    """Folder for the files. What it holds already is kept, and what is missing is added."""
    actors: tuple[str, ...] = ()
    """Model folders, hub ids, checkpoints of runs, or best_of:N:MODEL?by=REWARD_MODEL, that respond; they take turns. Default:
    the embedded tiny actor."""
    temperatures: tuple[float, ...] = (1.0,)
    """Sampling temperatures; each actor responds at each of them."""
    n_prompts: int | None = None
    """Respond to at most this many prompts, drawn from all over the file. Default: all."""
    repeats: int = 1
    """Sets of n_responses responses to each prompt."""
    judge: str | None = None
    """Judge that ranks: gold (the embedded default's rule), a reward model's folder, package.module:function, the address of a
    reward server, or a language model, llm:FOLDER or openai:URL#MODEL (docs/judges.md)."""
    labels: str | None = None
    """Rankings or pairs by people. The judge ranks their responses, none are sampled, and how often it agrees is told."""
    people: bool = False
    """Open a page on which people rank, or do what --page says."""
    aspects: tuple[str, ...] = ()
    """Respects in which people rank, one after the other, for example helpful polite. Default: overall."""
    export_tasks: bool = False
    """Write Label Studio's tasks (label_studio.json) and labeling interface (label_studio.xml)."""
    import_export: Path | None = None
    """Label Studio's JSON export, whose rankings are added."""
    device: str = "auto"
    """Where models run: auto (a GPU where there is one), cpu or cuda."""
    trust_remote_code: bool = False
    """Run model code that a hub repository brings. Only for repositories that you trust."""
    special_tokens_in_text: bool = False
    """Turn special tokens that the prompts spell out, as </s>, into those tokens. Default: they are read as characters."""
    seed: int = 0
    """Seed of the sampling and of the judge's noise."""

    def check_values(self) -> None:
        """Checks the numbers.

        Raises:
            ValueError: one breaks its rule.
        """
        self.check_collection()
        self.check_judge_prompt([] if self.judge is None else [self.judge])
        self.check_page_is_used(self.people)
        if self.aspects and (not self.people or self.page == CORRECTIONS):
            raise ValueError(
                "aspects are respects in which people rank or give stars: add --people, without corrections."
            )
        if self.labels is not None and self.judge is None:
            raise ValueError("labels are what a judge is compared with: give --judge.")
        rules: dict[str, Rule] = {
            "temperatures": Each(number(above=0), least=1),
            "n_prompts": whole(1),
            "repeats": whole(1),
            "seed": SEED,
        }
        check_settings(self, rules)


def run(args: Args) -> int:
    """Collects; returns the exit status."""
    return attempt(lambda: collect(args), console, f"What was collected is on the disk. {SAME_COMMAND}")[1]


def collect(args: Args) -> None:
    """Samples responses, has them ranked, and writes pairs and agreement.

    Raises:
        FileNotFoundError, ValueError: something cannot be loaded, or a setting breaks its rule.
    """
    from agents.local_page import check_page
    from agents.preferences.corrector import load_corrector
    from agents.preferences.judges import load_judge
    from agents.preferences.players import player
    from agents.preferences.records import read_rankings
    from llm_env.lm.loading import resolve_device

    # As it is now: a judge may change the current folder.
    args = dataclasses.replace(args, output_dir=args.output_dir.absolute())
    args.check_values()
    check_output_folder(args.output_dir)
    for name in args.actors:
        player(name, "actors")
    if args.import_export is not None and not args.import_export.is_file():
        raise FileNotFoundError(f"import_export={str(args.import_export)!r}: there is no such file.")
    if args.people:
        check_page(args.host, args.port)
    if not (args.judge or args.people or args.corrector or args.export_tasks or args.import_export):
        console.print(
            "Nobody ranks: give --judge, --people, --corrector or --export-tasks. Only responses are sampled."
        )
    device = str(resolve_device(args.device))
    load = LoadSettings("float32", device, args.trust_remote_code, args.special_tokens_in_text)
    labels = read_rankings(args.labels, "labels") if args.labels is not None else None
    # loaded before anything is sampled, so that a wrong name is told at once
    judge = load_judge(args.judge, args, load, args.seed, console) if args.judge else None
    corrector = load_corrector(args, load, console) if args.corrector else None
    with locked(args.output_dir):
        sample_and_rank(args, load, judge, corrector, labels)


def sample_and_rank(
    args: Args, load: LoadSettings, judge: Judge | None, corrector: Corrector | None, labels: list[Ranking] | None
) -> None:
    """Does what `collect` says, in a folder that no other process writes to.

    Args:
        args: The command line, checked.
        load: How models are loaded.
        judge: Ranks the responses, or None.
        corrector: Rewrites the responses, or None.
        labels: What people ranked, whose responses take the place of sampled ones; None: there are none.
    """
    from agents.preferences.corrections import FILE as CORRECTIONS_FILE
    from agents.preferences.folder import labeled_candidates
    from agents.preferences.records import read_rankings

    candidates = sample(args, load, judge) if labels is None else labeled_candidates(args.output_dir, labels)
    path = args.output_dir / "rankings.jsonl"
    if args.export_tasks:
        export(args.output_dir, candidates)
    if args.import_export is not None:
        add_imported(path, args.import_export, candidates)
    if judge is not None:
        judge_all(args.output_dir, candidates, judge, labels)
    if corrector is not None:
        corrector.correct_in(args.output_dir, candidates)
    if args.people:
        from agents.preferences.page import serve

        answers = args.output_dir / CORRECTIONS_FILE if args.page == CORRECTIONS else path
        serve(candidates, answers, args.aspects, args.host, args.port, console, args.page)
    if path.is_file():
        summarize(args.output_dir, read_rankings(path))
    summarize_corrections(args.output_dir)


def judge_all(folder: Path, candidates: Sequence[Candidates], judge: Judge, labels: list[Ranking] | None) -> None:
    """Has the judge rank what is missing, and writes and prints what there is to tell about it."""
    from agents.preferences.folder import rank_in
    from agents.preferences.judge_report import described, keep_report, labels_report

    rankings = [r for r in rank_in(folder, candidates, judge) if r.annotator == judge.name]
    report = judge.report(candidates, folder)
    if labels is not None:
        report["labels"] = labels_report(labels, rankings)
    keep_report(folder, report)
    for line in described(report):
        console.print(line)


def sample(args: Args, load: LoadSettings, judge: Judge | None) -> list[Candidates]:
    """The responses to rank: those in the output folder, and sampled ones for what is missing there.

    Args:
        args: The command line, checked.
        load: How models are loaded.
        judge: Will rank the responses, or None.

    Raises:
        FileNotFoundError, ValueError: prompts or models cannot be loaded, or the judge needs a column that a prompt has not.
    """
    from agents.preferences.folder import candidates_in
    from agents.preferences.players import player
    from agents.preferences.sampling import Sampling
    from llm_env.default_task import DEFAULT_MODEL, DEFAULT_PROMPTS
    from llm_env.text.prompts import read_prompts

    prompts = read_prompts(args.prompts or DEFAULT_PROMPTS)
    if args.n_prompts is not None:
        import numpy as np

        prompts = [prompts[i] for i in np.random.default_rng(0).permutation(len(prompts))[: args.n_prompts]]
    if judge is not None:
        judge.check_prompts(prompts)
    prompts = [p for _ in range(args.repeats) for p in prompts]
    sources = tuple(player(a, "actors", t) for t in args.temperatures for a in args.actors or (DEFAULT_MODEL,))
    sampling = Sampling(sources, args.n_responses, args.max_prompt_length, args.max_new_tokens, args.seed)
    described = {name: getattr(args, name) for name in ("prompts", "n_prompts", "repeats")}
    candidates = candidates_in(args.output_dir, prompts, sampling, load, described, console)
    short = sum(len(c.responses) < args.n_responses for c in candidates)
    missing = len(prompts) - len(candidates)
    console.print(
        f"{len(candidates):,} prompts with responses"
        + (f"; {short} have fewer than {args.n_responses} that differ" if short else "")
        + (f"; {missing} have fewer than two and are left out" if missing > 0 else ""),
    )
    return candidates


def export(folder: Path, candidates: Sequence[Candidates]) -> None:
    """Writes the responses as Label Studio's tasks, and the labeling interface for them."""
    from agents.files import write_json, write_text
    from agents.preferences.label_studio import export_tasks, labeling_config

    write_json(folder / "label_studio.json", export_tasks(candidates))
    write_text(folder / "label_studio.xml", labeling_config(max(len(c.responses) for c in candidates)))
    console.print(f"Tasks: {folder / 'label_studio.json'}   interface: label_studio.xml")


def add_imported(path: Path, source: Path, candidates: Sequence[Candidates]) -> None:
    """Adds the rankings of Label Studio's export to ``rankings.jsonl``, unless they stand there already.

    Args:
        path: ``rankings.jsonl``.
        source: Label Studio's export, a JSON file of annotated tasks.
        candidates: The responses that were exported.

    Raises:
        FileNotFoundError, ValueError: as `import_rankings`.
    """
    from agents.preferences.label_studio import import_rankings
    from agents.preferences.records import append_jsonl, read_rankings

    def text(ranking: Ranking) -> str:
        return json.dumps(ranking.to_json(), sort_keys=True)

    before = {text(r) for r in read_rankings(path)} if path.is_file() else set()
    imported = import_rankings(source, candidates)
    fresh = [r for r in imported if text(r) not in before]
    for ranking in fresh:
        append_jsonl(path, ranking.to_json())
    console.print(f"{len(fresh)} of {len(imported)} imported rankings are new.")


def summarize(folder: Path, rankings: Sequence[Ranking]) -> None:
    """Writes ``pairs.jsonl`` and ``agreement.json``, and prints how many pairs there are and how far annotators agree."""
    from agents.files import write_json
    from agents.preferences.agreement import agreement
    from agents.preferences.records import write_jsonl
    from agents.preferences.selection import pair_records

    pairs = pair_records(rankings)
    write_jsonl(folder / "pairs.jsonl", pairs)
    report = agreement(rankings)
    write_json(folder / "agreement.json", report)
    bad = sum(r.all_bad for r in rankings)
    console.print(
        f"{len(rankings):,} rankings by {len(report['annotators'])} annotator(s), {bad} of them all bad; {len(pairs):,} pairs.",
    )
    if report["pairs_judged_twice"]:
        console.print(
            f"Agreement on {report['pairs_judged_twice']} pairs judged by two or more: "
            f"Krippendorff's α = {report['alpha']:.2f}.",
        )
        for pair in report["between"]:
            one, other = pair["annotators"]
            console.print(f"  {one} and {other}: κ = {pair['kappa']:.2f}, {pair['agreed']:.0%} of {pair['pairs']}")
    console.print(f"Files: {folder / 'rankings.jsonl'}, {folder / 'pairs.jsonl'}")


def summarize_corrections(folder: Path) -> None:
    """Writes what corrections train, and prints how many there are."""
    from agents.preferences.corrections import FILE, PAIRS_FILE, TEXTS_FILE, read_corrections, write_training_files
    from agents.preferences.corrector import correction_counts

    corrections = read_corrections(folder / FILE)
    if not corrections:
        return
    write_training_files(folder, corrections)
    for name, of in correction_counts(corrections).items():
        cut = f", {of['cut']} of them cut off" if of["cut"] else ""
        console.print(f"{name}: {of['corrected']:,} of {of['responses']:,} responses corrected{cut}.")
    console.print(f"Files: {folder / FILE}, {folder / PAIRS_FILE}, {folder / TEXTS_FILE}")


def check(argv: Sequence[str]) -> None:
    """Checks a command line without reading or writing anything else; see `agents.pipeline.commands.check_command`."""
    read_command_line(Args, argv).check_values()


def main(argv: Sequence[str]) -> int:
    """Reads the command line and runs it; returns the exit status."""
    return run(parse_command_line(Args, argv, __doc__))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
