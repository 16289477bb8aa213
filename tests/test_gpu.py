"""The invariants on a GPU; skipped where there is none."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from stable_baselines3.common.logger import configure

from agents import TextMetricsCallback, make_algorithm
from agents.algorithms.table import ALGORITHMS
from agents.callbacks.reference_refresh import ReferenceRefresh
from agents.cli import write_reviews
from agents.iteration.rounds import iterate
from agents.iteration.settings import IterationSettings
from agents.supervised.preference.train import train_on_preferences
from agents.supervised.reward_model.train import train_reward_model
from agents.supervised.settings import PreferenceSettings, RewardSettings, SFTSettings
from agents.supervised.sft import fine_tune
from llm_env.lm import packed_attention, varlen_attention
from llm_env.lm.causal_lm import load_causal_lm
from llm_env.lm.decoding import CachedDecoder
from llm_env.lm.names import LoadSettings
from llm_env.lm.packed_attention import packed_states
from llm_env.lm.packing import pack
from llm_env.lm.replay import StepRunner, graph_capture
from tests.llm_env.lm.test_decoding import Slots, full_forward
from tests.llm_env.lm.test_packed_attention import SEQUENCES, STARTS
from tests.llm_env.lm.test_writer import rounds_of, writer_of
from tests.worlds import Echo

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and torch sees none"),
]
SMALL: dict[str, Any] = {"max_new_tokens": 8, "max_prompt_length": 12}


@pytest.mark.parametrize("chunks", [1, 9])
@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2"])
def test_cached_equals_full_forward(model_folder: Callable[..., str], family: str, chunks: int) -> None:
    lm = load_causal_lm(model_folder(family), LoadSettings("float32", "cuda"))
    decoder, slots = CachedDecoder(lm, 48), Slots(6, 48, seed=3, chunks=chunks)
    with torch.no_grad():
        for _ in range(30):
            got = lm.logits(decoder.hidden(slots.ids, slots.lengths))
            busy = (slots.lengths > 0).cuda()
            want = full_forward(lm, slots.ids, slots.lengths)
            torch.testing.assert_close(got[busy], want[busy], rtol=1e-3, atol=1e-3)
            slots.advance()
    assert decoder.use_cache


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2"])
def test_captured_steps_write_what_steps_write(
    model_folder: Callable[..., str], family: str, caplog: pytest.LogCaptureFixture
) -> None:
    lm = load_causal_lm(model_folder(family), LoadSettings("float32", "cuda"))
    captured, plain = writer_of(lm), writer_of(lm)
    plain.runner = StepRunner(None, family)
    for one, other in zip(rounds_of(captured), rounds_of(plain), strict=True):
        assert torch.equal(one.actions, other.actions)
        assert torch.equal(one.ended, other.ended)
    assert captured.runner.captures
    assert not caplog.records


def test_a_capture_that_fails_leaves_nothing_behind(caplog: pytest.LogCaptureFixture) -> None:
    state, runner = torch.zeros(2, device="cuda"), StepRunner(graph_capture(torch.device("cuda")), "a model")
    before = torch.cuda.current_stream()

    def step() -> None:
        state.add_(1)
        if float(state.sum()) < 0:  # asks the device
            state.zero_()

    for _ in range(3):
        runner("key", step, [state])
    assert state.tolist() == [3, 3]
    assert "decodes without a captured graph" in caplog.text
    assert torch.cuda.current_stream() == before
    torch.cuda.empty_cache()  # refused where the allocator takes the capture to be under way


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("lora_rank", [0, 4])
@pytest.mark.parametrize("world", [None, Echo])
def test_at_learning_rate_zero_the_ratio_is_one(precision: str, lora_rank: int, world: Any) -> None:
    env = {**SMALL, "world": world}
    model = make_algorithm(
        "ppo", n_envs=8, seed=0, learning_rate=0.0, mixed_precision=precision, lora_rank=lora_rank, env_kwargs=env
    )
    assert model.device.type == model.env.task.model.lm.device.type == "cuda"  # type: ignore[union-attr]
    model.set_logger(configure(None, []))
    model.learn(8 * 8 * 2)
    assert model.logger.name_to_value["train/approx_kl"] == pytest.approx(0, abs=1e-6 if precision == "no" else 2e-4)
    assert model.logger.name_to_value["train/clip_fraction"] == 0


@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom"])
def test_packed_states_are_those_of_single_sequences(model_folder: Callable[..., str], family: str) -> None:
    trunk = load_causal_lm(model_folder(family), LoadSettings("float32", "cuda")).trunk
    batch = pack(SEQUENCES, STARTS, "cuda")
    with torch.no_grad():
        alone = [trunk(input_ids=torch.tensor([SEQUENCES[i][:-1]]).cuda()).last_hidden_state[0] for i in batch.order]
        torch.testing.assert_close(packed_states(trunk, batch), torch.cat(alone), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("heads", [(8, 8, 64), (9, 3, 64), (16, 2, 128)])
def test_the_kernel_for_packed_sequences_agrees(heads: tuple[int, int, int]) -> None:
    """Where torch has it, `usable` finds it right on this device, outputs and gradients, and packed states go through it."""
    if varlen_attention.kernel() is None:
        pytest.skip("this torch has no kernel for sequences of different lengths, or an older one")
    n_heads, key_heads, size = heads
    query = torch.zeros(1, n_heads, 1, size, device="cuda", dtype=torch.bfloat16)
    assert varlen_attention.usable(query, query[:, :key_heads])


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_under_autocast_packed_sequences_go_through_the_kernel(
    model_folder: Callable[..., str], family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if varlen_attention.kernel() is None:
        pytest.skip("this torch has no kernel for sequences of different lengths, or an older one")
    trunk = load_causal_lm(model_folder(family), LoadSettings("float32", "cuda")).trunk
    batch = pack(SEQUENCES, STARTS, "cuda")
    through: list[torch.dtype] = []
    real = packed_attention.varlen_attention
    monkeypatch.setattr(
        packed_attention, "varlen_attention", lambda q, *rest: through.append(q.dtype) or real(q, *rest)
    )
    with torch.autocast("cuda", torch.bfloat16):
        got = packed_states(trunk, batch).float()
        calls = len(through)
        monkeypatch.setenv("LLM_ENV_FAST", "attention")
        want = packed_states(trunk, batch).float()
    assert calls >= trunk.config.num_hidden_layers
    assert (got - want).abs().max() <= 5e-2 * want.abs().max()


@pytest.mark.parametrize("name", ALGORITHMS)
def test_each_algorithm_trains(name: str) -> None:
    quick = {"dqn": {"gradient_steps": 2}, "qr_dqn": {"gradient_steps": 2}, "ars": {"n_delta": 1}}.get(name, {})
    env_kwargs = {**SMALL, **({"top_p": 0.9} if name == "maskable_ppo" else {})}
    model = make_algorithm(name, n_envs=8, seed=0, device="cuda", env_kwargs=env_kwargs, **quick)
    before = [p.clone() for p in model.policy.state_dict().values()]
    model.learn(8 * 8 * 2, log_interval=None)
    after = list(model.policy.state_dict().values())
    assert all(p.device.type == "cuda" for p in after)
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_a_real_shortage_is_worked_through_in_parts(caplog: pytest.LogCaptureFixture) -> None:
    policy = make_algorithm("ppo", n_envs=4, seed=0).policy
    batch = pack([[(7 * i + j) % 1000 + 3 for i in range(300)] for j in range(64)], [20] * 64, "cuda")

    def gradients() -> list[torch.Tensor]:
        policy.optimizer.zero_grad()
        values, log_probs, _ = policy.evaluate_actions(batch, batch.targets)  # type: ignore[arg-type]
        (log_probs.mean() + values.mean()).backward()
        return [p.grad.clone() for p in policy.parameters() if p.grad is not None]

    want = gradients()
    peak = torch.cuda.max_memory_allocated()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(0.6 * peak / total)
    try:
        got = gradients()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "does not fit in memory" in caplog.text
    for one, other in zip(want, got, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("estimator", ["k2", "exact"])
def test_the_kl_in_reward_and_loss_and_a_reference_that_follows(estimator: str, tmp_path: Path) -> None:
    texts = tmp_path / "texts.jsonl"
    texts.write_text('{"prompt": "How was it?", "response": "Good."}\n')
    model = make_algorithm(
        "ppo", n_envs=8, seed=0, env_kwargs={**SMALL, "kl_estimator": estimator}, kl_in="both", ptx_texts=str(texts)
    )
    model.learn(8 * 8 * 3, callback=[TextMetricsCallback(), ReferenceRefresh(1, 0.5)], log_interval=None)
    task = model.env.task  # type: ignore[union-attr]
    assert task.own_reference().device.type == "cuda"
    assert task.reference.version == 2
    assert all(torch.isfinite(p).all() for p in model.policy.parameters())


def test_the_supervised_stages(tmp_path: Path) -> None:
    folder = tmp_path / "text"
    write_reviews.run(write_reviews.Args(folder, reviews=100, heldout_reviews=20))
    quick = {"evaluations": 1, "epochs": 0.3}
    sft = SFTSettings(output_dir=tmp_path / "sft", texts=str(folder / "reviews.jsonl"), n_samples=1, **quick)
    assert fine_tune(sft)["perplexity"] < 10
    pairs = [
        {"prompt": f"How was it {i}?", "chosen": " The room was great.", "rejected": " The room was awful."}
        for i in range(40)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(p) + "\n" for p in pairs))
    settings = RewardSettings(
        output_dir=tmp_path / "rm",
        model=str(tmp_path / "sft" / "actor"),
        preferences=str(tmp_path / "pairs.jsonl"),
        **quick,
    )
    report = train_reward_model(settings)
    assert report["pairs"] == 4


@pytest.mark.parametrize("loss", ["dpo", "tdpo2", "ipo", "kto", "orpo", "simpo"])
@pytest.mark.parametrize("extra", [{}, {"lora_rank": 4, "mixed_precision": "bf16"}], ids=["all", "lora-bf16"])
def test_preference_optimization(loss: str, extra: dict[str, Any], tmp_path: Path) -> None:
    pairs = [
        {"prompt": f"How was it {i}?", "chosen": " The room was great.", "rejected": " The room was awful, very awful."}
        for i in range(40)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(p) + "\n" for p in pairs))
    settings = PreferenceSettings(
        output_dir=tmp_path / "out", preferences=str(tmp_path / "pairs.jsonl"), loss=loss, evaluations=1, **extra
    )
    assert all(math.isfinite(e["loss"]) for e in train_on_preferences(settings)["log"] if "loss" in e)
    assert (tmp_path / "out" / "actor" / "model.safetensors").is_file()


def test_rounds(tmp_path: Path) -> None:
    settings = IterationSettings(output_dir=tmp_path / "out", rounds=2, prompts_per_round=24, n_eval=16)
    assert [e["round"] for e in iterate(settings)] == [0, 1, 2]
