r"""Collects preferences: samples responses, and has a judge or people rank them.

    python scripts/collect_preferences.py --output-dir runs/preferences --judge gold
    python scripts/collect_preferences.py --output-dir runs/preferences --judge runs/reward/reward_model \
        --actors runs/sft/actor runs/demo/checkpoints/step_000000102400 --temperatures 0.7 1.0 --prompts prompts.jsonl
    python scripts/collect_preferences.py --output-dir runs/preferences --people True     a page to rank on, in the browser

Leaves responses.jsonl, rankings.jsonl, pairs.jsonl (TRL's format) and agreement.json in the folder. What is there is not made
again; a page goes on where it stopped. For Label Studio: --export-tasks True, and later --import-export FILE.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console

from agents.console import plain_warnings, print_error

console = Console(soft_wrap=True)


@dataclass(frozen=True)
class Args:
    """Collect preferences."""

    output_dir: Path
    """Folder for the files; what is in it is gone on with."""
    actors: tuple[str, ...] = ()
    """Model folders, hub ids, or checkpoints of runs. They take turns. Default: the embedded tiny actor."""
    temperatures: tuple[float, ...] = (1.0,)
    """Sampling temperatures of each actor."""
    prompts: str | None = None
    """Prompts, as for train.py. Default: the embedded ones."""
    n_prompts: int | None = None
    """At most this many of them, drawn from all over. Default: all."""
    repeats: int = 1
    """Sets of responses to each prompt."""
    n_responses: int = 4
    """Responses in a set, K; near-duplicates are drawn anew, and left out if that does not help."""
    max_prompt_length: int = 64
    """Tokens; longer prompts are cut on the left."""
    max_new_tokens: int = 32
    """Length cap of a response, in tokens."""
    judge: str | None = None
    """Who ranks: gold (the embedded default's rule), a reward model's folder, or package.module:function."""
    noise: float = 0.0
    """Temperature of the judge: 0 ranks by score; 1 makes the Bradley-Terry annotator."""
    people: bool = False
    """Open a page on which people rank."""
    aspects: tuple[str, ...] = ()
    """In which respects people rank, one after the other: helpful polite … Default: overall."""
    host: str = "127.0.0.1"
    """Address of the page. 0.0.0.0 lets others in your network rank too."""
    port: int = 7860
    """Port of the page."""
    export_tasks: bool = False
    """Write Label Studio's tasks (label_studio.json) and labelling interface (label_studio.xml)."""
    import_export: Path | None = None
    """Label Studio's JSON export, whose rankings are added."""
    device: str = "auto"
    """auto, cpu, cuda."""
    trust_remote_code: bool = False
    """Let model code from a hub run."""
    seed: int = 0
    """Seed of the sampling and of the judge's noise."""


def run(args: Args) -> int:
    """Collects; returns the exit status."""
    plain_warnings(console)
    try:
        collect(args)
    except KeyboardInterrupt:
        console.print("Stopped; what was collected is on the disk. The same command goes on.", highlight=False)
        return 130
    except (ValueError, TypeError, OSError, ImportError, RuntimeError) as error:
        print_error(error)
        return 1
    return 0


def collect(args: Args) -> None:
    """Responses, then rankings, then pairs and agreement.

    Raises:
        FileNotFoundError, ValueError: something cannot be loaded, or a setting breaks its rule.
    """
    from agents.preferences.folder import rank_in
    from agents.preferences.judge import Judge
    from agents.preferences.label_studio import export_tasks, import_rankings, labelling_config
    from agents.preferences.records import append_jsonl, read_rankings
    from llm_env.lm.loading import resolve_device
    from llm_env.lm.names import LoadSettings

    check(args)
    load = LoadSettings("float32", str(resolve_device(args.device)), args.trust_remote_code)
    judge = Judge(args.judge, load, args.noise, args.seed) if args.judge else None
    args.output_dir.mkdir(parents=True, exist_ok=True)
    candidates = responses(args, load)
    path = args.output_dir / "rankings.jsonl"
    if args.export_tasks:
        write_jsonl_array(args.output_dir / "label_studio.json", export_tasks(candidates))
        most = max(len(c.responses) for c in candidates)
        (args.output_dir / "label_studio.xml").write_text(labelling_config(most), encoding="utf-8")
        console.print(f"Tasks: {args.output_dir / 'label_studio.json'}   interface: label_studio.xml", highlight=False)
    if args.import_export is not None:
        known = {json.dumps(r.to_json(), sort_keys=True) for r in read_rankings(path)} if path.is_file() else set()
        imported = import_rankings(args.import_export, candidates)
        fresh = [r.to_json() for r in imported if json.dumps(r.to_json(), sort_keys=True) not in known]
        for record in fresh:
            append_jsonl(path, record)
        console.print(f"{len(fresh)} of {len(imported)} imported rankings are new.", highlight=False)
    if judge is not None:
        rank_in(args.output_dir, candidates, judge)
    if args.people:
        from agents.preferences.page import serve

        serve(candidates, path, args.aspects, args.host, args.port, console)
    if path.is_file():
        summarise(args.output_dir, read_rankings(path))


def check(args: Args) -> None:
    """Checks the numbers.

    Raises:
        ValueError: one breaks its rule.
    """
    for name in ("n_prompts", "repeats", "max_prompt_length", "max_new_tokens"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ValueError(f"{name}={value} must be at least 1.")
    if args.n_responses < 2:
        raise ValueError(f"n_responses={args.n_responses} must be at least 2: one response cannot be ranked.")
    if not args.temperatures or min(args.temperatures) <= 0:
        raise ValueError(f"temperatures={args.temperatures} must all be above 0.")
    if not (args.judge or args.people or args.export_tasks or args.import_export):
        console.print("Nobody ranks: give --judge, --people True or --export-tasks True. Only responses are sampled.")


def responses(args: Args, load: Any) -> list[Any]:
    """The responses to rank: sampled, or those that are there."""
    from agents.preferences.folder import Sampling, candidates_in
    from agents.preferences.sampling import Source
    from llm_env.default_task import DEFAULT_MODEL, DEFAULT_PROMPTS
    from llm_env.text.prompts import read_prompts

    prompts = read_prompts(args.prompts or DEFAULT_PROMPTS)
    if args.n_prompts is not None:
        import numpy as np

        prompts = [prompts[i] for i in np.random.default_rng(0).permutation(len(prompts))[: args.n_prompts]]
    asked = [p for _ in range(args.repeats) for p in prompts]
    sources = tuple(Source(a, t) for t in args.temperatures for a in args.actors or (DEFAULT_MODEL,))
    sampling = Sampling(sources, args.n_responses, args.max_prompt_length, args.max_new_tokens, args.seed)
    described = {name: getattr(args, name) for name in ("prompts", "n_prompts", "repeats")}
    found = candidates_in(args.output_dir, asked, sampling, load, described, console)
    short = sum(len(c.responses) < args.n_responses for c in found)
    console.print(
        f"{len(found):,} prompts with responses"
        + (f"; {short} have fewer than {args.n_responses} that differ" if short else "")
        + (f"; {len(asked) - len(found)} have fewer than two and are left out" if len(asked) > len(found) else ""),
        highlight=False,
    )
    return found


def write_jsonl_array(path: Path, records: list[Any]) -> None:
    """Writes a JSON list."""
    path.write_text(json.dumps(records, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def summarise(folder: Path, rankings: list[Any]) -> None:
    """Writes pairs and agreement, and says how many there are."""
    from agents.preferences.agreement import agreement
    from agents.preferences.records import write_jsonl
    from agents.preferences.selection import pair_records

    pairs = pair_records(rankings)
    write_jsonl(folder / "pairs.jsonl", pairs)
    found = agreement(rankings)
    (folder / "agreement.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    bad = sum(r.all_bad for r in rankings)
    console.print(
        f"{len(rankings):,} rankings by {len(found['annotators'])} annotator(s), {bad} of them all bad; {len(pairs):,} pairs.",
        highlight=False,
    )
    if found["pairs_judged_twice"]:
        console.print(
            f"Agreement on {found['pairs_judged_twice']} pairs judged by two or more: Krippendorff's α = {found['alpha']:.2f}.",
            highlight=False,
        )
        for pair in found["between"]:
            one, other = pair["annotators"]
            console.print(f"  {one} and {other}: κ = {pair['kappa']:.2f}, {pair['agreed']:.0%} of {pair['pairs']}")
    console.print(f"Files: {folder / 'rankings.jsonl'}, {folder / 'pairs.jsonl'}", highlight=False)


def main(argv: Sequence[str]) -> int:
    """Reads the command line and runs it; returns the exit status."""
    return run(tyro.cli(Args, args=argv, description=__doc__, config=(tyro.conf.FlagConversionOff,)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
