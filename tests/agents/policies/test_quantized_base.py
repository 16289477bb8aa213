"""QLoRA: adapters on a base in 4 bits, which stays as it is, and from which tokens, updates and saved actors follow."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3.common.logger import Logger
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from agents import make_algorithm
from agents.algorithms.capabilities import check_shards
from agents.callbacks.reference_refresh import ReferenceRefresh
from agents.policies.decoding_copy import DecodingCopy
from agents.runs.checkpoint import list_checkpoints, load_checkpoint, save_checkpoint
from agents.runs.checkpoint_actor import load_checkpoint_actor
from agents.runs.saved_zip import load_algorithm
from agents.runs.settings import AlgorithmSettings, RunSettings, TaskOptions, TrainingSettings
from llm_env.extras import installed
from llm_env.lm.names import LoadSettings
from llm_env.lm.quantization import nf4_layers, scales_of
from llm_env.lm.registry import MODELS
from tests.conftest import count_dots
from tests.llm_env.lm.test_quantization import llama

pytestmark = pytest.mark.skipif(
    not (installed("bitsandbytes") and installed("peft")), reason="bitsandbytes or PEFT is not installed"
)
SLOTS, CAP = 8, 6
ROLLOUT = SLOTS * CAP


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return llama(tmp_path_factory.mktemp("base"))


@pytest.fixture(autouse=True)
def own_models() -> Iterator[None]:
    """A model with adapters of an earlier test's policy would not take others."""
    with MODELS.apart():
        yield


def task(base: str, **changed: Any) -> dict[str, Any]:
    prompts = ["How are you?", "One", "The sea"]
    sizes = {"max_new_tokens": CAP, "max_prompt_length": 12, "device": "cpu"}
    return {"model": base, "prompts": prompts, "reward_model": count_dots, **sizes, **changed}


def algorithm(base: str, name: str = "ppo", env_kwargs: dict[str, Any] | None = None, **settings: Any) -> Any:
    chosen = {"lora_rank": 4, "base_quantization": "nf4", "critic": "detached_head", "learning_rate": 1e-2, **settings}
    chosen |= {"n_epochs": 1} if name == "ppo" else {}
    model: Any = make_algorithm(
        name, n_envs=SLOTS, seed=0, device="cpu", env_kwargs=task(base, **(env_kwargs or {})), **chosen
    )
    model.set_logger(Logger(None, []))
    return model


def logged(model: Any) -> dict[str, float]:
    return {name: float(value) for name, value in model.logger.name_to_value.items() if np.isscalar(value)}


def frozen(model: Any) -> list[torch.Tensor]:
    lm = model.policy.lm.model
    return [t.clone() for t in (*(p for p in lm.parameters() if not p.requires_grad), *scales_of(lm))]


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    found: torch.Tensor = model(input_ids=torch.arange(5, 25)[None]).logits
    return found


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"mixed_precision": "bf16"},
        {"engine": "transformers"},
        *(
            pytest.param(s, marks=pytest.mark.slow)
            for s in (
                {"critic": "actor"},
                {"critic": "top_layers"},
                {"gradient_checkpointing": True},
                {"planned": False},
            )
        ),
    ],
    ids=str,
)
def test_at_learning_rate_0_an_update_finds_the_ratio_1(base: str, settings: dict[str, Any]) -> None:
    model = algorithm(base, learning_rate=0.0, **settings)
    assert model.policy.lm is model.env.task.model.lm  # one model, the reference's with the adapters off
    model.learn(2 * ROLLOUT)
    found = logged(model)
    assert found["train/approx_kl"] == pytest.approx(0.0, abs=1e-6)
    assert found["train/clip_fraction"] == 0.0
    assert model.policy._acting.decoder.lm is model.policy.lm  # no copy, in mixed precision either
    for segment in model.rollout_buffer.segments:  # adapters begin as nothing, so the reference says the same
        np.testing.assert_allclose(segment.episode.ref_log_probs, segment.log_probs, rtol=0, atol=1e-5)


