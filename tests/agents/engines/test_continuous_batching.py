"""transformers' continuous batching as an engine, on the embedded default model."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from agents.engines.continuous_batching import TransformersEngine
from agents.engines.engine import EngineError
from llm_env.default_task import DEFAULT_MODEL
from llm_env.lm.causal_lm import CausalLM, load_causal_lm
from llm_env.lm.generate import continue_prompts
from llm_env.lm.names import LoadSettings
from llm_env.text.prompts import Prompt
from tests.agents.engines.stand_in import assert_near
from tests.agents.engines.test_ahead import made, rollouts

END = [2]


@pytest.fixture(scope="module")
def lm() -> CausalLM:
    return load_causal_lm(DEFAULT_MODEL, LoadSettings("float32", "cpu"))


def prompts(lm: CausalLM, n: int = 9) -> list[list[int]]:
    """Prompts of different lengths, one of which is longer than what is read at once of all the others."""
    rng = np.random.default_rng(0)
    return [rng.integers(3, lm.vocab_size, size=3 + 5 * i).tolist() for i in range(n)]


def test_greedy_turns_are_those_of_our_own_loop(lm: CausalLM) -> None:
    texts = prompts(lm)
    turns = TransformersEngine(lm, 64, 9).generate(texts, [7] * 9, END, 0.0, 0)
    own = continue_prompts(lm, [Prompt("", tuple(t)) for t in texts], frozenset(END), 7, seed=0, greedy=True)
    assert [turn.tokens for turn in turns] == own
    lengths = [len(turn.tokens) for turn in turns]
    assert max(lengths) == 7
    assert min(lengths) < 7, "one has ended by itself"


def test_room_is_each_texts_own(lm: CausalLM) -> None:
    turns = TransformersEngine(lm, 64, 4).generate(prompts(lm, 4), [1, 7, 3, 12], [], 1.0, 0)
    assert [len(turn.tokens) for turn in turns] == [1, 7, 3, 12]


def test_seeds_and_the_generator_outside(lm: CausalLM) -> None:
    engine, texts = TransformersEngine(lm, 64, 9), prompts(lm)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    one, again, other = (engine.generate(texts, [12] * 9, END, 1.0, seed) for seed in (1, 1, 2))
    assert one == again
    assert one != other
    assert torch.equal(torch.get_rng_state(), state)
    assert lm.model.config._attn_implementation == "sdpa"
    assert not hasattr(lm.model, "_cached_continuous_batching_manager")


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_its_log_probs_are_those_of_its_tokens_at_the_temperature(lm: CausalLM, temperature: float) -> None:
    texts = prompts(lm)
    for text, turn in zip(
        texts, TransformersEngine(lm, 64, 9).generate(texts, [12] * 9, END, temperature, 0), strict=True
    ):
        ids = torch.tensor([text + turn.tokens])
        with torch.no_grad():
            logits = lm.model(ids).logits[0, len(text) - 1 : -1].float() / temperature
        expected = torch.log_softmax(logits, -1).gather(1, torch.tensor(turn.tokens)[:, None])[:, 0]
        assert turn.log_probs is not None
        torch.testing.assert_close(torch.tensor(turn.log_probs), expected, atol=1e-4, rtol=0)


def test_tokens_are_drawn_as_often_as_the_model_says(lm: CausalLM) -> None:
    """The folder's own generation settings, such as a top-k, have no say."""
    text = prompts(lm, 2)[1]
    lm.model.generation_config.top_k = 1
    try:
        turns = TransformersEngine(lm, 64, 800).generate([text] * 800, [1] * 800, END, 1.0, 0)
    finally:
        lm.model.generation_config.top_k = None
    with torch.no_grad():
        likely = lm.model(torch.tensor([text])).logits[0, -1].softmax(-1)
    drawn = np.bincount([turn.tokens[0] for turn in turns], minlength=lm.vocab_size) / 800
    worst = np.abs(drawn - likely.numpy()) / np.sqrt(likely.numpy() * (1 - likely.numpy()) / 800 + 1e-9)
    assert worst[likely.numpy() > 0.005].max() < 4.5


@pytest.mark.parametrize(
    "settings",
    [
        {"mixed_precision": "bf16", "critic": "head"},
        {"lora_rank": 4},
        pytest.param({}, marks=pytest.mark.slow),
        pytest.param({"use_cache": False}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_training_through_it(settings: dict[str, Any]) -> None:
    """Invariant 1, on the weights as they are after an update, which it must have too."""
    model = made(engine="transformers", **settings)
    rollouts(model, 2)
    assert_near(model.policy.engine_metrics(), half="mixed_precision" in settings)
    for group in model.policy.optimizer.param_groups:
        group["lr"] = 0.0
    model.lr_schedule = lambda _: 0.0
    rollouts(model, 1)
    assert model.logger.name_to_value["train/approx_kl"] == pytest.approx(0, abs=1e-9)
    assert model.logger.name_to_value["train/clip_fraction"] == 0


def test_two_runs_with_one_seed_are_identical() -> None:
    one, other = (rollouts(made(engine="transformers", n_envs=16), 1) for _ in range(2))
    np.testing.assert_array_equal(one.actions, other.actions)
    np.testing.assert_array_equal(one.returns, other.returns)


def test_what_goes_wrong_inside_is_said(lm: CausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(lm.model, "forward", fails)
    with pytest.raises(EngineError, match=r"engine='transformers': .*no such kernel"):
        TransformersEngine(lm, 64, 2).generate(prompts(lm, 2), [5, 5], END, 1.0, 0)


def test_a_manager_that_ends_early_is_no_endless_wait() -> None:
    from agents.engines.continuous_batching import _results

    gone = SimpleNamespace(get_result=lambda timeout: None, is_running=lambda: False)
    with pytest.raises(EngineError, match="ended early"):
        _results(gone, 1)
