"""The KL penalty: each estimator in the reward, in the loss, and in both."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from stable_baselines3.common.evaluation import evaluate_policy

from agents import TextMetricsCallback, make_algorithm
from agents.algorithms.text_ppo import TextPPO
from agents.rollouts.vec_env import LLMTextVecEnv, text_env
from llm_env.default_task import DEFAULT_MODEL
from llm_env.lm.causal_lm import load_causal_lm
from llm_env.lm.log_probs import head_kl
from llm_env.lm.names import LoadSettings
from llm_env.lm.packed_attention import packed_states
from llm_env.lm.registry import shared_causal_lm
from llm_env.lm.sampling import pack_bits
from llm_env.settings import TaskSettings
from tests.agents.small_runs import SMALL, filled, made


def test_the_exact_kl_is_that_of_the_whole_distributions() -> None:
    model = filled()
    policy, reference = model.policy, text_env(model.env).task.reference
    batch = next(model.rollout_buffer.get(None)).observations
    with torch.no_grad():
        hidden = policy._packed_hidden(batch)
        log_pi = torch.log_softmax(policy.lm.logits(hidden).float(), -1)
        with reference.frozen() as lm:
            log_ref = torch.log_softmax(lm.logits(packed_states(lm.trunk, batch)[batch.index]).float(), -1)
    want = (log_pi.exp() * (log_pi - log_ref)).sum(-1)
    segments = model.rollout_buffer.segments
    flat = policy.exact_kl(reference, [s.context + s.actions for s in segments], [len(s.context) for s in segments])
    assert want.mean() > 0.01
    assert np.sort(flat) == pytest.approx(np.sort(want.numpy()), abs=1e-5)


def test_the_exact_kl_is_the_mean_of_k1_over_tokens_and_has_its_gradient() -> None:
    lm = load_causal_lm(DEFAULT_MODEL, LoadSettings("float32", "cpu"))
    ref = shared_causal_lm(DEFAULT_MODEL, LoadSettings("float32", "cpu")).lm
    states = torch.randn(3, 128, generator=torch.Generator().manual_seed(0), requires_grad=True)
    others = states.detach() + 0.3
    kl = head_kl(lm, states, ref, others, 0.7)
    pi = torch.softmax(lm.logits(states) / 0.7, -1).detach()
    k1 = torch.log_softmax(lm.logits(states) / 0.7, -1) - torch.log_softmax(ref.logits(others) / 0.7, -1)
    torch.testing.assert_close(kl, (pi * k1).sum(-1), atol=1e-5, rtol=1e-5)
    # the gradient of E[k1] is E[k1 ∇ log π]
    (want,) = torch.autograd.grad((pi * k1.detach() * torch.log_softmax(lm.logits(states) / 0.7, -1)).sum(), states)
    (got,) = torch.autograd.grad(head_kl(lm, states, ref, others, 0.7).sum(), states)
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-3)


def test_the_exact_kl_under_masks_and_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = load_causal_lm(DEFAULT_MODEL, LoadSettings("float32", "cpu"))
    states = torch.randn(5, 128, generator=torch.Generator().manual_seed(0))
    allowed = np.zeros((5, lm.vocab_size), bool)
    allowed[:, 3:9] = True
    bits = torch.from_numpy(pack_bits(allowed))
    got = head_kl(lm, states, lm, states, 1.0, bits)
    share = torch.softmax(lm.logits(states), -1)[:, 3:9].sum(-1)
    torch.testing.assert_close(got, -share.log(), atol=1e-4, rtol=1e-4)  # the cost of leaving the rest out
    monkeypatch.setattr("llm_env.lm.log_probs.HEAD_CHUNK_ELEMENTS", 8 * lm.vocab_size)
    torch.testing.assert_close(head_kl(lm, states, lm, states, 1.0, bits), got)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3", "exact"])
def test_rewards_have_the_estimator_asked_for(estimator: str) -> None:
    model = filled({"kl_estimator": estimator, "kl_coef": 0.5})
    exact = model.policy.exact_kl
    for segment in model.rollout_buffer.segments:
        episode = segment.episode
        ratio = np.array(episode.log_probs) - np.array(episode.ref_log_probs)
        want = {
            "k1": ratio,
            "k2": ratio**2 / 2,
            "k3": np.exp(-ratio) - 1 + ratio,
            "exact": exact(text_env(model.env).task.reference, [episode.ids], [len(episode.prompt.ids)]),
        }[estimator]
        paid = np.array(segment.rewards)
        paid[-1] -= episode.final_score
        assert paid == pytest.approx(-0.5 * want, abs=1e-4)
        assert episode.info["episode"]["r"] == pytest.approx(sum(segment.rewards), abs=1e-4)


def test_exact_needs_deferred_scoring_and_says_so() -> None:
    import gymnasium

    with pytest.raises(ValueError, match="goes with LLMTextVecEnv"):
        gymnasium.make("llm_env:LLMText-v0", kl_estimator="exact")
    with pytest.raises(ValueError, match="dqn's backup is made for k1"):
        make_algorithm("dqn", n_envs=4, env_kwargs={**SMALL, "kl_estimator": "k3"})
    with pytest.raises(ValueError, match="kl_estimator='k4' is not known"):
        TaskSettings(kl_estimator="k4")


def test_under_the_exact_kl_an_evaluation_of_the_training_environment_is_told_what_to_do() -> None:
    model = filled({"kl_estimator": "exact"})
    with pytest.raises(ValueError, match="an environment with kl_estimator='k1', whose returns are the same"):
        evaluate_policy(model, model.env, n_eval_episodes=8, warn=False)
    model.learn(8 * 6)  # goes on from fresh responses
    assert math.isfinite(model.ep_info_buffer[-1]["r"])


@pytest.mark.parametrize("estimator", ["k2", "k3", "exact"])
def test_the_kl_in_the_loss_adds_its_gradient_to_ppos(estimator: str) -> None:
    """The gradient of the loss is that of PPO's and β times the KL term's."""
    model = filled({"kl_estimator": estimator, "kl_coef": 0.5}, kl_in="loss", vf_coef=0.0, normalize_advantage=False)
    policy, task = model.policy, text_env(model.env).task
    data = next(model.rollout_buffer.get(None))

    def gradient(loss: torch.Tensor) -> list[torch.Tensor]:
        policy.zero_grad()
        loss.backward()
        return [p.grad.clone() for p in policy.actor.parameters()]

    together = gradient(model._loss(data, 0.2, 0.2, None)[0])
    log_prob = policy.evaluate_actions(data.observations, data.actions)[1]
    ppo = gradient(-(data.advantages * (log_prob - data.old_log_prob).exp()).mean())
    if estimator == "exact":
        penalty = policy.evaluate_actions_and_kl(data.observations, task.reference)[3]
    else:  # by hand
        log_ratio = policy.evaluate_actions(data.observations, data.actions)[1] - data.ref_log_prob
        penalty = log_ratio**2 / 2 if estimator == "k2" else (-log_ratio).exp() - 1 + log_ratio
    kl = gradient(0.5 * penalty.mean())
    assert max(g.abs().max() for g in kl) > 1e-3
    for total, one, other in zip(together, ppo, kl, strict=True):
        torch.testing.assert_close(total, one + other, atol=2e-5, rtol=1e-3)


def test_with_the_kl_in_the_loss_the_rewards_have_none() -> None:
    for place, share in (("loss", 0.0), ("reward", 1.0), ("both", 1.0)):
        model = filled({"kl_coef": 0.5, "kl_estimator": "k2"}, kl_in=place)
        segment = max(model.rollout_buffer.segments, key=lambda s: len(s.actions))
        ratio = np.array(segment.log_probs) - np.array(segment.episode.ref_log_probs)
        assert segment.rewards[0] == pytest.approx(-0.5 * share * ratio[0] ** 2 / 2, abs=1e-5)
        assert (next(model.rollout_buffer.get(None)).ref_log_prob is None) == (place == "reward")


def test_k1_in_the_loss_is_warned_of_and_is_not_the_default_there() -> None:
    with pytest.warns(UserWarning, match="gradient of 0 in expectation"):
        made({"kl_estimator": "k1"}, kl_in="loss")
    assert made(kl_in="loss").rollout_buffer.task.kl.estimator == "k3"


def test_the_environment_may_say_where_the_kl_is() -> None:
    venv = LLMTextVecEnv(4, episodes="synchronous", scoring="deferred", kl_in="loss", kl_coef=0.3, **SMALL)
    model = make_algorithm("ppo", env=venv)
    assert type(model) is TextPPO
    with pytest.raises(ValueError, match="kl_in='both', but the environment's is 'loss'"):
        make_algorithm("ppo", env=venv, kl_in="both")
    with pytest.raises(ValueError, match="kl_in='loss': trpo's loss has no KL term"):
        make_algorithm("trpo", env=venv)


def test_the_kl_in_the_loss_holds_the_policy_back() -> None:
    kl = {}
    for place in ("loss", "reward"):
        metrics = TextMetricsCallback()
        settings = {"kl_estimator": "k2", "kl_coef": 3.0 if place == "loss" else 0.0}
        made(settings, kl_in=place, learning_rate=1e-3).learn(8 * 6 * 10, callback=metrics, log_interval=None)
        kl[place] = metrics.last["rollout/kl"]
    assert kl["loss"] < 0.5 * kl["reward"]
