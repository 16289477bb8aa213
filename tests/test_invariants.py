"""Invariants 1, 5 and 7 of the design: the ratio, the equal update, and what must not move."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.logger import configure

from agents import make_algorithm
from agents.policies.actor_critic import LLMActorCriticPolicy
from agents.rollouts.vec_env import LLMTextVecEnv
from llm_env.default_task import DEFAULT_MODEL, DEFAULT_REWARD_MODEL
from llm_env.lm.names import LoadSettings
from llm_env.lm.registry import MODELS, shared_causal_lm

SMALL: dict[str, Any] = {"max_new_tokens": 8, "max_prompt_length": 12}


def logged(model: Any) -> dict[str, float]:
    return dict(model.logger.name_to_value)


@pytest.mark.parametrize("episodes", ["synchronous", "continuous"])
@pytest.mark.parametrize("critic", ["reward_model", "head"])
@pytest.mark.parametrize(
    ("precision", "lora_rank", "temperature"), [("no", 0, 1.0), ("no", 0, 0.6), ("no", 4, 1.0), ("bf16", 0, 1.0)]
)
def test_at_learning_rate_zero_the_ratio_is_one(
    episodes: str, critic: str, precision: str, lora_rank: int, temperature: float
) -> None:
    model = make_algorithm(
        "ppo", n_envs=8, seed=0, episodes=episodes, critic=critic, learning_rate=0.0, lora_rank=lora_rank,
        mixed_precision=precision, env_kwargs={**SMALL, "temperature": temperature},
    )  # fmt: skip
    model.set_logger(configure(None, []))
    for _ in range(2):  # the second rollout would show a stale cache
        model.learn(8 * 8, reset_num_timesteps=False)
        # bf16: mini-batches of other shapes round differently, by about 1e-2 in single log-probs
        assert logged(model)["train/approx_kl"] == pytest.approx(0, abs=1e-7 if precision == "no" else 2e-4)
        assert logged(model)["train/clip_fraction"] == 0
    # the policy is the reference, at its temperature and in its precision
    kls = [info["kl"] for info in model.env.ended]
    assert len(kls) >= 8
    assert kls == pytest.approx([0.0] * len(kls), abs=1e-4 if precision == "no" else 0.2)


def test_the_ratio_test_sees_a_stale_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LLMActorCriticPolicy, "set_training_mode", lambda self, mode: self.train(mode))
    model = make_algorithm("ppo", n_envs=8, seed=0, episodes="continuous", learning_rate=3e-3, env_kwargs=SMALL)
    model.set_logger(configure(None, []))
    model.learn(8 * 5)
    model.lr_schedule = lambda _: 0.0
    model.learn(8 * 8, reset_num_timesteps=False)
    assert logged(model)["train/approx_kl"] > 1e-5


@pytest.mark.parametrize("critic", ["head", "reward_model", "detached_head", "top_layers"])
def test_fast_and_stock_path_make_the_same_update(critic: str) -> None:
    """Invariant 5: our buffer, cache and deferred scoring against SB3's own buffer, no cache, step scoring."""
    common: dict[str, Any] = {
        "n_steps": 16, "batch_size": 64, "n_epochs": 2, "gamma": 1.0, "gae_lambda": 0.9, "learning_rate": 1e-3,
        "ent_coef": 0.01, "max_grad_norm": 0.5, "seed": 3, "normalize_advantage": True, "device": "cpu",
    }  # fmt: skip
    optimizer = {"optimizer_class": torch.optim.SGD}  # Adam would blow rounding up to a full step
    fast = make_algorithm(
        "ppo", n_envs=4, episodes="continuous", critic=critic, env_kwargs=SMALL, **optimizer, **common
    )
    stock = PPO(
        LLMActorCriticPolicy, LLMTextVecEnv(4, **SMALL),
        policy_kwargs={"critic": critic, "use_cache": False, **optimizer}, **common,
    )  # fmt: skip
    start = {n: p.clone() for n, p in stock.policy.named_parameters()}
    for model in (fast, stock):
        model.set_logger(configure(None, []))
        model.set_random_seed(3)
        model.learn(4 * 16)
    assert sorted(fast.rollout_buffer.actions.tolist()) == sorted(stock.rollout_buffer.actions.flatten().tolist())
    moved = 0.0
    for (name, ours), (_, theirs) in zip(fast.policy.named_parameters(), stock.policy.named_parameters(), strict=True):
        step = (theirs - start[name]).abs().max().item()
        moved = max(moved, step)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=max(2e-3 * step, 1e-7))
    assert moved > 1e-4


def test_plain_ppo_without_our_buffer_pays_the_full_reward() -> None:
    model = PPO(
        LLMActorCriticPolicy, LLMTextVecEnv(2, kl_coef=0.5, **SMALL), n_steps=16, batch_size=32, n_epochs=1, seed=0
    )
    model.learn(32)
    buffer = model.rollout_buffer
    # the policy is the reference: -beta (log pi - log pi_ref) is 0, and only scores are paid
    rewards = buffer.rewards.reshape(-1)
    assert (np.abs(rewards) < 1e-4).mean() > 0.5
    assert (np.abs(rewards) > 0.05).any()


def test_frozen_models_are_bit_identical_after_training() -> None:
    MODELS.clear()  # an earlier test's LoRA policy may not be collected yet, and have its adapters in there
    model = make_algorithm("ppo", n_envs=8, seed=0, env_kwargs=SMALL, learning_rate=1e-2)
    task = model.env.task  # type: ignore[union-attr]
    frozen = [task.model.lm.model, task.reward_model.model]
    before = [p.clone() for m in frozen for p in m.parameters()]
    ours = {id(p) for p in model.policy.parameters()}
    assert not any(id(p) in ours for m in frozen for p in m.parameters())
    start = [p.clone() for p in model.policy.parameters()]
    model.learn(8 * 8 * 2)
    assert all(torch.equal(a, b) for a, b in zip(before, (p for m in frozen for p in m.parameters()), strict=True))
    assert not any(p.requires_grad for m in frozen for p in m.parameters())
    assert sum(not torch.equal(a, b) for a, b in zip(start, model.policy.parameters(), strict=True)) > 20
    shared = shared_causal_lm(DEFAULT_MODEL, LoadSettings("float32", "cpu"))
    assert shared.lm.model is task.model.lm.model
    assert task.reward_model.name == DEFAULT_REWARD_MODEL


@pytest.mark.parametrize("episodes", ["synchronous", "continuous"])
def test_two_runs_with_one_seed_are_identical(episodes: str) -> None:
    def run(seed: int) -> list[torch.Tensor]:
        model = make_algorithm("ppo", n_envs=8, seed=seed, episodes=episodes, env_kwargs=SMALL)
        model.learn(8 * 8 * 2)
        return list(model.policy.parameters())

    one, same, other = run(0), run(0), run(1)
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_there_is_no_dropout_left(tmp_path: Any) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    from llm_env.lm.causal_lm import load_causal_lm
    from tests.conftest import SIZE, save_model

    config = GPT2Config(**SIZE, n_embd=32, n_layer=2, n_head=4, attn_pdrop=0.5, resid_pdrop=0.5, embd_pdrop=0.5)
    lm = load_causal_lm(save_model(tmp_path / "m", GPT2LMHeadModel(config)), LoadSettings("float32", "cpu"))
    lm.model.train()
    ids = torch.arange(3, 20)[None]
    assert torch.equal(lm.model(input_ids=ids).logits, lm.model(input_ids=ids).logits)