def test_a_rollouts_log_probs_are_those_of_a_plain_forward_pass_of_the_saved_actor(base: str, tmp_path: Path) -> None:
    model = algorithm(base)
    model.learn(ROLLOUT)
    model.policy.save_actor(tmp_path, model.env.task.tokenizer)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert type(plain.model.layers[0].mlp.up_proj) is torch.nn.Linear
    torch.testing.assert_close(logits(plain), logits(model.policy.lm.model.eval()), rtol=0, atol=1e-4)
    model.learning_rate = model.lr_schedule = lambda _: 0.0
    model.learn(ROLLOUT, reset_num_timesteps=False)  # by the actor as it was saved
    segments = model.rollout_buffer.segments
    assert sum(len(s.actions) for s in segments) >= SLOTS
    for segment in segments:
        ids = torch.tensor([*segment.context, *segment.actions])
        with torch.no_grad():
            log_probs = plain(input_ids=ids[None]).logits[0].log_softmax(-1)
        at = torch.arange(len(segment.context), len(ids))
        torch.testing.assert_close(
            torch.tensor(segment.log_probs), log_probs[at - 1, ids[at]], rtol=0, atol=1e-4, check_dtype=False
        )


def test_the_base_stays_and_the_adapters_move(base: str) -> None:
    model = algorithm(base)
    before = frozen(model)
    adapters = [p.clone() for p in model.policy.parameters() if p.requires_grad]
    model.learn(2 * ROLLOUT)
    assert len(nf4_layers(model.policy.lm.model)) == 14
    assert all(torch.equal(a, b) for a, b in zip(before, frozen(model), strict=True))
    moved = [p for p in model.policy.parameters() if p.requires_grad]
    assert all(not torch.equal(a, b) for a, b in zip(adapters, moved, strict=True))


