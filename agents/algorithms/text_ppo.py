"""`TextPPO`: PPO with the losses on text that stock `PPO.train` cannot say."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import explained_variance
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor
from torch.nn.functional import mse_loss

from agents.algorithms.dynamic_sampling import PartOfRollout, first_groups, groups_with_spread
from agents.algorithms.losses import aggregate, approximate_kl, check_aggregation, clipped_surrogate, kl_penalty
from agents.algorithms.pretraining_mix import PretrainingMix
from agents.distributed import ranks
from agents.policies.actor_critic import LLMActorCriticPolicy
from agents.policies.critic import NoCritic
from agents.rollouts.buffer import TokenRolloutBuffer
from agents.rollouts.minibatches import TokenSamples
from agents.rollouts.segments import Segment
from agents.rollouts.vec_env import LLMTextVecEnv
from agents.rules import check_arguments
from llm_env.lm.loading import load_tokenizer
from llm_env.text.texts import encode_text, read_texts

NO_GRADIENT = "Log-probs and values have one; the entropy does with policy_kwargs={'entropy_grad': True}."


class TextPPO(PPO):
    """PPO with further terms in its loss, which on a mini-batch of n tokens is all of this.

    ``aggregate(surrogate + β·KL) + ent_coef·entropy_loss + vf_coef·value_loss + ptx_coef·ptx_loss``.

    Collecting, optimizer, schedules, saving and logging are PPO's, and without the terms that PPO does not have an update
    equals PPO's bit for bit. The terms are

    - the KL to the reference, where the environment's `kl_in` is ``loss`` or ``both``: β and the estimator are the task's
      `KLPenalty`. GRPO, Shao et al. 2024 (https://arxiv.org/abs/2402.03300), has k3 here;
    - a clip range of its own above 1, and how the tokens' losses are averaged: DAPO, Yu et al. 2025
      (https://arxiv.org/abs/2503.14476), Dr. GRPO, Liu et al. 2025 (https://arxiv.org/abs/2503.20783);
    - PPO-ptx, the language-model loss on texts: InstructGPT, Ouyang et al. 2022 (https://arxiv.org/abs/2203.02155);
    - those of a subclass: `further_terms`.

    Args:
        args: Positional arguments of PPO: policy, env, learning_rate, …
        clip_range_high: ε above 1 (DAPO's "clip-higher"), above 0. None: as `clip_range`.
        loss_aggregation: ``token``: mean over the mini-batch's tokens, as PPO. ``sequence``: mean of each response first, the
            1/length of GRPO as published. ``constant``: sum over responses times their length cap. See `losses.aggregate`.
        max_resamples: DAPO's dynamic sampling: further rollouts that may be collected before an update, until as many
            groups whose scores differ are there as one rollout has groups; groups without spread are dropped. 0: none are
            collected nor dropped.
        ptx_texts: Texts (see `llm_env.text.texts`) for PPO-ptx. None: there is no such term.
        ptx_coef: Its weight, InstructGPT's γ.
        ptx_tokens: Tokens of these texts that are read with each mini-batch.
        kwargs: Keyword arguments of PPO.

    Raises:
        ValueError: a setting breaks its rule.
    """

    policy: LLMActorCriticPolicy
    rollout_buffer: TokenRolloutBuffer

    def __init__(
        self,
        *args: Any,
        clip_range_high: float | None = None,
        loss_aggregation: str = "token",
        max_resamples: int = 0,
        ptx_texts: str | None = None,
        ptx_coef: float = 1.0,
        ptx_tokens: int = 1024,
        **kwargs: Any,
    ) -> None:
        check_aggregation(loss_aggregation)
        # PPO's own arguments too, by their names.
        given = inspect.signature(PPO.__init__).bind_partial(self, *args, **kwargs).arguments
        own = {"max_resamples": max_resamples, "ptx_coef": ptx_coef, "ptx_tokens": ptx_tokens}
        may_be_none = frozenset({"clip_range_high", "clip_range_vf", "target_kl", "seed"})
        check_arguments({**given, **own, "clip_range_high": clip_range_high}, may_be_none)
        self.clip_range_high = clip_range_high
        self.loss_aggregation = loss_aggregation
        self.max_resamples = max_resamples
        self.ptx_texts = ptx_texts
        self.ptx_coef = ptx_coef
        self.ptx_tokens = ptx_tokens
        # Set by `_setup_model`, which PPO's constructor calls.
        self.mix: PretrainingMix | None = None
        super().__init__(*args, **kwargs)

    def _setup_model(self) -> None:
        """PPO's, and the texts of PPO-ptx."""
        super()._setup_model()
        if isinstance(self.rollout_buffer, TokenRolloutBuffer):
            self.rollout_buffer.mean_over = "tokens" if self.loss_aggregation == "token" else "sequences"
        if self.ptx_texts is not None:
            trusted = self.policy.settings.trust_remote_code
            # Texts are read as the environment's prompts are.
            env = None if self.env is None else self.env.unwrapped
            in_text = isinstance(env, LLMTextVecEnv) and env.task.settings.special_tokens_in_text
            tokenizer = load_tokenizer(self.policy.lm.name, "model", trusted, in_text)
            texts = [encode_text(record, tokenizer) for record in read_texts(self.ptx_texts, "ptx_texts")]
            self.mix = PretrainingMix(texts, self.ptx_coef, self.ptx_tokens, limit=self.policy.lm.max_positions)

    def _excluded_save_params(self) -> list[str]:
        """PPO's, and the texts, which are read again."""
        # SB3 pickles all attributes that are not named here.
        return [*super()._excluded_save_params(), "mix"]

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """PPO's; with `max_resamples`, again until there are enough groups with spread. To callbacks it is one rollout."""
        if not self.max_resamples:
            return super().collect_rollouts(env, callback, rollout_buffer, n_rollout_steps)
        assert isinstance(rollout_buffer, TokenRolloutBuffer)
        # Each attempt empties the buffer, so segments that are worth keeping are put aside here.
        kept: list[Segment] = []
        for attempt in range(self.max_resamples + 1):
            part = PartOfRollout(callback, first=attempt == 0)
            if not super().collect_rollouts(env, part, rollout_buffer, n_rollout_steps):
                return False
            n_groups = ranks().total(len({s.group for s in rollout_buffer.segments}))
            kept += groups_with_spread(rollout_buffer.segments)
            # Numbers of the first groups with spread, as many as a rollout has; attempts never share a group's number.
            wanted, n_wanted = first_groups(kept, n_groups)
            if n_wanted >= n_groups:
                break
        if n_wanted:  # with none the rollout stays as it is
            rollout_buffer.replace_segments([s for s in kept if s.group in wanted])
        self.logger.record("rollout/resamples", attempt)
        self.logger.record("rollout/groups_with_spread", n_wanted or n_groups)
        callback.on_rollout_end()
        return True

    def train(self) -> None:
        """Updates the policy with the rollout in the buffer."""
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        # Schedules, as functions of the progress that remains (1 to 0).
        clip_low = self.clip_range(self._current_progress_remaining)  # type: ignore[operator]
        clip_high = clip_low if self.clip_range_high is None else self.clip_range_high
        clip_vf = None
        if self.clip_range_vf is not None:
            clip_vf = self.clip_range_vf(self._current_progress_remaining)  # type: ignore[operator]

        logs: dict[str, list[float]] = {}
        approx_kls: list[float] = []
        loss = torch.zeros(())
        stop = False
        for _ in range(self.n_epochs):
            approx_kls = []  # the last epoch's are logged, as PPO does
            for data in self.rollout_buffer.get(self.batch_size):
                loss, approx_kl, terms = self._loss(data, clip_low, clip_high, clip_vf)
                approx_kls.append(approx_kl)
                for name, value in terms.items():
                    logs.setdefault(name, []).append(value)
                # Early stop: the policy is further from the one that sampled than wanted.
                if self.target_kl is not None and approx_kl > 1.5 * self.target_kl:
                    stop = True
                    break
                # One step, as PPO's.
                self.policy.optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)
                self.policy.optimizer.step()
            self._n_updates += 1
            if stop:
                break

        # SB3's keys: means over all mini-batches, except for approx_kl and loss.
        for name, values in logs.items():
            self.logger.record(f"train/{name}", np.mean(values))
        self.logger.record("train/approx_kl", np.mean(approx_kls))
        self.logger.record("train/loss", loss.item())
        # Values that are all 0 explain nothing.
        if not isinstance(self.policy.critic, NoCritic):
            explained = explained_variance(self.rollout_buffer.values.flatten(), self.rollout_buffer.returns.flatten())
            self.logger.record("train/explained_variance", explained)
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("train/clip_range", clip_low)
        if self.clip_range_high is not None:
            self.logger.record("train/clip_range_high", clip_high)
        if clip_vf is not None:
            self.logger.record("train/clip_range_vf", clip_vf)

    def _loss(
        self, data: TokenSamples, clip_low: float, clip_high: float, clip_vf: float | None
    ) -> tuple[Tensor, float, dict[str, float]]:
        """The loss of a mini-batch.

        Args:
            data: n tokens.
            clip_low: The ratio is held above 1 - this.
            clip_high: The ratio is held below 1 + this.
            clip_vf: Values move at most this far from the old ones; None: freely.

        Returns:
            The loss, a scalar; KL(π_old‖π) in nats per token, estimated; and the terms' values to log.
        """
        # One pass over the mini-batch; all of these are (n,).
        values, log_prob, entropy, exact_kl = self._evaluate(data)
        advantages = data.advantages
        if self.normalize_advantage and len(advantages) > 1:
            advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)

        # Policy: PPO's surrogate, and the price of the distance to the reference, token by token.
        surrogate = clipped_surrogate(log_prob, data.old_log_prob, advantages, clip_low, clip_high)
        per_token = surrogate
        task = self.rollout_buffer.task
        if task.kl.in_loss:
            penalty = kl_penalty(task.kl.estimator, log_prob, data.ref_log_prob, exact_kl)
            per_token = surrogate + task.kl.coef * penalty
        # Tokens of each response in the mini-batch, and the most that one can have.
        counts, cap = data.observations.counts, task.settings.max_new_tokens
        policy_loss = aggregate(per_token, counts, self.loss_aggregation, cap)

        # Critic: squared error to the λ-returns.
        if clip_vf is not None:
            values = data.old_values + torch.clamp(values - data.old_values, -clip_vf, clip_vf)
        value_loss = mse_loss(data.returns, values)
        entropy_loss = -torch.mean(entropy)
        loss = policy_loss + self.ent_coef * entropy_loss + self.vf_coef * value_loss

        # What is logged under train/, before coefficients; KL and entropy in nats per token.
        terms = {
            "entropy_loss": entropy_loss.item(),
            "policy_gradient_loss": surrogate.mean().item(),
        }
        if not isinstance(self.policy.critic, NoCritic):
            terms["value_loss"] = value_loss.item()
        if task.kl.in_loss:
            terms["kl_loss"] = penalty.mean().item()
        if self.mix is not None:
            # Another pass, over other texts: nats per token.
            ptx_loss = -self.policy.text_log_probs(self.mix.next_batch(self.policy.lm.device)).mean()
            loss = loss + self.mix.coef * ptx_loss
            terms["ptx_loss"] = ptx_loss.item()
        for name, (coef, term) in self.further_terms(data, log_prob, entropy, values).items():
            if not term.requires_grad:
                raise ValueError(f"further_terms: {name} has no gradient. {NO_GRADIENT}")
            loss = loss + coef * term
            terms[name] = term.item()
        with torch.no_grad():
            # Share of tokens whose ratio is out of bounds, and the distance from the policy that sampled.
            ratio = torch.exp(log_prob - data.old_log_prob)
            outside = (ratio < 1 - clip_low) | (ratio > 1 + clip_high)
            terms["clip_fraction"] = outside.float().mean().item()
            approx_kl = approximate_kl(log_prob, data.old_log_prob).item()
        return loss, approx_kl, terms

    def further_terms(
        self, data: TokenSamples, log_prob: Tensor, entropy: Tensor, values: Tensor
    ) -> dict[str, tuple[float, Tensor]]:
        """More terms of the loss of a mini-batch: none here; for subclasses (docs/recipes.md).

        Args:
            data: n tokens: log π of the weights that sampled, advantages, returns, the texts.
            log_prob: log π of each token under the current weights, in nats, shape (n,), with gradients.
            entropy: Entropy of π before each token, in nats, shape (n,); with gradients where ``ent_coef`` is above 0, or with
                ``policy_kwargs={"entropy_grad": True}``.
            values: V before each token, in score, shape (n,), with gradients; zeros without a critic.

        Returns:
            By its name in the log, under ``train/``: each term's coefficient, and its value, a scalar to minimize.

        Raises:
            ValueError: by the caller, where a term has no gradient.
        """
        return {}

    def _evaluate(self, data: TokenSamples) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Values, log π, entropies, and where the loss charges it the exact KL to the reference, each (n,)."""
        task = self.rollout_buffer.task
        if task.kl.in_loss and task.kl.estimator == "exact":
            return self.policy.evaluate_actions_and_kl(data.observations, task.reference)
        return *self.policy.evaluate_actions(data.observations, data.actions), None  # type: ignore[arg-type]
