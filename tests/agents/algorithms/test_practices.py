"""PPO's practices: each does what its paper says, and nothing where it is off."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from stable_baselines3.common.callbacks import BaseCallback

from agents import TextMetricsCallback, make_algorithm
from agents.algorithms.pretraining_mix import PretrainingMix
from agents.algorithms.text_ppo import TextPPO
from agents.callbacks.adaptive_kl import AdaptiveKL, adapted_kl_coef
from agents.callbacks.reference_refresh import ReferenceRefresh
from agents.cli import train
from agents.rollouts.vec_env import LLMTextVecEnv, text_env
from agents.runs.figure import read_progress
from llm_env.default_task import DEFAULT_MODEL
from llm_env.lm.causal_lm import load_causal_lm
from llm_env.lm.log_probs import head_kl
from llm_env.lm.names import LoadSettings
from llm_env.lm.packed_attention import packed_states
from llm_env.lm.packing import PackedBatch
from llm_env.lm.registry import shared_causal_lm
from llm_env.lm.sampling import pack_bits
from llm_env.settings import TaskSettings
from llm_env.task import TextTask
from llm_env.text.texts import EncodedText

SMALL: dict[str, Any] = {"max_new_tokens": 6, "max_prompt_length": 12}


def made(env: dict[str, Any] | None = None, **settings: Any) -> Any:
    return make_algorithm("ppo", n_envs=8, seed=0, env_kwargs={**SMALL, **(env or {})}, **settings)


def trained(rollouts: int, callbacks: list[BaseCallback] | None = None, **settings: Any) -> Any:
    model = made(**settings)
    model.learn(8 * 6 * rollouts, callback=callbacks or [TextMetricsCallback()], log_interval=None)
    return model


def filled(env: dict[str, Any] | None = None, **settings: Any) -> Any:
    """An algorithm whose policy has moved a little, with a full buffer."""
    model = made(env, **settings)
    with torch.no_grad():
        for parameter in model.policy.actor.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    _, callback = model._setup_learn(48, None)
    model.collect_rollouts(model.env, callback, model.rollout_buffer, 6)
    return model


def test_adaptive_kl_by_hand() -> None:
    assert adapted_kl_coef(0.1, kl=6.0, target=4.0, gain=0.1) == pytest.approx(0.1 * 1.02)  # clipped at 0.2
    assert adapted_kl_coef(0.1, kl=4.4, target=4.0, gain=0.1) == pytest.approx(0.1 * 1.01)
    assert adapted_kl_coef(0.1, kl=1.0, target=4.0, gain=1.0) == pytest.approx(0.08)
    assert adapted_kl_coef(0.1, kl=4.0, target=4.0, gain=1.0) == 0.1


def test_beta_moves_after_the_rollout_whose_rewards_it_paid() -> None:
    metrics = TextMetricsCallback()
    seen: list[tuple[float, float]] = []

    class Look(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_end(self) -> None:
            seen.append((metrics.last["rollout/kl"], text_env(self.training_env).task.kl.coef))

    trained(4, [metrics, Look(), AdaptiveKL(metrics, target=0.5, gain=1.0)], learning_rate=1e-2)
    betas = [beta for _, beta in seen]
    assert betas[0] == 0.05
    for (kl, beta), after in zip(seen, betas[1:], strict=False):
        assert after == pytest.approx(adapted_kl_coef(beta, kl, 0.5, 1.0))
    assert len(set(betas)) > 2


@pytest.mark.slow
def test_adaptive_kl_holds_its_target_within_a_fifth() -> None:
    seen: list[float] = []

    class Look(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_end(self) -> None:
            seen.append(metrics.last["rollout/kl"])

    metrics = TextMetricsCallback()
    model = make_algorithm("ppo", n_envs=64, seed=1, env_kwargs={"kl_coef": 0.1})
    model.learn(64 * 32 * 44, callback=[metrics, Look(), AdaptiveKL(metrics, 6.0, 0.2)], log_interval=None)
    assert np.mean(seen[-16:]) == pytest.approx(6.0, rel=0.2)
    assert text_env(model.env).task.kl.coef < 0.09  # which 0.1 would not have done


@pytest.mark.parametrize(
    ("target", "gain", "message"), [(0, 0.1, "kl_target=0"), (4, 0, "kl_gain=0"), (4, 5, "below 5")]
)
def test_adaptive_kl_refuses(target: float, gain: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AdaptiveKL(TextMetricsCallback(), target, gain)


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


def test_scores_are_shifted_scaled_clipped_and_then_penalized() -> None:
    plain = filled()
    raw = [s.episode.rm_score for s in plain.rollout_buffer.segments]
    env = {"reward_shift": 1.0, "reward_scale": 2.0, "reward_clip": 1.5, "length_penalty": 0.1}
    shaped = filled(env)
    for score, segment in zip(raw, shaped.rollout_buffer.segments, strict=True):
        episode = segment.episode
        assert episode.rm_score == pytest.approx(score, abs=1e-5)  # reported as it is
        want = max(-1.5, min(1.5, (score + 1) * 2)) - 0.1 * len(episode.response_ids)
        assert episode.final_score == pytest.approx(want, abs=1e-5)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("reward_scale", 0.0), ("reward_clip", -1.0), ("reward_shift", math.nan), ("length_penalty", math.inf)],
)
def test_bad_shaping_is_refused(setting: str, value: float) -> None:
    with pytest.raises(ValueError, match=setting):
        TaskSettings(**{setting: value})


def test_whitened_rewards_have_standard_deviation_1_and_keep_their_mean_in_proportion() -> None:
    plain, white = filled().rollout_buffer, filled(whiten_rewards=True).rollout_buffer
    assert white.rewards.std() == pytest.approx(1, abs=1e-4)
    assert white.rewards == pytest.approx(plain.rewards / plain.rewards.std(), abs=1e-4)
    assert abs(white.rewards.mean()) > 1e-3


def test_the_critic_has_a_learning_rate_of_its_own() -> None:
    moved: dict[float, list[float]] = {}
    for scale in (1.0, 3.0):
        model = filled(critic_lr_scale=scale, optimizer_class=torch.optim.SGD, learning_rate=1e-3, n_epochs=1)
        model.batch_size = 48
        parts = (model.policy.actor, model.policy.critic)
        before = [weights_of(part).clone() for part in parts]
        model.train()
        moved[scale] = [float((weights_of(part) - b).norm()) for part, b in zip(parts, before, strict=True)]
        assert {g["lr"] for g in model.policy.optimizer.param_groups} == {1e-3}  # SB3's schedule is not disturbed
    assert moved[3.0][0] == pytest.approx(moved[1.0][0], rel=1e-2)
    assert moved[3.0][1] == pytest.approx(3 * moved[1.0][1], rel=1e-2)
    with pytest.raises(ValueError, match="critic_lr_scale=-1"):
        made(critic_lr_scale=-1)


def weights_of(model: Any) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("lora", [0, 4])
def test_a_hard_refresh_brings_the_kl_to_zero_and_touches_no_shared_model(lora: int) -> None:
    before = weights_of(shared_causal_lm(DEFAULT_MODEL, LoadSettings("float32", "cpu")).lm.model).clone()
    rows: list[float] = []

    class Look(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_end(self) -> None:
            rows.append(metrics.last["rollout/kl"])

    metrics = TextMetricsCallback()
    model = trained(
        6,
        [metrics, Look(), ReferenceRefresh(3)],
        learning_rate=lambda _: 5e-3 if lora else 1e-3,
        lora_rank=lora,
        critic="detached_head",
    )
    assert rows[0] == pytest.approx(0, abs=1e-3)
    assert max(map(abs, rows[1:3])) > 1e-2
    assert rows[3] == pytest.approx(0, abs=1e-3)  # refreshed before the fourth rollout
    assert max(map(abs, rows[4:])) > 1e-2
    task = text_env(model.env).task
    assert task.reference.shared is not task.model
    if not lora:
        shared = shared_causal_lm(DEFAULT_MODEL, LoadSettings("float32", "cpu")).lm.model
        assert torch.equal(weights_of(shared), before)


def test_a_moving_average_goes_part_of_the_way() -> None:
    task = TextTask(TaskSettings())
    first = weights_of(load_causal_lm(DEFAULT_MODEL, LoadSettings("float32", "cpu")).model)
    other = load_causal_lm(DEFAULT_MODEL, LoadSettings("float32", "cpu")).model
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1.0)
    task.refresh_reference(other, 0.25)
    own = weights_of(task.own_reference())
    torch.testing.assert_close(own, first + 0.25)
    task.refresh_reference(other, 0.25)
    torch.testing.assert_close(weights_of(task.own_reference()), first + 0.25 + 0.25 * 0.75)
    with pytest.raises(ValueError, match="share=0"):
        task.refresh_reference(other, 0)


def test_step_scoring_notices_a_refresh() -> None:
    venv = LLMTextVecEnv(2, **SMALL)
    venv.seed(0)
    venv.reset()
    venv.step(np.array([5, 6]))
    other = load_causal_lm(DEFAULT_MODEL, LoadSettings("float32", "cpu")).model
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.1)
    venv.task.refresh_reference(other)
    _, rewards, _, _ = venv.step(np.array([7, 8]))
    episode = venv.batch.episodes[0]
    want = venv.task.reference.log_probs([episode.ids], [len(episode.prompt.ids) + 1])[0][0]
    assert rewards[0] == pytest.approx(0.05 * float(want), abs=1e-4)


def ptx_loss(policy: Any, texts: list[EncodedText]) -> torch.Tensor:
    """What `TextPPO` mixes in, for one batch of all the texts."""
    return -policy.text_log_probs(PretrainingMix(texts, 1.0, 1000).next_batch(policy.device)).mean()


TEXTS = [EncodedText([1, 20, 30, 40, 2], 2), EncodedText([1, 50, 60, 2], 1)]


def test_ptx_is_the_mean_negative_log_likelihood_of_the_texts() -> None:
    policy = made({"temperature": 0.5}).policy  # the texts' likelihood is at temperature 1 all the same
    want = []
    for t in TEXTS:
        logits = torch.log_softmax(policy.lm.model(torch.tensor([t.ids])).logits[0], -1)
        want += [-logits[i - 1, t.ids[i]] for i in range(t.start, len(t.ids))]
    assert ptx_loss(policy, TEXTS).item() == pytest.approx(torch.stack(want).mean().item(), abs=1e-4)
    with pytest.raises(ValueError, match="ptx_coef=0"):
        PretrainingMix(TEXTS, 0.0, 100)
    with pytest.raises(ValueError, match="no text has a token to learn within ptx_tokens=2"):
        PretrainingMix([EncodedText([1, 2, 3], 2)], 1.0, 2)


def with_texts(folder: Path) -> str:
    path = folder / "texts.jsonl"
    path.write_text('{"text": "zebra zebra quartz"}\n' * 3)
    return str(path)


def test_texts_that_are_not_there_are_named_as_ptx_texts() -> None:
    with pytest.raises(FileNotFoundError, match=r"ptx_texts='/no/such.jsonl': there is no such file"):
        made(ptx_texts="/no/such.jsonl")


def test_ptx_keeps_the_texts_likely(tmp_path: Path) -> None:
    losses = {}
    for coef in (0.0, 5.0):
        mix = {"ptx_texts": with_texts(tmp_path), "ptx_coef": coef} if coef else {}
        model = trained(6, learning_rate=3e-3, **mix)
        texts = made(ptx_texts=with_texts(tmp_path)).mix.texts
        losses[coef] = ptx_loss(model.policy, texts).item()
    assert losses[5.0] < losses[0.0] / 2


def test_ptx_is_bounded_by_micro_batches_and_recovers_from_a_shortage_of_memory(tmp_path: Path) -> None:
    """PPO's gradients and the texts' meet in one backward pass; either may have to be worked through in parts."""
    settings = {"ptx_texts": with_texts(tmp_path), "n_epochs": 1, "batch_size": 48, "learning_rate": 1e-3}

    def update(prepare: Any) -> tuple[torch.Tensor, list[int]]:
        model = filled(**settings)
        sizes: list[int] = []
        prepare(model.policy, sizes)
        torch.manual_seed(0)
        np.random.seed(0)
        model.train()
        return weights_of(model.policy), sizes

    def watch(policy: Any, sizes: list[int], limit: int | None = None) -> None:
        in_parts = policy._in_parts

        def limited(evaluate: Any, batch: PackedBatch) -> Any:
            def look(part: PackedBatch) -> Any:
                outputs = evaluate(part)
                sizes.append(len(part.input_ids))
                if limit is not None and len(part.input_ids) > limit and outputs[0].requires_grad:

                    def fail(_: torch.Tensor) -> None:
                        raise torch.OutOfMemoryError("no memory")

                    outputs[-1 if len(outputs) == 1 else 1].register_hook(fail)
                return outputs

            return in_parts(look, batch)

        policy._in_parts = limited

    whole, _ = update(lambda policy, sizes: watch(policy, sizes))
    short, sizes = update(lambda policy, sizes: watch(policy, sizes, limit=30))
    torch.testing.assert_close(short, whole, rtol=0, atol=2e-5)
    assert max(sizes) > 30 >= sizes[-1]  # it failed, and went on in parts

    def bounded(policy: Any, sizes: list[int]) -> None:
        policy.micro_batches.max_tokens = 24
        watch(policy, sizes)

    parts, sizes = update(bounded)
    torch.testing.assert_close(parts, whole, rtol=0, atol=2e-5)
    assert max(sizes) <= 24


def test_the_order_of_the_texts_goes_through_them_before_any_comes_twice() -> None:
    texts = [EncodedText([1, 20 + i, 2], 1) for i in range(10)]
    mix = PretrainingMix(texts, 1.0, 6)
    seen = [mix.order.next() for _ in range(10)]
    assert sorted(seen) == list(range(10))


def moved(**settings: Any) -> tuple[Any, torch.Tensor]:
    """An algorithm after two updates, and its weights."""
    model = trained(2, learning_rate=2e-3, **settings)
    return model, weights_of(model.policy)


@pytest.fixture(scope="module")
def plain() -> torch.Tensor:
    """The weights without any option."""
    weights = moved()[1]
    assert torch.equal(weights, moved()[1])  # else a difference would mean nothing
    return weights


@pytest.mark.parametrize(
    ("setting", "value"),
    [("clip_range_vf", 0.001), ("ent_coef", 0.5), ("target_kl", 1e-6), ("vf_coef", 0.0), ("max_grad_norm", 1e-3)],
)
def test_stock_options_change_the_update(plain: torch.Tensor, setting: str, value: float) -> None:
    model, changed = moved(**{setting: value})
    assert (plain - changed).abs().max() > 1e-5
    if setting == "target_kl":
        assert (changed - weights_of(made().policy)).norm() < 0.7 * (plain - weights_of(made().policy)).norm()
    if setting == "ent_coef":  # the bonus has a gradient
        assert model.policy.settings.entropy_grad


def test_penalties_come_off_the_score_that_they_are_for() -> None:
    model = filled({"missing_eos_penalty": 3.0, "overlong_buffer": 3, "overlong_penalty": 2.0})
    seen = set()
    for segment in model.rollout_buffer.segments:
        e = segment.episode
        overlong = 2.0 * min(1.0, max(0.0, (len(e.response_ids) - 3) / 3))
        assert e.final_score == pytest.approx(e.rm_score - (0.0 if e.has_end else 3.0) - overlong)
        seen.add(e.has_end)
    assert False in seen


def run(folder: Path, iterations: int, *extra: str) -> int:
    size = ["--n-envs", "4", "--max-new-tokens", "6", "--max-prompt-length", "12", "--sample-every", "9"]
    return train.main(["--output-dir", str(folder), "--total-timesteps", str(24 * iterations), *size, *extra])


def test_the_best_evaluation_is_kept_and_the_kl_is_to_the_first_reference(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    extra = ["--eval-every", "1", "--n-eval", "8", "--learning-rate", "1e-3", "--ref-refresh-every", "1"]
    extra += ["--lr-schedule", "constant"]
    assert run(folder, 5, *extra) == 0
    rows = read_progress(folder / "progress.csv")
    import json

    best = json.loads((folder / "best" / "best.json").read_text())
    place = int(np.argmax(rows["eval/objective"]))
    assert best["timestep"] == rows["time/total_timesteps"][place]
    assert best["objective"] == pytest.approx(rows["eval/objective"][place])
    assert rows["eval/objective"] == pytest.approx(rows["eval/rm_score"] - 0.05 * rows["eval/kl"])
    assert np.isfinite(rows["eval/gold_score"]).all()
    # the reference is refreshed before every rollout: the KL to it is 0, that to the first one is not
    assert np.abs(rows["rollout/kl"]).max() < 1e-3
    assert np.abs(rows["eval/kl"]).max() > 1e-2
    assert (folder / "best" / "model.safetensors").is_file()
    last = load_file(folder / "actor" / "model.safetensors")
    kept = load_file(folder / "best" / "model.safetensors")
    assert all(torch.equal(last[n], kept[n]) for n in last) == (place == 4)


@pytest.mark.slow
def test_a_run_with_all_practices_resumes_bit_for_bit(tmp_path: Path) -> None:
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(f'{{"prompt": "How was it {i}?", "response": "Good, {i}."}}\n' for i in range(7)))
    extra = [
        *("--kl-target", "1", "--kl-gain", "1", "--ref-refresh-every", "2", "--ref-refresh-share", "0.5"),
        *("--kl-estimator", "exact", "--kl-in", "both", "--critic-lr-scale", "2", "--eval-every", "2", "--n-eval", "4"),
        *("--ptx-texts", str(texts), "--ptx-tokens", "32", "--checkpoint-every", "2", "--whiten-rewards"),
        *("--lr-schedule", "constant"),
    ]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run(whole, 6, *extra) == 0
    assert run(parts, 4, *extra) == 0
    assert train.main(["--resume", str(parts), "--total-timesteps", str(24 * 6)]) == 0
    one, other = (load_file(f / "actor" / "model.safetensors") for f in (whole, parts))
    assert all(torch.equal(one[n], other[n]) for n in one)
    a, b = (read_progress(f / "progress.csv") for f in (whole, parts))
    for name in ("rollout/kl", "train/kl_coef", "train/ptx_loss", "train/kl_loss", "eval/objective"):
        np.testing.assert_array_equal(a[name], b[name])


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (("--kl-target", "4", "--kl-coef", "0"), "kl_target needs a kl_coef above 0"),
        (("--ref-refresh-share", "2", "--ref-refresh-every", "1"), "ref_refresh_share=2.0"),
        (("--ptx-coef", "1"), "give ptx_texts too"),
        (("--best-by", "luck"), "best_by='luck' is not known"),
        (("--kl-in", "nowhere"), "kl_in='nowhere' is not known"),
        (("--algo", "trpo", "--kl-in", "loss"), "trpo has no setting 'kl_in'"),
        (("--algo", "recurrent_ppo", "--ref-refresh-every", "1"), "no language model that a reference could follow"),
    ],
)
def test_settings_that_cannot_work_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], extra: tuple[str, ...], message: str
) -> None:
    assert run(tmp_path / "run", 1, *extra) == 1
    assert message in capsys.readouterr().err
