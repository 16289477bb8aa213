from __future__ import annotations

from typing import Any

import pytest
import torch

from agents import make_algorithm

SMALL: dict[str, Any] = {"max_new_tokens": 6, "max_prompt_length": 12}


@pytest.mark.parametrize(("searched", "count"), [("last_norm", 128), ("norms", 128 * 9)])
def test_only_the_gains_are_searched(searched: str, count: int) -> None:
    model: Any = make_algorithm("ars", n_envs=4, seed=0, env_kwargs=SMALL, searched=searched, n_delta=1)
    policy = model.policy
    assert sum(p.numel() for p in policy.parameters()) == count == model.n_params
    before = {n: p.clone() for n, p in policy.actor.named_parameters()}
    model.learn(1, log_interval=None)
    moved = {n for n, p in policy.actor.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {n.removeprefix("actor.") for n in policy._searched}
    assert all("norm" in n for n in moved)


def test_it_starts_from_the_actor_and_is_paid_as_a_greedy_agent() -> None:
    model: Any = make_algorithm("ars", n_envs=4, seed=0, env_kwargs=SMALL, n_delta=1, delta_std=1e-9)
    model.learn(1, log_interval=None)
    infos = model.env.ended
    assert len(infos) >= 8
    for info in infos:  # log π = 0: its KL is -log π_ref of what it wrote
        assert info["kl"] == pytest.approx(-info["ref_log_prob"])
        assert info["episode"]["r"] == pytest.approx(info["rm_score"] + 0.05 * info["ref_log_prob"], abs=1e-4)


def test_candidates_are_not_decoded_with_each_others_cache() -> None:
    model: Any = make_algorithm("ars", n_envs=2, seed=0, env_kwargs=SMALL)
    policy = model.policy
    obs = {k: torch.as_tensor(v) for k, v in model.env.reset().items()}
    with torch.no_grad():
        policy._decoder.hidden(obs["input_ids"], obs["length"].flatten())
        weights = torch.full((model.n_params,), 0.1)
        policy.load_from_vector(weights.numpy())
        got = policy._decoder.hidden(obs["input_ids"], obs["length"].flatten())
        n = int(obs["length"][0])
        want = policy.lm.hidden(obs["input_ids"][:1, :n]).last_hidden_state[0, -1]
    torch.testing.assert_close(got[0], want, rtol=1e-4, atol=1e-4)


def test_unknown_weights() -> None:
    with pytest.raises(ValueError, match="searched='all' is not known; use one of last_norm, norms"):
        make_algorithm("ars", n_envs=2, env_kwargs=SMALL, searched="all")
