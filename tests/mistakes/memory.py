"""Mistakes in the plan of a run's memory."""

from __future__ import annotations

from tests.mistakes import Mutation

_METER = ("tests/agents/memory/test_meter.py",)
_PLAN = ("tests/agents/memory/test_plan.py",)
MEMORY = [
    Mutation(
        "what was freed is counted on",
        "agents/memory/meter.py",
        "        self.now[self._kinds.pop(place)] -= size\n",
        "        pass\n",
        _METER,
    ),
    Mutation(
        "a view of a weight is counted as new",
        "agents/memory/meter.py",
        "and tensor.untyped_storage()._cdata not in given:",
        ":",
        _METER,
    ),
    Mutation(
        "tied weights are counted twice",
        "agents/memory/weightless.py",
        "    return sum(storages.values())",
        "    return sum(t.nbytes for t in tensors)",
        (*_METER, *_PLAN),
    ),
    Mutation(
        "a cache is as wide as its texts",
        "agents/memory/formulas.py",
        "max(length, columns + columns // 2)",
        "length",
        ("tests/agents/memory/test_formulas.py",),
    ),
    Mutation(
        "with adapters the reference is planned all the same",
        "agents/memory/plan.py",
        '    if not is_actor or sharding == "full":',
        "    if True:",
        _PLAN,
    ),
    Mutation(
        "the strongest remedy is named where a milder one is enough",
        "agents/memory/remedies.py",
        "        for change in step(plan):  # the mildest of its kind that is enough",
        "        for change in list(step(plan))[-1:]:",
        ("tests/agents/cli/test_plan.py",),
    ),
]
