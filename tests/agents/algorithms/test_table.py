"""Every row of the table: the class it returns, the ratio at the start, seeds, and each yes and no of "Can I use?"."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sb3_contrib import TRPO, RecurrentPPO
from stable_baselines3 import A2C
from stable_baselines3.common.logger import configure
from transformers import AutoModelForCausalLM

from agents import make_algorithm
from agents.algorithms.capabilities import FEATURES, capability_table
from agents.algorithms.table import ALGORITHMS, checked_settings, settings_of
from agents.callbacks.mask_refresh import MaskRefresh
from agents.policies.actor_critic import LLMActorCriticPolicy
from agents.policies.trpo import LLMTrustRegionPolicy
from agents.rollouts.vec_env import LLMTextVecEnv, text_env
from agents.runs.checkpoint import load_checkpoint, save_checkpoint
from llm_env.default_task import DEFAULT_MODEL, DEFAULT_REWARD_MODEL
from llm_env.lm import loading as models
from tests.conftest import ROOT, save_model

SMALL: dict[str, Any] = {"max_new_tokens": 6, "max_prompt_length": 12}
QUICK: dict[str, dict[str, Any]] = {
    "trpo": {"cg_max_steps": 3},
    "dqn": {"gradient_steps": 2, "batch_size": 32},
    "qr_dqn": {"gradient_steps": 2, "batch_size": 32, "n_quantiles": 5},
    "ars": {"n_delta": 1},
}
ON_POLICY = [name for name, row in ALGORITHMS.items() if row.rollouts or name == "recurrent_ppo"]
# The first of each family is trained in the fast tier, where a test is about the family's policy, buffer and loop.
FIRST = {(row.wire, row.policy, row.whole_episodes): name for name, row in reversed(ALGORITHMS.items())}


def first_of_each_family(names: Iterable[str]) -> list[Any]:
    """The names as parameters of a test, all but the first of each family marked slow."""
    return [name if name in FIRST.values() else pytest.param(name, marks=pytest.mark.slow) for name in names]


def made(name: str, n_envs: int = 8, **settings: Any) -> Any:
    env_kwargs = {**SMALL, **settings.pop("env_kwargs", {})}
    model = make_algorithm(name, n_envs=n_envs, env_kwargs=env_kwargs, **{"seed": 0, **QUICK.get(name, {}), **settings})
    model.set_logger(configure(None, []))
    return model


def learn(model: Any, rollouts: int = 1) -> Any:
    return model.learn(model.n_envs * 6 * rollouts, log_interval=None)


# --------------------------------------------------------------------------------------------------- the classes
@pytest.mark.parametrize("name", ALGORITHMS)
def test_it_is_the_librarys_own_class(name: str) -> None:
    model = made(name)
    assert type(model) is ALGORITHMS[name].cls
    library = "agents" if name in ("grpo", "dr_grpo") else ("stable_baselines3", "sb3_contrib")
    assert type(model).__module__.startswith(library)
    assert set(QUICK.get(name, {})) <= set(settings_of(name))


@pytest.mark.parametrize("name", first_of_each_family(ALGORITHMS))
def test_a_seeded_run_repeats_exactly(name: str) -> None:
    def weights(seed: int) -> list[torch.Tensor]:
        return [p.clone() for p in learn(made(name, seed=seed), 2).policy.state_dict().values()]

    one, same, other = weights(0), weights(0), weights(1)
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(one, other, strict=True))


# --------------------------------------------------------------------------------------------------- the ratio
@pytest.mark.parametrize("name", ON_POLICY)
def test_before_any_update_the_ratio_is_one(name: str) -> None:
    """Invariant 1: log π of the update is log π of the rollout, whatever collected it."""
    model = made(name, env_kwargs={"top_p": 0.8} if name == "maskable_ppo" else {})
    gaps: list[float] = []

    def look() -> None:
        model.policy.set_training_mode(True)
        for data in model.rollout_buffer.get(None if name != "recurrent_ppo" else 24):
            more: tuple[Any, ...] = ()
            inside = slice(None)
            if isinstance(model, RecurrentPPO):
                more = (data.lstm_states, data.episode_starts)
                inside = data.mask > 1e-8  # type: ignore[assignment]
            with torch.no_grad():
                log_prob = model.policy.evaluate_actions(data.observations, data.actions.long().flatten(), *more)[1]
            gaps.append((log_prob - data.old_log_prob)[inside].abs().max().item())

    model.train = look
    learn(model, 2)
    assert len(gaps) >= 2
    assert max(gaps) < 5e-5


@pytest.mark.parametrize("critic", ["detached_head", "reward_model"])
@pytest.mark.parametrize(("name", "algorithm"), [("a2c", A2C), ("trpo", TRPO)])
def test_fast_and_stock_path_make_the_same_update(name: str, algorithm: Any, critic: str) -> None:
    common: dict[str, Any] = {
        "n_steps": 12,
        "gamma": 1.0,
        "gae_lambda": 0.9,
        "learning_rate": 1e-2,
        "seed": 3,
        "device": "cpu",
    }
    common |= {
        "a2c": {"use_rms_prop": False, "normalize_advantage": True, "max_grad_norm": 0.5},
        "trpo": {"batch_size": 48, "n_critic_updates": 2, "cg_max_steps": 5, "target_kl": 0.01},
    }[name]
    kwargs: dict[str, Any] = {"critic": critic, "optimizer_class": torch.optim.SGD}
    fast = make_algorithm(name, n_envs=4, episodes="continuous", env_kwargs=SMALL, **kwargs, **common)
    stock = algorithm(
        LLMTrustRegionPolicy if name == "trpo" else LLMActorCriticPolicy,
        LLMTextVecEnv(4, **SMALL),
        policy_kwargs={"use_cache": False, **kwargs},
        **common,
    )
    start = {n: p.clone() for n, p in stock.policy.state_dict().items()}
    for model in (fast, stock):
        model.set_logger(configure(None, []))
        model.set_random_seed(3)
        model.learn(4 * 12)
    actor_moved = 0
    ours = fast.policy.state_dict()
    for key, theirs in stock.policy.state_dict().items():
        step = (theirs - start[key]).abs().max().item()
        actor_moved += key.startswith("actor") and step > 0
        # TRPO solves for its step by conjugate gradients, which amplify rounding
        tolerance = (5e-2 if name == "trpo" else 2e-3) * step
        torch.testing.assert_close(ours[key], theirs, rtol=0, atol=max(tolerance, 1e-7))
    assert actor_moved > 20


@pytest.mark.parametrize("lora_rank", [0, 4])
@pytest.mark.parametrize("family", ["gpt_neox", "llama"])
def test_trpo_moves_all_trainable_actor_weights(model_folder: Callable[..., str], family: str, lora_rank: int) -> None:
    """GPT-NeoX has a query_key_value, which TRPO would take for the critic's; frozen weights would make it fail."""
    model = make_algorithm(
        "trpo", n_envs=4, seed=0, critic="detached_head", lora_rank=lora_rank, cg_max_steps=3,
        env_kwargs={**SMALL, "model": model_folder(family), "reward_model": "tests.conftest:count_dots", "prompts": ["A b c"]},
    )  # fmt: skip
    policy: Any = model.policy
    trainable = {n: p for n, p in policy.actor.named_parameters() if p.requires_grad}
    frozen = {n: p.clone() for n, p in policy.actor.named_parameters() if not p.requires_grad}
    assert bool(frozen) == bool(lora_rank)
    before = {n: p.clone() for n, p in trainable.items()}
    model.learn(4 * 6 * 3)
    # keys' biases shift all of a query's scores alike, so nothing depends on them
    still = [n for n, p in trainable.items() if torch.equal(p, before[n]) and "bias" not in n]
    assert not still
    assert all(torch.equal(p, frozen[n]) for n, p in policy.actor.named_parameters() if n in frozen)


