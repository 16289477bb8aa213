"""Training with `transformers.Trainer` ends at the first number that is not finite, before a model is written."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainingArguments


class StopAtFaults(TrainerCallback):
    """Raises a `FloatingPointError` where gradient, held-out loss or weights are NaN or infinite.

    A loss that is not finite has a gradient that is not, which is found before the optimizer applies it. `Trainer` itself goes
    on, and leaves such losses out of its log (``logging_nan_inf_filter``).
    """

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Looks at the gradient, clipped by now."""
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        self._check(float(torch.nn.utils.get_total_norm(gradients)), "the gradient", args, state.global_step + 1)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Looks at the weights where a checkpoint is written next."""
        if control.should_save:
            self._check_weights(model, args, state.global_step)

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        """Looks at the held-out loss."""
        self._check((metrics or {}).get("eval_loss", 0.0), "the held-out loss", args, state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Looks at the weights that would be saved."""
        self._check_weights(model, args, state.global_step)

    def _check_weights(self, model: nn.Module, args: TrainingArguments, step: int) -> None:
        weights = [p.detach() for p in model.parameters() if p.requires_grad]
        self._check(float(torch.nn.utils.get_total_norm(weights)), "the norm of the weights", args, step)

    def _check(self, value: float, what: str, args: TrainingArguments, step: int) -> None:
        if not math.isfinite(value):
            raise FloatingPointError(
                f"Step {step}: {what} is {value}. Likely cause: learning_rate={args.learning_rate:g} is too high; try a "
                "third of it. No model is written; the newest checkpoint is from before."
            )
