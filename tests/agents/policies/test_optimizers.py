"""8-bit AdamW: a quarter of the states, the first step of AdamW, and a checkpoint that a run goes on from exactly."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from agents import make_algorithm
from agents.algorithms.capabilities import check_shards
from agents.policies.optimizers import adamw_8bit, optimizer_defaults, optimizer_named
from agents.runs.checkpoint import list_checkpoints, load_checkpoint, save_checkpoint
from agents.runs.saved_zip import load_algorithm
from llm_env.extras import installed

SMALL: dict[str, Any] = {"max_new_tokens": 6, "max_prompt_length": 12}
ROLLOUT = 8 * 6
needs_bitsandbytes = pytest.mark.skipif(not installed("bitsandbytes"), reason="bitsandbytes is not installed")


def algorithm(**kwargs: Any) -> Any:
    return make_algorithm("ppo", n_envs=8, seed=0, env_kwargs=SMALL, optimizer="adamw_8bit", **kwargs)


def states(optimizer: Any) -> dict[str, torch.Tensor]:
    kept = optimizer.state_dict()["state"]
    return {f"{i}/{name}": torch.as_tensor(value) for i, of in kept.items() for name, value in of.items()}


def assert_same_states(one: Any, other: Any) -> None:
    ours, theirs = states(one), states(other)
    assert ours.keys() == theirs.keys()
    assert any(value.dtype == torch.uint8 for value in theirs.values())
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), name


def test_the_name_and_the_class_do_not_contradict() -> None:
    assert optimizer_named("adamw", torch.optim.SGD) is torch.optim.SGD
    with pytest.raises(ValueError, match="optimizer='adam' is not known; use one of adamw, adamw_8bit"):
        optimizer_named("adam")


def test_the_extra_is_named_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    adamw_8bit.cache_clear()
    with pytest.raises(ImportError, match=r"bitsandbytes is needed for 8-bit .*pip install 'llm-env\[quantized\]'"):
        make_algorithm("ppo", env_kwargs={"model": "nosuch", "reward_model": "nosuch"}, optimizer="adamw_8bit")


@needs_bitsandbytes
def test_two_optimizers_are_refused() -> None:
    assert optimizer_named("adamw_8bit", optimizer_named("adamw_8bit")) is adamw_8bit()
    with pytest.raises(ValueError, match="optimizer='adamw_8bit' and optimizer_class=SGD both say"):
        algorithm(optimizer_class=torch.optim.SGD)


def test_the_same_defaults_as_adamws() -> None:
    eight = type("Eight", (torch.optim.SGD,), {"has_8_bits": True})
    assert optimizer_defaults(eight).items() < optimizer_defaults(torch.optim.AdamW).items()
    assert optimizer_defaults(eight) == {"eps": 1e-5, "weight_decay": 0.0}
    assert optimizer_defaults(torch.optim.SGD) == {}


def test_shards_are_refused() -> None:
    with pytest.raises(ValueError, match="optimizer='adamw_8bit' cannot be used with sharding='full'"):
        check_shards("ppo", None, optimizer="adamw_8bit")
    check_shards("ppo", None)


@needs_bitsandbytes
def test_a_step_is_adamws_and_its_states_are_bytes() -> None:
    torch.manual_seed(0)
    size = 256
    whole, rounded = nn.Linear(size, size), nn.Linear(size, size)
    rounded.load_state_dict(whole.state_dict())
    mine = adamw_8bit()(rounded.parameters(), lr=1e-3, **optimizer_defaults(adamw_8bit()))  # type: ignore[call-arg]
    theirs = torch.optim.AdamW(whole.parameters(), lr=1e-3, eps=1e-5, weight_decay=0.0)
    for step in range(30):
        x = torch.randn(16, size)
        for module, optimizer in ((whole, theirs), (rounded, mine)):
            optimizer.zero_grad()
            (module(x) - x.flip(1)).pow(2).mean().backward()
            optimizer.step()
        if step == 0:  # in which no state that was rounded is read
            torch.testing.assert_close(rounded.weight, whole.weight, rtol=0, atol=1e-7)
    # Each of 30 steps moved a weight by about the rate; what rounding makes of it is half a percent of the way.
    assert 1e-6 < (whole.weight - rounded.weight).abs().mean().item() < 0.01 * 30 * 1e-3
    kept = mine.state_dict()["state"][0]
    assert all(isinstance(value, torch.Tensor | int) for value in kept.values())  # flat
    assert (kept["state1"].dtype, kept["state2"].dtype) == (torch.uint8, torch.uint8)
    assert mine.state_dict()["state"][1]["state1"].dtype == torch.float32  # a bias has few numbers
    assert sum(v.nbytes for v in states(mine).values()) < 0.27 * sum(v.nbytes for v in states(theirs).values())


@needs_bitsandbytes
@pytest.mark.parametrize("settings", [{}, {"critic": "actor", "critic_lr_scale": 2.0}, {"lora_rank": 4}])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, settings: dict[str, Any]) -> None:
    whole = algorithm(**settings)
    whole.learn(ROLLOUT)
    folder = save_checkpoint(whole, tmp_path)
    assert {p.suffix for p in folder.iterdir()} == {".json", ".safetensors"}
    whole.learn(2 * ROLLOUT, reset_num_timesteps=False)
    second = algorithm(**settings)
    load_checkpoint(second, list_checkpoints(tmp_path)[0])
    second.learn(2 * ROLLOUT, reset_num_timesteps=False)
    ours, theirs = second.policy.state_dict(), whole.policy.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert_same_states(second.policy.optimizer, whole.policy.optimizer)


@needs_bitsandbytes
def test_a_saved_algorithm_comes_back(tmp_path: Path) -> None:
    model = algorithm()
    model.learn(ROLLOUT)
    model.save(tmp_path / "model")
    again: Any = load_algorithm(tmp_path / "model")
    assert type(again.policy.optimizer) is adamw_8bit()
    assert_same_states(again.policy.optimizer, model.policy.optimizer)
