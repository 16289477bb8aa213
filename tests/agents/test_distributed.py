"""Ranks of one run make the update of one process (invariant 10); what cannot be shared among them is refused."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agents import distributed
from agents.algorithms.factory import make_algorithm
from agents.algorithms.replicas import AgreedThreshold
from agents.algorithms.table import ALGORITHMS
from agents.distributed import Ranks
from tests.agents.same_update import CASES, NOT_COMPARED, rare_reward
from tests.conftest import ROOT

FAST = ("ppo",)
FAST_IN_SHARDS = ("lora, reward model",)
IN_SHARDS = (
    "ppo",
    "actor critic, faster",
    "top layers",
    "kl in both, exact",
    "ptx, micro-batches",
    "target_kl",
    "checkpointing",
    "turns, lag",
    "maskable_ppo",
    "a2c",
    "grpo",
    "dr_grpo",
    "rloo",
    "remax",
    "reinforce_pp",
    "learning rate 0",
    "bf16",
)
"""Each algorithm, and what touches weights, gradients or their norm in a way of its own."""
IN_FOUR = ("ppo", "grpo", "turns", "ptx, micro-batches")
SMALL = {"max_new_tokens": 6, "prompts": ["The film was"]}
Found = dict[str, Any]


def launched(names: tuple[str, ...], world: int, folder: Path, sharding: str = "none") -> Found:
    """Trains cases alone and in ranks under plain `torchrun`; what `tests.agents.same_update` found, until it failed."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(world)]
    command = [*torchrun, "-m", "tests.agents.same_update", str(folder / "found.json"), sharding, *names]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    path = folder / "found.json"
    found: Found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return {**found, "error": done.stderr[-3000:] if done.returncode else None}


@pytest.fixture(scope="module")
def in_two(tmp_path_factory: pytest.TempPathFactory) -> Found:
    return launched(FAST, 2, tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="module")
def all_in_two(tmp_path_factory: pytest.TempPathFactory) -> Found:
    return launched(tuple(name for name in CASES if name not in FAST), 2, tmp_path_factory.mktemp("all"))


@pytest.fixture(scope="module")
def in_shards(tmp_path_factory: pytest.TempPathFactory) -> Found:
    return launched(FAST_IN_SHARDS, 2, tmp_path_factory.mktemp("shards"), "full")


@pytest.fixture(scope="module")
def all_in_shards(tmp_path_factory: pytest.TempPathFactory) -> Found:
    return launched(IN_SHARDS, 2, tmp_path_factory.mktemp("all_shards"), "full")


@pytest.fixture(scope="module")
def in_four(tmp_path_factory: pytest.TempPathFactory) -> Found:
    return launched(IN_FOUR, 4, tmp_path_factory.mktemp("four"))


def check_update(name: str, all_found: Found) -> None:
    """Ranks are equal after each update, and where one process draws the same tokens they are where it is."""
    assert name in all_found, all_found["error"]
    found = all_found[name]
    assert found["bit_equal"]
    if name in NOT_COMPARED:
        return
    alone, together = found["updates"]
    assert alone == together > 0
    assert found["same_episodes"]
    assert found["tokens"][0] == found["tokens"][1]
    if name == "learning rate 0":
        assert found["apart"] == max(found["moved"]) == 0
        assert max(abs(kl) for rank in found["kls"] for kl in rank) < 1e-6
        return
    assert found["moved"][-1] > 0.1
    assert max(found["relative"]) < 1e-5
    for key, (one, several) in found["statistics"].items():
        assert several == pytest.approx(one, rel=1e-3, abs=1e-4), key
    before, after = found["kl_coefs"]
    assert after == pytest.approx(before, rel=1e-12)
    if "target_kl" in name:
        assert together < 16  # 2 rollouts x 4 epochs x 2 mini-batches


@pytest.mark.parametrize("name", FAST)
def test_two_ranks_make_the_update_of_one_process(name: str, in_two: Found) -> None:
    check_update(name, in_two)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CASES if name not in FAST])
def test_two_ranks_make_each_update_of_one_process(name: str, all_in_two: Found) -> None:
    check_update(name, all_in_two)
    if name in ("adaptive kl", "linear kl"):
        assert all_in_two[name]["kl_coefs"][0] != 0.1  # it has moved


@pytest.mark.parametrize("name", FAST_IN_SHARDS)
def test_two_ranks_with_weights_in_shards_make_the_update_of_one_process(name: str, in_shards: Found) -> None:
    check_update(name, in_shards)
    assert "model.save cannot be used with sharding='full'" in in_shards[name]["refused"]


@pytest.mark.slow
@pytest.mark.parametrize("name", IN_SHARDS)
def test_two_ranks_with_weights_in_shards_make_each_update_of_one_process(name: str, all_in_shards: Found) -> None:
    check_update(name, all_in_shards)


@pytest.mark.slow
@pytest.mark.parametrize("name", IN_FOUR)
def test_four_ranks_make_the_update_of_one_process(name: str, in_four: Found) -> None:
    check_update(name, in_four)


