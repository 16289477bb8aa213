"""A critic of own blocks on the actor's lower layers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from agents import load_checkpoint, make_algorithm, save_checkpoint
from agents.policies.critic import CriticNetwork, CriticSource, make_critic
from llm_env.lm.causal_lm import load_causal_lm
from llm_env.lm.loading import quiet_loading
from llm_env.lm.names import LoadSettings
from llm_env.lm.packed_attention import packed_states
from llm_env.lm.packing import pack
from tests.conftest import save_model

LOAD = LoadSettings("float32", "cpu")
BATCH = pack([[5, 6, 7, 8, 9, 10], [11, 12, 13], [14, 15, 16, 17]], [2, 1, 2], "cpu")


def made(model: str, layers: int = 1, reward_model: str | None = None) -> tuple[Any, CriticNetwork]:
    lm = load_causal_lm(model, LOAD)
    critic = make_critic("top_layers", CriticSource(model, lm.hidden_size, reward_model, False, lm.trunk, layers))
    assert isinstance(critic, CriticNetwork)
    return lm, critic


def first_and_last(lm: Any) -> tuple[torch.nn.Parameter, torch.nn.Parameter]:
    """A weight of the actor's first block and one of its last."""
    weights = [p for n, p in lm.trunk.named_parameters() if p.ndim > 1 and (".0." in n or ".1." in n)]
    return weights[0], weights[-1]


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "mistral", "qwen2", "qwen3", "phi", "opt", "bloom"])
def test_it_reads_as_the_actor_does_and_learns_alone(family: str, model_folder: Callable[..., str]) -> None:
    lm, critic = made(model_folder(family))
    with torch.no_grad():
        assert torch.allclose(critic.states(BATCH, None), packed_states(lm.trunk, BATCH)[BATCH.index], atol=1e-5)
        assert critic(BATCH, None).tolist() == [0.0] * len(BATCH.targets)  # the head starts at zero
        torch.nn.init.normal_(critic.head.weight)
    critic(BATCH, None).square().sum().backward()
    assert all(p.grad is None for p in lm.model.parameters())  # the actor gets nothing,
    own = dict(critic.named_parameters())
    assert all(p.grad is not None for p in own.values())  # its own blocks, last norm and head all do
    actors = {id(p) for p in lm.model.parameters()}
    assert not actors & {id(p) for p in own.values()}
    # half the blocks, the last norm and the head, but no embedding
    with_last_norm = sum(p.numel() for p in lm.trunk.parameters()) - sum(
        p.numel() for p in lm.trunk.get_input_embeddings().parameters()
    )
    assert sum(p.numel() for p in own.values()) < 0.7 * with_last_norm
    assert set(critic.state_dict()) >= set(own)
    assert not any("shared" in name for name in critic.state_dict())


def test_it_follows_the_actors_lower_layers_only(model_folder: Callable[..., str]) -> None:
    lm, critic = made(model_folder("llama"))
    first, last = first_and_last(lm)
    with torch.no_grad():
        before = critic.states(BATCH, None)
        last.add_(1.0)
        assert torch.equal(critic.states(BATCH, None), before)
        first.add_(0.1)
        assert not torch.allclose(critic.states(BATCH, None), before, atol=1e-3)


def test_it_starts_as_a_reward_model_of_the_same_shape(model_folder: Callable[..., str], tmp_path: Path) -> None:
    actor, same, other = model_folder("llama"), model_folder("llama", 1), model_folder("qwen2", 1)
    lm, critic = made(actor, reward_model=same)
    with quiet_loading():
        reward = AutoModelForSequenceClassification.from_pretrained(same)
    assert torch.equal(critic.head.weight, reward.score.weight)
    assert torch.equal(critic.trunk.layers[-1].mlp.up_proj.weight, reward.model.layers[-1].mlp.up_proj.weight)
    _, critic = made(actor, reward_model=other)  # of another kind: the actor's own last block
    assert torch.equal(critic.trunk.layers[-1].mlp.up_proj.weight, lm.trunk.layers[-1].mlp.up_proj.weight)
    # the same weights all over: on the actor's lower layers it is the reward model itself
    with torch.no_grad():
        reward.model.load_state_dict(lm.trunk.state_dict())
    folder = save_model(tmp_path / "reward", reward)
    _, critic = made(actor, reward_model=folder)
    with torch.no_grad():
        states = packed_states(lm.trunk, BATCH)[BATCH.index]
        assert torch.allclose(critic(BATCH, None), reward.score(states)[:, 0], atol=1e-4)


def test_how_many_can_be_its_own(model_folder: Callable[..., str]) -> None:
    for count in (0, 2):
        with pytest.raises(ValueError, match=f"critic_layers={count}: the actor has 2 layers, of which 1 to 1"):
            made(model_folder("llama"), count)
    with pytest.raises(ValueError, match="not at hand"):
        make_critic("top_layers", CriticSource(model_folder("llama"), 32))


def ppo(**settings: Any) -> Any:
    task = {"max_new_tokens": 6, "max_prompt_length": 12}
    return make_algorithm("ppo", n_envs=4, rounds=1, critic="top_layers", env_kwargs=task, seed=0, **settings)


@pytest.mark.parametrize("settings", [{}, {"critic_layers": 2, "lora_rank": 2}, {"mixed_precision": "bf16"}], ids=str)
def test_ppo_trains_actor_and_critic_and_checkpoints_hold_them(settings: dict[str, Any], tmp_path: Path) -> None:
    model = ppo(**settings)
    before = {name: p.detach().clone() for name, p in model.policy.named_parameters()}
    model.learn(48)
    moved = {name for name, p in model.policy.named_parameters() if not torch.equal(p, before[name])}
    assert any(name.startswith("actor.") for name in moved)
    own = {name for name in before if name.startswith("critic.")}
    assert own <= moved
    folder = save_checkpoint(model, tmp_path)
    again = ppo(**settings)
    load_checkpoint(again, folder)
    state = again.policy.state_dict()
    assert all(torch.equal(state[name], value) for name, value in model.policy.state_dict().items())
