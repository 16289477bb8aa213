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
from agents.rules import check_arguments
from llm_env.lm.packing import pack


@dataclasses.dataclass(eq=False)
class Response:
    """A response in the buffer, finished or under way.

    Attributes:
        prompt: Token ids of the prompt, shape (P,).
        tokens: Token ids of the response so far.
        rewards: What each token was paid, in score.
        log_probs: log μ of each token under the policy μ that chose it, in nats; 0 where its action carried none.
    """

    prompt: NDArray[np.int32]
    tokens: list[int] = dataclasses.field(default_factory=list)
    rewards: list[float] = dataclasses.field(default_factory=list)
    log_probs: list[float] = dataclasses.field(default_factory=list)


class TokenReplayBuffer(ReplayBuffer):
    """A drop-in for `DictReplayBuffer` that lets stock DQN and QR-DQN learn from whole responses.

    SB3's would store two whole prefixes for each transition; here a transition is one token. `sample` draws whole responses,
    finished ones only, and `observations` and `next_observations` are `PackedBatch`es of the same texts, which
    `agents.policies.q_network.TextQNetwork` reads in one causal pass each.

    Args:
        buffer_size: Transitions, that is tokens, to keep.
        observation_space: The environment's, of `LLMText-v0`.
        action_space: The environment's, of `LLMText-v0`.
        device: Torch device that samples are put on; the policy's.
        n_envs: Number of slots, which is what SB3 calls environments.
        optimize_memory_usage: SB3's; there is nothing left to optimize.
        n_steps: Steps of reward before the bootstrap.
        gamma: Discount γ of the sum, above 0.
        entropy_coef: τ of a soft backup: from the second of the `n_steps` on, -τ·log μ is part of the return (Nachum et
            al. 2017, https://arxiv.org/abs/1702.08892, eq. 22, with the log-probs of the policy that acted). 0: a hard backup,
            whose return has no such part.

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
        check_arguments({"buffer_size": buffer_size, "n_steps": n_steps, "gamma": gamma, "entropy_coef": entropy_coef})
        # BaseBuffer's, not ReplayBuffer's, which would make arrays of all prefixes.
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
        """Adds one step of every slot; see `ReplayBuffer.add`.

        Args:
            obs: What was acted on: ``input_ids`` (n_envs, L), ``length`` (n_envs, 1).
            next_obs: What followed; not needed, since it is `obs` and the token.
            action: The tokens taken, n_envs entries, which may carry their log-probs.
            reward: What they were paid, shape (n_envs,).
            done: Whether the response ended with the token, shape (n_envs,).
            infos: Not needed.
        """
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
        # The oldest responses go; one stays, however long it is.
        while self.n_tokens > self.buffer_size and len(self.responses) > 1:
            self.n_tokens -= len(self.responses.popleft().tokens)

    def size(self) -> int:
        """Counts the transitions that can be drawn."""
        return self.n_tokens

    def sample(self, batch_size: int, env: Any = None) -> ReplayBufferSamples:
        """Draws whole responses until there are `batch_size` transitions; of the last response, its last tokens.

        Args:
            batch_size: Transitions, that is tokens.
            env: Not needed: there is no normalization to apply.

        Returns:
            Packed observations with n = `batch_size` scored tokens, and columns (n, 1).

        Raises:
            RuntimeError: no response has been finished yet.
        """
        if not self.responses:
            raise RuntimeError("No response is finished yet: train_freq must be at least max_new_tokens steps.")
        chosen: list[tuple[Response, int]] = []  # each with its first token to learn from
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
        # The state after the return's last step is that many places on in the same packed text. Where the return reaches the
        # end there is none, and `dones` leaves its value out: any place in the batch will do.
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
        """Computes the n-step returns of a response's tokens from `first` on.

        Returns:
            For each of the tokens: the return, the steps in it, and whether it reaches the response's end.
        """
        rewards = np.asarray(response.rewards)
        later = rewards - self.entropy_coef * np.asarray(response.log_probs)  # what a step that is not the first adds
        total = len(rewards)
        start = np.arange(first, total)
        steps = np.minimum(self.n_steps, total - start)
        discounts = self.gamma ** np.arange(total)
        sums = np.concatenate([[0.0], np.cumsum(discounts * later)])
        # Σ_{k≥1} γ^k later_{t+k}: a difference of the cumulative sums, whose discount starts at the response's first token;
        # the division has it start at t.
        tail = (sums[start + steps] - sums[start + 1]) / discounts[start]
        return rewards[start] + tail, steps, start + steps == total

    def state_tensors(self) -> dict[str, Tensor]:
        """Gives all responses as flat tensors, for a checkpoint: finished ones first, in slot -1, then those under way."""
        finished = list(self.responses)
        under_way = [(slot, r) for slot, r in enumerate(self.open) if r is not None]
        responses = finished + [r for _, r in under_way]
        slots = [-1] * len(finished) + [slot for slot, _ in under_way]
        return {
            "ids": torch.tensor([t for r in responses for t in (*r.prompt.tolist(), *r.tokens)], dtype=torch.int32),
            "prompt_lengths": torch.tensor([len(r.prompt) for r in responses], dtype=torch.int32),
            "lengths": torch.tensor([len(r.tokens) for r in responses], dtype=torch.int32),
            "rewards": torch.tensor([x for r in responses for x in r.rewards], dtype=torch.float64),
            "log_probs": torch.tensor([x for r in responses for x in r.log_probs], dtype=torch.float64),
            "slots": torch.tensor(slots, dtype=torch.int32),
        }

    def load_state_tensors(self, state: dict[str, Tensor]) -> None:
        """Puts the buffer where `state_tensors` was taken."""
        self.responses.clear()
        self.open = [None] * self.n_envs
        id_start = token_start = 0  # ids count prompts too; rewards and log-probs are of response tokens only
        sizes = zip(state["prompt_lengths"].tolist(), state["lengths"].tolist(), state["slots"].tolist(), strict=True)
        for n_prompt, n, slot in sizes:
            id_end, token_end = id_start + n_prompt + n, token_start + n
            prompt, tokens = state["ids"][id_start:id_end].split([n_prompt, n])
            rewards, log_probs = state["rewards"][token_start:token_end], state["log_probs"][token_start:token_end]
            response = Response(prompt.numpy().copy(), tokens.tolist(), rewards.tolist(), log_probs.tolist())
            id_start, token_start = id_end, token_end
            if slot < 0:
                self.responses.append(response)
            else:
                self.open[slot] = response
        self.n_tokens = sum(len(r.tokens) for r in self.responses)
