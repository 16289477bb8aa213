"""Q-values from the LM head: what they are at the start, what the target network gives, and where they lead."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3.common.logger import configure

from agents import make_algorithm
from llm_env.lm.packing import pack, pack_ends

SMALL: dict[str, Any] = {"max_new_tokens": 6, "max_prompt_length": 12, "kl_coef": 0.2}


def made(name: str = "dqn", **settings: Any) -> Any:
    model = make_algorithm(name, n_envs=8, seed=0, env_kwargs=SMALL, **settings)
    model.set_logger(configure(None, []))
    return model


def test_at_the_start_it_is_the_solution_without_a_reward() -> None:
    model = made(critic="actor", gradient_steps=1)  # V starts at zero
    task, net = model.env.task, model.policy.q_net
    sequences = [[5, 6, 7, 8], [9, 10, 11]]
    q = net(pack_ends(sequences, "cpu"))
    for i, ids in enumerate(sequences):
        with task.model.frozen() as reference:
            logits = reference.model(input_ids=torch.tensor([ids])).logits[0, -1]
        torch.testing.assert_close(q[i], 0.2 * torch.log_softmax(logits, -1), rtol=1e-4, atol=1e-4)
    # softmax(Q/τ) is the reference, and τ·logsumexp(Q/τ) is V
    torch.testing.assert_close((q / 0.2).logsumexp(-1), torch.zeros(2), rtol=0, atol=1e-4)
    model.learn(8 * 6, log_interval=None)
    assert float(np.mean([i["kl"] for i in model.env.ended[:8]])) == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("critic", ["actor", "reward_model", "head"])
@pytest.mark.parametrize("quantiles", [0, 5])
def test_the_target_network_gives_one_column(critic: str, quantiles: int) -> None:
    for backup in ("soft", "hard"):
        settings = {"n_quantiles": quantiles} if quantiles else {}
        model = made("qr_dqn" if quantiles else "dqn", critic=critic, backup=backup, **settings)
        policy = model.policy
        with torch.no_grad():
            for p in policy.q_net.critic.parameters():
                p.add_(0.01)
        policy.q_net_target.load_state_dict(policy.q_net.state_dict())
        batch = pack([[5, 6, 7, 8], [9, 10, 11]], [2, 1], "cpu")
        q, target = policy.q_net(batch).double(), policy.q_net_target(batch).double()
        assert q.shape == ((4, 5, 1024) if quantiles else (4, 1024))
        want = 0.2 * (q / 0.2).logsumexp(-1) if backup == "soft" else q.amax(-1)
        torch.testing.assert_close(target[..., 0], want, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_soft_q_learning_finds_the_kl_regularised_optimum() -> None:
    """One token to choose, a reward by hand: π must become π_ref·exp(R/β) up to its normalization."""
    env = {
        "max_new_tokens": 1, "max_prompt_length": 12, "kl_coef": 0.5, "prompts": ["We were there on a"],
        "reward_model": "tests.agents.policies.test_q_network:likes_friday",
    }  # fmt: skip
    model = make_algorithm(
        "dqn", n_envs=64, seed=0, env_kwargs=env, critic="head", learning_rate=2e-3, n_steps=1, gradient_steps=8,
        batch_size=64, target_update_interval=64,
    )  # fmt: skip
    task, policy = model.env.task, model.policy  # type: ignore[union-attr]
    ids = torch.tensor([task.prompts[0].ids])
    with task.model.frozen() as lm:
        reference = lm.model(input_ids=ids).logits[0, -1].softmax(-1)
    likely = reference.topk(8).indices.tolist()
    rewards = {i: likes_friday([""], [task.decode([i])])[0] for i in likely}
    assert len(set(rewards.values())) == 2
    model.learn(64 * 60, log_interval=None)
    with torch.no_grad():
        learned = policy.lm.model(input_ids=ids).logits[0, -1].softmax(-1)
    weights = {i: reference[i].item() * math.exp(rewards[i] / 0.5) for i in likely}
    for i in likely:
        share = learned[i].item() / sum(learned[j].item() for j in likely)
        assert share == pytest.approx(weights[i] / sum(weights.values()), abs=0.06)
    assert max(abs(learned[i].item() - reference[i].item()) for i in likely) > 0.15


def likes_friday(prompts: list[str], responses: list[str]) -> list[float]:
    """One word is worth something."""
    return [1.0 if "Friday" in r or "Tuesday" in r else 0.0 for r in responses]


def test_the_environment_pays_q_learning_its_own_part_only() -> None:
    model = made(gradient_steps=1)
    model.learn(8 * 6, log_interval=None)
    response = model.replay_buffer.responses[0]
    task = model.env.task
    reference = task.reference.log_probs([[*response.prompt.tolist(), *response.tokens]], [len(response.prompt)])[0]
    np.testing.assert_allclose(response.rewards[:-1], 0.2 * reference[:-1], atol=1e-4)
    np.testing.assert_allclose(response.log_probs, reference, atol=1e-3)  # it acted as the reference


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train_freq": 2}, "train_freq=2 must be a number of steps, at least max_new_tokens=6"),
        ({"backup": "firm"}, "backup='firm' is not known"),
        ({"q_scale": 0.0}, "q_scale=0.0 must be a finite number above 0"),
        ({"critic": "none"}, "needs a V"),
        ({"episodes": "synchronous"}, "takes episodes='continuous'"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made(**settings)


def test_a_saved_model_acts_the_same(tmp_path: Any) -> None:
    model = made("qr_dqn", gradient_steps=2)
    model.learn(8 * 12, log_interval=None)
    model.save(tmp_path / "m")
    again = type(model).load(tmp_path / "m", env=model.env)
    obs = model.env.reset()
    np.testing.assert_array_equal(model.predict(obs, deterministic=True)[0], again.predict(obs, deterministic=True)[0])
