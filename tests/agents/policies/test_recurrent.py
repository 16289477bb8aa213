from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sb3_contrib import RecurrentPPO

from agents import make_algorithm
from agents.policies.recurrent import TokenFeatures, load_recurrent_actor
from agents.policies.text_policy import load_actor
from llm_env.settings import TaskSettings
from llm_env.task import TextTask

SMALL: dict[str, Any] = {"max_new_tokens": 6, "max_prompt_length": 12}


def made(**settings: Any) -> RecurrentPPO:
    return make_algorithm("recurrent_ppo", n_envs=4, seed=0, env_kwargs=SMALL, **settings)  # type: ignore[return-value]


def test_features_are_the_last_token_and_the_mean() -> None:
    task = TextTask(TaskSettings(**SMALL))
    features = TokenFeatures(task.observation_space, 3)
    ids = torch.full((2, 18), 1024)
    ids[0, :3] = torch.tensor([4, 5, 6])
    got = features({"input_ids": ids.float(), "length": torch.tensor([[3.0], [0.0]])})
    table = features.embedding.weight
    torch.testing.assert_close(got[0, :3], table[6])
    torch.testing.assert_close(got[0, 3:], table[[4, 5, 6]].mean(0))
    assert (got[1] == 0).all()


def test_its_rewards_hold_the_kl_of_the_lstm() -> None:
    model = made()
    rewards: list[float] = []
    model.env.step_wait = (lambda old: lambda: (lambda out: (rewards.extend(out[1]), out)[1])(old()))(
        model.env.step_wait
    )  # type: ignore[union-attr, method-assign]
    model.learn(4 * 6 * 2)
    ended = model.env.ended  # type: ignore[union-attr]
    assert all(np.isfinite(info["kl"]) for info in ended)
    assert np.mean([info["kl"] for info in ended]) > 3  # from scratch, it is far away
    assert all(info["episode"]["r"] == pytest.approx(info["rm_score"] - 0.05 * info["kl"], abs=1e-3) for info in ended)


def test_a_saved_actor_responds_the_same(tmp_path: Path) -> None:
    model = made()
    model.learn(4 * 6)
    task = model.env.task  # type: ignore[union-attr]
    prompts = task.prompts.spread(5)
    before = torch.get_rng_state()
    responses = [e.response_ids for e in model.policy.respond(task, prompts, 3)]
    assert torch.equal(before, torch.get_rng_state())
    model.policy.save_actor(tmp_path / "actor", task.tokenizer)
    actor = load_actor(tmp_path / "actor", task)
    assert [e.response_ids for e in actor.respond(task, prompts, 3)] == responses
    assert [e.response_ids for e in actor.respond(task, prompts, 4)] != responses


def test_a_folder_without_an_actor_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no recurrent actor"):
        load_recurrent_actor(tmp_path, TextTask(TaskSettings(**SMALL)))
