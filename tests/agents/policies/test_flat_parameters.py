"""One vector for all of a model's weights: the same gradients as one by one."""

from __future__ import annotations

import copy
from typing import Any

import torch
from stable_baselines3.common.distributions import kl_divergence

from agents import make_algorithm
from agents.policies.flat_parameters import FlatParameters
from llm_env.lm.packing import pack

SMALL: dict[str, Any] = {"max_new_tokens": 6, "max_prompt_length": 12}


def test_first_and_second_derivatives_equal_those_of_each_parameter() -> None:
    policy: Any = make_algorithm("trpo", n_envs=2, env_kwargs=SMALL, seed=0).policy
    batch = pack([[5, 6, 7, 8, 9], [10, 11, 12]], [2, 1], "cpu")
    actor = list(policy.actor.parameters())

    def derivatives(parameters: list[torch.nn.Parameter]) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            shifted = copy.copy(policy.get_distribution(batch))
            shifted.distribution = torch.distributions.Categorical(logits=shifted.distribution.logits * 0.9)
        distribution = policy.get_distribution(batch)
        kl = kl_divergence(distribution, shifted).mean()
        first = torch.autograd.grad(kl, parameters, create_graph=True)
        flat = torch.cat([g.reshape(-1) for g in first])
        torch.manual_seed(1)
        second = torch.autograd.grad((flat * torch.randn_like(flat)).sum(), parameters)
        return flat.detach(), torch.cat([g.reshape(-1) for g in second])

    policy._derivable = lambda function: function()  # the weights themselves
    one_by_one = derivatives(actor)
    del policy._derivable
    names = [name for name, _ in policy.named_parameters()]
    assert names[0] == "actor"
    assert all(name.startswith("value.") for name in names[1:])
    as_vector = derivatives([policy._flat.vector])
    for want, got in zip(one_by_one, as_vector, strict=True):
        assert want.abs().max() > 1e-6
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-6 * float(want.abs().max()) + 1e-7)


def test_push_and_pull() -> None:
    layer = torch.nn.Linear(2, 1)
    flat = FlatParameters(layer)
    x = torch.ones(1, 2)
    before = layer(x)
    torch.testing.assert_close(flat.call(lambda: layer(x)), before)
    flat.vector.data = flat.vector.data + 1.0
    torch.testing.assert_close(flat.call(lambda: layer(x)), before + 3.0)
    torch.testing.assert_close(layer(x), before)  # not yet
    flat.push()
    torch.testing.assert_close(layer(x), before + 3.0)
    flat.release()
    with torch.no_grad():
        layer.bias.add_(5.0)
    torch.testing.assert_close(flat.call(lambda: layer(x)), before + 8.0)  # pulled afresh
