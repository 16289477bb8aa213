"""A plan's exact parts are the real tensors' bytes; what it counts without data is what is counted with data."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from stable_baselines3.common.logger import Logger
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from agents import make_algorithm
from agents.memory import passes, table
from agents.memory.networks import build, sizes
from agents.memory.plan import make_plan
from agents.memory.weightless import nbytes, trained, weightless
from agents.runs.run import algorithm_settings
from agents.runs.settings import AlgorithmSettings, RunSettings, TaskOptions, TrainingSettings
from llm_env.default_task import DEFAULT_MODEL
from llm_env.extras import installed
from llm_env.lm.causal_lm import load_causal_lm
from llm_env.lm.decoding import CachedDecoder
from llm_env.lm.names import LoadSettings
from llm_env.lm.quantization import scales_of
from llm_env.lm.registry import MODELS
from tests.conftest import FAMILIES

CASES: dict[str, dict[str, Any]] = {
    "ppo": {},
    "own critic": {"critic": "actor", "gradient_checkpointing": True},
    "top layers": {"critic": "top_layers"},
    "adapters": {"lora_rank": 4, "critic": "detached_head"},
    "bf16": {"mixed_precision": "bf16"},
    "trpo": {"algo": "trpo"},
    "grpo": {"algo": "grpo", "group_size": 4},
    "dqn": {"algo": "dqn"},
    "8 bits": {"optimizer": "adamw_8bit", "critic": "actor"},
    "4 bits": {"lora_rank": 4, "critic": "detached_head", "task": {"base_quantization": "nf4"}},
}
NEEDS_BITSANDBYTES = pytest.mark.skipif(not installed("bitsandbytes"), reason="bitsandbytes is not installed")


def score(prompts: list[str], responses: list[str]) -> list[float]:
    return [float(len(r)) for r in responses]


def settings(mixed_precision: str = "no", task: dict[str, Any] | None = None, **algorithm: Any) -> RunSettings:
    options = TaskOptions(max_new_tokens=6, max_prompt_length=12, device="cpu", mixed_precision=mixed_precision)
    options = TaskOptions(**{**vars(options), **(task or {})})
    training = TrainingSettings(total_timesteps=8 * options.max_new_tokens, n_envs=8)
    return RunSettings(options, AlgorithmSettings(**algorithm), training).checked()


def trained_once(run: RunSettings) -> tuple[Any, dict[str, int]]:
    """The run's algorithm after its rollouts, and the most bytes of gradients that a step of its optimizer found."""
    model: Any = make_algorithm(
        run.algorithm.algo,
        n_envs=run.training.n_envs,
        env_kwargs=run.task.task_arguments(None),
        **{**algorithm_settings(run), "device": "cpu", "seed": 0},
    )
    model.set_logger(Logger(None, []))
    found: dict[str, int] = {}

    def before(*_: Any) -> None:
        found["gradients"] = nbytes(p.grad for p in model.policy.parameters() if p.grad is not None)

    model.policy.optimizer.register_step_pre_hook(before)
    model.learn(run.training.total_timesteps, log_interval=None)
    return model, found


@pytest.mark.parametrize(
    "case",
    [
        *(
            pytest.param(c, marks=[pytest.mark.slow] if c in ("dqn", "trpo", "grpo") else [])
            for c in CASES
            if not c.endswith("bits")
        ),
        *(pytest.param(c, marks=NEEDS_BITSANDBYTES) for c in ("8 bits", "4 bits")),
    ],
)
@pytest.mark.filterwarnings("ignore:.*base_quantization='nf4'")  # a layer of the embedded model does not fit
def test_exact_parts_are_what_a_run_holds_after_an_update(case: str) -> None:
    run = settings(**CASES[case])
    plan = make_plan(run)
    with MODELS.apart():
        model, found = trained_once(run)
    policy = model.policy
    states = [v for state in policy.optimizer.state.values() for v in state.values() if isinstance(v, torch.Tensor)]
    weights = [*nn.Module.parameters(policy), *policy.buffers(), *scales_of(policy)]
    reference = model.env.unwrapped.task.model.lm.model
    parts = {name: part["training"] for name, part in plan.parts.items()}
    assert plan.counted
    assert parts["actor"] + parts.get("critic", 0) + parts.get("target network", 0) == nbytes(weights)
    assert plan.weights["trained"] == sum(p.numel() for p in trained(policy.parameters()))
    if case != "trpo":  # whose optimizer moves the critic alone, with gradients of other losses about
        assert plan.gradients == found["gradients"]
    assert parts["optimizer"] == nbytes(states)
    if case in ("adapters", "4 bits"):
        assert "reference" not in parts
    else:
        assert parts["reference"] == nbytes([*reference.parameters(), *reference.buffers()])
    if case == "bf16":
        copy = policy._acting.decoder.lm.model
        assert parts["decoding copy"] == nbytes([*copy.parameters(), *copy.buffers()])


