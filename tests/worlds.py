"""Small worlds of texts for the tests, and a tokenizer with a chat template."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from transformers import AutoModelForCausalLM, AutoTokenizer

from llm_env.default_task import DEFAULT_MODEL
from tests.conftest import save_model

CHAT = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
FORGETFUL = (  # as Qwen3's: an answer's thought is dropped once something follows
    "{% for m in messages %}<|{{ m['role'] }}|>\n"
    "{{ m['content'] if loop.last else m['content'].split('</think>')[-1] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
ENDLESS = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


class Echo:
    """Says a number at its reset, then what it heard and another number; pays the turn's number.

    Args:
        turns: Turns after which it ends.
        pay: What each turn is paid, times its number.
    """

    def __init__(self, turns: int = 2, pay: float = 1.0) -> None:
        self.turns, self.pay = turns, pay
        self.heard: list[str] = []
        self.rows: list[Any] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        self.rng = np.random.default_rng(seed)
        self.count = 0
        self.row = (options or {}).get("row")
        return f"{self.row['prompt'] if self.row else 'Number'} {self.rng.integers(1000)}:", {}

    def step(self, text: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self.count += 1
        self.heard.append(text)
        said = f"Heard {len(text)}, now {self.rng.integers(1000)}."
        return said, self.pay * self.count, self.count >= self.turns, False, {"count": self.count, "array": self.rng}


class Texts(gym.Env[str, str]):
    """`Echo` as a Gymnasium environment; registered as ``Texts-v0``."""

    observation_space = action_space = gym.spaces.Text(10_000)  # type: ignore[assignment]

    def __init__(self, turns: int = 2) -> None:
        self.echo = Echo(turns)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        return self.echo.reset(seed=seed, options=options)

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        return self.echo.step(action)


if "Texts-v0" not in gym.registry:
    gym.register("Texts-v0", entry_point="tests.worlds:Texts")


class Bad(Echo):
    """Does something that a world must not do, in its second turn, or at its reset."""

    def __init__(self, what: str, at_reset: bool = False) -> None:
        super().__init__(turns=3)
        self.what, self.at_reset = what, at_reset

    def reset(self, **kwargs: Any) -> Any:
        result = super().reset(**kwargs)
        return self._bad(result) if self.at_reset else result

    def step(self, text: str) -> Any:
        result = super().step(text)
        return self._bad(result) if self.count == 2 else result

    def _bad(self, result: Any) -> Any:
        if self.what == "raises":
            raise RuntimeError("out of apples")
        if self.what == "times out itself":
            raise TimeoutError("no answer from the server")
        if self.what == "exits":
            sys.exit(3)
        if self.what == "hangs":
            time.sleep(30)
        changed = {
            "number": (7, *result[1:]),
            "none": None,
            "short": result[:1],
            "nan": (result[0], float("nan"), *result[2:]),
            "words": (result[0], "much", *result[2:]),
            "flag": (*result[:2], "yes", *result[3:]),
            "surrogate": ("half \ud800", *result[1:]),
            "messages": ([{"role": "user"}], *result[1:]),
            "info": (*result[:-1], ["no"]),
            "long": ("word " * 20_000, *result[1:]),
        }
        return changed.get(self.what, result)


class Hint:
    """Two turns of a word each: the first is never paid, and the second is where the first was "It" and it is "I"."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        self.asked: bool | None = None
        return "Ask?", {}

    def step(self, text: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        if self.asked is None:
            self.asked = text.strip() == "It"
            return ("Yes." if self.asked else "No."), 0.0, False, False, {}
        return "", float(self.asked and text.strip() == "I"), True, False, {}


def echo(turns: int = 2, pay: float = 1.0) -> Echo:
    """A factory with arguments, by its name."""
    return Echo(turns, pay)


def chat_model(folder: Path, template: str = CHAT) -> str:
    """The embedded default with a chat template."""
    tokenizer = AutoTokenizer.from_pretrained(DEFAULT_MODEL)
    tokenizer.chat_template = template
    return save_model(folder, AutoModelForCausalLM.from_pretrained(DEFAULT_MODEL), tokenizer)
