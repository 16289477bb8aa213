"""PPO's practices: each does what its paper says, and nothing where it is off."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from agents import make_algorithm
from agents.cli import train
from agents.runs.figure import read_progress
from llm_env.settings import TaskSettings
from tests.agents.small_runs import SMALL, filled, made, trained, weights_of


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


def test_advantages_are_whitened_unless_told_otherwise() -> None:
    white, raw = filled().rollout_buffer, filled(whiten_advantages=False).rollout_buffer
    assert (white.advantages.mean(), white.advantages.std()) == pytest.approx((0, 1), abs=1e-4)
    shifted = (raw.advantages - raw.advantages.mean()) / raw.advantages.std()
    assert shifted == pytest.approx(white.advantages, abs=1e-4)
    assert raw.advantages.std() != pytest.approx(1, abs=1e-2)
    # Beside a KL in the loss they keep the score's scale, which β is meant for.
    exact = {"kl_estimator": "exact"}
    assert not filled(exact, kl_in="both").rollout_buffer.whiten_advantages
    assert filled(exact, kl_in="loss", whiten_advantages=True).rollout_buffer.whiten_advantages
    with pytest.raises(TypeError, match="grpo has no setting 'whiten_advantages'"):
        make_algorithm("grpo", whiten_advantages=False)


@pytest.mark.parametrize("estimator", ["k1", "k3", "exact"])
@pytest.mark.parametrize("whiten", [False, True])
def test_a_tokens_own_part_in_the_kl_is_its_log_ratio_in_its_advantage(estimator: str, whiten: bool) -> None:
    env = {"kl_estimator": estimator, "kl_coef": 0.7}
    buffer = filled(env, whiten_advantages=False, whiten_rewards=whiten, gae_lambda=1.0).rollout_buffer
    # With λ = 1 the advantage is all rewards from the token on, less the value before it.
    at, own = 0, []
    for segment in buffer.segments:
        n = len(segment.actions)
        rewards, values = buffer.rewards[at : at + n], buffer.values[at : at + n]
        to_go = np.cumsum(rewards[::-1])[::-1]
        own.append(buffer.advantages[at : at + n] - (to_go - values))
        assert buffer.returns[at : at + n] == pytest.approx(to_go, abs=1e-4)  # the critic learns of what is paid
        at += n
    flat = np.concatenate(own)
    want = []
    for segment in buffer.segments:
        episode = segment.episode
        ratio = np.array(segment.log_probs) - np.array(episode.ref_log_probs)
        estimate = {"k1": ratio, "k3": np.exp(-ratio) - 1 + ratio, "exact": np.array(episode.exact_kl)}[estimator]
        want.append(0.7 * (estimate - ratio))

    plain = filled(env, whiten_advantages=False, gae_lambda=1.0).rollout_buffer
    unit = plain.rewards.std() if whiten else 1.0
    assert flat == pytest.approx(np.concatenate(want) / unit, abs=1e-4)
    assert bool(np.abs(flat).max() > 1e-3) is (estimator != "k1")


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_scores_and_beta_in_another_unit_give_grpo_the_same_advantages(estimator: str) -> None:
    def advantages(unit: float) -> np.ndarray:
        env = {"kl_in": "reward", "kl_estimator": estimator, "kl_coef": 0.3 * unit, "reward_scale": unit}
        return filled(env, algo="grpo").rollout_buffer.advantages

    one = advantages(1.0)
    assert advantages(50.0) == pytest.approx(one, abs=1e-4)
    assert one.std() == pytest.approx(1, abs=0.3)


def test_whitened_rewards_only_rescale_remaxs_advantages() -> None:
    # The score is far from 0, so that a baseline in another unit would be most of the advantage.
    env = {"reward_shift": 20.0}
    plain, white = (filled(env, algo="remax", whiten_rewards=w).rollout_buffer for w in (False, True))
    assert white.advantages == pytest.approx(plain.advantages / plain.rewards.std(), abs=1e-3)
    assert plain.advantages.std() > 0.1


def test_lambda_goes_by_what_the_critic_knows_at_the_start() -> None:
    assert made().rollout_buffer.gae_lambda == made().gae_lambda == 0.9
    assert made(critic="reward_model").gae_lambda == 0.9
    assert made(critic="detached_head").gae_lambda == 0.95
    assert made(critic="detached_head", gae_lambda=0.8).gae_lambda == 0.8
    assert make_algorithm("grpo", n_envs=8, env_kwargs=SMALL).gae_lambda == 1.0  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["ppo", "maskable_ppo", "grpo"])
def test_what_an_updates_kl_may_cost_bounds_it_by_default(name: str) -> None:
    def bound(**settings: Any) -> float | None:
        env = {**SMALL, "kl_coef": 0.2, **settings.pop("env", {})}
        target: float | None = make_algorithm(name, n_envs=8, env_kwargs=env, **settings).target_kl  # type: ignore[attr-defined]
        return target

    # A tenth of a score's standard deviation, over β and the tokens of a response.
    assert bound() == pytest.approx(0.1 / (0.2 * SMALL["max_new_tokens"]))
    assert bound(env={"kl_coef": 0.0}) is None
    assert bound(target_kl=0.3) == 0.3
    assert bound(target_kl=None) is None


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


@pytest.mark.filterwarnings("always:.*were cut on the left")
def test_the_best_evaluation_is_kept_and_the_kl_is_to_the_first_reference(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    extra = ["--eval-every", "1", "--n-eval", "8", "--learning-rate", "1e-3", "--ref-refresh-every", "1"]
    extra += ["--lr-schedule", "constant", "--max-prompt-length", "6"]
    assert run(folder, 5, *extra) == 0
    assert (
        capsys.readouterr().out.count("were cut on the left") == 2
    )  # prompts and eval_prompts, in however many evaluations
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
    assert run(tmp_path / "run", 2, *extra) == 1
    assert message in capsys.readouterr().err
