"""`RecurrentTextPolicy`: an LSTM on learned token embeddings, trained from scratch.

It is the baseline that shows what the language model is for: the same task and reward without pretrained weights.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from safetensors.torch import save_file
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from agents.policies.observations import split_observation
from agents.policies.sampled_actions import ActionTensor
from agents.rules import check_arguments
from llm_env.episode import Episode
from llm_env.lm.weights import read_tensors
from llm_env.slots import EpisodeSlots
from llm_env.task import TextTask
from llm_env.text.prompts import Prompt


class TokenFeatures(BaseFeaturesExtractor):
    """Features of a state: its last token's embedding, and the mean of all its tokens' embeddings.

    The LSTM sees one state a step, so it would see the prompt's last token only; the mean tells it of the others.

    Args:
        observation_space: The environment's, of `LLMText-v0`.
        embedding_dim: Length of an embedding; there are twice as many features.
    """

    def __init__(self, observation_space: spaces.Dict, embedding_dim: int = 64) -> None:
        super().__init__(observation_space, 2 * embedding_dim)
        box = observation_space["input_ids"]
        assert isinstance(box, spaces.Box)
        self.pad = int(box.high.max())  # the value behind a text's end, which is no token
        self.embedding = nn.Embedding(self.pad + 1, embedding_dim, padding_idx=self.pad)

    def forward(self, observations: PyTorchObs) -> Tensor:
        """Computes the features, shape (N, 2 · embedding_dim)."""
        ids, lengths = split_observation(observations)  # (N, L), (N,)
        inside = (torch.arange(ids.shape[1], device=ids.device) < lengths[:, None])[..., None]  # (N, L, 1)
        vectors = self.embedding(ids) * inside  # (N, L, embedding_dim), zeros in the padding
        mean = vectors.sum(1) / lengths.clamp(min=1)[:, None]
        last = vectors[torch.arange(len(ids), device=ids.device), (lengths - 1).clamp(min=0)]
        return torch.cat([last, mean], -1)


class RecurrentTextPolicy(RecurrentActorCriticPolicy):
    """sb3-contrib's recurrent policy on `TokenFeatures`; its actions carry their log-probs to the environment.

    Args:
        args: Positional arguments of sb3-contrib's `RecurrentActorCriticPolicy`.
        temperature: Must be the environment's. It does not divide this policy's logits, which have no scale of their own; the
            environment asks for it, since the reference is compared at it.
        embedding_dim: Length of a token's embedding.
        kwargs: Keyword arguments of sb3-contrib's `RecurrentActorCriticPolicy`.
    """

    mixed_precision = "no"
    """Arithmetic is float32: the LSTM is too small to gain from bf16."""

    def __init__(self, *args: Any, temperature: float = 1.0, embedding_dim: int = 64, **kwargs: Any) -> None:
        check_arguments({**kwargs, "temperature": temperature, "embedding_dim": embedding_dim})
        self.temperature = temperature
        self.embedding_dim = embedding_dim
        kwargs.setdefault("features_extractor_class", TokenFeatures)
        kwargs.setdefault("features_extractor_kwargs", {"embedding_dim": embedding_dim})
        super().__init__(*args, **kwargs)

    def forward(  # type: ignore[override]  # sb3-contrib's signature
        self, obs: Tensor, lstm_states: RNNStates, episode_starts: Tensor, deterministic: bool = False
    ) -> tuple[Tensor, Tensor, Tensor, RNNStates]:
        """Samples the next tokens, as sb3-contrib's policy does; the actions carry their log-probs to the environment.

        Args:
            obs: Dictionary of ``input_ids`` (N, L) and ``length`` (N, 1).
            lstm_states: States of the LSTMs of actor and critic.
            episode_starts: 1 where a response begins, which resets its states, else 0, shape (N,).
            deterministic: Take the likeliest token.

        Returns:
            Actions (N,), values (N, 1), log-probs (N,) in nats, and the LSTMs' next states.
        """
        actions, values, log_probs, states = super().forward(obs, lstm_states, episode_starts, deterministic)
        return ActionTensor.carry(actions, log_probs, self.temperature), values, log_probs, states

    @torch.no_grad()
    def respond(
        self, task: TextTask, prompts: Sequence[Prompt | None], seed: int, deterministic: bool = False
    ) -> list[Episode]:
        """Writes one scored response to each prompt; see `agents.policies.text_policy.Responder.respond`."""
        self.set_training_mode(False)
        batch = EpisodeSlots(task, len(prompts), score_steps=False)
        episodes = [batch.begin(slot, prompt) for slot, prompt in enumerate(prompts)]
        # All prompts side by side: states of zeros, (layers, prompts, hidden size), and no episode goes on from another.
        shape = (self.lstm_hidden_state_shape[0], len(prompts), self.lstm_hidden_state_shape[2])
        zeros = torch.zeros(shape, device=self.device)
        states = RNNStates((zeros, zeros), (zeros, zeros))
        starts = torch.ones(len(prompts), device=self.device)
        # The sampler's state outside is left as it is.
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(seed)
            # One token of every response a step, until all have ended.
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
    """Reads what `RecurrentTextPolicy.save_actor` wrote.

    Args:
        folder: The folder with ``policy.json`` and ``policy.safetensors``.
        task: Where it will respond; its vocabulary and text length must be those that the policy was trained with.

    Raises:
        FileNotFoundError: there is no such actor in the folder.
        ValueError: a file is damaged, or it was trained for another vocabulary or text length.
    """
    if not (folder / "policy.json").is_file():
        raise FileNotFoundError(f"{str(folder)!r} holds no recurrent actor (no policy.json in it).")
    try:
        settings = json.loads((folder / "policy.json").read_text(encoding="utf-8"))
        settings.pop("class")
        policy = RecurrentTextPolicy(task.observation_space, task.action_space, lambda _: 0.0, **settings)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{str(folder / 'policy.json')!r} is not what a recurrent actor is saved as ({error})."
        ) from error
    weights = read_tensors(folder / "policy.safetensors")
    try:
        policy.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"{str(folder)!r} does not fit a vocabulary of {task.vocab_size} tokens: {error}") from error
    return policy