def test_trpo_refuses_what_reads_again_in_the_backward_pass() -> None:
    for setting in ({"gradient_checkpointing": True}, {"micro_batch_tokens": 64}):
        with pytest.raises(ValueError, match="do not go with TRPO"):
            made("trpo", **setting)


def test_a2c_keeps_the_policys_optimizer() -> None:
    model = made("a2c")
    assert isinstance(model.policy.optimizer, torch.optim.AdamW)
    assert model.n_steps == 6


def test_remax_subtracts_what_the_greedy_response_scores() -> None:
    model = made("remax", learning_rate=0.0)
    learn(model)
    buffer = model.rollout_buffer
    task = model.env.task
    for segment, end in zip(buffer.segments, np.cumsum([len(s.actions) for s in buffer.segments]), strict=True):
        greedy = model.policy.respond(task, [segment.episode.prompt], 0, deterministic=True)[0]
        ids = segment.episode.prompt.ids
        with task.model.frozen() as reference:
            for token in greedy.response_ids:  # by hand: the likeliest token, again and again
                logits = reference.model(input_ids=torch.tensor([ids])).logits[0, -1]
                assert token == int(logits.argmax())
                ids = [*ids, token]
        # at learning rate 0 the KL part is 0: the last token's return is the score
        want = segment.episode.final_score - greedy.final_score
        assert buffer.advantages[end - 1] == pytest.approx(want, abs=1e-3)
    generated = sum(len(s.actions) for s in buffer.segments)
    assert model.env.generated_tokens > generated  # the greedy responses count too


