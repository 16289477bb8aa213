from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

import llm_env  # noqa: F401
from llm_env.default_task import DEFAULT_MODEL
from llm_env.env import LLMTextEnv
from llm_env.lm.causal_lm import load_causal_lm
from llm_env.lm.names import LoadSettings
from llm_env.lm.registry import MODELS
from llm_env.rendering import pieces
from llm_env.wrappers import PolicyKLReward
from tests.conftest import count_dots


@pytest.mark.parametrize(
    "arguments",
    [{}, {"render_mode": "ansi"}, {"render_mode": "human"}, {"render_mode": "rgb_array"}, {"max_new_tokens": 3}],
)
def test_gymnasium_checks_it_without_any_warning(arguments: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gym.make("LLMText-v0", **arguments).unwrapped, skip_render_check=False)


def test_observation_holds_prompt_then_response_then_padding() -> None:
    env = gym.make("LLMText-v0", max_prompt_length=16, max_new_tokens=4)
    task = env.unwrapped.task  # type: ignore[attr-defined]
    obs, info = env.reset(seed=0, options={"prompt": "How was the hotel?"})
    prompt = task.tokenizer("How was the hotel?")["input_ids"]
    assert info["prompt"] == "How was the hotel?"
    assert obs["input_ids"].shape == (20,)
    assert obs["input_ids"].dtype == np.int64
    assert obs["length"].tolist() == [len(prompt)]
    obs, *_ = env.step(7)
    assert obs["input_ids"].tolist() == [*prompt, 7] + [task.vocab_size] * (19 - len(prompt))
    assert not env.action_space.contains(task.vocab_size)


def test_rewards_by_hand_on_two_tokens() -> None:
    """Invariant 4: section 2's formula, from the models' own logits."""
    env = gym.make("LLMText-v0", kl_coef=0.3, temperature=0.8, reward_model="tests.conftest:count_dots")
    env.reset(options={"prompt": "How was the hotel?"})
    tokenizer = env.unwrapped.task.tokenizer  # type: ignore[attr-defined]
    prompt, dot, end = tokenizer("How was the hotel?")["input_ids"], tokenizer.encode(".")[1], tokenizer.eos_token_id
    lm = load_causal_lm(DEFAULT_MODEL, LoadSettings("float32", "cpu"))
    with torch.no_grad():
        logits = lm.model(input_ids=torch.tensor([[*prompt, dot]])).logits[0].double() / 0.8
    reference = torch.log_softmax(logits, -1)
    _, first, terminated, truncated, info = env.step(dot)
    assert (terminated, truncated, info) == (False, False, {})
    assert first == pytest.approx(0.3 * reference[-2, dot].item(), abs=1e-5)
    _, second, terminated, truncated, info = env.step(end)
    assert (terminated, truncated) == (True, False)
    assert second == pytest.approx(0.3 * reference[-1, end].item() + 1.0, abs=1e-5)
    assert info["ref_log_prob"] == pytest.approx((reference[-2, dot] + reference[-1, end]).item(), abs=1e-5)
    assert (info["prompt"], info["response"], info["rm_score"], info["has_end"]) == (
        "How was the hotel?",
        ".",
        1.0,
        True,
    )


def test_wrapper_adds_the_policys_part() -> None:
    bare = gym.make("LLMText-v0", kl_coef=0.5)
    wrapped = PolicyKLReward(gym.make("LLMText-v0", kl_coef=0.5), log_prob=lambda obs, action: -0.01 * obs["length"][0])
    for env in (bare, wrapped):
        env.reset(seed=1)
    length = bare.unwrapped.batch.observation()["length"][0, 0]  # type: ignore[attr-defined]
    plain, full = bare.step(40)[1], wrapped.step(40)[1]
    assert full == pytest.approx(float(plain) + 0.5 * 0.01 * length)


