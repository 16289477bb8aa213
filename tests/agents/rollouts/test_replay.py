from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest

from agents.rollouts.replay import Response, TokenReplayBuffer
from agents.rollouts.vec_env import LLMTextVecEnv

SMALL: dict[str, Any] = {"max_new_tokens": 6, "max_prompt_length": 12}


@pytest.fixture(scope="module")
def venv() -> LLMTextVecEnv:
    return LLMTextVecEnv(3, **SMALL)


def filled(venv: LLMTextVecEnv, steps: int = 40, **settings: Any) -> TokenReplayBuffer:
    buffer = TokenReplayBuffer(1000, venv.observation_space, venv.action_space, "cpu", n_envs=3, **settings)
    rng = np.random.default_rng(0)
    venv.seed(0)
    obs = venv.reset()
    for _ in range(steps):
        actions = np.where(rng.random(3) < 0.2, 2, rng.integers(3, 1000, 3))
        after, rewards, dones, infos = venv.step(actions)
        buffer.add(obs, after, actions, rewards, dones, infos)
        obs = after
    return buffer


@pytest.mark.parametrize(("n_steps", "gamma", "entropy"), [(1, 1.0, 0.0), (3, 0.9, 0.0), (3, 1.0, 0.5), (99, 0.8, 0.2)])
def test_n_step_returns_against_a_slow_loop(venv: LLMTextVecEnv, n_steps: int, gamma: float, entropy: float) -> None:
    buffer = TokenReplayBuffer(
        100, venv.observation_space, venv.action_space, "cpu", 3, n_steps=n_steps, gamma=gamma, entropy_coef=entropy
    )
    rng = np.random.default_rng(1)
    response = Response(np.array([1, 2]), [3] * 7, rng.normal(size=7).tolist(), rng.normal(size=7).tolist())
    returns, steps, ended = buffer._returns(response, 2)
    for i, t in enumerate(range(2, 7)):
        want, k = 0.0, 0
        while k < n_steps and t + k < 7:
            want += gamma**k * (response.rewards[t + k] - (entropy * response.log_probs[t + k] if k else 0.0))
            k += 1
        assert returns[i] == pytest.approx(want)
        assert steps[i] == k
        assert ended[i] == (t + k == 7)


def test_samples_are_the_transitions_that_happened(venv: LLMTextVecEnv) -> None:
    buffer = filled(venv, n_steps=2)
    np.random.seed(0)
    data = buffer.sample(50)
    packed, after = data.observations, data.next_observations
    assert data.actions.shape == data.rewards.shape == data.dones.shape == (50, 1)
    ends = np.cumsum(packed.lengths)

    def prefix(place: int) -> tuple[int, ...]:
        """The text up to a place, of the sequence that it lies in."""
        sequence = int(np.searchsorted(ends, place, side="right"))
        start = 0 if sequence == 0 else int(ends[sequence - 1])
        return tuple(packed.input_ids[start : place + 1].tolist())

    known = {}
    for response in buffer.responses:
        for t in range(len(response.tokens)):
            state = (*response.prompt.tolist(), *response.tokens[:t])
            last = t + 2 >= len(response.tokens)
            then = None if last else (*response.prompt.tolist(), *response.tokens[: t + 2])
            known[(state, response.tokens[t])] = (sum(response.rewards[t : t + 2]), last, then)
    for i in range(50):
        state = prefix(int(packed.index[i]))
        reward, last, then = known[(state, int(data.actions[i]))]
        assert data.rewards[i].item() == pytest.approx(reward, abs=1e-5)
        assert bool(data.dones[i]) == last
        if not last:
            assert prefix(int(after.index[i])) == then


def test_a_transition_costs_a_token_not_two_contexts(venv: LLMTextVecEnv) -> None:
    buffer = filled(venv, steps=200)
    held = sum(sys.getsizeof(x) for r in buffer.responses for x in (r.prompt, r.tokens, r.rewards, r.log_probs))
    plain = buffer.size() * 2 * 19 * 8  # SB3's: both observations, 18 ids and a length
    assert held < 0.6 * plain
    assert not any(isinstance(v, np.ndarray) and v.size > 1000 for v in vars(buffer).values())


def test_old_responses_make_room(venv: LLMTextVecEnv) -> None:
    buffer = filled(venv, steps=10)
    buffer.buffer_size = 20
    first = buffer.responses[0]
    filled_again = filled(venv, steps=30)
    for response in filled_again.responses:
        buffer.responses.append(response)
        buffer.n_tokens += len(response.tokens)
    obs = venv.reset()
    after, rewards, dones, infos = venv.step(np.full(3, 2))
    buffer.add(obs, after, np.full(3, 2), rewards, dones, infos)
    assert buffer.size() == sum(len(r.tokens) for r in buffer.responses) <= 20
    assert first not in buffer.responses


def test_nothing_finished_is_an_error_that_says_what_to_do(venv: LLMTextVecEnv) -> None:
    buffer = TokenReplayBuffer(100, venv.observation_space, venv.action_space, "cpu", 3)
    with pytest.raises(RuntimeError, match="train_freq must be at least max_new_tokens"):
        buffer.sample(4)
    with pytest.raises(ValueError, match="n_steps=0 must be a whole number, at least 1"):
        TokenReplayBuffer(100, venv.observation_space, venv.action_space, "cpu", 3, n_steps=0)


def test_its_state_goes_through_tensors(venv: LLMTextVecEnv) -> None:
    buffer = filled(venv)
    other = TokenReplayBuffer(1000, venv.observation_space, venv.action_space, "cpu", 3)
    other.load_state_tensors(buffer.state_tensors())
    assert other.n_tokens == buffer.n_tokens
    for a, b in zip([*buffer.responses, *buffer.open], [*other.responses, *other.open], strict=True):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            assert a.prompt.tolist() == b.prompt.tolist()
            assert (a.tokens, a.rewards, a.log_probs) == (b.tokens, b.rewards, b.log_probs)