# --------------------------------------------------------------------------------------------------- can I use?
USE: dict[str, dict[str, Any]] = {
    "full_weights": {},
    "lora": {"lora_rank": 2},
    "separate_critic": {"critic": "actor"},
    "masks": {"env_kwargs": {"top_k": 20, "min_new_tokens": 2}},
    "groups": {"group_size": 4},
    "bf16": {"mixed_precision": "bf16"},
}
CELLS = [(name, feature) for name in ALGORITHMS for feature in USE]


@pytest.mark.parametrize(("name", "feature"), [c for c in CELLS if ALGORITHMS[c[0]].reason(c[1]) is None])
def test_each_yes_trains(name: str, feature: str) -> None:
    model = made(name, **USE[feature])
    before = {n: p.clone() for n, p in model.policy.state_dict().items()}
    learn(model)
    after = model.policy.state_dict()
    moved = [n for n, p in after.items() if not torch.equal(p, before[n])]
    if feature == "full_weights":
        actor = [n for n in after if "actor" in n or name == "recurrent_ppo"]
        assert len([n for n in moved if n in actor]) > 0.8 * len(actor) - 40  # a target network stands still
        assert len(moved) > 8
    elif feature == "lora":
        assert moved
        assert all("lora" in n or "critic" in n for n in moved)
    elif feature == "separate_critic":
        assert any("critic" in n for n in moved)
    elif feature == "masks":
        assert all(len(s.actions) > 2 for s in model.rollout_buffer.segments)
        assert max(int(np.unpackbits(b).sum()) for s in model.rollout_buffer.segments for b in s.masks) <= 21
    elif feature == "groups":
        contexts = [tuple(s.context) for s in model.rollout_buffer.segments]
        assert [len(set(contexts[i : i + 4])) for i in (0, 4)] == [1, 1]
    else:
        assert model.policy.mixed_precision == "bf16"
        assert moved


