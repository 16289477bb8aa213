"""`TokenRolloutBuffer`: a rollout as whole episodes, each prompt and each token stored once."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from sb3_contrib.common.maskable.buffers import MaskableRolloutBuffer
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from agents.distributed import ranks
from agents.engines.engine import check_fits
from agents.policies.observations import check_observation_space
from agents.rollouts.advantages import Array, whiten
from agents.rollouts.estimators import Estimator, Rollout, estimator
from agents.rollouts.minibatches import TokenSamples, balanced_groups, with_shares
from agents.rollouts.outlook import foresee
from agents.rollouts.scoring import greedy_scores, own_kl, rescore, score_rewards
from agents.rollouts.segments import RolloutPolicy, Segment, masks_of
from agents.rollouts.vec_env import LLMTextVecEnv, text_env
from agents.rules import check_arguments
from llm_env.lm.packing import pack
from llm_env.lm.sampling import pack_bits
from llm_env.task import TextTask


class TokenRolloutBuffer(RolloutBuffer):
    """A drop-in for `DictRolloutBuffer` that lets stock PPO, A2C, TRPO and MaskablePPO train on whole episodes.

    - Idle steps of synchronous environments are dropped.
    - Bound to a policy and an `LLMTextVecEnv`, it has rewards, values and, in mixed precision, log-probs computed after
      collection, in a few large batches. `make_algorithm` binds it; by hand it is one line::

          model = PPO(LLMActorCriticPolicy, venv, rollout_buffer_class=TokenRolloutBuffer, ...)
          model.rollout_buffer.bind(model.policy, venv)

    - `get` groups whole segments into mini-batches of at most `batch_size` tokens (`TokenSamples`), which
      `LLMActorCriticPolicy.evaluate_actions` reads in one causal pass each.

    After `compute_returns_and_advantage`, `values`, `returns`, `advantages`, `log_probs`, `rewards` and `actions` are
    flat arrays, shape (n_tokens,).

    Args:
        buffer_size: Steps of each environment in a rollout.
        observation_space: Of `LLMText-v0`.
        action_space: Of `LLMText-v0`.
        device: Torch device that mini-batches are put on; the policy's.
        gae_lambda: λ of generalized advantage estimation, 0 to 1.
        gamma: Discount γ.
        n_envs: Number of slots, which is what SB3 calls environments.
        whiten_advantages: Shift and scale the whole rollout's advantages to mean 0, standard deviation 1. PPO's own
            `normalize_advantage` does so for each mini-batch; use one of them.
        advantages: A row of `agents.rollouts.estimators.ESTIMATORS`: ``gae`` or ``turn_gae``, which need a critic; or ``grpo``,
            ``dr_grpo``, ``rloo`` (baseline: the group), ``remax`` (baseline: the greedy response), ``reinforce_pp`` (no
            baseline). All but the first two need whole episodes.
        group_size: Slots that share a prompt, as the environment's `group_size`.
        whiten_rewards: Divide the rollout's token rewards, KL included, by their standard deviation; the mean stays (a
            detail of Ziegler et al. 2019's code; "The N Implementation Details of RLHF with PPO", Huang et al. 2023).

    Raises:
        TypeError: the observation space is not `LLMText-v0`'s.
        ValueError: unknown advantages, or groups too small for them.
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        device: torch.device | str = "auto",
        gae_lambda: float = 1,
        gamma: float = 0.99,
        n_envs: int = 1,
        whiten_advantages: bool = False,
        advantages: str = "gae",
        group_size: int = 1,
        whiten_rewards: bool = False,
    ) -> None:
        check_observation_space("TokenRolloutBuffer", observation_space)
        # Checked before SB3's constructor, which calls `reset`.
        numbers = {"buffer_size": buffer_size, "group_size": group_size, "gamma": gamma, "gae_lambda": gae_lambda}
        check_arguments({**numbers, "whiten_advantages": whiten_advantages, "whiten_rewards": whiten_rewards})
        if estimator(advantages).groups and group_size < 2:
            raise ValueError(
                f"advantages={advantages!r} compares the responses of a group: group_size must be at least 2."
            )
        if n_envs % group_size:
            raise ValueError(f"n_envs={n_envs} must be a multiple of group_size={group_size}.")
        self.whiten_advantages = whiten_advantages
        self.estimator = advantages
        self.group_size = group_size
        self.whiten_rewards = whiten_rewards
        self._policy: RolloutPolicy | None = None
        self._venv: LLMTextVecEnv | None = None
        self._rollouts = 0
        self.mean_over = "tokens"
        """What the policy's loss is a mean over: tokens, or sequences; it is what several processes' losses are weighted by."""
        self.share = 1.0
        """This process's share of the tokens of the mini-batch that `get` gave last."""
        super().__init__(buffer_size, observation_space, action_space, device, gae_lambda, gamma, n_envs)

    def bind(self, policy: RolloutPolicy, env: VecEnv) -> None:
        """Says whom to ask for what a rollout defers.

        While a rollout is collected, the policy then leaves out values and writes ahead, and the environment does not score.

        Args:
            policy: The algorithm's policy.
            env: The algorithm's environment: an `LLMTextVecEnv`, or wrappers around one.

        Raises:
            TypeError: there is no `LLMTextVecEnv` inside.
            ValueError: a wrapper rewrites rewards that come later, or the policy's engine cannot write such turns.
        """
        venv = text_env(env)
        check_fits(policy.engine, venv.task.settings, venv.episodes, ranks().world)
        venv.check_wrappers(env)
        self._policy, self._venv = policy, venv
        policy.scored_by_buffer = True
        policy.foresee_with(lambda ids, lengths: foresee(venv, self.buffer_size - self.pos, ids, lengths))

    @property
    def task(self) -> TextTask:
        """The task of the environment that the buffer is bound to.

        Raises:
            RuntimeError: it is bound to none.
        """
        if self._venv is None:
            raise RuntimeError(
                "TokenRolloutBuffer is not bound to an environment. Call model.rollout_buffer.bind(model.policy, env) before "
                "learn(); make_algorithm does so."
            )
        return self._venv.task

    def reset(self) -> None:
        """Empties the buffer: a rollout begins."""
        self.segments: list[Segment] = []
        self._stands_in = False  # whether the segments are only here to keep step with other processes
        self._open: list[Segment | None] = [None] * self.n_envs
        self._rollouts += 1
        self.pos = 0
        self.full = False
        self.generator_ready = False
        self._defer(True)

    def _defer(self, on: bool) -> None:
        """Turns deferred values and rewards on while a rollout is collected, and off for everybody else's questions."""
        if self._policy is not None and self._venv is not None:
            self._policy.defer_values = on
            self._venv.collecting = on

    def add(
        self,
        obs: Any,
        action: np.ndarray,
        reward: np.ndarray,
        episode_start: np.ndarray,
        value: Tensor,
        log_prob: Tensor,
        action_masks: np.ndarray | None = None,
    ) -> None:
        """Adds one step of every slot; see `RolloutBuffer.add`.

        Args:
            obs: What was acted on: ``input_ids`` (n_envs, L), ``length`` (n_envs, 1).
            action: The tokens taken, n_envs entries.
            reward: What they were paid, shape (n_envs,); NaN where that is deferred.
            episode_start: Whether `obs` is the first of an episode, shape (n_envs,).
            value: V(obs), shape (n_envs, 1); NaN where that is deferred.
            log_prob: log π of the tokens, in nats, shape (n_envs,).
            action_masks: Which tokens might be chosen, shape (n_envs, V), from MaskablePPO.

        Raises:
            RuntimeError: rewards or values are missing, and nobody is bound who could be asked for them.
        """
        # Lists, of which Python reads an entry several times as fast as of an array.
        lengths, tokens = np.asarray(obs["length"]).reshape(-1).tolist(), np.asarray(action).reshape(-1).tolist()
        rewards, starts = np.asarray(reward, dtype=np.float32).tolist(), np.asarray(episode_start).tolist()
        values, log_probs = (x.detach().float().flatten().tolist() for x in (value, log_prob))
        bits = None if action_masks is None else pack_bits(np.asarray(action_masks, bool).reshape(self.n_envs, -1))
        if self._venv is None and np.isnan([*rewards, *values]).any():
            _ = self.task  # says what is missing
        for slot in range(self.n_envs):
            segment = self._open[slot]
            length = lengths[slot]
            # An idle slot, or one with a new episode, ends the segment that was open there.
            if segment is not None and (length == 0 or starts[slot]):
                segment.finished = True
                segment = self._open[slot] = None
            if length == 0 or (self._venv is not None and self._venv.acted[slot] is None):  # idle, or its world answers
                continue
            if segment is None:
                segment = self._open[slot] = self._new_segment(slot, obs["input_ids"][slot, :length].tolist())
            elif length > len(segment.ids):  # a world has answered since
                segment.ids += obs["input_ids"][slot, len(segment.ids) : length].tolist()
            segment.act(tokens[slot])
            segment.rewards.append(rewards[slot])
            segment.values.append(values[slot])
            segment.log_probs.append(log_probs[slot])
            if bits is not None:
                segment.masks.append(bits[slot])
        self.pos += 1
        self.full = self.pos == self.buffer_size

    def _new_segment(self, slot: int, context: list[int]) -> Segment:
        """Begins a segment, whose first action has just been taken.

        Raises:
            RuntimeError: the observation is not the one that the environment's episode was at.
        """
        # Slots of a group that start in the same step share a number, which no other step or rollout gives.
        group = (self._rollouts * self.buffer_size + self.pos) * self.n_envs + slot // self.group_size
        # The environment has appended the action already, so its episode is one action ahead of the observation.
        episode = None if self._venv is None else self._venv.acted[slot]
        place = len(context)
        if episode is not None and (episode.ids[:place] != context or episode.places[-1] != place):
            raise RuntimeError(
                "The policy acted on observations that are not the environment's: somebody else reset or stepped it since the "
                "last rollout. Evaluate on an environment of its own, or call model.learn(…) with reset_num_timesteps=True."
            )
        segment = Segment(context, slot, group, episode, 0 if episode is None else len(episode.response_ids) - 1)
        self.segments.append(segment)
        return segment

    def compute_returns_and_advantage(self, last_values: Tensor, dones: np.ndarray) -> None:
        """Has everything scored that was deferred, then computes advantages and returns.

        Args:
            last_values: V of the state after the last step of each slot, shape (n_envs, 1); NaN where that is deferred.
            dones: Whether the last step of each slot ended an episode, shape (n_envs,).

        Raises:
            RewardModelError: the reward model failed or returned something unusable.
            RuntimeError: nothing was generated in the whole rollout.
        """
        # Collection is over: values and rewards are answered at once again.
        was_deferred = self._venv is not None and self._venv.defers
        self._defer(False)
        # Segments still open either ended with the very last step, or go on in the next rollout.
        for slot, segment in enumerate(self._open):
            if segment is not None:
                segment.finished = bool(dones[slot])
        if not self.segments:
            raise RuntimeError("The rollout holds no tokens: every slot was idle. n_steps must cover a whole round.")
        # Values and log-probs first, for the rewards hold -β·log π.
        if self._policy is not None:
            rescore(self.segments, self._policy)
            if was_deferred:
                score_rewards(self.segments, self._policy, self.task)
        self._flatten(self._end_values(last_values))

    def _end_values(self, last_values: Tensor) -> Array:
        """V of the state after each segment's last step, shape (segments,); 0 where the episode has ended."""
        ends = np.zeros(len(self.segments))
        unfinished = [i for i, s in enumerate(self.segments) if not s.finished]
        if not unfinished:
            return ends
        # SB3 computed V after the last step, unless a critic network was not asked while collecting.
        after = last_values.detach().float().cpu().numpy().reshape(-1)
        if np.isnan(after).any():
            assert self._policy is not None
            ends[unfinished] = self._policy.state_values([self.segments[i].ids_after for i in unfinished])
        else:
            ends[unfinished] = [after[self.segments[i].slot] for i in unfinished]
        return ends

    def replace_segments(self, segments: Sequence[Segment]) -> None:
        """Trains on these whole segments instead of those that were collected; on none, where other processes have some."""
        self._stands_in = not segments
        self.segments = list(segments) or self.segments
        self._flatten(np.zeros(len(self.segments)))

    def _flatten(self, ends: Array) -> None:
        """Advantages and returns of the segments, and everything as flat arrays.

        Args:
            ends: V of the state after each segment's last step, 0 where it has ended, shape (segments,).
        """
        segments = self.segments
        # S segments of at most T steps.
        lengths = np.array([len(s.actions) for s in segments])
        inside = np.arange(lengths.max()) < lengths[:, None]  # (S, T)

        def padded(rows: Sequence[Sequence[float] | Array]) -> Array:
            table = np.zeros(inside.shape)
            table[inside] = np.concatenate([np.asarray(r, dtype=np.float64) for r in rows])
            return table

        # One row a segment, zeros behind its end: (S, T).
        rewards, values = padded([s.rewards for s in segments]), padded([s.values for s in segments])
        scale = 1.0
        # The mean stays: to subtract it would pay for length.
        if self.whiten_rewards:
            scale = self._moments(rewards[inside])[1] + 1e-8
            rewards /= scale
        turns = padded([s.turns for s in segments]).astype(np.int64)
        groups = np.array([s.group for s in segments])
        own = padded(own_kl(segments, None if self._venv is None else self._venv.task)) / scale
        # Greedy responses cost a generation of their own, so they are made only if the estimator asks.
        rollout = Rollout(
            rewards, values, lengths, turns, ends, groups, self.gamma, self.gae_lambda, own,
            lambda: self._greedy_scores() / scale,
        )  # fmt: skip
        advantages, returns = self._estimator.estimate(rollout)
        # From here on flat, (n_tokens,), segment by segment.
        self.values = values[inside].astype(np.float32)
        self.returns = returns[inside].astype(np.float32)
        flat = advantages[inside]
        self.advantages = (whiten(flat, *self._moments(flat)) if self.whiten_advantages else flat).astype(np.float32)
        self.rewards = rewards[inside].astype(np.float32)
        self.log_probs = np.concatenate([s.log_probs for s in segments]).astype(np.float32)
        self.actions = np.concatenate([s.actions for s in segments]).astype(np.int64)
        self._offsets = np.concatenate([[0], np.cumsum(lengths)])

    def _moments(self, flat: Array) -> tuple[float, float]:
        return ranks().moments(flat[:0] if self._stands_in else flat)

    @property
    def _estimator(self) -> Estimator:
        """The estimator chosen, if these segments are what it needs."""
        chosen = estimator(self.estimator)
        if chosen.whole_episodes and not all(s.is_whole for s in self.segments):
            raise ValueError(
                f"advantages={self.estimator!r} needs whole episodes in each rollout: make the environment with "
                "episodes='synchronous', and n_steps a multiple of max_new_tokens."
            )
        return chosen

    def _greedy_scores(self) -> Array:
        task = self.task  # an error that says what is missing comes first
        assert self._policy is not None
        assert self._venv is not None
        scores, tokens = greedy_scores(self.segments, self._policy, task)
        self._venv.generated_tokens += tokens
        return scores

    def get(self, batch_size: int | None = None) -> Iterator[TokenSamples]:  # type: ignore[override]
        """Yields mini-batches of whole segments, in random order, of at most `batch_size` tokens and nearly equal size.

        Args:
            batch_size: Tokens; None: everything at once.

        Raises:
            ValueError: a segment alone is longer than `batch_size`.
        """
        assert self.full, "The buffer is read before a rollout filled it."
        lengths = np.diff(self._offsets)
        # numpy's global generator, as SB3's buffers: `set_random_seed` seeds it.
        order = np.random.permutation(0 if self._stands_in else len(self.segments))
        groups = balanced_groups(lengths, order, batch_size)
        for members, share, policy_share in with_shares(groups, lengths, self.mean_over):
            self.share = share
            yield self._samples(members, policy_share)

    def _samples(self, members: Sequence[int], policy_share: float) -> TokenSamples:
        chosen = [self.segments[i] for i in members]
        # The texts end to end; only the tokens of the responses are scored.
        packed = pack([s.ids for s in chosen], [s.places for s in chosen], self.device)
        masks = masks_of(chosen)
        bits = None if masks is None else torch.from_numpy(np.concatenate(masks)).to(self.device)
        packed = dataclasses.replace(packed, masks=bits, share=self.share, policy_share=policy_share)
        # Where the members' tokens are in the flat arrays, in the members' order, as `packed.targets`. (n,)
        tokens = np.concatenate([np.arange(self._offsets[i], self._offsets[i + 1]) for i in members])

        def column(array: np.ndarray) -> Tensor:
            return torch.as_tensor(array[tokens], device=self.device)

        return TokenSamples(
            observations=packed,
            actions=packed.targets,
            old_values=column(self.values),
            old_log_prob=column(self.log_probs),
            advantages=column(self.advantages),
            returns=column(self.returns),
            ref_log_prob=self._ref_log_prob(chosen),
            action_masks=packed.masks,
        )

    def _ref_log_prob(self, chosen: Sequence[Segment]) -> Tensor | None:
        """Log π_ref of the segments' tokens, flat, where the loss charges the KL."""
        if self._venv is None or not self._venv.task.kl.in_loss:
            return None
        values: list[float] = []
        for segment in chosen:
            assert segment.episode is not None
            # The episode has log π_ref of its whole response; the segment may be a part of it.
            values += segment.episode.ref_log_probs[segment.start : segment.start + len(segment.actions)]
        return torch.tensor(values, dtype=torch.float32, device=self.device)


# sb3-contrib asks for its own base class, whose constructor would make float32 masks of vocabulary size.
MaskableRolloutBuffer.register(TokenRolloutBuffer)
