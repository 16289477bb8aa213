"""To and from other projects: rewards for TRL's trainers, rewards written for verifiers, actors as players of TextArena."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from llm_env.lm.generate import continue_prompts, prompt_room
from llm_env.lm.names import LoadSettings
from llm_env.lm.registry import shared_causal_lm
from llm_env.reward.functions import function_name
from llm_env.reward.models import load_text_reward
from llm_env.reward.scores import RewardFunction
from llm_env.text.prompts import encode_prompt

Chat = Sequence[Mapping[str, Any]]


def trl_reward(reward_model: str | RewardFunction) -> Callable[..., list[float]]:
    """One of our rewards as a function for TRL's `reward_funcs`: the same score for the same text and columns.

    >>> GRPOTrainer(model, reward_funcs=[trl_reward("verifier:number?column=answer")], train_dataset=dataset)

    Args:
        reward_model: A reward that reads texts: a function or its name, a verifier, a server's address, a language judge.

    Returns:
        A function of ``prompts``, ``completions`` and the dataset's columns, named as the reward is, which TRL logs it by.
        Of chats it reads the last message.

    Raises:
        ValueError: there is no such reward.
    """
    model = load_text_reward(reward_model)

    def reward(prompts: Sequence[Any], completions: Sequence[Any], **further: Any) -> list[float]:
        # TRL hands over objects of its own too; a column is a list with an entry for each prompt.
        columns = {k: v for k, v in further.items() if isinstance(v, list | tuple) and len(v) == len(prompts)}
        rows = [{name: values[i] for name, values in columns.items()} for i in range(len(prompts))]
        return model.score_texts([_text(p) for p in prompts], [_text(c) for c in completions], rows)

    name = reward_model if isinstance(reward_model, str) else function_name(reward_model)
    reward.__name__ = name.rpartition(":")[2].partition("?")[0]
    return reward


def reward_from_verifiers(function: Callable[..., float]) -> RewardFunction:
    """A reward function in the manner of the package ``verifiers`` as one of ours.

    Such a function is called once for each response, and takes what its parameters name: ``prompt`` and ``completion`` (chats
    of one message), ``answer``, ``info`` and any further column of the record.

    Args:
        function: The function; an ordinary one, no coroutine.

    Raises:
        TypeError: it is a coroutine function, or takes ``state``, which only a rollout of that package has.
    """
    names = inspect.signature(function).parameters
    if inspect.iscoroutinefunction(function):
        raise TypeError(f"{function_name(function)} is a coroutine function; a reward is called and returns a number.")
    if "state" in names:
        raise TypeError(f"{function_name(function)} takes 'state', which only a rollout of verifiers has.")
    takes_rest = any(p.kind is p.VAR_KEYWORD for p in names.values())

    def reward(prompts: list[str], responses: list[str], **columns: list[Any]) -> list[float]:
        scores = []
        for i, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
            given: dict[str, Any] = {name: values[i] for name, values in columns.items()}
            given["prompt"] = [{"role": "user", "content": prompt}]
            given["completion"] = [{"role": "assistant", "content": response}]
            scores.append(float(function(**{k: v for k, v in given.items() if takes_rest or k in names})))
        return scores

    reward.__name__ = getattr(function, "__name__", "reward")
    return reward


class ActorAgent:
    """A trained actor that answers texts, as the agents of TextArena do: ``agent(observation) -> str``.

    Args:
        actor: Its folder or hub id, as a run leaves it in ``actor/``.
        max_new_tokens: Length cap of an answer, in tokens.
        max_prompt_length: Tokens of an observation that are read: the last ones.
        temperature: Divides the logits.
        seed: Seed of the sampling.
        load: dtype, device and whether remote code may run.

    Raises:
        FileNotFoundError, ValueError: the actor cannot be loaded.
    """

    def __init__(
        self,
        actor: str | Path,
        max_new_tokens: int = 64,
        max_prompt_length: int = 1024,
        temperature: float = 1.0,
        seed: int = 0,
        load: LoadSettings | None = None,
    ) -> None:
        load = load or LoadSettings("float32", "cpu")
        shared = shared_causal_lm(str(actor), load)
        self._lm, self._tokenizer, self._eos_ids = shared.lm, shared.tokenizer, shared.eos_ids
        self._sizes = (prompt_room(self._lm, max_prompt_length, max_new_tokens), max_new_tokens)
        self._temperature = temperature
        self._seed = seed

    def __call__(self, observation: str) -> str:
        """The answer to a text; in the chat template where there is one."""
        chat = self._tokenizer.chat_template is not None
        raw: Any = [{"role": "user", "content": observation}] if chat else observation
        prompt, _ = encode_prompt(raw, self._tokenizer, self._sizes[0])
        self._seed += 1
        (ids,) = continue_prompts(self._lm, [prompt], self._eos_ids, self._sizes[1], self._seed, self._temperature)
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))


def _text(of: str | Chat) -> str:
    """A text, or the last message of a chat."""
    return of if isinstance(of, str) else str(of[-1]["content"])