@pytest.mark.parametrize(("name", "feature"), [c for c in CELLS if ALGORITHMS[c[0]].reason(c[1]) is not None])
def test_each_no_says_why_before_anything_is_loaded(name: str, feature: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if feature == "full_weights":
        assert sum(p.numel() for p in made(name).policy.parameters()) < 2_000
        return

    def loaded(*_: Any, **__: Any) -> Any:
        raise AssertionError("something was loaded")

    monkeypatch.setattr(models, "load_weights", loaded)
    monkeypatch.setattr("agents.algorithms.factory.LLMTextVecEnv.__init__", loaded)
    reason = ALGORITHMS[name].reason(feature)
    assert reason
    with pytest.raises(ValueError, match=rf"{name} cannot be used with .*{reason[:20]}"):
        made(name, **USE[feature])


@pytest.mark.parametrize(
    "name", first_of_each_family(n for n, row in ALGORITHMS.items() if row.reason("resume") is None)
)
def test_a_resumed_run_equals_an_uninterrupted_one(name: str, tmp_path: Path) -> None:
    def fresh() -> Any:
        masks: dict[str, Any] = {"env_kwargs": {"top_p": 0.9}, "learning_rate": 1e-2}
        return made(name, n_envs=4, **(masks if name == "maskable_ppo" else {}))

    refreshes = [MaskRefresh(3) for _ in range(3)]
    callbacks: list[Any] = [[r] if name == "maskable_ppo" else None for r in refreshes]

    whole = fresh()
    total = 4 * 6 * 4
    saved: list[Path] = []
    half = fresh()

    def save_once() -> None:
        if not saved and half.num_timesteps == total // 2:
            saved.append(save_checkpoint(half, tmp_path))
            refreshes[2].rollouts = refreshes[1].rollouts

    for model, look, callback in ((whole, None, callbacks[0]), (half, save_once, callbacks[1])):
        original = model.collect_rollouts

        def collect(*args: Any, _original: Any = original, _look: Any = look, **kwargs: Any) -> Any:
            if _look is not None:
                _look()
            return _original(*args, **kwargs)

        model.collect_rollouts = collect
        model.set_random_seed(5)
        model.learn(total, callback, log_interval=None)
    again = fresh()
    load_checkpoint(again, saved[0])
    again.learn(total - again.num_timesteps, callbacks[2], reset_num_timesteps=False, log_interval=None)
    assert again.num_timesteps == whole.num_timesteps == total
    want, close = half.policy.state_dict(), whole.policy.state_dict()  # saving drops caches, which may round otherwise
    for name_, p in again.policy.state_dict().items():
        assert torch.equal(p, want[name_])
        torch.testing.assert_close(p, close[name_], rtol=0, atol=1e-4)


def test_what_cannot_be_resumed_says_so(tmp_path: Path) -> None:
    from rich.console import Console

    from agents.runs.run import TrainingRun
    from agents.runs.settings import AlgorithmSettings, RunSettings

    with pytest.raises(ValueError, match="ars cannot be resumed: its callbacks are called in the middle of an update"):
        TrainingRun(RunSettings(algorithm=AlgorithmSettings("ars")), tmp_path, Console(), resume=True)


def test_the_page_has_the_table() -> None:
    table = capability_table()
    assert table.count("\n| [`") == len(ALGORITHMS)
    assert all(title in table for title in FEATURES.values())
    assert table in (ROOT / "docs" / "algorithms.md").read_text(encoding="utf-8")


def test_bf16_is_refused_as_a_setting_of_the_environment_too() -> None:
    with pytest.raises(ValueError, match=r"trpo cannot be used with mixed_precision='bf16'"):
        made("trpo", env_kwargs={"mixed_precision": "bf16"})


def test_the_reference_computes_as_the_policy_wherever_that_is_said() -> None:
    model = made("ppo", policy_kwargs={"mixed_precision": "bf16"})
    assert text_env(model.env).task.settings.mixed_precision == model.policy.mixed_precision == "bf16"


def test_a_critic_starts_as_no_reward_model_that_lacks_some_of_the_actors_tokens(tmp_path: Path) -> None:
    padded = AutoModelForCausalLM.from_pretrained(DEFAULT_MODEL)
    padded.resize_token_embeddings(1029, mean_resizing=False)
    env = {"model": save_model(tmp_path, padded), "reward_model": DEFAULT_REWARD_MODEL, "prompts": ["The room"]}
    assert made("ppo", env_kwargs=env).policy.settings.critic == "actor"
    with pytest.raises(ValueError, match="a decoder with the actor's tokenizer and all of its tokens"):
        made("ppo", env_kwargs=env, critic="reward_model")


def test_settings_that_say_nothing_are_no_error() -> None:
    nothing: dict[str, Any] = {"lora_rank": 0, "mixed_precision": "no", "group_size": 1, "critic": "none"}
    for name in ("recurrent_ppo", "ars", "remax"):
        assert set(checked_settings(name, nothing)) <= set(settings_of(name))
    made("recurrent_ppo", **nothing)


# --------------------------------------------------------------------------------------------------- bad input
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"name": "gpro"}, ValueError, "Did you mean 'grpo'"),
        ({"name": "qrdqn"}, ValueError, "Did you mean 'qr_dqn'"),
        ({"name": "Maskable-PPO"}, ValueError, "Did you mean 'maskable_ppo'"),
        ({"name": "a2c", "n_epochs": 4}, TypeError, "a2c has no setting 'n_epochs'.*It has .*ent_coef.*vf_coef"),
        ({"name": "dqn", "clip_range": 0.1}, TypeError, "dqn has no setting 'clip_range'"),
        ({"name": "rloo", "gae_lambda": 0.9}, TypeError, "rloo has no setting 'gae_lambda'"),
        ({"name": "rloo", "kl_in_loss": True}, TypeError, "rloo has no setting 'kl_in_loss'. It is kl_in='loss'"),
        ({"name": "grpo", "mask_refresh": 2}, TypeError, "It is a callback now: .*MaskRefresh"),
        ({"name": "a2c", "kl_in": "loss"}, TypeError, "a2c has no setting 'kl_in'"),
        ({"name": "a2c", "env_kwargs": {"kl_in": "loss"}}, TypeError, "a2c has no setting 'kl_in'"),
        ({"name": "grpo", "clip_range_hi": 0.3}, TypeError, "Did you mean 'clip_range_high'"),
    ],
)
def test_bad_names_and_settings(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make_algorithm(**{"n_envs": 4, "env_kwargs": SMALL, **arguments})


@pytest.mark.parametrize(
    ("name", "venv", "message"),
    [
        ("grpo", {"episodes": "synchronous", "scoring": "step", "group_size": 4}, "scoring='deferred'"),
        ("grpo", {"episodes": "synchronous", "scoring": "deferred"}, "group_size=4, but the environment's is 1"),
        ("dqn", {}, "pay_policy_kl=False"),
        ("recurrent_ppo", {"episodes": "synchronous"}, "episodes='continuous', scoring='step'"),
        ("ppo", {"top_k": 5}, "ppo cannot be used with top_k.*knows no masks"),
    ],
)
def test_an_environment_that_does_not_fit(name: str, venv: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_algorithm(name, env=LLMTextVecEnv(4, **SMALL, **venv))