def test_missing_end_penalty_is_paid_but_not_reported() -> None:
    env = gym.make(
        "LLMText-v0", max_new_tokens=1, missing_eos_penalty=2.5, kl_coef=0.0, reward_model="tests.conftest:count_dots"
    )
    env.reset(seed=0)
    _, reward, terminated, _, info = env.step(env.unwrapped.task.tokenizer.encode(".")[1])  # type: ignore[attr-defined]
    assert terminated
    assert (reward, info["rm_score"], info["has_end"]) == (-1.5, 1.0, False)


def test_a_seed_fixes_the_prompts_and_options_fix_one() -> None:
    env = gym.make("LLMText-v0")

    def prompts(seed: int) -> list[str]:
        return [env.reset(seed=seed if i == 0 else None)[1]["prompt"] for i in range(5)]

    assert prompts(1) == prompts(1) != prompts(2)
    task = env.unwrapped.task  # type: ignore[attr-defined]
    assert env.reset(options={"prompt_index": 3})[1]["prompt"] == task.prompts[3].text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"promt": "x"}, "no 'promt'"),
        ({"prompt": ""}, "empty"),
        ({"prompt": "x", "prompt_index": 1}, "not both"),
        ({"prompt_index": 10**6}, "from 0 to"),
        ({"prompt_index": -1}, "from 0 to"),
        ({"prompt_index": "1"}, "whole number"),
    ],
)
def test_unusable_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gym.make("LLMText-v0").reset(options=options)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"max_new_tokens": 0}, ValueError, "max_new_tokens=0 must be"),
        ({"max_prompt_length": 1.5}, ValueError, "max_prompt_length=1.5 must be"),
        ({"kl_coef": -0.1}, ValueError, "kl_coef=-0.1 must be"),
        ({"kl_coef": float("nan")}, ValueError, "kl_coef=nan must be"),
        ({"temperature": 0}, ValueError, "temperature=0 must be"),
        ({"dtype": "int8"}, ValueError, "dtype='int8' is not known"),
        ({"device": "abacus"}, ValueError, "device='abacus'"),
        ({"max_new_token": 5}, TypeError, "Did you mean 'max_new_tokens'"),
        ({"model": "some/model"}, ValueError, "needs reward_model too"),
        ({"max_new_tokens": 5000}, ValueError, "can read 1024"),
        (
            {"model": "/no/such", "reward_model": "tests.conftest:count_dots", "prompts": ["x"]},
            FileNotFoundError,
            "model='/no/such': there is no such folder",
        ),
    ],
)
def test_unusable_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        gym.make("LLMText-v0", **arguments)


def test_an_unknown_render_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="render_mode='humans' is not known; use one of human, ansi, rgb_array"):
        LLMTextEnv(render_mode="humans")
    with pytest.raises(ValueError, match="render_mode='human' is not known; use one of ansi, rgb_array"):
        gym.make_vec("LLMText-v0", num_envs=2, render_mode="human", vectorization_mode="vector_entry_point")


def test_human_rendering_prints_a_response_once_it_has_ended(capsys: pytest.CaptureFixture[str]) -> None:
    env = gym.make("LLMText-v0", render_mode="human", max_new_tokens=3)
    env.reset(seed=0, options={"prompt": "How was the hotel?"})
    for token in (5, 6):
        env.step(token)
    assert capsys.readouterr().out == ""
    assert env.step(7)[2]
    said = capsys.readouterr().out
    assert said.startswith("How was the hotel?")
    assert "score " in said
    assert env.render() is None
    assert capsys.readouterr().out == said


def test_a_model_without_an_end_token_is_refused(model_folder: Callable[..., str], tmp_path: Any) -> None:
    import json
    import shutil

    folder = tmp_path / "endless"
    shutil.copytree(model_folder("llama"), folder)
    for name in ("generation_config.json", "tokenizer_config.json"):
        values = json.loads((folder / name).read_text())
        values.pop("eos_token_id", None)
        values.pop("eos_token", None)
        (folder / name).write_text(json.dumps(values))
    with pytest.raises(ValueError, match="names an end token"):
        gym.make("LLMText-v0", model=str(folder), reward_model="tests.conftest:count_dots", prompts=["x"])


