"""What a capture that fails leaves behind, with torch's own context around stand-ins for a GPU; on a GPU: tests/test_gpu.py."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from llm_env.lm.replay import StepRunner, graph_capture


class Gpu:
    """What torch keeps of streams and captures: it goes back to the stream before where a context is left, and only there."""

    def __init__(self) -> None:
        self.current: Any = "default"
        self.under_way: list[Any] = []
        """Captures, as the allocator takes them to be under way: device and pool."""
        self.spoiled = False
        self.log: list[str] = []

    def stream(self, stream: Any) -> Any:
        before = [self.current]

        def enter(_: Any) -> None:
            before[0], self.current = self.current, stream

        def leave(*_: Any) -> None:
            self.current = before[0]

        return type("Context", (), {"__enter__": enter, "__exit__": leave})()

    def begin(self, pool: Any, **kwargs: Any) -> None:
        self.under_way.append((self.current.device.index, pool))

    def end(self) -> None:
        if self.spoiled:  # before it has told the allocator
            raise RuntimeError("operation failed due to a previous error during capture")
        self.under_way.pop()

    def end_allocations(self, *which: Any) -> None:
        if which not in self.under_way:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        self.under_way.remove(which)

    def ask(self) -> None:
        """What a capture cannot have."""
        if self.under_way:
            self.spoiled = True
            raise RuntimeError("operation not permitted when stream is capturing")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    gpu = Gpu()
    made = {
        "Stream": lambda device: SimpleNamespace(device=torch.device(device), wait_stream=lambda other: None),
        "CUDAGraph": lambda: SimpleNamespace(capture_begin=gpu.begin, capture_end=gpu.end, replay=lambda: None),
        "graph_pool_handle": lambda: "pool",
        "current_stream": lambda device=None: SimpleNamespace(wait_stream=lambda other: None),
        "stream": gpu.stream,
        "synchronize": lambda: None,
        "empty_cache": lambda: None,
    }
    for name, value in made.items():
        monkeypatch.setattr(torch.cuda, name, value)
    core: dict[str, Any] = {
        "_host_emptyCache": lambda: None,
        "_cuda_endAllocateToPool": gpu.end_allocations,
        "_cuda_releasePool": lambda device, pool: gpu.log.append(f"{pool} of {device} released"),
    }
    for name, value in core.items():
        monkeypatch.setattr(torch._C, name, value, raising=False)
    monkeypatch.setattr(torch, "clear_autocast_cache", lambda: gpu.log.append("cache cleared"))
    return gpu


@pytest.mark.parametrize("asks", [True, False], ids=["the device is asked", "an error in Python"])
def test_a_capture_that_fails_leaves_nothing_behind(gpu: Gpu, asks: bool, caplog: pytest.LogCaptureFixture) -> None:
    """The stream of before is the current one, the allocator's capture is over, and no rounded weight of it stays."""
    state, runner = torch.zeros(2), StepRunner(graph_capture(torch.device("cuda:1")), "a model")

    def step() -> None:
        state.add_(1)
        gpu.log.append("step")
        if asks:
            gpu.ask()
        elif gpu.under_way:
            raise TypeError("no such thing")

    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            runner("key", step, [state])
    assert state.tolist() == [3, 3]
    assert len(caplog.messages) == 1
    assert gpu.current == "default"
    assert not gpu.under_way
    released = ["pool of 1 released"] if asks else []
    # As it is, to warm up, and captured; then as it is.
    assert gpu.log == ["step", "step", "cache cleared", "step", *released, "cache cleared", "step", "step"]


def test_a_capture_is_on_its_own_device(gpu: Gpu) -> None:
    capture, seen = graph_capture(torch.device("cuda:1")), []
    assert capture is not None
    capture(lambda: seen.append((gpu.current.device.index, len(gpu.under_way))))
    assert seen == [(1, 0), (1, 1)]
    assert gpu.current == "default"
