"""Numerical faults end a run before they are saved; alarms say, and may end a run, where numbers leave what they were."""

from __future__ import annotations

import math
import statistics
import warnings
from collections import deque
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from agents.callbacks.drift import Drift, numbers_of
from agents.callbacks.metrics import TextMetricsCallback
from agents.distributed import ranks
from agents.rollouts.vec_env import text_env
from agents.rules import ALARMS
from agents.shards import own_part
from llm_env.lm.names import check_choice

SPIKE = 10.0
"""An alarm where a gradient's norm is more than this many times the median of the updates before it."""
KL_JUMP = 3.0
"""An alarm where the KL is more than this many times the median of the iterations before it, and the score is below theirs."""
LEAST_KL = 10.0
"""No such alarm below this, in nats per response: early in a run the KL multiplies without harm."""
UPDATES, ITERATIONS = 100, 50
"""How far back the medians look."""
LEAST_UPDATES, LEAST_ITERATIONS = 20, 5
"""No alarm before there are that many to compare with."""
HIGH_RATE = 1e-2
"""AdamW moves a weight by about the learning rate at each update, and a language model's weights are around 0.02."""
LARGE_RETURN = 1e6
"""Squared, such returns are near where float32 has no digits left for anything else."""


class Alarms(BaseCallback):
    """Stops training at the first number that is not finite, and says where gradient or KL leave what they were.

    A **fault** ends training with a `FloatingPointError`: NaN or infinity in a rollout's rewards or values, in a mini-batch's
    gradient, or in the weights after an iteration. A loss that is not finite has a gradient that is not. On a CPU a bad
    gradient is found before the optimizer applies it; on a GPU one mini-batch later, so that the device is not waited for.
    Either way it is found before the iteration's row, samples and checkpoint are written.

    An **alarm** is a warning, once of each kind, and counts in the log's ``train/alarms``; training goes on.

    - The gradient's norm, before clipping, is more than `SPIKE` times the median of the last `UPDATES`. A median does not move
      with the spike itself, as a mean and a standard deviation do.
    - The KL per response is more than `KL_JUMP` times the median of the last `ITERATIONS`, and the score is below their median.
      Both terms of score - β·KL got worse, so whatever β is, the objective did.
    - What `agents.callbacks.drift` compares: the gold score falls while the score rises; responses repeat themselves, or have
      become much longer or shorter than they were.

    The norm is logged as ``train/grad_norm``, the mean over the iteration's updates. It is what algorithms with an optimizer
    accumulate in their parameters: TRPO's is the critic's alone, and ARS has none.

    Args:
        metrics: The callback that has KL and score; must stand *after* this one in the list of callbacks, so that what is found
            here is in its row of the log.
        stop_on: Kinds of alarm, of `agents.rules.ALARMS`, at the first of which training ends.

    Attributes:
        stopped: The alarm that ended training, or None.

    Raises:
        ValueError: a kind is not known.
    """

    def __init__(self, metrics: TextMetricsCallback, stop_on: Iterable[str] = ()) -> None:
        super().__init__()
        self.metrics = metrics
        self.stop_on = frozenset(stop_on)
        for kind in self.stop_on:
            check_choice("stop_on", kind, ALARMS)
        self.stopped: str | None = None
        self.drift = Drift()
        self.norms: deque[float] = deque(maxlen=UPDATES)
        """Norms of the latest updates, those without a spike."""
        self.kls: deque[float] = deque(maxlen=ITERATIONS)
        self.scores: deque[float] = deque(maxlen=ITERATIONS)
        self.said: set[str] = set()
        """Kinds of alarm that were printed."""
        self._lag = 0
        """Updates after which a norm is read: SB3 reads each mini-batch's loss, so a GPU is done with the one before then."""
        self._handles: list[RemovableHandle] = []
        self._parts: dict[nn.Parameter, Tensor] = {}
        """Norm of each parameter's gradient since the last update, a scalar each."""
        self._unread: deque[Tensor] = deque()
        """Norms of updates that nobody has looked at yet."""
        self._start_iteration()

    def _start_iteration(self) -> None:
        self._iteration = self.metrics.iteration
        self._iteration_norms: list[float] = []
        self._alarms = 0

    def state_dict(self) -> dict[str, Any]:
        """Gives what a resumed run needs to raise the same alarms, in plain values."""
        return {
            "norms": list(self.norms),
            "kls": list(self.kls),
            "scores": list(self.scores),
            "said": sorted(self.said),
            "stopped": self.stopped,
            "drift": self.drift.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` gave."""
        for name in ("norms", "kls", "scores"):
            history: deque[float] = getattr(self, name)
            history.clear()
            history.extend(state[name])
        self.said = set(state["said"])
        if "drift" in state:  # not in checkpoints of earlier versions
            self.stopped = state["stopped"] if state["stopped"] in self.stop_on else None
            self.drift.load_state_dict(state["drift"])

    def _on_training_start(self) -> None:
        self._remove_hooks()  # of a training that ended with an error
        optimizer = getattr(self.model.policy, "optimizer", None)
        if optimizer is None:  # ARS
            return
        self._lag = int(self.model.device.type == "cuda")
        # The norm before clipping is known between `backward` and `clip_grad_norm_`, where SB3 asks nobody.
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                self._handles.append(parameter.register_post_accumulate_grad_hook(self._note_gradient))
        self._handles.append(optimizer.register_step_pre_hook(self._before_update))
        ranks().reduced.append(self._note_gradient)  # with several processes what counts is the sum of their gradients

    def _remove_hooks(self) -> None:
        ranks().reduced.clear()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._parts.clear()
        self._unread.clear()

    def _on_step(self) -> bool:
        return self.stopped is None

    def _note_gradient(self, parameter: Tensor) -> None:
        """Called when a parameter's gradient has grown; where a mini-batch is evaluated in parts, the last call has the sum."""
        assert isinstance(parameter, nn.Parameter)
        assert parameter.grad is not None
        self._parts[parameter] = torch.linalg.vector_norm(own_part(parameter.grad.detach()))

    def _before_update(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if not self._parts:
            return
        norm = torch.linalg.vector_norm(torch.stack(list(self._parts.values())))
        self._parts.clear()
        if ranks().shards:  # of this rank's part
            norm = torch.tensor(math.sqrt(ranks().add([float(norm) ** 2])[0]))
        self._unread.append(norm)
        self._read_norms(leave=self._lag)

    def _read_norms(self, leave: int = 0) -> None:
        """Looks at the norms of updates, all but the newest `leave`.

        Raises:
            FloatingPointError: one is not finite.
        """
        while len(self._unread) > leave:
            norm = float(self._unread.popleft())
            number = len(self._iteration_norms) + 1
            if not math.isfinite(norm):
                raise self._fault(f"the gradient of mini-batch {number} has the norm {norm}")
            self._iteration_norms.append(norm)
            usual = statistics.median(self.norms) if len(self.norms) >= LEAST_UPDATES else math.inf
            if norm > SPIKE * usual:
                self._alarm(
                    "gradient",
                    f"mini-batch {number}: the gradient's norm is {norm:.3g}, and the median of the {len(self.norms)} updates "
                    f"before is {usual:.3g}. max_grad_norm bounds what it does; a lower learning_rate makes it rarer",
                )
            else:
                self.norms.append(norm)

    def _on_rollout_end(self) -> None:
        if self.metrics.iteration != self._iteration:  # its row is written
            self._start_iteration()
        buffer = getattr(self.model, "rollout_buffer", None)
        for name in ("rewards", "values", "advantages", "returns"):
            array = getattr(buffer, name, None)
            if array is not None and not np.isfinite(array).all():
                raise self._fault(f"the rollout's {name} are not finite")

    def _on_rollout_start(self) -> None:
        self._after_update(self.metrics.row_is_due)

    def _on_training_end(self) -> None:
        if self.stopped is None:  # else the last update was looked at
            self._after_update(True)
        self._remove_hooks()

    def _after_update(self, row_is_due: bool) -> None:
        """Looks at what the update before left behind.

        Args:
            row_is_due: Whether the log's row is written next.

        Raises:
            FloatingPointError: a weight, or a gradient that was not looked at yet, is not finite.
        """
        self._read_norms()
        is_finite = weights_are_finite(own_part(w) for w in self.model.policy.state_dict().values())
        if ranks().any(not is_finite):
            raise self._fault("the weights are not finite after the update")
        if not row_is_due:
            return
        if self.metrics.last:  # else no response ended
            self._compare_kl(self.metrics.last["rollout/kl"], self.metrics.last["rollout/rm_score"])
            for kind, message in self.drift.see(numbers_of(self.metrics.last, self.metrics.responses)):
                self._alarm(kind, message)
        if self._iteration_norms:
            self.logger.record("train/grad_norm", statistics.fmean(self._iteration_norms))
        self.logger.record("train/alarms", self._alarms)

    def _compare_kl(self, kl: float, score: float) -> None:
        """Raises the alarm where the KL jumped and the score fell; `kl` is in nats per response."""
        if len(self.kls) >= LEAST_ITERATIONS:
            usual, usual_score = statistics.median(self.kls), statistics.median(self.scores)
            if kl > max(LEAST_KL, KL_JUMP * usual) and score < usual_score:
                self._alarm(
                    "kl",
                    f"the KL is {kl:.3g} nats per response, and the median of the {len(self.kls)} iterations before is "
                    f"{usual:.3g}, while the score fell from {usual_score:.3g} to {score:.3g}. Lower learning_rate, or raise "
                    "kl_coef",
                )
        if math.isfinite(kl):
            self.kls.append(kl)
            self.scores.append(score)

    def _alarm(self, kind: str, message: str) -> None:
        """Counts an alarm, and says the first of its kind, at which training may have to end."""
        self._alarms += 1
        if kind not in self.said:
            self.said.add(kind)
            if kind in self.stop_on:
                self.stopped = kind
            warnings.warn(
                f"Iteration {self.metrics.iteration + 1}, {message}. Said once; train/alarms counts them.", stacklevel=2
            )

    def _fault(self, what: str) -> FloatingPointError:
        """The error that ends training."""
        return FloatingPointError(
            f"Iteration {self.metrics.iteration + 1}: {what}. {self._likely_cause()} Nothing of this iteration is saved."
        )

    def _likely_cause(self) -> str:
        """What is most often behind a fault, by the settings and the latest returns; a sentence or two."""
        model, task = self.model, text_env(self.training_env).task
        if task.settings.dtype in ("float16", "fp16"):
            return f"Likely cause: dtype={task.settings.dtype!r} ends at 65,504; take bfloat16 or float32."
        returns = [abs(float(info["r"])) for info in model.ep_info_buffer or []]
        if returns and not max(returns) < LARGE_RETURN:
            return (
                f"Likely cause: returns of up to {max(returns):.3g} (reward_scale={task.settings.reward_scale:g}, "
                f"kl_coef={task.kl.coef:g}). Scale the reward to around 1, or bound it with reward_clip."
            )
        optimizer = getattr(model.policy, "optimizer", None)  # ARS has none
        rate = float(optimizer.param_groups[0]["lr"] if optimizer else model.lr_schedule(1.0))
        if rate > HIGH_RATE:
            return f"Likely cause: learning_rate={rate:g} is too high; weights of a language model are around 0.02."
        if getattr(model.policy, "mixed_precision", "no") == "bf16":
            return f"Likely cause: learning_rate={rate:g} is too high for bf16; lower it, or take mixed_precision='no'."
        return f"Likely cause: learning_rate={rate:g} is too high; try a third of it, and max_grad_norm."


def weights_are_finite(weights: Iterable[Tensor]) -> bool:
    """Whether no weight is NaN or infinite, by one number: the norm of all of them."""
    norm = torch.nn.utils.get_total_norm([w for w in weights if w.is_floating_point()])
    return math.isfinite(float(norm))
