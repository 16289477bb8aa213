"""A step on tensors that keep their addresses, replayed from a captured CUDA graph where there is one.

A graph does what its capture saw, with whatever the tensors hold by then: it must see neither a shape nor an address that
changes. Each one is tried once against the step as it is, and all are left where one disagrees, with a line in the log.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger(__name__)
Capture = Callable[[Callable[[], None]], Callable[[], object]]
"""From a step to what replays it."""


class StepRunner:
    """Runs steps, or what was captured of them.

    Args:
        capture: Captures a step; None: steps run as they are.
        name: Whose steps they are, for the log.
    """

    def __init__(self, capture: Capture | None, name: str) -> None:
        self._capture = capture
        self._name = name
        self._replays: dict[Hashable, Callable[[], object]] = {}
        self._expected: Hashable = None

    @property
    def captures(self) -> bool:
        """Whether steps are captured, so that what they look at must stay where it is."""
        return self._capture is not None

    def expect(self, addresses: Hashable) -> None:
        """Forgets all that was captured where addresses are not those that it was captured with."""
        if addresses != self._expected:
            self._expected = addresses
            self._replays.clear()

    def __call__(self, key: Hashable, step: Callable[[], None], state: Sequence[Tensor]) -> None:
        """Runs a step.

        Args:
            key: What tells steps of different shapes apart.
            step: The step, which reads and writes tensors that keep their addresses.
            state: The tensors that it changes, but for what it writes alike each time that it runs.
        """
        if self._capture is None:
            step()
        elif (replay := self._replays.get(key)) is not None:
            replay()
        else:
            self._try(key, step, state)

    def _try(self, key: Hashable, step: Callable[[], None], state: Sequence[Tensor]) -> None:
        """Runs a step as it is, then from its capture, and compares what they leave behind."""
        assert self._capture is not None
        before = [tensor.clone() for tensor in state]

        def put_back(saved: Sequence[Tensor]) -> None:
            for tensor, value in zip(state, saved, strict=True):
                tensor.copy_(value)

        step()
        want = [tensor.clone() for tensor in state]
        put_back(before)
        try:
            replay = self._capture(step)
            put_back(before)  # it may have run the step to warm up
            replay()
            reason = "" if agree(want, state) else "a replayed step disagrees with one that is run"
        except Exception as error:  # whatever a model does that cannot be captured
            reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        if not reason:
            self._replays[key] = replay
            return
        put_back(want)
        self._capture = None
        self._replays.clear()
        logger.warning("%s decodes without a captured graph, which is slower: %s.", self._name, reason)


def agree(want: Sequence[Tensor], got: Sequence[Tensor]) -> bool:
    """Whether tensors are the same: whole numbers exactly, others up to rounding; NaN is the same as NaN."""
    return all(
        torch.allclose(g, w, rtol=1e-3, atol=1e-4, equal_nan=True) if w.is_floating_point() else torch.equal(g, w)
        for w, g in zip(want, got, strict=True)
    )


def graph_capture(device: torch.device) -> Capture | None:
    """What captures CUDA graphs that share one pool of memory; None where there is no CUDA device."""
    if device.type != "cuda":
        return None
    pool = torch.cuda.graph_pool_handle()
    # One stream for all captures, since they share a pool; on this device, whichever is the current one.
    stream = torch.cuda.Stream(device)

    def capture(step: Callable[[], None]) -> Callable[[], object]:
        # On that stream first, as torch asks for: what libraries allocate at their first use must not be captured.
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            step()
        torch.cuda.current_stream(device).wait_stream(stream)
        # Weights that autocast has rounded already would be captured as they are now.
        torch.clear_autocast_cache()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(stream):  # torch's own context leaves this stream the current one where a capture fails
            try:
                with torch.cuda.graph(graph, pool=pool, stream=stream):
                    step()
            except BaseException:
                _abandon(stream.device.index, pool)
                raise
            finally:  # what a capture has rounded holds nothing yet
                torch.clear_autocast_cache()
        return graph.replay

    return capture


def _abandon(device: int, pool: Any) -> None:
    """Has torch's allocator leave a capture that has failed: it takes it to be under way, and could free no memory any more."""
    with contextlib.suppress(RuntimeError):  # there is none where the capture itself has ended in order
        torch._C._cuda_endAllocateToPool(device, pool)
        torch._C._cuda_releasePool(device, pool)
