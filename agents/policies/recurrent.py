"""`RecurrentTextPolicy`: an LSTM on learned token embeddings, from scratch: what if the actor were no language model?"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from safetensors.torch import load_file, save_file
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from agents.policies.observations import split_observation
from agents.policies.sampled_actions import ActionTensor
from llm_env.episode import Episode
from llm_env.slots import EpisodeSlots
from llm_env.task import TextTask
from llm_env.text.prompts import Prompt


class TokenFeatures(BaseFeaturesExtractor):
    """The last token's embedding, and the mean of all: an LSTM sees one state a step, the prompt in a single one.

    Args:
        observation_space: Of `LLMText-v0`.
        embedding_dim: Length of an embedding; features are twice as many.
    """

    def __init__(self, observation_space: spaces.Dict, embedding_dim: int = 64) -> None:
        super().__init__(observation_space, 2 * embedding_dim)
        box = observation_space["input_ids"]
        assert isinstance(box, spaces.Box)
        self.pad = int(box.high.max())
        self.embedding = nn.Embedding(self.pad + 1, embedding_dim, padding_idx=self.pad)

    def forward(self, observations: PyTorchObs) -> Tensor:
        """Features, shape (N, 2 · embedding_dim)."""
        ids, lengths = split_observation(observations)
        inside = (torch.arange(ids.shape[1], device=ids.device) < lengths[:, None])[..., None]
        vectors = self.embedding(ids) * inside
        mean = vectors.sum(1) / lengths.clamp(min=1)[:, None]
        last = vectors[torch.arange(len(ids), device=ids.device), (lengths - 1).clamp(min=0)]
        return torch.cat([last, mean], -1)


class RecurrentTextPolicy(RecurrentActorCriticPolicy):
    """sb3-contrib's recurrent policy on `TokenFeatures`; it tells the environment its log-probs.

    Args:
        args: sb3-contrib's.
        temperature: The environment's; the reference is compared at it.
        embedding_dim: See `TokenFeatures`.
        kwargs: sb3-contrib's.
    """

    mixed_precision = "no"

    def __init__(self, *args: Any, temperature: float = 1.0, embedding_dim: int = 64, **kwargs: Any) -> None:
        self.temperature = temperature
        self.embedding_dim = embedding_dim
        kwargs.setdefault("features_extractor_class", TokenFeatures)
        kwargs.setdefault("features_extractor_kwargs", {"embedding_dim": embedding_dim})
        super().__init__(*args, **kwargs)

    def forward(  # type: ignore[override]  # sb3-contrib's signature
        self, obs: Tensor, lstm_states: RNNStates, episode_starts: Tensor, deterministic: bool = False
    ) -> tuple[Tensor, Tensor, Tensor, RNNStates]:
        """sb3-contrib's; the actions carry their log-probs to the environment."""
        actions, values, log_probs, states = super().forward(obs, lstm_states, episode_starts, deterministic)
        return ActionTensor.carry(actions, log_probs, self.temperature), values, log_probs, states

    @torch.no_grad()
    def respond(
        self, task: TextTask, prompts: Sequence[Prompt], seed: int, deterministic: bool = False
    ) -> list[Episode]:
        """One response to each prompt, scored; as `llm_env.rollout.respond` for a language model.

        The sampler's state outside is untouched.
        """
        self.set_training_mode(False)
        batch = EpisodeSlots(task, len(prompts), score_steps=False)
        episodes = [batch.begin(slot, prompt) for slot, prompt in enumerate(prompts)]
        shape = (self.lstm_hidden_state_shape[0], len(prompts), self.lstm_hidden_state_shape[2])
        zeros = torch.zeros(shape, device=self.device)
        states = RNNStates((zeros, zeros), (zeros, zeros))
        starts = torch.ones(len(prompts), device=self.device)
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(seed)
            while any(episode is not None for episode in batch.episodes):
                obs, _ = self.obs_to_tensor(batch.observation())  # type: ignore[arg-type]
                actions, _, log_probs, states = self.forward(obs, states, starts, deterministic)  # type: ignore[arg-type]
                starts = torch.zeros_like(starts)
                batch.step(np.asarray(actions.cpu().numpy()), log_probs.cpu().numpy().astype(np.float64))
                for slot, episode in enumerate(batch.episodes):
                    if episode is not None and episode.done:
                        batch.idle(slot)
        task.score_reference(episodes)
        task.score_responses(episodes)
        return episodes

    def save_actor(self, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        """Writes ``policy.safetensors`` and ``policy.json`` for `load_recurrent_actor`; the tokenizer is the task's."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file({k: v.contiguous().clone() for k, v in self.state_dict().items()}, folder / "policy.safetensors")
        lstm = self.lstm_actor
        settings = {
            "class": "RecurrentTextPolicy",
            "temperature": self.temperature,
            "embedding_dim": self.embedding_dim,
            "lstm_hidden_size": lstm.hidden_size,
            "n_lstm_layers": lstm.num_layers,
            "net_arch": self.net_arch,
        }
        (folder / "policy.json").write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


def load_recurrent_actor(folder: Path, task: TextTask) -> RecurrentTextPolicy:
    """What `RecurrentTextPolicy.save_actor` wrote.

    Raises:
        FileNotFoundError: there is no such actor in the folder.
        ValueError: it was trained for another vocabulary or text length.
    """
    if not (folder / "policy.json").is_file():
        raise FileNotFoundError(f"{str(folder)!r} holds no recurrent actor (no policy.json in it).")
    settings = json.loads((folder / "policy.json").read_text(encoding="utf-8"))
    settings.pop("class")
    policy = RecurrentTextPolicy(task.observation_space, task.action_space, lambda _: 0.0, **settings)
    try:
        policy.load_state_dict(load_file(folder / "policy.safetensors"))
    except RuntimeError as error:
        raise ValueError(f"{str(folder)!r} does not fit a vocabulary of {task.vocab_size} tokens: {error}") from error
    return policy
