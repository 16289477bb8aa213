from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from llm_env.reward.formula import overlong_share, own_kl, token_rewards
from llm_env.reward.kl import kl_k1, kl_k2, kl_k3
from llm_env.rollout import respond
from llm_env.settings import TaskSettings
from llm_env.task import TextTask


def test_token_rewards_by_hand() -> None:
    # two tokens, beta 0.5, score 3: r_1 = -0.5 (-1 + 2) = -0.5; r_2 = -0.5 (-0.2 + 0.6) + 3 = 2.8
    assert_allclose(token_rewards([-2.0, -0.6], 3.0, 0.5, [-1.0, -0.2]), [-0.5, 2.8])
    # the environment's part alone: -0.5 * 2 and -0.5 * 0.6 + 3
    assert_allclose(token_rewards([-2.0, -0.6], 3.0, 0.5), [-1.0, 2.7])


def test_token_rewards_of_an_unfinished_response_have_no_score() -> None:
    assert_allclose(token_rewards([-2.0, -0.6], None, 0.5, [-2.0, -0.6]), [0.0, 0.0])


@pytest.mark.parametrize("seed", range(3))
def test_kl_estimators_agree_with_the_exact_kl(seed: int) -> None:
    rng = np.random.default_rng(seed)
    p, q = rng.dirichlet(np.ones(6)), rng.dirichlet(np.ones(6))
    exact = float((p * np.log(p / q)).sum())
    # expectations under p, taken exactly
    for estimator, expected in ((kl_k1, exact), (kl_k3, exact)):
        assert math.isclose(float((p * estimator(np.log(p), np.log(q))).sum()), expected, rel_tol=1e-9)
    assert float((p * kl_k2(np.log(p), np.log(q))).sum()) == pytest.approx(float((p * np.log(p / q) ** 2).sum()) / 2)
    assert (kl_k3(np.log(p), np.log(q)) >= 0).all()
    assert (kl_k2(np.log(p), np.log(q)) >= 0).all()


def test_overlong_share_by_hand() -> None:
    # cap 10, buffer 4: nothing up to 6 tokens, then a quarter a token
    assert [overlong_share(n, 10, 4) for n in (1, 6, 7, 9, 10)] == [0.0, 0.0, 0.25, 0.75, 1.0]
    assert [overlong_share(n, 10, 0) for n in (9, 10)] == [0.0, 1.0]


def test_a_long_response_is_paid_less_and_its_score_is_reported_whole() -> None:
    task = TextTask(TaskSettings(max_new_tokens=8, overlong_buffer=4, overlong_penalty=2.0))
    with task.model.frozen() as lm:
        episodes = respond(lm, task, task.prompts.spread(24), 0)
    lengths = {len(e.response_ids) for e in episodes}
    assert max(lengths) == 8
    assert min(lengths) < 8
    for episode in episodes:
        assert episode.rm_score is not None
        assert episode.final_score == pytest.approx(
            episode.rm_score - 2.0 * overlong_share(len(episode.response_ids), 8, 4)
        )
    with pytest.raises(ValueError, match="overlong_buffer=9 must be at most max_new_tokens=8"):
        TaskSettings(max_new_tokens=8, overlong_buffer=9)


@pytest.mark.parametrize(("estimator", "right"), [("k1", True), ("exact", True), ("k3", True), ("k2", False)])
def test_rewards_and_a_tokens_own_share_have_the_gradient_of_the_kl(estimator: str, right: bool) -> None:
    """All texts of three letters and three tokens, each with its probability: nothing is sampled."""
    letters, length = 3, 3
    generator = torch.Generator().manual_seed(0)
    n_states = sum(letters**t for t in range(length))
    logits = torch.randn(n_states, letters, generator=generator, dtype=torch.float64).requires_grad_()
    log_pi = logits.log_softmax(-1)
    log_ref = torch.randn(n_states, letters, generator=generator, dtype=torch.float64).log_softmax(-1)
    of_state = (log_pi.exp() * (log_pi - log_ref)).sum(-1)
    state_of = {text: i for i, text in enumerate(t for n in range(length) for t in product(range(letters), repeat=n))}
    coef = 0.3
    kl, surrogate = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for text in product(range(letters), repeat=length):
        states = [state_of[text[:t]] for t in range(length)]
        chosen, reference = log_pi[states, text], log_ref[states, text]
        probability = chosen.sum().exp()
        kl = kl + probability * (chosen - reference).sum()
        numbers = [x.detach().numpy() for x in (chosen, reference, of_state[states])]
        rewards = token_rewards(numbers[1], None, coef, numbers[0], estimator, numbers[2])
        own = own_kl(numbers[1], coef, numbers[0], estimator, numbers[2])
        advantages = np.cumsum(rewards[::-1])[::-1] + own
        surrogate = surrogate + probability.detach() * (chosen * torch.from_numpy(advantages.copy())).sum()
    (want,) = torch.autograd.grad(-coef * kl, logits, retain_graph=True)
    (got,) = torch.autograd.grad(surrogate, logits)
    assert torch.allclose(got, want, atol=1e-12) is right
    # Without the own share it is the gradient for k1 alone.
    assert (not own.any()) is (estimator == "k1")
