"""`TokenReplayBuffer`: replay that stores each prompt and each token once, and learns from whole responses."""

from __future__ import annotations

import dataclasses
from collections import deque
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from torch import Tensor

from agents.policies.observations import check_observation_space
from agents.policies.sampled_actions import carried_log_probs
from llm_env.lm.packing import pack


@dataclasses.dataclass(eq=False)
class Response:
    """A response in the buffer, finished or under way.

    Attributes:
        prompt: Ids, shape (P,).
        tokens: Ids of the response so far.
        rewards: What each token was paid.
        log_probs: log μ of each token under the policy that chose it, in nats; 0 where it was not told.
    """

    prompt: NDArray[np.int32]
    tokens: list[int] = dataclasses.field(default_factory=list)
    rewards: list[float] = dataclasses.field(default_factory=list)
    log_probs: list[float] = dataclasses.field(default_factory=list)


class TokenReplayBuffer(ReplayBuffer):
    """A drop-in for `DictReplayBuffer` that lets stock DQN and QR-DQN learn from whole responses.

    SB3's would store every prefix twice a transition; here a transition is one token. `sample` draws whole responses, and
    `observations` and `next_observations` are `PackedBatch`es of the same texts, which `agents.policies.q_network.TextQNetwork`
    reads in one causal pass each. Only finished responses are drawn.

    Args:
        buffer_size: Transitions, that is tokens, to keep.
        observation_space: Of `LLMText-v0`.
        action_space: Of `LLMText-v0`.
        device: Where samples go.
        n_envs: Number of slots.
        optimize_memory_usage: SB3's; there is nothing left to optimize.
        n_steps: Steps of reward before the bootstrap.
        gamma: γ, for `n_steps`.
        entropy_coef: τ of a soft backup: from the second of the `n_steps` on, -τ·log μ is part of the return (Nachum et
            al. 2017, https://arxiv.org/abs/1702.08892, eq. 22, with the log-probs of the policy that acted); 0: none.

    Raises:
        TypeError: the observation space is not `LLMText-v0`'s.
        ValueError: `n_steps` is below 1.
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        device: torch.device | str = "auto",
        n_envs: int = 1,
        optimize_memory_usage: bool = False,
        n_steps: int = 1,
        gamma: float = 1.0,
        entropy_coef: float = 0.0,
    ) -> None:
        check_observation_space("TokenReplayBuffer", observation_space)
        if n_steps < 1:
            raise ValueError(f"n_steps={n_steps} must be at least 1.")
        super(ReplayBuffer, self).__init__(buffer_size, observation_space, action_space, device, n_envs=n_envs)
        self.n_steps = n_steps
        self.gamma = gamma
        self.entropy_coef = entropy_coef
        self.responses: deque[Response] = deque()
        self.open: list[Response | None] = [None] * n_envs
        self.n_tokens = 0

    def add(  # type: ignore[override]
        self,
        obs: Any,
        next_obs: Any,
        action: np.ndarray,
        reward: np.ndarray,
        done: np.ndarray,
        infos: list[dict[str, Any]],
    ) -> None:
        """Adds one step of every slot."""
        log_probs = carried_log_probs(action)
        tokens = np.asarray(action).reshape(-1)
        for slot in range(self.n_envs):
            response = self.open[slot]
            if response is None:
                length = int(np.asarray(obs["length"]).reshape(-1)[slot])
                response = self.open[slot] = Response(np.asarray(obs["input_ids"][slot, :length], dtype=np.int32))
            response.tokens.append(int(tokens[slot]))
            response.rewards.append(float(reward[slot]))
            response.log_probs.append(0.0 if log_probs is None else float(log_probs[slot]))
            if done[slot]:
                self.open[slot] = None
                self.responses.append(response)
                self.n_tokens += len(response.tokens)
        while self.n_tokens > self.buffer_size and len(self.responses) > 1:
            self.n_tokens -= len(self.responses.popleft().tokens)

    def size(self) -> int:
        """Transitions that can be drawn."""
        return self.n_tokens

    def sample(self, batch_size: int, env: Any = None) -> ReplayBufferSamples:
        """Draws whole responses until there are `batch_size` transitions; of the last, its last tokens.

        Raises:
            RuntimeError: no response has been finished yet.
        """
        if not self.responses:
            raise RuntimeError("No response is finished yet: train_freq must be at least max_new_tokens steps.")
        chosen: list[tuple[Response, int]] = []
        missing = batch_size
        while missing > 0:
            for i in np.random.permutation(len(self.responses)):
                response = self.responses[i]
                first = max(0, len(response.tokens) - missing)
                chosen.append((response, first))
                missing -= len(response.tokens) - first
                if missing == 0:
                    break
        packed = pack(
            [[*r.prompt.tolist(), *r.tokens] for r, _ in chosen],
            [len(r.prompt) + first for r, first in chosen],
            self.device,
        )
        returns, steps, dones = zip(*(self._returns(r, first) for r, first in chosen), strict=True)
        taken = torch.from_numpy(np.concatenate(steps)).to(self.device)
        ended = np.concatenate(dones)
        # where the return reaches the end there is no next state: any that is in the batch will do
        after = packed.index + torch.where(torch.from_numpy(ended).to(self.device), 0, taken)

        def column(values: NDArray[Any]) -> Tensor:
            return torch.as_tensor(values, dtype=torch.float32, device=self.device)[:, None]

        return ReplayBufferSamples(
            observations=packed,  # type: ignore[arg-type]  # read by TextQNetwork alone
            actions=packed.targets[:, None],
            next_observations=dataclasses.replace(packed, index=after),  # type: ignore[arg-type]
            dones=column(ended),
            rewards=column(np.concatenate(returns)),
            discounts=torch.pow(self.gamma, taken.float())[:, None],
        )

    def _returns(self, response: Response, first: int) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """(n-step return, steps in it, whether it reaches the end) of the tokens from `first` on."""
        rewards = np.asarray(response.rewards)
        later = rewards - self.entropy_coef * np.asarray(response.log_probs)
        total = len(rewards)
        start = np.arange(first, total)
        steps = np.minimum(self.n_steps, total - start)
        discounts = self.gamma ** np.arange(total)
        sums = np.concatenate([[0.0], np.cumsum(discounts * later)])
        # Σ_{k≥1} γ^k later_{t+k}, from the cumulative sum; γ > 0
        tail = (sums[start + steps] - sums[start + 1]) / discounts[start]
        return rewards[start] + tail, steps, start + steps == total

    # ------------------------------------------------------------------------------------------------ checkpoints
    def state_tensors(self) -> dict[str, Tensor]:
        """All responses, finished ones first, as flat tensors."""
        finished = list(self.responses)
        under_way = [(slot, r) for slot, r in enumerate(self.open) if r is not None]
        everyone = finished + [r for _, r in under_way]
        slots = [-1] * len(finished) + [slot for slot, _ in under_way]
        return {
            "ids": torch.tensor([t for r in everyone for t in (*r.prompt.tolist(), *r.tokens)], dtype=torch.int32),
            "prompt_lengths": torch.tensor([len(r.prompt) for r in everyone], dtype=torch.int32),
            "lengths": torch.tensor([len(r.tokens) for r in everyone], dtype=torch.int32),
            "rewards": torch.tensor([x for r in everyone for x in r.rewards], dtype=torch.float64),
            "log_probs": torch.tensor([x for r in everyone for x in r.log_probs], dtype=torch.float64),
            "slots": torch.tensor(slots, dtype=torch.int32),
        }

    def load_state_tensors(self, state: dict[str, Tensor]) -> None:
        """Puts the buffer where `state_tensors` was taken."""
        self.responses.clear()
        self.open = [None] * self.n_envs
        at = told = 0
        sizes = zip(state["prompt_lengths"].tolist(), state["lengths"].tolist(), state["slots"].tolist(), strict=True)
        for n_prompt, n, slot in sizes:
            prompt, tokens = state["ids"][at : at + n_prompt + n].split([n_prompt, n])
            rewards, log_probs = state["rewards"][told : told + n], state["log_probs"][told : told + n]
            response = Response(prompt.numpy().copy(), tokens.tolist(), rewards.tolist(), log_probs.tolist())
            at, told = at + n_prompt + n, told + n
            if slot < 0:
                self.responses.append(response)
            else:
                self.open[slot] = response
        self.n_tokens = sum(len(r.tokens) for r in self.responses)
