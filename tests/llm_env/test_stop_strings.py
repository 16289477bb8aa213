"""Texts that end a response, or in a world a turn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from agents.rollouts.vec_env import LLMTextVecEnv
from llm_env.env import LLMTextEnv
from llm_env.rollout import respond
from llm_env.settings import TaskSettings
from llm_env.task import TextTask
from llm_env.text.ends import TurnEnds
from tests.worlds import Echo

END = 2
PIECES = {5: "</", 6: "call", 7: ">", 8: "> and", 9: "x", 10: "\u20ac"}
EURO = {11: 0xE2, 12: 0x82, 13: 0xAC}  # its three bytes, a token each


def decode(ids: Sequence[int]) -> str:
    """Text of `PIECES`, and bytes that become a character once they are complete."""
    data = b"".join(bytes([EURO[i]]) if i in EURO else PIECES.get(i, "?").encode() for i in ids)
    return data.decode("utf-8", errors="replace")


@pytest.mark.parametrize(
    ("ids", "stop", "end"),
    [
        ([9, END], ["</call>"], "end_token"),
        ([5, 6, 7], ["</call>"], "stop_string"),
        ([9, 5, 6, 8], ["</call>"], "stop_string"),  # the last token says more
        ([5, 6], ["</call>"], ""),
        ([6, 7], ["</call>"], ""),
        ([9, 7], [], ""),
        ([9, 9], ["</call>", "xx"], "stop_string"),
        ([11, 12, 13], ["\u20ac"], "stop_string"),
        ([11, 12], ["\u20ac"], ""),
        ([9, 10], ["x\u20ac"], "stop_string"),
    ],
)
def test_the_end_of_a_turn(ids: list[int], stop: list[str], end: str) -> None:
    ends = TurnEnds({END}, stop, decode)
    assert [ends.end_of(ids[: i + 1]) for i in range(len(ids))] == [*[""] * (len(ids) - 1), end]


def test_only_what_can_complete_a_stop_string_is_decoded_with_its_turn() -> None:
    decoded: list[int] = []

    def counting(ids: Sequence[int]) -> str:
        decoded.append(len(ids))
        return decode(ids)

    ends = TurnEnds({END}, ["</call>"], counting)
    for length in range(1, 51):
        assert not ends.end_of([9] * length)
    assert decoded == [2]  # once, to see what the token is
    assert ends.end_of([9] * 100 + [5, 6, 7]) == "stop_string"
    assert decoded == [2, 2, 4 * len("</call>")]


def words(env: LLMTextEnv, text: str) -> list[int]:
    return list(env.task.tokenizer.encode(text, add_special_tokens=False))


def test_a_stop_string_may_be_a_special_token() -> None:
    env = LLMTextEnv(stop_strings=["<s>"])  # no end token
    env.reset(seed=0)
    *_, terminated, _, _ = env.step(words(env, "Kind")[0])
    assert not terminated
    *_, terminated, _, info = env.step(env.task.tokenizer.bos_token_id)
    assert terminated
    assert info["end"] == "stop_string"


def test_a_response_ends_with_a_stop_string() -> None:
    env = LLMTextEnv(stop_strings=["regards"], missing_eos_penalty=5.0)
    env.reset(seed=0)
    tokens = words(env, "Kind regards, yours")
    terminated, count = False, 0
    while not terminated:
        _, _, terminated, _, info = env.step(tokens[count])
        count += 1
    assert "regards" in env.task.decode(tokens[:count])
    assert "regards" not in env.task.decode(tokens[: count - 1])
    assert (info["end"], info["has_end"]) == ("stop_string", True)
    (episode,) = env.unwrapped.batch.episodes
    assert episode is not None
    assert episode.final_score == episode.rm_score  # no penalty for a missing end


def test_a_stop_string_ends_a_turn_and_the_world_answers() -> None:
    env = LLMTextEnv(world=Echo, stop_strings=["regards"], max_new_tokens=32, max_prompt_length=16)
    env.reset(seed=0)
    ends = []
    for token in words(env, "Kind regards") + words(env, "Best regards"):
        _, _, terminated, _, info = env.step(token)
        ends.append(terminated)
    assert ends.index(True) == len(ends) - 1
    assert info["end"] == "world"
    episode: Any = env.unwrapped.batch.episodes[0]
    assert [turn.text for turn in episode.turns] == ["Kind regards", "Best regards"]
    assert all(turn.reply.startswith("Heard 12") for turn in episode.turns)


def test_all_faces_stop() -> None:
    settings: dict[str, Any] = {"stop_strings": ["e"], "max_new_tokens": 24}
    task = TextTask(TaskSettings(**settings))
    said = respond(task.model.lm, task, list(task.prompts[:16]), seed=0)
    stopped = [e for e in said if e.end == "stop_string"]
    assert len(stopped) > 8
    for episode in said:
        assert ("e" in task.decode(episode.response_ids[:-1])) is False
        assert ("e" in episode.response_text) == (episode.end == "stop_string")
    venv = LLMTextVecEnv(4, **settings)
    venv.seed(0)
    venv.reset()
    (token,) = venv.task.tokenizer.encode("e", add_special_tokens=False)[-1:]
    _, _, dones, infos = venv.step(np.full(4, token))
    assert "e" in venv.task.decode([token])
    assert dones.all()
    assert {info["end"] for info in infos} == {"stop_string"}


@pytest.mark.parametrize("critic", ["actor", "detached_head"])
def test_ppo_trains_on_turns_that_stop(critic: str) -> None:
    from agents import make_algorithm

    model: Any = make_algorithm(
        "ppo",
        n_envs=4,
        env_kwargs={"world": Echo, "stop_strings": ["e"], "max_new_tokens": 8, "max_prompt_length": 16},
        critic=critic,
        seed=0,
        learning_rate=0.0,
    )
    model.learn(model.n_steps * 4)
    assert model.logger.name_to_value["train/approx_kl"] == pytest.approx(0.0, abs=1e-6)
    assert torch.isfinite(next(model.policy.parameters())).all()
