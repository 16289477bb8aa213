"""Several processes of one training run, as `torchrun` starts them; with one process everything here is the identity.

Every process, a *rank*, is a whole stable-baselines3 run of its own: its slots, its rollout buffer, its random stream, and the
same weights, or with ``--sharding full`` its part of them (`agents.shards`). What they do together is here, and the others ask
for it where they need it:

- gradients, added up at the end of the backward pass, before stock `train` clips them (`Ranks.joined`);
- the number of mini-batches, and each rank's share of them (`agents.rollouts.buffer`);
- what whitening, the KL controller, early stops and the log go by (`Ranks.moments`, `Ranks.everyone`);
- prompts, one order for all of which each rank takes every world-th (`agents.algorithms.replicas`).

A rank that waits for another which never comes would wait forever, so each of these is called by all ranks in one order.
Messages are JSON, and tensors; nothing that arrives is unpickled. How processes are started and end is `agents.processes`'.
"""

from __future__ import annotations

import datetime
import functools
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd import Variable
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]  # of its C part

from agents import processes
from llm_env.lm.names import check_choice

BUCKET_BYTES = 64 * 2**20
"""Gradients are sent in pieces of about this size, one of which travels while the next is put together."""


class LostRank(RuntimeError):  # noqa: N818  # what happened, as KeyboardInterrupt
    """Another rank of this run has ended, or does not come to where the others wait."""


