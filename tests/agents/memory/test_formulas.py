from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from agents.memory import passes
from agents.memory.amounts import read_amount, shown
from agents.memory.formulas import Shape, cache_bytes, cache_columns, gathered_bytes, kept_bytes, rollout_bytes, share
from agents.memory.networks import build, sizes
from agents.memory.weightless import weightless
from agents.runs.settings import AlgorithmSettings, RunSettings, TaskOptions

LLAMA: Any = SimpleNamespace(
    num_hidden_layers=3, hidden_size=8, num_attention_heads=4, num_key_value_heads=2, intermediate_size=20
)


def test_columns_grow_by_half() -> None:
    assert cache_columns(10, 32) == 32
    assert cache_columns(10, 33) == 64  # 48, rounded up to a multiple of 32
    assert cache_columns(40, 40) == 64
    assert cache_columns(90, 97) == 160  # 96 is full: 144, rounded up


def test_a_cache_by_hand() -> None:
    # Keys and values, 3 layers, 5 rows stored as 8, 2 heads, 64 columns, 16 wide, 2 bytes.
    assert cache_bytes(5, 64, 3, 2, 16, 2) == 2 * 3 * 8 * 2 * 64 * 16 * 2


def test_shapes() -> None:
    assert Shape.of(LLAMA) == Shape(layers=3, hidden=8, queries=8, kv_heads=2, head_size=2, inner=20)
    experts = SimpleNamespace(**vars(LLAMA), num_experts_per_tok=2, moe_intermediate_size=6)
    assert Shape.of(experts).inner == 12
    plain = SimpleNamespace(num_hidden_layers=1, hidden_size=8, num_attention_heads=2)
    assert Shape.of(plain) == Shape(1, 8, 8, 2, 4, 32)


def test_activations_by_hand() -> None:
    layer = 4 * (6 * 8 + 3 * 8 + 2 * 4 + 4 * 20)  # of a token, in float32
    assert kept_bytes(LLAMA, 10, 4, checkpointing=False) == 10 * 3 * layer
    assert kept_bytes(LLAMA, 10, 4, checkpointing=True) == 10 * (3 * 4 * 8 + layer)


def test_small_parts_by_hand() -> None:
    assert (share(7, 2), share(8, 2)) == (4, 4)
    assert gathered_bytes(10, 3) == 23
    assert rollout_bytes(1, 0, 16, masks=True) == rollout_bytes(1, 0, 16, masks=False) + 2
    assert rollout_bytes(0, 5, 16, masks=False) == 40


def test_the_formula_is_near_what_is_counted() -> None:
    run = RunSettings(TaskOptions(device="cpu"), AlgorithmSettings(critic="detached_head"))
    with weightless():
        networks = build(run)
        size = sizes(networks, run, 1)
        counted = passes.update(networks, size)
        estimated = passes._estimate(networks, size)
    assert counted.counted
    assert estimated["activations"] == pytest.approx(counted.most["activations"], rel=0.15)


def test_amounts() -> None:
    assert read_amount("memory", "80GB") == 80 * 10**9
    assert read_amount("memory", " 1.5 GiB") == 3 * 2**29
    assert (shown(2**31), shown(3 * 2**20)) == ("2.0 GiB", "3 MiB")
    for wrong in ("80", "GB", "-1GB", "0GB", "1e3GB", "8 G"):
        with pytest.raises(ValueError, match="amount above 0 with a unit"):
            read_amount("memory", wrong)
