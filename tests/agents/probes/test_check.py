"""The probes are learned by a right algorithm, and each fails on what it is there for."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3.common.base_class import BaseAlgorithm

from agents import check_agent, make_algorithm
from agents.probes import check
from agents.probes.check import ProbeResult
from agents.probes.tasks import PROBES, TwoTurns, soft_optimum, write_model
from agents.rollouts import advantages
from llm_env.settings import task_settings
from llm_env.task import TextTask


def ppo(env_kwargs: dict[str, Any], **settings: Any) -> BaseAlgorithm:
    # At larger steps the probabilities saturate on a wrong answer before the right one is found, with some seeds.
    chosen = {
        "critic": "detached_head",
        "learning_rate": 3e-3,
        "batch_size": 256,
        "max_grad_norm": 10.0,
        "ent_coef": 0.05,
    }
    return make_algorithm("ppo", n_envs=256, env_kwargs=env_kwargs, seed=0, **chosen, **settings)


@pytest.mark.parametrize("name", ["constant", "delayed", "two turns", "kl"])
def test_ppo_learns_a_probe(name: str) -> None:
    (result,) = check_agent(ppo, 8192, {name: PROBES[name]}, share=0.6)
    assert result.name == name
    assert result.before < result.after <= result.optimum + 0.05


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("ppo", {"advantages": "turn_gae"}),
        ("reinforce_pp", {}),
        ("grpo", {"group_size": 8, "kl_in": "reward"}),
        ("rloo", {"group_size": 8}),
    ],
)
def test_the_critic_free_and_the_others_learn_all_of_them(name: str, settings: dict[str, Any]) -> None:
    base = {"learning_rate": 3e-3, "max_grad_norm": 10.0, "batch_size": 256, "ent_coef": 0.05, **settings}
    results = check_agent(lambda env_kwargs: make_algorithm(name, n_envs=256, env_kwargs=env_kwargs, seed=0, **base))
    assert [r.name for r in results] == list(PROBES)


def test_a_wrong_sign_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = advantages.gae
    monkeypatch.setattr("agents.rollouts.estimators.gae", lambda *arguments: -real(*arguments))
    with pytest.raises(AssertionError, match=r"constant .*optimum 1\.00\. Look at the sign of the loss"):
        check_agent(ppo, 2048, {"constant": PROBES["constant"]})


def test_what_is_not_learned_is_named_without_asserts_too(monkeypatch: pytest.MonkeyPatch) -> None:
    code = compile(Path(check.__file__).read_text(encoding="utf-8"), "check.py", "exec", optimize=1)  # as `python -O`
    names: dict[str, Any] = {"__name__": check.__name__}
    exec(code, names)
    names["mean_return"] = lambda *arguments: 0.25
    agent = SimpleNamespace(learn=lambda timesteps: None)
    with pytest.raises(
        AssertionError, match=r"constant .*: 0\.25 before, 0\.25 after 5 steps, optimum 1\.00\. Look at"
    ):
        names["check_agent"](lambda env_kwargs: agent, 5, {"constant": PROBES["constant"]})


def test_credit_that_does_not_go_back_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def myopic(rewards: Any, *others: Any) -> Any:
        return rewards  # each step is paid what it earned itself

    monkeypatch.setattr("agents.rollouts.estimators.gae", myopic)
    probes = {name: PROBES[name] for name in ("constant", "delayed", "two turns")}
    with pytest.raises(AssertionError) as caught:
        check_agent(ppo, 6144, probes, share=0.6)
    assert "delayed" in str(caught.value)
    assert "two turns" in str(caught.value)
    assert "constant" not in str(caught.value)


def test_the_soft_optimum_is_what_the_best_policy_reaches(tmp_path: Path) -> None:
    task = TextTask(task_settings(PROBES["kl"].env_kwargs(write_model(tmp_path / "model"))))
    beta, total = task.kl.coef, 0.0
    for index in range(len(task.prompts)):
        ids = torch.tensor([task.prompts[index].ids])
        with torch.no_grad():
            reference = torch.softmax(task.model.lm.model(ids).logits[0, -1].double(), -1).numpy()
        texts = [task.decode([token]) for token in range(task.vocab_size)]
        scores = np.array([int(text) / 10 if text in set("0123456789") else 0.0 for text in texts])
        best = reference * np.exp(scores / beta)
        best /= best.sum()
        total += float((best * (scores - beta * np.log(best / reference))).sum())
    assert soft_optimum(task) == pytest.approx(total / len(task.prompts), abs=1e-5)
    assert beta > 0


def test_the_share_is_of_the_way_to_the_optimum() -> None:
    assert ProbeResult("x", 0.2, 0.6, 1.0).share == pytest.approx(0.5)


def test_the_world_of_two_turns_pays_for_the_first() -> None:
    world = TwoTurns()
    digit, _ = world.reset(seed=3)
    assert world.step(digit)[1:3] == (0.0, False)
    assert world.step("4")[1:3] == (1.0, True)
    world.reset(seed=3)
    world.step("9")
    assert world.step(digit)[1:3] == (0.0, True)