@pytest.mark.parametrize("case", ["own critic", "adapters"])
def test_what_is_counted_without_data_is_what_is_counted_with_it(case: str) -> None:
    run = settings(**CASES[case])
    with weightless():
        networks = build(run)
        size = sizes(networks, run, 1)
        planned = counts(networks, size)
    with MODELS.apart():
        networks = build(run)
        # Some kernels take a little for themselves.
        assert counts(networks, size) == pytest.approx(planned, rel=0.01)


def test_two_micro_batches_say_what_all_of_them_need(monkeypatch: pytest.MonkeyPatch) -> None:
    def most() -> dict[str, int]:
        with weightless():
            networks = build(run)
            return dict(passes.update(networks, sizes(networks, run, 1)).most)

    task = {"max_new_tokens": 64, "max_prompt_length": 32}
    run = settings(task=task, critic="detached_head", batch_size=8 * 64, micro_batch_tokens=2 * 96)
    two = most()
    monkeypatch.setattr(passes, "_texts_that_tell", lambda networks, size: size.batch)
    all_of_them = most()
    assert two["gradients"] == pytest.approx(all_of_them["gradients"], rel=0.01)
    assert sum(two.values()) == pytest.approx(sum(all_of_them.values()), rel=0.01)


def counts(networks: Any, size: Any) -> dict[str, int]:
    update, score = passes.update(networks, size), passes.most_needing(passes.asked(networks, size))
    assert update.counted
    return {"update": sum(update.most.values()), "score": sum(score.values()), "optimizer": update.optimizer}


def test_the_cache_is_the_real_one() -> None:
    run = settings(task={"max_new_tokens": 40})
    with weightless():
        networks = build(run)
        size = sizes(networks, run, 1)
        _, planned = passes.decode(networks.decoder.lm, networks, size)
        by_formula = passes.cache_of(networks.decoder.lm, size)
    decoder = CachedDecoder(load_causal_lm(DEFAULT_MODEL, LoadSettings("float32", "cpu")), size.longest)
    for length in range(size.prompt, size.longest + 1):
        decoder.hidden(torch.ones(size.slots, length, dtype=torch.long), torch.full((size.slots,), length))
    assert planned == by_formula == nbytes(t for layer in decoder._layers for t in (layer.keys, layer.values))


def test_no_weights_are_read_and_all_is_as_before(tmp_path: Path) -> None:
    AutoModelForCausalLM.from_pretrained(DEFAULT_MODEL).config.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(DEFAULT_MODEL).save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.safetensors"))
    task = task_of(str(tmp_path), tmp_path)
    before, to = MODELS.all(), nn.Module.to
    plan = make_plan(settings(task=task))
    assert plan.parts["actor"] == plan.parts["reference"]
    assert "reward model" not in plan.parts  # a function has no weights
    assert MODELS.all() == before
    assert nn.Module.to is to
    assert torch.zeros(1).tolist() == [0.0]


@pytest.mark.parametrize(
    "family", ["gpt2", *(pytest.param(f, marks=pytest.mark.slow) for f in FAMILIES if f != "gpt2")]
)
def test_other_families(family: str, model_folder: Any, tmp_path: Path) -> None:
    plan = make_plan(settings(task=task_of(model_folder(family), tmp_path)))
    assert plan.counted
    assert plan.parts["cache"]["collecting"] > 0
    assert plan.parts["activations"]["training"] > 0
    assert plan.parts["optimizer"]["training"] == pytest.approx(2 * plan.gradients, rel=0.02)


def test_experts_are_estimated_by_formulas(tmp_path: Path) -> None:
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = transformers.MixtralConfig(vocab_size=1024, **size, intermediate_size=48, num_local_experts=4)
    config.save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(DEFAULT_MODEL).save_pretrained(tmp_path / "model")
    plan = make_plan(settings(task=task_of(str(tmp_path / "model"), tmp_path), critic="detached_head"))
    assert not plan.counted
    assert plan.parts["gradients"]["training"] == plan.gradients  # of so small a model the most there is
    assert plan.parts["activations"]["scoring"] > 0
    assert plan.parts["cache"]["collecting"] > 0
    assert plan.parts["optimizer"]["training"] == pytest.approx(2 * plan.gradients, rel=0.02)
    assert "estimated by formulas" in table.text(plan)


