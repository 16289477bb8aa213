"""The KL coefficient in a straight line over a run: a policy that explores near the reference first, and is let go then."""

from __future__ import annotations

from stable_baselines3.common.callbacks import BaseCallback

from agents.callbacks.adaptive_kl import check_beta_may_move
from agents.rollouts.vec_env import text_env
from agents.rules import check_arguments


class LinearKL(BaseCallback):
    """Moves the coefficient of the environment's KL penalty in a straight line with the steps of the run.

    A rollout that begins after a share f of the run's steps is paid with β(f) = start + f (end - start): the first one with
    `start`, the last of n with what is 1/n short of `end`. Where the reference tries many things, as a random player does, a
    first β keeps the policy from settling on the first thing that paid, and a last β of 0 lets it be as sure as it likes.

    Args:
        start: β of the first rollout, in score per nat.
        end: β at the run's end.

    Raises:
        ValueError: a number breaks its rule. At the start of training: the algorithm's backup is made for one β.
    """

    def __init__(self, start: float, end: float = 0.0) -> None:
        super().__init__()
        check_arguments({"kl_coef_start": start, "kl_coef_end": end})
        self.start = start
        self.end = end

    def _init_callback(self) -> None:
        check_beta_may_move(self.model, "kl_coef_end")

    def _on_rollout_start(self) -> None:
        share = self.model.num_timesteps / self.model._total_timesteps
        text_env(self.training_env).task.kl.coef = self.start + share * (self.end - self.start)

    def _on_step(self) -> bool:
        return True
