"""The probes: each asks for one ability, so that the one that fails says what is broken.

The idea is that of probe environments for value-based agents (Jones 2021, "Debugging Reinforcement Learning Systems",
https://andyljones.com/posts/rl-debugging.html), which AgileRL has for language models.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from llm_env.guess_the_number import GUESSER
from llm_env.lm.loading import quiet_loading
from llm_env.task import TextTask

DIGITS = [str(digit) for digit in range(10)]
FEW = DIGITS[:5]
TARGET = "7"


def constant(prompts: list[str], responses: list[str]) -> list[float]:
    """1 for the one right digit, whatever the prompt."""
    return [float(response == TARGET) for response in responses]


def conditional(prompts: list[str], responses: list[str]) -> list[float]:
    """1 for the prompt's digit."""
    return [float(response == prompt) for prompt, response in zip(prompts, responses, strict=True)]


def memory(prompts: list[str], responses: list[str]) -> list[float]:
    """1 for the first of the prompt's digits; the last is always the same."""
    return [float(response == prompt[0]) for prompt, response in zip(prompts, responses, strict=True)]


def delayed(prompts: list[str], responses: list[str]) -> list[float]:
    """1, paid with the last token, for a first token that is the prompt's digit."""
    return [float(response[:1] == prompt) for prompt, response in zip(prompts, responses, strict=True)]


def graded(prompts: list[str], responses: list[str]) -> list[float]:
    """A tenth of the digit; 0 for what is none."""
    return [int(response) / 10 if response in DIGITS else 0.0 for response in responses]


class TwoTurns:
    """A world that names a digit, and pays in the second turn for having repeated it in the first."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Names a digit."""
        self._digit = FEW[np.random.default_rng(seed).integers(len(FEW))]
        self._first: str | None = None
        return self._digit, {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Says the same after any first turn; the second is only waited for."""
        if self._first is None:
            self._first = action
            return "0", 0.0, False, False, {}
        return "", float(self._first == self._digit), True, False, {}


def one(task: TextTask) -> float:
    """The optimum of a task that pays 1 for what is right, without a KL penalty."""
    return 1.0


@torch.no_grad()
def soft_optimum(task: TextTask) -> float:
    """The best return under a KL penalty, for responses of one token: the mean of β·log Σ_a π_ref(a|x)·exp(R(x, a)/β).

    It is reached by π ∝ π_ref·exp(R/β); e.g. eq. 4 of Rafailov et al. 2023, "DPO" (https://arxiv.org/abs/2305.18290).

    Args:
        task: A task with β > 0 and `max_new_tokens` 1, whose score depends on the response's text.
    """
    tokens = range(task.vocab_size)
    total = 0.0
    for prompt in [task.prompts[i] for i in range(len(task.prompts))]:
        ids = torch.tensor([prompt.ids])
        logits = task.model.lm.logits(task.model.lm.hidden(ids, use_cache=False).last_hidden_state)[0, -1]
        log_probs = torch.log_softmax(logits.float() / task.settings.temperature, -1)
        texts = [task.decode([token]) for token in tokens]
        scores = torch.tensor(graded([prompt.text] * len(texts), texts))
        total += task.kl.coef * float(torch.logsumexp(log_probs + scores / task.kl.coef, 0))
    return total / len(task.prompts)


@dataclass(frozen=True)
class Probe:
    """A task with a known optimum.

    Attributes:
        about: What is asked for.
        broken: What is likely to be wrong where an algorithm fails here and not at the probes before.
        settings: The environment's settings, without the model.
        optimum: From the task to the best return of an episode, in score.
    """

    about: str
    broken: str
    settings: dict[str, Any] = field(default_factory=dict)
    optimum: Callable[[TextTask], float] = one

    def env_kwargs(self, model: str) -> dict[str, Any]:
        """The environment's keyword arguments.

        Args:
            model: Folder of the model, as `write_model` leaves it.
        """
        return {"model": model, "kl_coef": 0.0, "max_prompt_length": 8, "max_new_tokens": 1, **self.settings}


PROBES: dict[str, Probe] = {
    "constant": Probe(
        "always write 7",
        "the sign of the loss, or rewards that do not arrive",
        {"prompts": DIGITS, "reward_model": constant},
    ),
    "conditional": Probe(
        "repeat the prompt's digit",
        "observations: they are mixed up, or belong to other actions",
        {"prompts": FEW, "reward_model": conditional},
    ),
    "memory": Probe(
        "repeat the digit before the last",
        "what lies before the last token: positions, masks or caches",
        {"prompts": [f"{digit}9" for digit in FEW], "reward_model": memory},
    ),
    "delayed": Probe(
        "repeat the prompt's digit, and be paid a token later",
        "credit: advantages or returns do not go back in time, or belong to other steps",
        {"prompts": FEW, "reward_model": delayed, "max_new_tokens": 2},
    ),
    "two turns": Probe(
        "repeat the world's digit, and be paid a turn later",
        "turns: tokens of the world that count as actions, or credit that does not go back across them",
        {"world": TwoTurns, "max_turns": 2, "max_turn_tokens": 1, "max_new_tokens": 2, "max_world_tokens": 4},
    ),
    "kl": Probe(
        "write large digits, and stay near the reference",
        "the KL penalty: its sign, its size, or log-probs of another policy",
        {"prompts": DIGITS, "reward_model": graded, "kl_coef": 0.3},
        soft_optimum,
    ),
}


def write_model(folder: Path, seed: int = 0) -> str:
    """Writes a random language model of some twenty thousand parameters, with digits as tokens.

    Args:
        folder: A new folder.
        seed: Seed of the weights.

    Returns:
        The folder's name.
    """
    tokenizer = AutoTokenizer.from_pretrained(GUESSER)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=2,
                max_position_embeddings=64,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
                initializer_range=1 / math.sqrt(32),
                tie_word_embeddings=False,
            )
        )
    with quiet_loading():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return str(folder)
