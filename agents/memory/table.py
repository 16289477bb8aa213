"""A plan as text: a table of parts by phases, whether it fits, and what would make it fit."""

from __future__ import annotations

from collections.abc import Sequence

from agents.memory.amounts import shown
from agents.memory.plan import PHASES, Plan

NAMES = {
    "actor": "actor's weights",
    "critic": "critic's weights",
    "cache": "key-value cache",
    "gradients": "gradients",
    "optimizer": "optimizer's states",
    "exchange": "gradients under way",
    "put together": "weights put together",
    "masks' copy": "actor that masks look at",
    "greedy cache": "greedy responses' cache",
}
"""What parts are called where their name alone does not say it."""
ORDER = (
    "actor", "critic", "target network", "gradients", "optimizer", "put together", "exchange", "reference", "reward model",
    "decoding copy", "masks' copy", "cache", "reference's cache", "greedy cache", "activations", "logits", "rollout",
)  # fmt: skip
MIB = 2**20


def text(plan: Plan) -> str:
    """The plan of one process, in MiB, with a line above of what it is a plan of."""
    names = sorted(plan.parts, key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))
    rows = [(NAMES.get(name, name), [_mib(plan.parts[name][phase]) for phase in PHASES]) for name in names]
    width = max(len(name) for name, _ in rows)
    lines = [*_heading(plan), "", f"{'MiB':{width}}" + "".join(f"{phase:>14}" for phase in PHASES)]
    lines += [f"{name:{width}}" + "".join(f"{cell:>14}" for cell in cells) for name, cells in rows]
    lines.append(f"{'sum':{width}}" + "".join(f"{_mib(count):>14}" for count in plan.sums().values()))
    if not plan.counted:
        lines += [
            "",
            "Activations are estimated by formulas: a pass through this model cannot be made without its weights.",
        ]
    return "\n".join(lines)


def _mib(count: int) -> str:
    return f"{count / MIB:,.1f}" if count else "-"


def _heading(plan: Plan) -> list[str]:
    algorithm, task, size = plan.settings.algorithm, plan.settings.task, plan.sizes
    parts = ", ".join(f"{name} {count:,}" for name, count in plan.weights.items() if name != "trained")
    several = ""
    if plan.processes > 1:
        several = f", each of {plan.processes} processes{', weights in shards' * (plan.sharding == 'full')}"
    where = "the CPU" if plan.device == "cpu" else "a GPU"
    precision = "bf16 arithmetic" if task.mixed_precision == "bf16" else "float32"
    return [
        f"{algorithm.algo} on {task.model or 'the embedded model'}, {precision}, {where}{several}",
        f"weights: {parts}; {plan.weights['trained']:,} of them are trained",
        f"{size.slots} slots, prompts of up to {size.prompt} and responses of up to {size.response} tokens; a mini-batch of "
        f"{size.batch} episodes",
    ]


def verdict(plan: Plan, memory: int, whose: str) -> str:
    """One line: how much is needed at the peak, and whether it fits.

    Args:
        plan: Of one process; on a CPU all processes are counted.
        memory: Bytes that there are.
        whose: Of what, in words.
    """
    phase, _ = plan.peak
    together = f" by {plan.processes} processes together" if plan.device == "cpu" and plan.processes > 1 else ""
    fits = "It fits." if plan.needed <= memory else "It does not fit."
    return f"At the peak, in {phase}, {shown(plan.needed)} are needed{together}, of {shown(memory)} {whose}. {fits}"


def trial(options: str, plan: Plan, memory: int) -> str:
    """One line: what a run needs with some options, and whether it fits then."""
    return f"  {shown(plan.needed):>9}{' fits' if plan.needed <= memory else '':5}  {options}"


def advice(found: Sequence[tuple[str, str, Plan]], memory: int) -> str:
    """What would make the run fit, a line each; see `agents.memory.remedies.remedies`."""
    if not found:
        return f"No option makes it fit in {shown(memory)}: take a smaller model, or shorter texts."
    width = max(len(options) for options, _, _ in found)
    lines = ["Cheapest in time first:"]
    lines += [f"  {options:{width}}  {shown(plan.needed):>9}  {costs}" for options, costs, plan in found]
    return "\n".join(lines)
