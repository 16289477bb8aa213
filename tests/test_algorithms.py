"""A2C and TRPO on the fast path: the update that they make without it, and which weights move."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from sb3_contrib import TRPO
from stable_baselines3 import A2C
from stable_baselines3.common.logger import configure

from agents import make_algorithm
from agents.policy import LLMActorCriticPolicy
from agents.vec_env import LLMTextVecEnv

SMALL: dict[str, Any] = {"max_new_tokens": 6, "max_prompt_length": 12}
COMMON: dict[str, dict[str, Any]] = {
    "a2c": {"n_steps": 12, "gamma": 1.0, "gae_lambda": 0.9, "learning_rate": 1e-2, "seed": 3, "device": "cpu",
            "use_rms_prop": False, "normalize_advantage": True, "max_grad_norm": 0.5},
    "trpo": {"n_steps": 12, "gamma": 1.0, "gae_lambda": 0.9, "learning_rate": 1e-2, "seed": 3, "device": "cpu",
             "batch_size": 48, "n_critic_updates": 2, "cg_max_steps": 5},
}  # fmt: skip


@pytest.mark.parametrize("critic", ["detached_head", "reward_model"])
@pytest.mark.parametrize(("name", "algorithm"), [("a2c", A2C), ("trpo", TRPO)])
def test_fast_and_stock_path_make_the_same_update(name: str, algorithm: Any, critic: str) -> None:
    kwargs: dict[str, Any] = {"critic": critic, "optimizer_class": torch.optim.SGD}
    fast = make_algorithm(name, n_envs=4, episodes="continuous", env_kwargs=SMALL, **kwargs, **COMMON[name])
    assert type(fast) is algorithm
    stock = algorithm(
        LLMActorCriticPolicy,
        LLMTextVecEnv(4, **SMALL),
        policy_kwargs={"use_cache": False, "second_derivatives": name == "trpo", **kwargs},
        **COMMON[name],
    )
    start = {n: p.clone() for n, p in stock.policy.named_parameters()}
    for model in (fast, stock):
        model.set_logger(configure(None, []))
        model.set_random_seed(3)
        model.learn(4 * 12)
    actor_moved = 0
    for (key, ours), (_, theirs) in zip(fast.policy.named_parameters(), stock.policy.named_parameters(), strict=True):
        step = (theirs - start[key]).abs().max().item()
        actor_moved += key.startswith("actor") and step > 0
        # TRPO solves for its step by conjugate gradients, which amplify rounding
        torch.testing.assert_close(ours, theirs, rtol=0, atol=max((5e-2 if name == "trpo" else 2e-3) * step, 1e-7))
    assert actor_moved > 20


@pytest.mark.parametrize("lora_rank", [0, 4])
@pytest.mark.parametrize("family", ["gpt_neox", "llama"])
def test_trpo_moves_all_trainable_actor_weights(model_folder: Callable[..., str], family: str, lora_rank: int) -> None:
    """GPT-NeoX has a query_key_value, which TRPO would take for the critic's; frozen weights would make it fail."""
    model = make_algorithm(
        "trpo", n_envs=4, seed=0, critic="detached_head", lora_rank=lora_rank, cg_max_steps=3,
        env_kwargs={**SMALL, "model": model_folder(family), "reward_model": "tests.conftest:count_dots", "prompts": ["A b c"]},
    )  # fmt: skip
    policy: Any = model.policy
    trainable = {n: p for n, p in policy.actor.named_parameters() if p.requires_grad}
    frozen = {n: p.clone() for n, p in policy.actor.named_parameters() if not p.requires_grad}
    assert bool(frozen) == bool(lora_rank)
    before = {n: p.clone() for n, p in trainable.items()}
    model.learn(4 * 6 * 3)
    # keys' biases shift all of a query's scores alike, so nothing depends on them
    still = [n for n, p in trainable.items() if torch.equal(p, before[n]) and "bias" not in n]
    assert not still
    assert all(torch.equal(p, frozen[n]) for n, p in policy.actor.named_parameters() if n in frozen)


def test_trpo_refuses_what_reads_again_in_the_backward_pass() -> None:
    for setting in ({"gradient_checkpointing": True}, {"micro_batch_tokens": 64}):
        with pytest.raises(ValueError, match="do not go with second_derivatives"):
            make_algorithm("trpo", n_envs=4, env_kwargs=SMALL, **setting)


def test_a2c_keeps_the_policys_optimizer() -> None:
    model = make_algorithm("a2c", n_envs=4, env_kwargs=SMALL)
    assert isinstance(model.policy.optimizer, torch.optim.AdamW)
    assert model.n_steps == 6
