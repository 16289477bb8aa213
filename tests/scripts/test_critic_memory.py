"""The lab's table of what critics cost."""

from __future__ import annotations

from critic_memory import measure
from llm_env.default_task import DEFAULT_MODEL


def test_own_blocks_cost_what_they_have() -> None:
    heads = measure(DEFAULT_MODEL, "detached_head")
    one, two, whole = (measure(DEFAULT_MODEL, *k) for k in (("top_layers", 1), ("top_layers", 2), ("actor", 1)))
    assert heads[0] < one[0] < two[0] < whole[0]
    assert heads[1] < one[1] < two[1] < whole[1]
    # a block of the embedded actor: 4 projections of 128², 3 of 128 x 352, 2 norms; the last norm; the head
    block = 4 * 128**2 + 3 * 128 * 352 + 2 * 128
    assert two[0] - one[0] == block * 16 / 2**20
    assert one[0] == (block + 128 + 129) * 16 / 2**20
