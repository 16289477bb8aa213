"""Tokens a second against the number of GPUs, by a model: replicas, shards, and generation on machines of its own.

    python scripts/lab/scaling_model.py --output-dir runs/scaling                     published figures of H100 machines
    python scripts/lab/scaling_model.py --output-dir runs/scaling --measured A/results.json B/results.json
                                                     and what scripts/lab/benchmark.py measured, at two batch sizes or more
    python scripts/lab/scaling_model.py --output-dir runs/scaling --responses 8192 --far-gb 25       other work, other links

No run has been made with more than four processes: this is arithmetic. An iteration generates, scores and trains on a fixed
number of responses, which are shared among the GPUs. Its time is made of

- **generation**: as many steps as the longest response has tokens, each ``step + slots * slot`` seconds: what a step costs
  however few slots there are (the weights are read), and what each slot adds;
- **scoring** and **training**: seconds a token, and for each update the optimizer's;
- **messages**: an all-reduce by a ring within a machine, and among machines of what each GPU then holds.

Replicas send gradients once an update, when the backward pass is over. Shards gather the weights twice and scatter gradients
once for each pass, beside which they compute (the longer of the two counts), and gather the actor once an iteration. With
generation apart, some GPUs generate the next rollout while the others train on the last one, so that updates are one rollout
behind; slots are filled again as soon as a response ends; the split is the best one, and learners are replicas or shards. The
fourth design is one that does not exist here: generation apart, learners that are shards in groups and replicas among groups,
and messages in bf16 that travel beside computing.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from agents.console import PlainConsole
from agents.figures import DPI, new_figure

console = PlainConsole()
COUNTS = tuple(2**i for i in range(10))
PHASES = ("generate", "score", "train")
"""Parts of an iteration, as the benchmark calls them."""
PAYS = 1.5
"""Doubling the GPUs pays where it brings at least this much."""


@dataclass(frozen=True)
class Work:
    """An iteration: so many responses, of `mean` times `response` tokens on average after `prompt` tokens."""

    responses: int = 1024
    prompt: int = 512
    response: int = 512
    mean: float = 0.6
    epochs: int = 4
    mini_batches: int = 4
    pass_tokens: int = 16_384
    """Tokens of a forward and backward pass; a mini-batch of more is made of several."""

    @property
    def tokens(self) -> float:
        """Tokens that are read of a response with its prompt."""
        return self.prompt + self.mean * self.response


@dataclass(frozen=True)
class Links:
    """What a GPU sends, in bytes a second one way, and how long the shortest message takes, in seconds."""

    near: float
    far: float
    near_s: float = 10e-6
    far_s: float = 20e-6
    machine: int = 8
    """GPUs of a machine."""

    def gather(self, size: float, gpus: int) -> float:
        """Seconds until each of the GPUs has all of `size` bytes, of which it had its part; a scatter of sums takes as long."""
        near = min(gpus, self.machine)
        machines = math.ceil(gpus / self.machine)
        seconds = (near - 1) / near * size / self.near + (near - 1) * self.near_s
        if machines > 1:  # each GPU of a machine does this for its part
            seconds += (machines - 1) / machines * size / near / self.far + math.log2(machines) * self.far_s
        return seconds

    def all_reduce(self, size: float, gpus: int) -> float:
        """Seconds until each of the GPUs has the sum of `size` bytes of each."""
        return 2 * self.gather(size, gpus)


@dataclass(frozen=True)
class Times:
    """What one GPU, or one process on a CPU, takes, in seconds; and sizes in bytes.

    Attributes:
        name: What it is of.
        step: A step of decoding, however few slots there are.
        slot: What each slot adds to it.
        score: Scoring a token: reference, reward model, critic, and in bf16 the actor again.
        train: Forward and backward of a token, actor and critic.
        update: The optimizer's step on all weights.
        trained: Weights that are trained, as they are sent.
        actor: The actor, as it is sent to where it decodes.
        states: Weights, gradients and optimizer states of one GPU that has all of them.
        beside: What each GPU has besides: the copy that decodes, reference, reward model.
        memory: Memory of a GPU for both, which leaves room for activations and caches.
        overlaps: Whether messages travel beside computing, as on a GPU.
    """

    name: str
    step: float
    slot: float
    score: float
    train: float
    update: float
    trained: float
    actor: float
    states: float = 0.0
    beside: float = 0.0
    memory: float = math.inf
    overlaps: bool = True


def h100(name: str, parameters: float, layers: int, kv_width: int, work: Work) -> Times:
    """An actor, and a critic of its size, on an NVIDIA H100 in bf16 beside float32 weights: published figures and assumptions.

    Args:
        name: For the table.
        parameters: Number of parameters of each network.
        layers: Decoder layers of each network; with `kv_width` they say what a slot's cache holds.
        kv_width: Width of keys, and of values, in a layer.
        work: Its lengths decide what a slot's cache costs.
    """
    bandwidth = 0.6 * 3.35e12  # NVIDIA's data sheet (SXM): 3.35 TB/s, 80 GB; 60 % of it is an assumption
    trained = parameters / 8.03e9 / 5762  # torchtitan, Llama 3.1 8B, FSDP on 8 H100: 5,762 tokens a second and GPU
    context = work.prompt + work.mean * work.response / 2
    return Times(
        name,
        step=2 * parameters / bandwidth,  # the weights in bf16 are read once
        slot=4 * layers * kv_width * context / bandwidth,  # keys and values in bf16
        score=4 * trained / 3,  # four networks; a forward pass is a third of forward and backward
        train=2 * trained,
        update=2 * 28 * parameters / bandwidth,  # AdamW reads 16 bytes of a weight and writes 12
        trained=2 * 4 * parameters,
        actor=2 * parameters,
        states=2 * 16 * parameters,
        beside=3 * 2 * parameters,
        memory=0.75 * 80e9,  # a quarter for activations and caches: an assumption
    )


def measured(paths: Sequence[Path], contender: str) -> Times:
    """Times of a process on this project's benchmark, fitted to its cases by least squares, with none below 0.

    With one thread they are CPU seconds, which a busy machine does not lengthen.

    Args:
        paths: ``results.json`` of `scripts/lab/benchmark.py`: one model, two numbers of responses or more.
        contender: Name of the contender in it whose times are taken, such as ``ours-full``.

    Raises:
        ValueError: they do not say enough.
    """
    rows = [r for path in paths for r in json.loads(path.read_text(encoding="utf-8")) if contender in r["contenders"]]
    cases: list[dict[str, Any]] = [row["case"] for row in rows]
    if len({c["batch"] for c in cases}) < 2 or len({c["model"] for c in cases}) != 1:
        raise ValueError(f"--measured takes results of {contender} on one model, at two numbers of responses or more.")
    ran: list[dict[str, Any]] = [row["contenders"][contender] for row in rows]
    clock = "cpu_seconds" if {r["threads"] for r in ran} == {1} else "seconds"
    seconds = {p: np.array([r[clock][p] for r in ran]) for p in PHASES}
    steps = np.array([c["response"] for c in cases])
    slots = np.array([c["batch"] for c in cases])
    read = slots * (np.array([c["prompt"] for c in cases]) + steps)
    updates = np.array([c["epochs"] * c["mini_batches"] for c in cases])
    epochs = np.array([c["epochs"] for c in cases])
    step, slot = _fitted(np.stack([steps, steps * slots], 1), seconds["generate"])
    (score,) = _fitted(read[:, None], seconds["score"])
    train, update = _fitted(np.stack([read * epochs, updates], 1), seconds["train"])
    trained = 4.0 * (ran[0].get("parameters") or 0)
    if not trained:
        raise ValueError(f"--measured: the results do not say how many parameters {contender} trains.")
    name = f"{cases[0]['model']}, {ran[0]['threads']} CPU thread(s) (measured)"
    return Times(name, step, slot, score, train, update, trained, trained / 2, overlaps=False)


def _fitted(columns: np.ndarray, seconds: np.ndarray) -> list[float]:
    """Factors of columns (n, k) whose sum comes nearest to n measured seconds, relative to each; negative ones are 0."""
    left = list(range(columns.shape[1]))
    while True:
        factors = np.linalg.lstsq(columns[:, left] / seconds[:, None], np.ones(len(seconds)), rcond=None)[0]
        if (factors >= 0).all() or len(left) == 1:
            break
        left.pop(int(factors.argmin()))
    found = dict(zip(left, factors.tolist(), strict=True))
    return [found.get(i, 0.0) for i in range(columns.shape[1])]


def generation(t: Times, work: Work, gpus: int, refilled: bool = False) -> float:
    """Seconds until the responses are written; `refilled`: slots whose response has ended begin another one."""
    slots = math.ceil(work.responses / gpus)
    return (work.mean if refilled else 1.0) * work.response * (t.step + t.slot * slots)


def learning(t: Times, links: Links, work: Work, gpus: int, group: int, beside: bool = False) -> float:
    """Seconds for scoring and training, on weights that each group of so many GPUs has once.

    Args:
        t: What one GPU takes.
        links: What GPUs send each other, and how fast.
        work: How many responses an iteration has, how long they are, and how often each is trained on.
        gpus: How many learn.
        group: GPUs that share the weights; 1: replicas. All of them: shards.
        beside: Whether gradients of groups travel beside computing too, which they do not here.
    """
    read = math.ceil(work.responses / gpus) * work.tokens
    updates = work.epochs * work.mini_batches
    computing, optimizer = t.score * read + work.epochs * t.train * read, updates * t.update / group
    messages = 0.0
    if group > 1:
        passes = updates * math.ceil(read / work.mini_batches / work.pass_tokens)
        messages = (3 * passes + math.ceil(read / work.pass_tokens)) * links.gather(t.trained, group)
    of_groups = 0.0
    if gpus > group:  # each GPU sums its part with those of the other groups
        one = replace(links, near=links.far, near_s=links.far_s) if group >= links.machine else links
        of_groups = updates * one.all_reduce(t.trained / group, math.ceil(gpus / group))
    messages += of_groups if beside else 0.0
    both = max(computing, messages) if t.overlaps else computing + messages
    return both + optimizer + (0.0 if beside else of_groups) + (links.gather(t.actor, group) if group > 1 else 0.0)


def fits(t: Times, group: int) -> bool:
    """Whether weights, gradients and optimizer states have room beside the rest."""
    return t.states / group + t.beside <= t.memory


def together(t: Times, links: Links, work: Work, gpus: int, group: int) -> float:
    """Tokens a second where each GPU generates and learns in turn; NaN where it does not fit."""
    if not fits(t, group):
        return math.nan
    seconds = generation(t, work, gpus) + learning(t, links, work, gpus, group)
    return work.responses * work.mean * work.response / seconds


def apart(t: Times, links: Links, work: Work, gpus: int, groups: Sequence[int] = (), beside: bool = False) -> float:
    """Tokens a second with the best split into GPUs that generate and GPUs that learn; NaN where none fits.

    Args:
        t: What one GPU takes.
        links: What GPUs send each other, and how fast.
        work: How many responses an iteration has, how long they are, and how often each is trained on.
        gpus: How many there are of both.
        groups: Sizes of groups that share weights, beside replicas and shards.
        beside: As in `learning`.
    """
    best = math.nan
    sent = t.actor / (links.near if gpus <= links.machine else links.far)
    for learners in range(1, gpus):
        generating = generation(t, work, gpus - learners, refilled=True)
        for group in {1, learners, *(g for g in groups if g < learners and learners % g == 0)}:
            if fits(t, group):
                busy = sent + max(generating, learning(t, links, work, learners, group, beside))
                best = np.fmax(best, work.responses * work.mean * work.response / busy)
    return float(best)


def next_design(t: Times, links: Links, work: Work, gpus: int) -> float:
    """Tokens a second with generation apart, shards in groups, and messages in bf16 beside computing."""
    return apart(replace(t, trained=t.trained / 2), links, work, gpus, (2, 4, 8, 16, 32, 64), beside=True)


DESIGNS: dict[str, Callable[[Times, Links, Work, int], float]] = {
    "replicas": lambda t, links, work, n: together(t, links, work, n, 1),
    "shards": lambda t, links, work, n: together(t, links, work, n, n),
    "generation apart, one rollout behind": apart,
    "the same, shards in groups, bf16 messages": next_design,
}


def stops_at(rates: Sequence[float]) -> int | None:
    """The number of GPUs up to which each doubling brings at least `PAYS`; None where nothing fits."""
    first = next((i for i, rate in enumerate(rates) if not math.isnan(rate)), None)
    if first is None:
        return None
    for i in range(first, len(rates) - 1):
        if rates[i + 1] < PAYS * rates[i]:
            return COUNTS[i]
    return COUNTS[-1]


def draw(found: dict[str, dict[str, list[float]]], path: Path) -> None:
    """Draws a panel for each kind of machine, both axes by factors of two."""
    figure = new_figure(4.6 * len(found), 4.2)
    for place, (name, rates) in enumerate(found.items(), 1):
        axes = figure.add_subplot(1, len(found), place)
        for (design, values), style in zip(rates.items(), ("o-", "s-", "^-", "D--"), strict=True):
            axes.loglog(COUNTS, values, style, base=2, label=design, markersize=4)
        first = next((r[i] / COUNTS[i]) for i in range(len(COUNTS)) for r in rates.values() if not math.isnan(r[i]))
        axes.loglog(COUNTS, [first * n for n in COUNTS], ":", base=2, color="gray", label="each as fast as the first")
        axes.set(title=name, xlabel="GPUs, or processes on CPUs", ylabel="generated tokens a second")
        axes.set_xticks(COUNTS, [str(n) for n in COUNTS])
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    figure.savefig(path, dpi=DPI)


def main(argv: list[str]) -> int:
    """Prints and draws what the model says; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, required=True, help="for scaling.json and scaling.png")
    parser.add_argument("--measured", type=Path, nargs="*", default=[], help="results.json of the benchmark")
    parser.add_argument("--contender", default="ours-full", help="whose times in it")
    parser.add_argument("--near-gb", type=float, default=360.0, help="GB/s one way between GPUs of a machine")
    parser.add_argument("--far-gb", type=float, default=40.0, help="GB/s one way of each GPU to other machines")
    parser.add_argument("--cpu-gb", type=float, default=1.0, help="GB/s one way between the measured processes")
    for name in ("responses", "prompt", "response", "epochs", "mini_batches"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=getattr(Work, name))
    args = parser.parse_args(argv)
    work = Work(args.responses, args.prompt, args.response, Work.mean, args.epochs, args.mini_batches)
    links = Links(args.near_gb * 1e9, args.far_gb * 1e9)
    models = [
        (h100("1.24B, H100 (assumed)", 1.24e9, 16, 512, work), links),
        (h100("8.03B, H100 (assumed)", 8.03e9, 32, 1024, work), links),
    ]
    try:
        if args.measured:
            slow = replace(links, near=args.cpu_gb * 1e9, far=args.cpu_gb * 1e9, near_s=1e-4, far_s=1e-4)
            models.insert(0, (measured(args.measured, args.contender), slow))
    except (ValueError, OSError, KeyError) as error:
        console.print(f"error: {error}")
        return 1
    found = {t.name: {d: [rate(t, own, work, n) for n in COUNTS] for d, rate in DESIGNS.items()} for t, own in models}
    for name, rates in found.items():
        console.print(f"\n| {name} | " + " | ".join(map(str, COUNTS)) + " | pays up to |\n|---" + "|---" * 11 + "|")
        for design, values in rates.items():
            cells = ["–" if math.isnan(v) else f"{v:,.0f}" for v in values]
            console.print(f"| {design} | " + " | ".join(cells) + f" | {stops_at(values) or '–'} |")
    args.output_dir.mkdir(parents=True, exist_ok=True)
    (args.output_dir / "scaling.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    draw(found, args.output_dir / "scaling.png")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
