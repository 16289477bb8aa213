from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.evaluation import evaluate_policy
from transformers import AutoModelForCausalLM

from agents import make_algorithm
from agents.policies.actor_critic import LLMActorCriticPolicy
from agents.rollouts.vec_env import LLMTextVecEnv
from llm_env.default_task import DEFAULT_MODEL
from llm_env.lm.packing import pack
from llm_env.lm.registry import MODELS

SMALL: dict[str, Any] = {"max_new_tokens": 6, "max_prompt_length": 12}
CRITICS = ("reward_model", "actor", "head", "detached_head", "top_layers")


def make_policy(**kwargs: Any) -> tuple[LLMActorCriticPolicy, LLMTextVecEnv]:
    venv = LLMTextVecEnv(4, **SMALL)
    policy = LLMActorCriticPolicy(venv.observation_space, venv.action_space, lambda _: 1e-3, **kwargs)
    return policy, venv


def tensors(obs: Any) -> dict[str, torch.Tensor]:
    return {k: torch.from_numpy(v) for k, v in obs.items()}


@pytest.mark.parametrize("critic", CRITICS)
def test_packed_evaluation_equals_observation_by_observation(critic: str) -> None:
    """Invariant 3, values included; the packed path against SB3's own, gradients too."""
    policy, venv = make_policy(critic=critic)
    with torch.no_grad():  # a head of zeros would agree with anything
        for parameter in policy.critic.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)) * 0.02)
    obs = venv.reset()
    sequences, starts = [], []
    stacked: dict[str, list[torch.Tensor]] = {"input_ids": [], "length": []}
    actions = []
    rng = np.random.default_rng(0)
    rows = [[int(t) for t in o[: int(n[0])]] for o, n in zip(obs["input_ids"], obs["length"], strict=True)]
    for row, extra in zip(rows, (1, 3, 6, 2), strict=True):
        start, sequence = len(row), list(row)
        for _ in range(extra):
            ids = torch.full((18,), venv.task.pad_value)
            ids[: len(sequence)] = torch.tensor(sequence)
            stacked["input_ids"].append(ids)
            stacked["length"].append(torch.tensor([len(sequence)]))
            actions.append(int(rng.integers(3, 1000)))
            sequence.append(actions[-1])
        sequences.append(sequence)
        starts.append(start)
    batch = {k: torch.stack(v) for k, v in stacked.items()}
    results, grads = [], []
    for given in (pack(sequences, starts, "cpu"), batch):
        policy.zero_grad()
        values, log_probs, entropy = policy.evaluate_actions(given, torch.tensor(actions))
        (values.sum() + log_probs.sum() + entropy.sum()).backward()
        results.append((values, log_probs, entropy))
        grads.append({n: p.grad.clone() for n, p in policy.named_parameters() if p.grad is not None})
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert grads[0].keys() == grads[1].keys()
    for name in grads[0]:
        scale = grads[1][name].abs().max()
        torch.testing.assert_close(grads[0][name], grads[1][name], rtol=1e-3, atol=float(1e-4 * scale + 1e-6))


def test_forward_samples_from_the_models_own_distribution() -> None:
    policy, venv = make_policy(temperature=0.7)
    obs = tensors(venv.reset())
    model = AutoModelForCausalLM.from_pretrained(DEFAULT_MODEL)
    n = int(obs["length"][0])
    with torch.no_grad():
        logits = model(input_ids=obs["input_ids"][:1, :n]).logits[0, -1] / 0.7
        want = torch.log_softmax(logits, -1)
        many = {"input_ids": obs["input_ids"][:1].expand(4000, -1), "length": obs["length"][:1].expand(4000, -1)}
        torch.manual_seed(0)
        actions, values, log_probs = policy(many)
        greedy, _, _ = policy(many, deterministic=True)
    torch.testing.assert_close(log_probs, want[actions.as_subclass(torch.Tensor)], rtol=1e-4, atol=1e-4)
    assert set(greedy.tolist()) == {int(want.argmax())}
    frequency = torch.bincount(actions.as_subclass(torch.Tensor), minlength=len(want)) / 4000
    assert (frequency - want.exp()).abs().max() < 0.03
    assert values.shape == (4000, 1)


