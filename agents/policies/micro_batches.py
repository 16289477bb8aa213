"""A mini-batch that does not fit in memory, worked through in parts, with the same gradient.

`PPO.train` evaluates a mini-batch, forms a loss and calls `backward`. To the loss, `MicroBatches` is one differentiable
function. Inside, it keeps the graph of the whole mini-batch as long as that fits; where memory runs out, forward or
backward, it goes on in parts that are read again, one at a time, when their gradient is due. The sum of the parts'
gradients is the mini-batch's, so stock `train` need not know.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from agents.distributed import ranks
from agents.shards import as_often_as_others
from llm_env.lm.memory import free_after, is_out_of_memory
from llm_env.lm.packing import PackedBatch

logger = logging.getLogger(__name__)

Outputs = tuple[Tensor, ...]
Evaluate = Callable[[PackedBatch], Outputs]
"""Tensors of one entry for each scored token of a packed batch, differentiable in the module's parameters."""
Part = tuple[PackedBatch, Tensor, bool]


class MicroBatches:
    """Evaluates packed batches in parts of at most `max_tokens`.

    Args:
        module: Where the gradients go.
        max_tokens: Tokens of a part, prompts included; None: everything at once, until that does not fit. A sequence is
            never cut.
    """

    def __init__(self, module: nn.Module, max_tokens: int | None = None) -> None:
        self.module = module
        self.max_tokens = max_tokens

    def __call__(self, evaluate: Evaluate, batch: PackedBatch) -> Outputs:
        """What `evaluate` gives for the batch.

        Raises:
            torch.OutOfMemoryError, RuntimeError: a single sequence does not fit.
        """
        if not torch.is_grad_enabled():
            return self.without_graph(evaluate, batch)
        # autograd skips functions without an input that needs a gradient, and the parameters are no inputs of this one.
        anchor = torch.zeros((), requires_grad=True, device=batch.device)
        return _Evaluation.apply(anchor, self, evaluate, batch)  # type: ignore[no-untyped-call]

    def parts(self, batch: PackedBatch) -> list[Part]:
        """The batch's parts, each with the places of its scored tokens among all, and whether it counts.

        Where the weights are in shards all ranks have as many, so that some only keep others company.
        """
        parts = batch.split(self.max_tokens or len(batch.input_ids))
        if self.max_tokens is None:
            return [(part, places, True) for part, places in parts]
        return [(part, places, counts) for (part, places), counts in as_often_as_others(parts)]

    def without_graph(self, evaluate: Evaluate, batch: PackedBatch) -> Outputs:
        """Values only, part by part."""
        while True:
            try:
                with torch.no_grad():
                    pieces = [(evaluate(part), places) for part, places, _ in self.parts(batch)]
                break
            except RuntimeError as error:
                self.shrink(batch, error)
        # Put the parts' entries back to their places. (scored tokens,)
        whole = tuple(piece.new_empty(len(batch.targets)) for piece in pieces[0][0])
        for values, places in pieces:
            for target, piece in zip(whole, values, strict=True):
                target[places] = piece
        return whole

    def shrink(self, batch: PackedBatch, error: RuntimeError) -> None:
        """Halves the parts after running out of memory.

        Raises:
            RuntimeError: `error` itself, where it is another one or nothing is left to halve.
        """
        if not is_out_of_memory(error) or ranks().shards or len(self.parts(batch)) == len(batch.lengths):
            raise error  # in shards no rank can go on in smaller parts alone
        free_after(error, batch.device)
        self.max_tokens = min(self.max_tokens or len(batch.input_ids), len(batch.input_ids)) // 2
        logger.warning(
            "A mini-batch of %d tokens does not fit in memory: it is worked through in micro-batches of at most %d "
            "tokens, with the same gradient, each read twice. micro_batch_tokens=%d starts so.",
            len(batch.input_ids),
            self.max_tokens,
            self.max_tokens,
        )


class _Evaluation(torch.autograd.Function):
    """`MicroBatches` as one node of the caller's graph; the parts' own graphs hang inside."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, micro: MicroBatches, evaluate: Evaluate, batch: PackedBatch) -> Outputs:
        ctx.micro, ctx.evaluate, ctx.batch, ctx.graph = micro, evaluate, batch, None
        # As long as it fits: one pass, whose graph is kept until `backward`.
        if len(micro.parts(batch)) == 1:
            try:
                with torch.enable_grad():
                    ctx.graph = evaluate(batch)
            except RuntimeError as error:
                micro.shrink(batch, error)
        # Outputs that the loss does not use come back as None instead of zeros, and cost no backward pass.
        ctx.set_materialize_grads(False)
        if ctx.graph is None:
            return micro.without_graph(evaluate, batch)
        # Detached: to the caller, this node is where the graph ends.
        return tuple(t.detach() for t in ctx.graph)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[None, ...]:  # type: ignore[override]
        micro, batch = ctx.micro, ctx.batch
        parameters = [p for p in micro.module.parameters() if p.requires_grad]
        # A loss with several terms has a node for each. What earlier ones added is put aside, so that a pass that runs out
        # of memory half-way can be taken back.
        earlier = [p.grad for p in parameters]
        graph, ctx.graph = ctx.graph, None
        while True:
            for parameter in parameters:
                parameter.grad = None
            try:
                if graph is not None:
                    _backward(graph, grads)
                else:
                    for part, places, counts in micro.parts(batch):
                        with torch.enable_grad():
                            values = ctx.evaluate(part)
                        # Each part's outputs get their entries of the incoming gradient; the parameters add the parts up.
                        _backward(values, [None if g is None else g[places] * float(counts) for g in grads])
                break
            except RuntimeError as error:
                for parameter in parameters:
                    parameter.grad = None
                # Another node of the loss may have made the parts smaller since this one's graph was recorded.
                has_smaller_parts = graph is not None and len(micro.parts(batch)) > 1
                graph = None
                if not (has_smaller_parts and is_out_of_memory(error)):
                    micro.shrink(batch, error)
        with torch.no_grad():
            for parameter, before in zip(parameters, earlier, strict=True):
                # Put back what earlier nodes had added.
                if before is not None:
                    parameter.grad = before if parameter.grad is None else before.add_(parameter.grad)
                    ranks().tell(parameter)  # what looks at gradients as they grow has seen this node's alone
        # None for each input of `forward`: the gradients are in the parameters already.
        return None, None, None, None


def _backward(values: Sequence[Tensor], grads: Sequence[Tensor | None]) -> None:
    """Adds to the parameters' gradients what these outputs contribute."""
    pairs = [(v, g) for v, g in zip(values, grads, strict=True) if g is not None and v.requires_grad]
    if pairs:
        torch.autograd.backward([v for v, _ in pairs], [g for _, g in pairs])
