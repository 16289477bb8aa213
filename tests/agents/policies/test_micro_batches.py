"""What does not fit in memory is worked through in parts, with the same gradient."""

from __future__ import annotations

import logging
import subprocess
import sys
from typing import Any

import pytest
import torch

from agents import make_algorithm
from llm_env.lm.memory import is_out_of_memory
from llm_env.lm.packing import PackedBatch, in_groups, pack
from llm_env.lm.runtime import reuse_freed_memory
from tests.llm_env.lm.test_packed_attention import SEQUENCES, STARTS

SMALL: dict[str, Any] = {"max_new_tokens": 8, "max_prompt_length": 12}
BATCH = pack(SEQUENCES, STARTS, "cpu")


def policy_gradient(policy: Any, batch: PackedBatch) -> list[torch.Tensor]:
    """The gradient of something like PPO's loss."""
    policy.optimizer.zero_grad()
    values, log_probs, entropy = policy.evaluate_actions(batch, batch.targets)
    assert not entropy.requires_grad
    place = torch.arange(len(batch.targets))
    ((log_probs * place.sin()).mean() + (values - place.cos()).pow(2).mean()).backward()
    return [p.grad.clone() for p in policy.parameters() if p.grad is not None]


class Limited:
    """An evaluation that runs out of memory above a number of tokens, forward or backward."""

    def __init__(self, evaluate: Any, limit: int, where: str) -> None:
        self.evaluate, self.limit, self.where = evaluate, limit, where
        self.sizes: list[int] = []

    def __call__(self, batch: PackedBatch) -> Any:
        values, log_probs, entropy = self.evaluate(batch)
        self.sizes.append(len(batch.input_ids))
        if len(batch.input_ids) > self.limit:
            if self.where == "forward" or not log_probs.requires_grad:
                raise torch.OutOfMemoryError("no memory")
            log_probs.register_hook(self.fail)  # after the critic's gradients may have been added
        return values, log_probs, entropy

    @staticmethod
    def fail(_: torch.Tensor) -> None:
        raise torch.OutOfMemoryError("no memory")


def make(**settings: Any) -> Any:
    return make_algorithm("ppo", n_envs=4, seed=0, env_kwargs=SMALL, **settings).policy


@pytest.mark.parametrize("critic", ["head", "reward_model"])
@pytest.mark.parametrize("max_tokens", [1, 20, 40])
def test_parts_give_the_whole_gradient(max_tokens: int, critic: str) -> None:
    whole = policy_gradient(make(critic=critic), BATCH)
    parts = policy_gradient(make(critic=critic, micro_batch_tokens=max_tokens), BATCH)
    assert len(whole) == len(parts) > 20
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_values_come_back_in_order() -> None:
    with torch.no_grad():
        whole, parts = (make(micro_batch_tokens=n).evaluate_actions(BATCH, BATCH.targets) for n in (None, 18))
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_running_out_of_memory_changes_nothing_but_the_size(where: str, caplog: pytest.LogCaptureFixture) -> None:
    want = policy_gradient(make(), BATCH)
    policy = make()
    limited = policy._evaluate = Limited(policy._evaluate, 30, where)
    with caplog.at_level(logging.WARNING):
        got = policy_gradient(policy, BATCH)
    lines = [r.getMessage() for r in caplog.records if "micro-batches" in r.getMessage()]
    assert len(lines) == 1
    assert "mini-batch of 54 tokens" in lines[0]
    assert "micro_batch_tokens=27" in lines[0]
    for one, other in zip(want, got, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    limited.sizes.clear()
    policy_gradient(policy, BATCH)  # the next mini-batch starts with what fitted
    assert max(limited.sizes) <= 30


def test_gradients_that_were_there_before_stay() -> None:
    """A loss of two terms has two nodes: what the first one added is neither lost nor counted twice."""
    policy = make()
    first = policy_gradient(policy, BATCH)
    policy._evaluate = Limited(policy._evaluate, 30, "backward")
    values, log_probs, _ = policy.evaluate_actions(BATCH, BATCH.targets)
    place = torch.arange(len(BATCH.targets))
    ((log_probs * place.sin()).mean() + (values - place.cos()).pow(2).mean()).backward()
    twice = [p.grad for p in policy.parameters() if p.grad is not None]
    for once, both in zip(first, twice, strict=True):
        torch.testing.assert_close(both, 2 * once, rtol=1e-4, atol=2e-5)


def test_a_single_sequence_that_does_not_fit_is_an_error() -> None:
    policy = make()
    policy._evaluate = Limited(policy._evaluate, 10, "forward")
    with pytest.raises(torch.OutOfMemoryError):
        policy.evaluate_actions(BATCH, BATCH.targets)


def test_other_errors_pass() -> None:
    def broken(batch: PackedBatch) -> Any:
        raise RuntimeError("something else")

    policy = make()
    policy._evaluate = broken
    with pytest.raises(RuntimeError, match="something else"):
        policy.evaluate_actions(BATCH, BATCH.targets)


def test_scoring_halves_a_group_that_does_not_fit(caplog: pytest.LogCaptureFixture) -> None:
    done: list[list[int]] = []

    def run(group: list[int]) -> None:
        if len(group) > 2:
            raise torch.OutOfMemoryError("no memory")
        done.append(group)

    in_groups([5, 5, 5, 5, 5], 100, torch.device("cpu"), run)
    assert sorted(i for g in done for i in g) == [0, 1, 2, 3, 4]
    assert "read in halves" in caplog.text
    with pytest.raises(torch.OutOfMemoryError):
        in_groups([5], 100, torch.device("cpu"), lambda g: run([0, 1, 2]))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space as Linux does")
def test_a_real_shortage_on_a_cpu() -> None:
    """A child process that may not have the memory for a whole mini-batch still gets its gradient."""
    program = """
import logging, resource, sys, torch
logging.basicConfig(level=logging.WARNING, stream=sys.stdout)
torch.set_num_threads(1)
from agents import make_algorithm
from llm_env.lm.packing import pack
policy = make_algorithm("ppo", n_envs=4, seed=0).policy
batch = pack([[(7 * i + j) % 1000 + 3 for i in range(300)] for j in range(32)], [20] * 32, "cpu")
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 250 * 2**20,) * 2)
values, log_probs, _ = policy.evaluate_actions(batch, batch.targets)
(log_probs.mean() + values.mean()).backward()
print("gradients:", sum(p.grad is not None and bool(p.grad.any()) for p in policy.parameters()))
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert "does not fit in memory" in result.stdout, result.stdout + result.stderr[-2000:]
    assert int(result.stdout.rpartition("gradients:")[2]) > 60, result.stdout


def test_memory_errors_are_told_apart() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError())
    assert is_out_of_memory(RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"))
    assert not is_out_of_memory(RuntimeError("shape mismatch"))
    assert reuse_freed_memory() in (True, False)