class Ranks:
    """This process among those of the run, and what they do together.

    Args:
        rank: The number of this process, from 0.
        world: How many there are.
        store: The run's key-value store, which outlives a rank; None where there is one process.
        timeout_s: How long a rank is waited for, in seconds.
        sharding: ``none``: each rank has all weights, gradients and optimizer states. ``full``: its part of them.
    """

    def __init__(
        self, rank: int = 0, world: int = 1, store: Any = None, timeout_s: float = 0.0, sharding: str = "none"
    ) -> None:
        self.rank = rank
        self.world = world
        self.sharding = sharding
        self.reduced: list[Callable[[nn.Parameter], None]] = []
        """Called with each parameter whose gradient has changed otherwise than by autograd: to that of all ranks, for one."""
        self._store = store
        self._timeout_s = timeout_s
        self._calls = 0
        """How often this rank has come to where ranks meet; the same on all of them, or one is missing."""
        self._backward_is_noted = False

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes: rank 0."""
        return self.rank == 0

    @property
    def several(self) -> bool:
        """Whether there is more than one."""
        return self.world > 1

    @property
    def shards(self) -> bool:
        """Whether each rank has a part of the weights that are trained, and not all of them."""
        return self.several and self.sharding == "full"

    def part_of(self, count: int, what: str, unit: int = 1) -> int:
        """This rank's part of a number that must divide.

        Args:
            count: The number of all ranks.
            what: Its name, for the error.
            unit: What must not be split, such as a group's slots.

        Raises:
            ValueError: it does not divide.
        """
        processes.check_divides(what, count, self.world, unit)
        return count // self.world

    # Small messages, on the CPU.

    def add(self, values: NDArray[Any] | Sequence[float]) -> NDArray[np.float64]:
        """The sum of each entry over all ranks, float64; on every rank."""
        array = np.array(values, dtype=np.float64)
        if self.several:
            self._meet(lambda: dist.all_reduce(torch.from_numpy(array)))
        return array

    def total(self, value: int) -> int:
        """The sum of a count over all ranks."""
        return int(self.add([value])[0])

    def any(self, flag: bool) -> bool:
        """Whether the flag is up on one of the ranks."""
        return bool(self.add([float(flag)])[0])

    def moments(self, values: NDArray[Any]) -> tuple[float, float]:
        """Mean and standard deviation of all ranks' values together."""
        if not self.several:
            return values.mean(), values.std()
        total, count = self.add([values.sum(), values.size])
        mean = total / count
        return float(mean), float(np.sqrt(self.add([((values - mean) ** 2).sum()])[0] / count))

    def everyone(self, value: Any) -> list[Any]:
        """Every rank's value, which JSON can say, on every rank."""
        if not self.several:
            return [value]
        own = _to_bytes(value)
        sizes = self._gather(torch.tensor([len(own)]))
        padded = torch.zeros(int(max(sizes)), dtype=torch.uint8)
        padded[: len(own)] = own
        return [_from_bytes(part[: int(size)]) for part, size in zip(self._gather(padded), sizes, strict=True)]

    def _gather(self, tensor: Tensor) -> list[Tensor]:
        parts = [torch.empty_like(tensor) for _ in range(self.world)]
        self._meet(lambda: dist.all_gather(parts, tensor))
        return parts

    def from_first(self, value: Any) -> Any:
        """Rank 0's value, which JSON can say; what the others give is not looked at."""
        if not self.several:
            return value
        data = _to_bytes(value) if self.first else torch.empty(0, dtype=torch.uint8)
        size = torch.tensor([len(data)])
        self._meet(lambda: dist.broadcast(size, src=0))
        data = data if self.first else torch.empty(int(size), dtype=torch.uint8)
        self._meet(lambda: dist.broadcast(data, src=0))
        return value if self.first else _from_bytes(data)

    def first_does(self, work: Callable[[], Any]) -> Any:
        """What rank 0 alone does while the others wait; each gets what it gave, which JSON can say.

        All have come here before it begins.
        """
        self.any(False)
        return self.from_first(work() if self.first else None)

    def tensors_from_first(
        self, tensors: Mapping[str, Tensor], keep: Callable[[str, Tensor], Tensor] = lambda _, tensor: tensor
    ) -> dict[str, Tensor]:
        """Rank 0's tensors by name, on the CPU.

        Args:
            tensors: The tensors; what other ranks give is not looked at.
            keep: Gives what is kept of a tensor with that name; one is on its way at a time.
        """
        if not self.several:
            return dict(tensors)
        kinds = self.from_first({n: [str(t.dtype).removeprefix("torch."), list(t.shape)] for n, t in tensors.items()})
        arrived = {}
        for name, (dtype, shape) in kinds.items():
            tensor = tensors[name] if self.first else torch.empty(shape, dtype=getattr(torch, dtype))
            self.send_tensor(tensor)
            arrived[name] = keep(name, tensor)
        return arrived

    def send_tensor(self, tensor: Tensor) -> None:
        """Gives all ranks what is in rank 0's tensor, in place."""
        self._meet(lambda: dist.broadcast(tensor, src=0))

    def _meet(self, collective: Callable[[], Any]) -> Any:
        """Does what all ranks do together.

        Raises:
            LostRank: another one has ended, or did not come in time.
        """
        self._calls += 1
        try:
            self._store.set(f"calls/{self.rank}", str(self._calls))
            return collective()
        except RuntimeError as error:  # of gloo, of nccl, of the store
            raise LostRank(self._who_is_missing(error)) from error

    def _who_is_missing(self, error: RuntimeError) -> str:
        """Names the rank that the others wait for in vain, as far as this one can tell."""
        gone = processes.ranks_that_ended()
        if gone:
            return f"rank {gone[0]} has ended: killed, out of memory, or crashed"
        others = [rank for rank in range(self.world) if rank != self.rank]
        try:
            calls = {rank: int(self._store.get(f"calls/{rank}")) for rank in others}
        except (RuntimeError, ValueError):
            calls = {}
        late = [f"rank {rank}" for rank, count in calls.items() if count < self._calls]
        who = " and ".join(late) or "another rank"
        if "timed out" in str(error).lower():
            return f"{who} did not come to where the others wait, for {self._timeout_s:g} s (--rank-timeout)"
        return f"{who} was lost: {str(error).splitlines()[0][:160]}"

    # The update.

    @torch.no_grad()
    def send_weights(self, module: nn.Module) -> None:
        """Gives all ranks rank 0's weights and buffers."""
        if self.several:
            for tensor in (*module.parameters(), *module.buffers()):
                self.send_tensor(tensor.data)

    def joined(self, outputs: tuple[Tensor, ...], shares: Sequence[float], module: nn.Module) -> tuple[Tensor, ...]:
        """What a mini-batch's evaluation gave, so that the backward pass ends with the gradient of all ranks' mini-batch.

        Each rank's loss is a mean over its own tokens or responses. With its share of all of them as the weight, the sum of the
        ranks' gradients is the gradient of the mean over all. It is taken when the whole backward pass is over, of which this
        may be one part.

        Args:
            outputs: Differentiable in the module's parameters.
            shares: The weight of each output's gradient.
            module: Where the gradients go.
        """
        if not self.several or not torch.is_grad_enabled():
            return outputs
        return _Weighted.apply(shares, lambda: self._note_backward(module), *outputs)  # type: ignore[no-untyped-call]

    def _note_backward(self, module: nn.Module) -> None:
        """Has gradients added up once, at the end of the backward pass that is under way."""
        if not self._backward_is_noted:
            self._backward_is_noted = True
            Variable._execution_engine.queue_callback(lambda: self._end_backward(module))  # type: ignore[attr-defined]

    def _end_backward(self, module: nn.Module) -> None:
        self._backward_is_noted = False
        if not self.shards:
            self.add_gradients(module.parameters())
            return
        # FSDP2 has added them up already, each rank's part on that rank.
        for parameter in module.parameters():
            if parameter.grad is not None:
                self.tell(parameter)

    @torch.no_grad()
    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Adds the ranks' gradients up, in place; afterwards they are equal on all ranks, bit for bit."""
        trained = [p for p in parameters if p.requires_grad]
        # One that no rank has a gradient for keeps none, as in one process.
        has = self.add([p.grad is not None for p in trained])
        wanted = [p for p, count in zip(trained, has, strict=True) if count]
        for parameter in wanted:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        # One bucket is on its way while the next is filled.
        under_way: tuple[Any, Tensor, list[nn.Parameter]] | None = None
        for bucket in _buckets(wanted):
            flat = torch.cat([p.grad.flatten() for p in bucket])  # type: ignore[union-attr]
            work = self._meet(functools.partial(dist.all_reduce, flat, async_op=True))
            if under_way is not None:
                self._arrived(*under_way)
            under_way = (work, flat, bucket)
        if under_way is not None:
            self._arrived(*under_way)

    def _arrived(self, work: Any, flat: Tensor, bucket: list[nn.Parameter]) -> None:
        self._meet(work.wait)
        for parameter, part in zip(bucket, flat.split([p.numel() for p in bucket]), strict=True):
            assert parameter.grad is not None
            parameter.grad.copy_(part.view_as(parameter))
            self.tell(parameter)

    def tell(self, parameter: nn.Parameter) -> None:
        """Tells listeners of a parameter's gradient, where it has changed otherwise than by autograd."""
        for listener in self.reduced:
            listener(parameter)