@pytest.mark.slow
def test_two_agents_of_torchrun_make_the_update_of_one_process(tmp_path: Path) -> None:
    """As on two machines: each agent starts its ranks, and they find each other by a rendezvous."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    rendezvous = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"localhost:{port}", "--rdzv-id", "two"]
    agent = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", *rendezvous]
    command = [
        *agent,
        "--local-addr",
        "localhost",
        "-m",
        "tests.agents.same_update",
        str(tmp_path / "found.json"),
        "none",
        "ppo",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    agents = [subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    errors = [process.communicate()[1] for process in agents]
    assert [process.returncode for process in agents] == [0, 0], errors
    check_update("ppo", json.loads((tmp_path / "found.json").read_text(encoding="utf-8")))


def test_ranks_have_as_many_mini_batches_within_the_batch_size(in_two: Found) -> None:
    dealt, few = in_two["dealt"], in_two["few dealt"]
    assert set(dealt["counts"]) == {6}  # five would hold the tokens
    assert 0 < min(dealt["sizes"]) <= max(dealt["sizes"]) <= 35
    assert dealt["all"] == [list(range(12))] * 2
    assert few["counts"] == [4, 4]
    assert 0 < min(few["sizes"]) <= max(few["sizes"]) <= 40
    assert few["all"] == [list(range(12)), list(range(3))]


def test_each_yes_of_the_table_has_a_case() -> None:
    for feature, cases in (("processes", CASES), ("shards", IN_SHARDS)):
        yes = {name for name, row in ALGORITHMS.items() if row.reason(feature) is None}
        assert yes == {CASES[case][0] for case in cases}


def test_the_rare_reward_is_rare_and_there() -> None:
    assert rare_reward(["", ""], [" was", " a"]) == [0.0, 1.0]


# ------------------------------------------------------------------------------------------------- in one process
def test_with_one_process_everything_is_the_identity() -> None:
    alone = Ranks()
    values = np.random.default_rng(0).normal(size=1000)
    assert alone.moments(values) == (values.mean(), values.std())
    assert alone.everyone(values)[0] is values
    assert alone.from_first(values) is values
    assert alone.part_of(7, "n_envs") == 7
    assert alone.total(3) == 3
    assert (alone.any(True), alone.any(False)) == (True, False)
    outputs = (object(), object())
    assert alone.joined(outputs, (1.0, 1.0), object()) is outputs  # type: ignore[arg-type, comparison-overlap]


@pytest.mark.parametrize("number", [float, np.float32, np.float64, np.array], ids=lambda kind: kind.__name__)
def test_a_stock_comparison_asks_all_ranks(number: Callable[[float], Any]) -> None:
    share = 0.25  # the other ranks' KL is 0 here, so the joint one is a quarter
    threshold = AgreedThreshold(0.1, lambda: share)
    assert not number(0.5) > 1.5 * threshold
    assert number(0.7) > 1.5 * threshold
    assert json.dumps(threshold) == "0.1"


@pytest.fixture
def second_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "_current", Ranks(1, 2))


@pytest.mark.parametrize("name", [name for name, row in ALGORITHMS.items() if row.reason("processes") is not None])
def test_each_no_says_why_before_anything_is_loaded(
    name: str, second_of_two: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loaded(*_: Any, **__: Any) -> Any:
        raise AssertionError("something was loaded")

    monkeypatch.setattr("agents.algorithms.factory.LLMTextVecEnv.__init__", loaded)
    with pytest.raises(
        ValueError, match=f"{name} cannot be used with processes=2: {ALGORITHMS[name].reason('processes')}"
    ):
        make_algorithm(name, n_envs=4, env_kwargs=SMALL)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("ppo", {"episodes": "continuous"}, "episodes='continuous' cannot be used with sharding='full'"),
        ("dqn", {}, "dqn cannot be used with processes=2"),
        ("ppo", {"device": "meta"}, "device='meta': with sharding='full' weights are on"),
    ],
)
def test_what_cannot_be_in_shards(
    name: str, settings: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "_current", Ranks(1, 2, sharding="full"))
    with pytest.raises(ValueError, match=message):
        make_algorithm(name, **{"n_envs": 4, "env_kwargs": SMALL, "seed": 0, **settings})


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("ppo", {"n_envs": 5}, "n_envs=5 must be a multiple of the 2 processes: take 6"),
        ("grpo", {"n_envs": 4}, "n_envs=4 must be a multiple of the 2 processes x group_size=4: take 8"),
        ("ppo", {"batch_size": 11}, "batch_size=11 tokens must be at least max_new_tokens=6 x 2 processes = 12"),
        ("ppo", {"normalize_advantage": True}, "normalize_advantage=True goes by each process's part"),
    ],
)
def test_what_cannot_be_shared(name: str, settings: dict[str, Any], message: str, second_of_two: None) -> None:
    with pytest.raises(ValueError, match=message):
        make_algorithm(name, **{"n_envs": 4, "env_kwargs": SMALL, "seed": 0, **settings})