def task_of(model: str, folder: Path) -> dict[str, Any]:
    (folder / "prompts.txt").write_text("How are you?\n")
    return {"model": model, "prompts": str(folder / "prompts.txt"), "reward_model": (f"{__name__}:score",)}


def test_several_processes() -> None:
    run = settings(critic="actor")
    one, two = make_plan(run), make_plan(run, 2, "full")
    for name in ("actor", "critic", "optimizer"):
        assert two.parts[name]["training"] == pytest.approx(one.parts[name]["training"] / 2, abs=8)
    assert two.parts["decoding copy"] == one.parts["reference"] == two.parts["reference"]
    assert two.sizes.slots == one.sizes.slots / 2
    assert two.parts["put together"]["training"] == 2 * two.parts["put together"]["scoring"] > 0  # gradients too
    assert two.needed == 2 * two.peak[1]
    assert "exchange" in make_plan(run, 2, "none").parts


@pytest.mark.parametrize("critic", ["actor", "detached_head"])
def test_what_idles_is_not_in_the_phases_in_which_it_idles(critic: str) -> None:
    run, moved = settings(critic=critic), settings(task={"offload": True}, critic=critic)
    for_all, offloaded = make_plan(run, device="cuda").parts, make_plan(moved, device="cuda").parts
    assert make_plan(moved).parts.keys() == for_all.keys() - {"CUDA"} | {
        "Python and libraries",
        "rollout",
        "best actor",
    }
    here = {name: [phase for phase, count in part.items() if count] for name, part in offloaded.items()}
    weights = {name: for_all[name]["training"] for name in ("reference", "reward model", "critic")}
    # One model at a time is there while a rollout is scored: the one that needs most together with its weights.
    with weightless():
        networks = build(moved)
        asked = passes.asked(networks, sizes(networks, moved, 1))
    assert {one.part: one.weights for one in asked if one.part in weights}.items() <= weights.items()
    own = critic == "actor"
    most = max(asked, key=lambda one: one.needs + (one.weights if one.part != "actor" else 0))
    scoring = [
        name for name in ("reference", "reward model", *(["critic"] if own else [])) if "scoring" in here.get(name, [])
    ]
    assert scoring == [most.part]
    assert sum(offloaded[n]["scoring"] for n in ("activations", "logits") if n in offloaded) == most.needs
    assert not any(
        "collecting" in here.get(n, []) or "training" in here.get(n, []) for n in ("reference", "reward model")
    )
    assert ("collecting" in here["critic"]) is not own
    assert "training" in here["critic"]
    for name in ("actor", "gradients", "cache", "CUDA"):
        assert offloaded[name] == for_all[name]
    less = for_all["optimizer"]["collecting"] - offloaded["optimizer"]["collecting"]
    assert less == pytest.approx(2 * weights["critic"] if own else 0, rel=0.01)  # Adam has two numbers for each
    assert offloaded["optimizer"]["training"] == for_all["optimizer"]["training"]
    # On a CPU there is nowhere to put anything.
    assert make_plan(moved).parts["reference"] == make_plan(run).parts["reference"]


@pytest.mark.parametrize("case", ["ppo", "adapters"])
def test_what_is_kept_of_the_best_gold_score_is_in_the_computers_memory(case: str) -> None:
    run = settings(**CASES[case])
    assert run.keeps_best_gold  # the embedded rule
    goes_on = dataclasses.replace(run, training=dataclasses.replace(run.training, stop_on=("none",)))
    own = dataclasses.replace(run, task=dataclasses.replace(run.task, reward_model=(f"{__name__}:score",)))
    plan, found = make_plan(run).parts["best actor"]["training"], trained_once(run)[0].policy.state_dict().values()
    assert plan == sum(t.nbytes for t in found) > 0
    for other in (goes_on, own):  # no alarm that ends the run, and no gold score
        assert not other.keeps_best_gold
        assert "best actor" not in make_plan(other).parts
    assert "best actor" not in make_plan(run, device="cuda").parts


def test_adapters_and_shards_idle_as_the_run_has_it() -> None:
    adapters = make_plan(settings(task={"offload": True}, **CASES["adapters"]), device="cuda").parts
    assert "reference" not in adapters
    assert adapters["reward model"]["training"] == 0
    shards = make_plan(settings(task={"offload": True}, critic="actor"), 2, "full", "cuda").parts
    assert shards["critic"]["collecting"] == shards["critic"]["training"] > 0  # it stays
    assert shards["reference"]["training"] == 0