def test_idle_rows_cost_and_say_nothing() -> None:
    policy, venv = make_policy(critic="head")
    obs = tensors(venv.reset())
    obs["length"][1:] = 0
    scored: list[int] = []
    policy.actor.get_output_embeddings().register_forward_pre_hook(lambda module, args: scored.append(len(args[0])))
    with torch.no_grad():
        actions, values, log_probs = policy(obs)
        assert scored == [1]
        obs["length"][:] = 0
        policy(obs)
        assert scored == [1], "a step on which every slot is idle should not reach the head"
    assert actions[1:].tolist() == [0, 0, 0]
    assert log_probs[1:].tolist() == values[1:, 0].tolist() == [0, 0, 0]
    assert log_probs[0] < 0


def test_a_zero_head_values_nothing_and_the_reward_model_critic_says_the_score() -> None:
    policy, venv = make_policy(critic="head")
    with torch.no_grad():
        assert policy.predict_values(tensors(venv.reset())).abs().max() == 0
    policy, venv = make_policy(critic="reward_model")
    venv.reset()
    done = None
    while done is None:
        _, _, dones, infos = venv.step(np.full(4, 40))
        done = next((i for i, d in zip(infos, dones, strict=True) if d), None)
    last = done["terminal_observation"]
    with torch.no_grad():
        value = policy.predict_values({k: torch.from_numpy(v)[None] for k, v in last.items()})
    assert float(value) == pytest.approx(done["rm_score"], abs=1e-4)


@pytest.mark.parametrize(("algo", "critic"), [("ppo", "reward_model"), ("dqn", "reward_model")])
def test_a_critic_that_begins_as_the_reward_model_knows_what_is_paid(algo: str, critic: str, tmp_path: Path) -> None:
    """Shift and scale included, from the first update on; a saved model keeps them."""
    paid = {**SMALL, "reward_shift": 3.0, "reward_scale": 0.5}
    plain = make_algorithm(algo, n_envs=4, seed=0, env_kwargs=SMALL, critic=critic)
    model = make_algorithm(algo, n_envs=4, seed=0, env_kwargs=paid, critic=critic)
    model.save(tmp_path / "m.zip")
    batch = pack([[1, 20, 30, 40, 50], [1, 50, 60]], [1, 2], "cpu")

    def values(one: Any) -> torch.Tensor:
        with torch.no_grad():
            if algo == "dqn":
                return one.policy.q_net.critic(batch, None)
            return one.policy.predict_values(batch)

    before = values(plain)
    assert before.abs().max() > 0.1
    for one in (model, type(model).load(tmp_path / "m.zip")):
        torch.testing.assert_close(values(one), (before + 3.0) * 0.5)


def test_entropy_without_gradient_is_the_same_number() -> None:
    venv = LLMTextVecEnv(4, **SMALL)
    batch = pack([[1, 20, 30, 40], [1, 50, 60]], [1, 2], "cpu")
    with_grad, without = (
        make_policy(entropy_grad=flag)[0].evaluate_actions(batch, batch.targets)[2] for flag in (True, False)
    )
    torch.testing.assert_close(with_grad, without)
    assert with_grad.requires_grad
    assert not without.requires_grad
    assert venv.num_envs == 4


@pytest.mark.parametrize("lora_rank", [0, 4])
def test_save_and_load_keep_every_parameter_and_go_on(tmp_path: Path, lora_rank: int) -> None:
    model = make_algorithm("ppo", n_envs=4, seed=0, env_kwargs=SMALL, lora_rank=lora_rank)
    model.learn(4 * 6)
    model.save(tmp_path / "m.zip")
    venv = LLMTextVecEnv(4, episodes="synchronous", scoring="deferred", **SMALL)
    loaded = PPO.load(tmp_path / "m.zip", env=venv)
    ours, theirs = model.policy.state_dict(), loaded.policy.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)
    obs = venv.reset()
    assert (model.predict(obs, deterministic=True)[0] == loaded.predict(obs, deterministic=True)[0]).all()
    before = {k: v.clone() for k, v in theirs.items()}
    loaded.learn(4 * 6)
    assert any(not torch.equal(before[k], v) for k, v in loaded.policy.state_dict().items())
    if lora_rank:
        assert (tmp_path / "m.zip").stat().st_size < 25e6