def _buckets(parameters: Sequence[nn.Parameter]) -> Iterable[list[nn.Parameter]]:
    """Cuts parameters into runs of one type and of about `BUCKET_BYTES`."""
    bucket: list[nn.Parameter] = []
    for parameter in parameters:
        size = sum(p.numel() * p.element_size() for p in bucket)
        if bucket and (size >= BUCKET_BYTES or parameter.dtype != bucket[0].dtype):
            yield bucket
            bucket = []
        bucket.append(parameter)
    if bucket:
        yield bucket


class _Weighted(torch.autograd.Function):
    """The identity; gradients are weighted on their way back."""

    @staticmethod
    def forward(ctx: Any, shares: Sequence[float], note: Callable[[], None], *outputs: Tensor) -> tuple[Tensor, ...]:
        ctx.shares, ctx.note = shares, note
        ctx.set_materialize_grads(False)
        return tuple(t.view_as(t) for t in outputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        ctx.note()
        return None, None, *(None if g is None else g * share for g, share in zip(grads, ctx.shares, strict=True))


def _to_bytes(value: Any) -> Tensor:
    data = json.dumps(value, default=lambda v: v.item()).encode()  # numbers of numpy
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _from_bytes(data: Tensor) -> Any:
    return json.loads(data.numpy().tobytes())


_current = Ranks()


def ranks() -> Ranks:
    """This process among those of the run."""
    return _current


def join(timeout_s: float = processes.RANK_TIMEOUT_S, sharding: str = "none") -> Ranks:
    """Joins the run that `torchrun` has started this process for; without `torchrun` there is one process.

    Commands do so themselves; a script of one's own calls it first, and `make_algorithm` does the rest.

    Args:
        timeout_s: How long a rank is waited for, in seconds.
        sharding: ``none``, or ``full`` for weights in shards; the same on all ranks.

    Raises:
        LostRank: not all ranks came.
        ValueError: the sharding is not known.
    """
    global _current
    check_choice("sharding", sharding, processes.SHARDING)
    if not processes.under_torchrun() or _current.several:
        return _current
    rank, world, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    timeout = datetime.timedelta(seconds=timeout_s)
    # torchrun's own store is used where there is one: it outlives a killed rank 0.
    agents_store = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(local % torch.cuda.device_count())
        # nccl wants a GPU for each rank; small messages are on the CPU, where gloo carries them.
        if int(os.environ["LOCAL_WORLD_SIZE"]) <= torch.cuda.device_count():
            backend = "cpu:gloo,cuda:nccl"
    try:
        tcp = TCPStore(address, port, None, rank == 0 and not agents_store, timeout, wait_for_workers=False)
        store = PrefixStore(f"llm_env/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", tcp)
        dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=timeout)
    except RuntimeError as error:
        raise LostRank(f"not all of the {world} ranks came within {timeout_s:g} s (--rank-timeout)") from error
    _current = Ranks(rank, world, store, timeout_s, sharding)
    processes.watch(rank, store, _current.everyone(processes.identity()))
    return _current


def part() -> None:
    """Ends what `join` began; all ranks part in order."""
    if dist.is_initialized():
        dist.destroy_process_group()