@pytest.mark.filterwarnings("ignore:Merge lora module")
def test_saved_adapters_go_onto_the_base_as_transformers_and_peft_load_it(base: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model = algorithm(base)
    model.learn(2 * ROLLOUT)
    model.policy.save_adapter(tmp_path)
    assert max(p.stat().st_size for p in tmp_path.iterdir()) < 100_000  # without the base
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    theirs = AutoModelForCausalLM.from_pretrained(base, quantization_config=config, dtype=torch.float32)
    alone = logits(theirs.train())  # in eval mode some CPUs round to bf16
    adapted = logits(peft.PeftModel.from_pretrained(theirs, tmp_path).train())
    torch.testing.assert_close(adapted, logits(model.policy.lm.model), rtol=0, atol=1e-4)
    assert (adapted - alone).abs().max() > 0.1


@pytest.mark.parametrize(
    "settings", [{}, pytest.param({"critic": "actor", "optimizer": "adamw_8bit"}, marks=pytest.mark.slow)], ids=str
)
def test_a_resumed_run_equals_an_uninterrupted_one(base: str, tmp_path: Path, settings: dict[str, Any]) -> None:
    whole = algorithm(base, **settings)
    whole.learn(ROLLOUT)
    folder = save_checkpoint(whole, tmp_path)
    saved = set(whole.policy.state_dict())
    assert not [name for name in saved if name.startswith("actor.") and "lora_" not in name]  # no scales either
    whole.learn(2 * ROLLOUT, reset_num_timesteps=False)
    second = algorithm(base, **settings)
    load_checkpoint(second, list_checkpoints(tmp_path)[0])
    second.learn(2 * ROLLOUT, reset_num_timesteps=False)
    ours, theirs = second.policy.state_dict(), whole.policy.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert folder.is_dir()


def test_a_checkpoints_actor_is_the_runs(base: str, tmp_path: Path) -> None:
    from agents.flat_settings import write_settings

    model = algorithm(base)
    model.learn(ROLLOUT)
    folder = save_checkpoint(model, tmp_path / "checkpoints")
    options = TaskOptions(model=base, base_quantization="nf4")
    write_settings(RunSettings(options, AlgorithmSettings(lora_rank=4)), tmp_path / "config.yaml")
    loaded = load_checkpoint_actor(folder, LoadSettings("float32", "cpu")).lm.model
    assert not nf4_layers(loaded)
    torch.testing.assert_close(logits(loaded), logits(model.policy.lm.model.eval()), rtol=0, atol=1e-4)


def test_a_saved_algorithm_comes_back(base: str, tmp_path: Path) -> None:
    model = algorithm(base)
    model.learn(ROLLOUT)
    model.save(tmp_path / "model")
    again: Any = load_algorithm(tmp_path / "model", env=model.env)
    assert len(nf4_layers(again.policy.lm.model)) == 14
    torch.testing.assert_close(logits(again.policy.lm.model), logits(model.policy.lm.model), rtol=0, atol=1e-5)


def test_trpo_takes_second_derivatives_through_it(base: str) -> None:
    model = algorithm(base, "trpo")
    model.learn(ROLLOUT)
    assert 0 < logged(model)["train/kl_divergence_loss"] < 0.05
    assert logged(model)["train/is_line_search_success"] == 1.0


def test_a_copy_that_masks_look_at_is_whole(base: str) -> None:
    policy = algorithm(base).policy
    copied = DecodingCopy(policy.lm, torch.float32)
    torch.testing.assert_close(logits(copied.model), logits(policy.lm.model.eval()), rtol=0, atol=1e-4)
    assert not nf4_layers(copied.model)


def test_what_it_cannot_be_used_with_is_refused(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"base_quantization='nf4' with lora_rank=0: .* Give lora_rank too, as 16"):
        algorithm(base, lora_rank=0)
    with pytest.raises(ValueError, match=r"base_quantization='fp4' is not known; use one of none, nf4"):
        algorithm(base, base_quantization="fp4")
    with pytest.raises(ValueError, match=r"dqn cannot be used with lora_rank=4"):
        make_algorithm("dqn", env_kwargs=task(base), lora_rank=4, base_quantization="nf4")
    with pytest.raises(ValueError, match=r"base_quantization='nf4' cannot be used with sharding='full'"):
        check_shards("ppo", None, base="nf4")
    run = RunSettings(TaskOptions(base_quantization="nf4"), AlgorithmSettings(lora_rank=4), TrainingSettings())
    assert run.checked() is run
    moves = TrainingSettings(ref_refresh_every=3)
    with pytest.raises(ValueError, match=r"ref_refresh_every=3 cannot be used with base_quantization='nf4'"):
        RunSettings(run.task, run.algorithm, moves).checked()
    model = algorithm(base)
    with pytest.raises(ValueError, match=r"weights in 4 bits cannot move, so the reference stays as it is"):
        model.learn(2 * ROLLOUT, ReferenceRefresh(1))
    with pytest.raises(ValueError, match=r"base_quantization='none', but the environment's is 'nf4': the reference"):
        make_algorithm("ppo", env=model.env, lora_rank=4, base_quantization="none")
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ImportError, match=r"bitsandbytes is needed for .*pip install 'llm-env\[quantized\]'"):
        algorithm("nosuch")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*base_quantization='nf4'")
def test_it_learns_as_plain_adapters_do() -> None:
    gained = {}
    for quantization in ("none", "nf4"):
        model = make_algorithm(
            "ppo",
            n_envs=64,
            seed=0,
            device="cpu",
            lora_rank=8,
            learning_rate=3e-3,
            base_quantization=quantization,
            env_kwargs={"max_new_tokens": 16},
        )
        scores: list[float] = []
        model.set_logger(Logger(None, []))
        for _ in range(12):
            model.learn(64 * 16, reset_num_timesteps=False)
            segments = model.rollout_buffer.segments  # type: ignore[attr-defined]
            scores.append(float(np.mean([s.episode.final_score for s in segments])))
        gained[quantization] = np.mean(scores[-3:]) - scores[0]
    assert gained["none"] > 0.5
    assert gained["nf4"] > 0.6 * gained["none"]