def test_a_saved_model_pickles_names_only(tmp_path: Path) -> None:
    import zipfile

    model = make_algorithm("ppo", n_envs=4, seed=0, env_kwargs=SMALL)
    model.learn(4 * 6)
    model.save(tmp_path / "m.zip")
    with zipfile.ZipFile(tmp_path / "m.zip") as archive:
        assert archive.getinfo("data").file_size < 300_000


def test_policy_save_and_load(tmp_path: Path) -> None:
    policy, venv = make_policy(critic="head")
    with torch.no_grad():
        policy.critic.bias.fill_(3.0)  # type: ignore[union-attr,operator]
    policy.save(str(tmp_path / "p.pt"))
    loaded = LLMActorCriticPolicy.load(str(tmp_path / "p.pt"), device="cpu")
    with torch.no_grad():
        torch.testing.assert_close(loaded.predict_values(tensors(venv.reset())), torch.full((4, 1), 3.0))


def test_sb3s_own_tools_work_on_it(tmp_path: Path) -> None:
    model = make_algorithm(
        "ppo", n_envs=4, seed=0, env_kwargs=SMALL, target_kl=0.5, learning_rate=lambda left: 1e-4 * left,
        clip_range=lambda left: 0.2 * left, tensorboard_log=str(tmp_path / "tb"),
    )  # fmt: skip
    callback = EvalCallback(
        LLMTextVecEnv(3, **SMALL), n_eval_episodes=3, eval_freq=4, log_path=str(tmp_path), verbose=0
    )
    model.learn(4 * 6 * 2, callback=callback, progress_bar=True)
    assert np.load(tmp_path / "evaluations.npz")["results"].shape[1] == 3
    mean, std = evaluate_policy(model, LLMTextVecEnv(3, **SMALL), n_eval_episodes=5)
    assert np.isfinite([mean, std]).all()
    assert list((tmp_path / "tb").rglob("events*"))
    obs, _ = __import__("gymnasium").make("LLMText-v0", **SMALL).reset(seed=0)
    action, _ = model.predict(obs)
    assert action.shape == ()


def test_lora_moves_adapters_only_and_the_reference_is_the_base() -> None:
    MODELS.clear()  # an earlier test's LoRA policy may not be collected yet, and have its adapters in there
    model = make_algorithm("ppo", n_envs=8, seed=0, env_kwargs=SMALL, lora_rank=4, learning_rate=1e-2)
    policy, task = model.policy, model.env.task  # type: ignore[union-attr]
    assert policy.lm.model is task.model.lm.model, "the reference should be the same weights"
    base = {n: p.clone() for n, p in policy.actor.named_parameters() if not p.requires_grad}
    sequence, start = [[1, 20, 30, 40, 50]], [1]
    before = task.reference.log_probs(sequence, start)[0]
    model.learn(8 * 6 * 3)
    np.testing.assert_allclose(task.reference.log_probs(sequence, start)[0], before, atol=1e-6)
    batch = pack(sequence, start, "cpu")
    with torch.no_grad():
        now = policy.evaluate_actions(batch, batch.targets)[1].numpy()
    assert np.abs(now - before).max() > 1e-2
    assert all(torch.equal(p, base[n]) for n, p in policy.actor.named_parameters() if n in base)
    merged = policy.merged_actor()
    with torch.no_grad():
        logits = merged(input_ids=torch.tensor(sequence)).logits[0]
    got = torch.log_softmax(logits, -1)[range(4), sequence[0][1:]].numpy()
    np.testing.assert_allclose(got, now, atol=1e-3)


def test_two_lora_policies_do_not_share_adapters() -> None:
    one = make_algorithm("ppo", n_envs=4, seed=0, env_kwargs=SMALL, lora_rank=2)
    two = make_algorithm("ppo", n_envs=4, seed=0, env_kwargs=SMALL, lora_rank=2)
    assert one.policy.lm.model is not two.policy.lm.model