def test_step_needs_a_running_response_and_a_token() -> None:
    env = gym.make("LLMText-v0", max_new_tokens=1).unwrapped
    with pytest.raises(RuntimeError, match="call reset"):
        env.step(5)
    env.reset()
    with pytest.raises(ValueError, match="is not a token"):
        env.step(env.unwrapped.task.vocab_size)  # type: ignore[attr-defined]
    env.step(5)
    with pytest.raises(RuntimeError, match="call reset"):
        env.step(5)


def test_any_model_prompts_and_reward_by_name(model_folder: Callable[..., str]) -> None:
    MODELS.clear()
    env = gym.make(
        "LLMText-v0",
        model=model_folder("gpt2"),
        reward_model=[[model_folder("gpt2", 1), 0.5], ["tests.conftest:count_dots", 1.0]],
        prompts=["one", "two words"],
        max_new_tokens=5,
    )
    env.reset(seed=0)
    total, terminated = 0.0, False
    while not terminated:
        _, reward, terminated, _, info = env.step(11)
        total += float(reward)
    assert np.isfinite(total)
    assert count_dots([""], [info["response"]]) == [info["response"].count(".")]


def test_importing_the_package_loads_no_torch_and_registers() -> None:
    code = (
        "import sys, llm_env, gymnasium; assert 'torch' not in sys.modules and 'transformers' not in sys.modules; "
        "print(gymnasium.spec('LLMText-v0').id)"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ.copy()
    )
    assert out.stdout.strip() == "LLMText-v0"


def test_ansi_rendering_spells_the_response_and_colours_by_kl() -> None:
    env = gym.make("LLMText-v0", render_mode="ansi")
    env.reset(options={"prompt": "How was the hotel?"})
    tokenizer = env.unwrapped.task.tokenizer  # type: ignore[attr-defined]
    for token in tokenizer.encode(" The room was", add_special_tokens=False):
        env.step(token)
    import re

    text = str(env.render())
    assert re.sub(r"\x1b\[[0-9;]*m", "", text).startswith("How was the hotel? The room was\n")
    env.step(900)  # a token that the reference finds very unlikely is red
    assert "48;2;236;154;64m" in str(env.render())


def test_a_character_of_several_tokens_is_drawn_with_the_last_of_them() -> None:
    def decode(ids: list[int]) -> str:
        return bytes(ids).decode("utf-8", "replace")

    task: Any = SimpleNamespace(eos_ids={0}, decode=decode)
    ids = [*"aé".encode(), 0xC3, 0, *"😀".encode(), 0xC3]
    turn = SimpleNamespace(end=5, reply_ids=list(b" yes"))
    kls = np.arange(len(ids), dtype=np.float64)
    episode: Any = SimpleNamespace(response_ids=ids, ref_log_probs=-kls, log_probs=np.zeros(len(ids)), turns=[turn])
    drawn = pieces(task, episode)
    # cut off within a character, by an end token and by the length cap
    assert [text for text, _ in drawn] == ["a", "", "é", "\ufffd", "■", " yes", "", "", "", "😀", "\ufffd"]
    assert [kl for _, kl in drawn] == [0, 1, 2, 3, 4, None, 5, 6, 7, 8, 9]


def test_the_picture_changes_where_text_is_added() -> None:
    env = gym.make("LLMText-v0", render_mode="rgb_array")
    env.reset(seed=0)
    before = env.render()
    env.step(900)
    after = env.render()
    assert isinstance(before, np.ndarray)
    assert isinstance(after, np.ndarray)
    assert before.dtype == np.uint8
    assert before.ndim == 3
    assert before.shape[2] == 3
    orange = (after[..., 0] > 230) & (after[..., 2] < 128)
    assert orange.sum() > 50
