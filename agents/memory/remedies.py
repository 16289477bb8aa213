"""What would make a run fit: the settings that save memory, each tried by planning again, the cheapest in time first."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from agents.algorithms.table import algorithm
from agents.memory.plan import Plan, make_plan
from agents.runs.settings import RunSettings

MOST = 3
"""How many are named."""
RANK = 16
"""Of LoRA adapters, where a plan is made with some."""


class Change(NamedTuple):
    """A change of a run.

    Attributes:
        options: As the command line says it.
        costs: What it costs, in words.
        settings: The run's settings with it.
        processes: Processes with it.
        sharding: ``none``, or ``full``: each of them has its part of the weights.
    """

    options: str
    costs: str
    settings: RunSettings
    processes: int
    sharding: str


class Planned(NamedTuple):
    """A change, and the plan with it."""

    change: Change
    plan: Plan


Step = Callable[[Plan], Iterator[Change]]
"""The changes of a kind, the mildest first."""
Tried = Callable[[str, Plan], None]


def _with(plan: Plan, options: str, costs: str, **changed: object) -> Change:
    """A change of settings of the algorithm, the task or the training, wherever they stand."""
    settings = plan.settings
    for name in ("task", "algorithm", "training"):
        group = getattr(settings, name)
        own = {key: value for key, value in changed.items() if hasattr(group, key)}
        settings = dataclasses.replace(settings, **{name: dataclasses.replace(group, **own)})
    return Change(options, costs, settings, plan.processes, plan.sharding)


def _half_precision(plan: Plan) -> Iterator[Change]:
    if plan.settings.task.mixed_precision == "no" and plan.device != "cpu":
        yield _with(plan, "--mixed-precision bf16", "faster on a GPU; rounds", mixed_precision="bf16")


def _offload(plan: Plan) -> Iterator[Change]:
    """Where nothing idles, the plan with it needs as much, and it is not named."""
    if not plan.settings.task.offload and plan.device != "cpu" and algorithm(plan.settings.algorithm.algo).rollouts:
        yield _with(plan, "--offload", "moves what idles to the CPU and back in each iteration", offload=True)


def _eight_bits(plan: Plan) -> Iterator[Change]:
    """Not in shards, which cannot have it."""
    chosen = plan.settings.algorithm
    if chosen.optimizer == "adamw" and plan.sharding == "none" and algorithm(chosen.algo).rollouts:
        yield _with(plan, "--optimizer adamw_8bit", "rounds the optimizer's states", optimizer="adamw_8bit")


def _micro_batches(plan: Plan) -> Iterator[Change]:
    """Parts of a half, a quarter, … of what is in memory at a time now, down to a single text."""
    sizes, now = plan.sizes, plan.settings.algorithm.micro_batch_tokens
    tokens = sizes.batch * sizes.longest if now is None else min(now, sizes.batch * sizes.longest)
    while tokens > sizes.longest:
        tokens = max(tokens // 2, sizes.longest)
        yield _with(plan, f"--micro-batch-tokens {tokens}", "reads each mini-batch twice", micro_batch_tokens=tokens)


def _checkpointing(plan: Plan) -> Iterator[Change]:
    if not plan.settings.algorithm.gradient_checkpointing:
        yield _with(plan, "--gradient-checkpointing", "a third more time", gradient_checkpointing=True)


def _shards(plan: Plan) -> Iterator[Change]:
    """Twice, four and eight times as many processes, each on a device of its own."""
    if plan.device == "cpu":
        return  # they would share its memory
    for count in (2, 4, 8):
        if count > plan.processes and plan.settings.training.n_envs % count == 0:
            options = f"--processes {count} --sharding full"
            yield Change(options, f"needs {count} devices", plan.settings, count, "full")


def _adapters(plan: Plan) -> Iterator[Change]:
    if not plan.settings.algorithm.lora_rank:
        yield _with(plan, f"--lora-rank {RANK}", "trains adapters instead of all weights", lora_rank=RANK)


def _four_bits(plan: Plan) -> Iterator[Change]:
    """Not in shards, nor with a reference that moves: neither can have it."""
    chosen = plan.settings
    if chosen.task.base_quantization == "none" and plan.sharding == "none" and not chosen.training.ref_refresh_every:
        rank = chosen.algorithm.lora_rank or RANK
        options = (
            "--base-quantization nf4" if chosen.algorithm.lora_rank else f"--lora-rank {rank} --base-quantization nf4"
        )
        costs = "trains adapters on weights that are rounded to 4 bits; slower"
        yield _with(plan, options, costs, lora_rank=rank, base_quantization="nf4")


def _fewer_slots(plan: Plan) -> Iterator[Change]:
    slots = plan.settings.training.n_envs
    unit = (plan.settings.algorithm.group_size or 1) * plan.processes
    while slots // 2 >= unit and slots // 2 % unit == 0:
        slots //= 2
        yield _with(plan, f"--n-envs {slots}", "smaller rollouts: more of them", n_envs=slots)


STEPS: tuple[tuple[str | None, Step], ...] = (
    ("bf16", _half_precision),
    (None, _offload),
    (None, _eight_bits),
    (None, _micro_batches),
    (None, _checkpointing),
    ("shards", _shards),
    ("lora", _adapters),
    ("lora", _four_bits),
    (None, _fewer_slots),
)
"""Each with the feature of `agents.algorithms.capabilities` that it is, if the algorithm may lack it."""
READ_IN_ONE_PIECE = ("dqn", "qr_dqn")
"""Algorithms whose policy reads a mini-batch in one piece."""


def remedies(plan: Plan, memory: int, tried: Tried = lambda options, planned: None) -> list[tuple[str, str, Plan]]:
    """What would make a run fit.

    Args:
        plan: The run's plan, which does not.
        memory: Bytes that there are.
        tried: Told of each plan that is made, which takes seconds: the options, and the plan with them.

    Returns:
        Options, what they cost, and the plan with them: at most `MOST` single changes, in the order of `STEPS`; where none is
        enough alone, one row of those that are together; nothing where even all of them are not.
    """
    alone: list[tuple[str, str, Plan]] = []
    strongest: Planned | None = None  # of the first kind, which those together begin with
    for number, step in enumerate(_steps(plan)):
        changes = list(step(plan))
        last = _strongest(changes, plan.device, tried)
        strongest = last if number == 0 else strongest
        if last is None or last.plan.needed > memory:
            continue  # milder ones of its kind are not enough either
        milder = changes[: changes.index(last.change)]
        mildest = next(filter(None, (_fitting(c, plan.device, memory, tried) for c in milder)), last)
        alone.append((mildest.change.options, mildest.change.costs, mildest.plan))
        if len(alone) == MOST:
            break
    return alone or _together(plan, memory, strongest, tried)


def _together(plan: Plan, memory: int, first: Planned | None, tried: Tried) -> list[tuple[str, str, Plan]]:
    """The strongest change of each kind after the other, until the run fits; that of the first kind is planned already."""
    options: list[str] = []
    costs: list[str] = []

    def told(own: str, planned: Plan) -> None:
        tried(" ".join([*options, own]), planned)

    for number, step in enumerate(_steps(plan)):
        last = first if number == 0 else _strongest(list(step(plan)), plan.device, told)
        if last is None or last.plan.needed >= plan.needed:
            continue
        plan = last.plan
        options.append(last.change.options)
        costs.append(last.change.costs)
        if plan.needed <= memory:
            return [(" ".join(options), "; ".join(costs), plan)]
    return []


def _steps(plan: Plan) -> Iterator[Step]:
    """The kinds of changes that the algorithm can have."""
    name = plan.settings.algorithm.algo
    for feature, step in STEPS:
        excluded = feature is not None and algorithm(name).reason(feature) is not None
        if not excluded and not (name in READ_IN_ONE_PIECE and step in (_micro_batches, _checkpointing)):
            yield step


def _planned(change: Change, device: str, tried: Tried) -> Planned | None:
    """The plan with a change; None where it does not go with the run's other settings, or needs what is not installed."""
    try:
        with warnings.catch_warnings():  # of what nobody has asked for
            warnings.simplefilter("ignore")
            plan = make_plan(change.settings, change.processes, change.sharding, device)
    except (ValueError, ImportError):
        return None
    tried(change.options, plan)
    return Planned(change, plan)


def _strongest(changes: Sequence[Change], device: str, tried: Tried) -> Planned | None:
    """The plan with the strongest of some changes, the mildest first, that goes with the run's other settings."""
    return next(filter(None, (_planned(change, device, tried) for change in reversed(changes))), None)


def _fitting(change: Change, device: str, memory: int, tried: Tried) -> Planned | None:
    """The plan with a change, if it is enough."""
    planned = _planned(change, device, tried)
    return planned if planned is not None and planned.plan.needed <= memory else None