def test_gradient_checkpointing_changes_nothing_but_memory() -> None:
    batch = pack([[1, 20, 30, 40], [1, 50, 60]], [1, 2], "cpu")
    grads = []
    for flag in (False, True):
        policy, _ = make_policy(gradient_checkpointing=flag)
        policy.set_training_mode(True)
        values, log_probs, _ = policy.evaluate_actions(batch, batch.targets)
        (values.sum() + log_probs.sum()).backward()
        grads.append([p.grad for p in policy.parameters() if p.grad is not None])
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"critic": "oracle"}, "critic='oracle' is not known"),
        ({"mixed_precision": "fp8"}, "mixed_precision='fp8'"),
        ({"lora_rank": -1}, "lora_rank=-1"),
    ],
)
def test_unusable_settings(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_policy(**kwargs)


def test_a_model_of_another_vocabulary_is_refused(tmp_path: Path) -> None:
    from transformers import LlamaConfig

    from tests.conftest import SIZE, WIDE, save_model

    folder = save_model(
        tmp_path / "m", AutoModelForCausalLM.from_config(LlamaConfig(**{**SIZE, "vocab_size": 1000}, **WIDE))
    )
    with pytest.raises(ValueError, match="has 1000 tokens"):
        make_policy(model=folder, critic="head")


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "opt", "bloom", "phi"])
def test_any_family_trains(model_folder: Callable[..., str], family: str) -> None:
    model = make_algorithm(
        "ppo", n_envs=4, seed=0,
        env_kwargs={**SMALL, "model": model_folder(family), "reward_model": model_folder(family, 1), "prompts": ["a", "b c"]},
    )  # fmt: skip
    before = [p.clone() for p in model.policy.actor.parameters()]
    model.learn(4 * 6 * 2)
    assert any(not torch.equal(a, b) for a, b in zip(before, model.policy.actor.parameters(), strict=True))


@pytest.mark.parametrize(("episodes", "asked"), [("synchronous", 0), ("continuous", 1)])
def test_values_behind_a_rollout_are_computed_only_where_an_episode_goes_on(
    monkeypatch: pytest.MonkeyPatch, episodes: str, asked: int
) -> None:
    model = make_algorithm(
        "ppo", n_envs=4, seed=0, episodes=episodes, env_kwargs=SMALL, n_steps=12 if asked == 0 else 16
    )
    policy: Any = model.policy
    calls: list[int] = []
    compute = policy.state_values
    monkeypatch.setattr(policy, "state_values", lambda sequences: calls.append(len(sequences)) or compute(sequences))
    model.learn(4 * 12)
    assert len(calls) == asked
    assert all(0 < n <= 4 for n in calls)
    # a question from outside a rollout is answered at once
    obs, _ = policy.obs_to_tensor(model._last_obs)
    with torch.no_grad():
        values = policy.predict_values(obs)
        policy.defer_values = True  # as while a rollout is collected
        assert torch.isnan(policy.predict_values(obs)).all()
    texts = [ids[:n].tolist() for ids, n in zip(obs["input_ids"], obs["length"].flatten(), strict=True)]
    np.testing.assert_allclose(values.flatten().numpy(), compute(texts), atol=1e-4)


def test_gradients_do_not_outlive_the_step() -> None:
    model = make_algorithm("ppo", n_envs=4, seed=0, env_kwargs=SMALL)
    before = [p.clone() for p in model.policy.parameters()]
    model.learn(4 * 6)
    assert any(not torch.equal(a, b) for a, b in zip(before, model.policy.parameters(), strict=True))
    assert all(p.grad is None for p in model.policy.parameters())


@pytest.mark.parametrize(
    ("critic", "reaches"), [("head", True), ("detached_head", False), ("actor", False), ("top_layers", False)]
)
def test_how_far_the_value_loss_reaches(critic: str, reaches: bool) -> None:
    policy: Any = make_algorithm("ppo", n_envs=2, seed=0, critic=critic, env_kwargs=SMALL).policy
    with torch.no_grad():  # a head of zeros would hand no gradient on
        for parameter in policy.critic.parameters():
            parameter.add_(0.1)
    batch = pack([[1, 20, 30, 40, 50], [1, 60, 70]], [2, 1], "cpu")
    values, _, _ = policy.evaluate_actions(batch, batch.targets)
    values.pow(2).sum().backward()
    assert any(p.grad is not None and p.grad.any() for p in policy.critic.parameters())
    assert any(p.grad is not None and p.grad.any() for p in policy.actor.parameters()) == reaches
