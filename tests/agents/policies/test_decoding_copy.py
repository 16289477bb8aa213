"""The bfloat16 copy that decodes in mixed precision."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from agents import make_algorithm
from agents.policies.decoding_copy import DecodingCopy

SMALL: dict[str, Any] = {"max_new_tokens": 8, "max_prompt_length": 12}


@pytest.mark.parametrize("lora_rank", [0, 4])
def test_the_copy_is_the_actor_of_now_in_bfloat16(lora_rank: int) -> None:
    model = make_algorithm("ppo", n_envs=8, seed=0, lora_rank=lora_rank, learning_rate=1e-2, env_kwargs=SMALL)
    policy: Any = model.policy
    own = DecodingCopy(policy.lm)
    first = [p.clone() for p in own.model.parameters()]
    model.learn(8 * 8)
    with torch.autocast("cpu", torch.bfloat16):  # as while collecting
        own.update()
    merged = dict(policy.merged_actor().named_parameters())
    changed = 0
    for (name, ours), before in zip(own.model.named_parameters(), first, strict=True):
        assert ours.dtype == torch.bfloat16
        assert torch.equal(ours, merged[name].to(torch.bfloat16))
        changed += not torch.equal(ours, before)
    assert changed > 5
    buffers = {n: b for n, b in own.model.named_buffers() if b.is_floating_point()}
    assert buffers  # rotary frequencies …
    assert all(b.dtype == torch.float32 for b in buffers.values())  # … are not rounded


def test_mixed_precision_decodes_with_the_copy_and_refreshes_it() -> None:
    model = make_algorithm("ppo", n_envs=8, seed=0, mixed_precision="bf16", learning_rate=1e-2, env_kwargs=SMALL)
    policy: Any = model.policy
    assert model.env.task.settings.mixed_precision == "bf16"  # type: ignore[union-attr]
    names = set(policy.state_dict())
    model.learn(8 * 8)
    assert set(policy.state_dict()) == names  # the copy is not saved
    obs, _ = policy.obs_to_tensor(model._last_obs)
    for _ in range(2):
        with torch.no_grad():
            decoded = policy.get_distribution(obs).distribution.logits
        assert policy._acting.decoder.lm is not policy.lm
        fresh = policy.get_distribution(obs).distribution.logits  # under autocast, from the float32 weights
        torch.testing.assert_close(decoded, fresh.detach(), rtol=0, atol=0.3)  # logits reach 20
        model.learn(8 * 8, reset_num_timesteps=False)
        obs, _ = policy.obs_to_tensor(model._last_obs)
