"""Masks: the rules by hand, the same in every face, and a policy that samples and scores under them."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable.utils import get_action_masks, is_masking_supported
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import configure

from agents import make_algorithm
from agents.callbacks.mask_refresh import MaskRefresh
from agents.rollouts.vec_env import LLMTextVecEnv
from llm_env.lm.log_probs import head_log_probs
from llm_env.lm.sampling import pack_bits, top_k_mask, top_p_mask, unpack_bits
from llm_env.rollout import respond
from llm_env.settings import TaskSettings
from llm_env.task import TextTask

SMALL: dict[str, Any] = {"max_new_tokens": 6, "max_prompt_length": 12}


def test_bits_and_back() -> None:
    masks = np.random.default_rng(0).random((5, 1021)) < 0.3
    bits = pack_bits(masks)
    assert bits.shape == (5, 128)
    assert bits.dtype == np.uint8
    assert (unpack_bits(torch.from_numpy(bits), 1021).numpy() == masks).all()


def test_top_k_and_top_p_by_hand() -> None:
    logits = torch.tensor([[0.5, 0.25, 0.15, 0.1], [0.1, 0.1, 0.1, 0.7]]).log()
    assert top_k_mask(logits, 2).tolist() == [[True, True, False, False], [True, True, True, True]]  # ties
    assert top_k_mask(logits, 0).all()
    assert top_p_mask(logits, 0.5).tolist() == [[True, False, False, False], [False, False, False, True]]
    assert top_p_mask(logits, 0.7)[0].tolist() == [True, True, False, False]
    assert top_p_mask(logits, 0.91)[0].all()
    assert top_p_mask(logits, 1e-9)[0].sum() == 1


def task(**settings: Any) -> TextTask:
    return TextTask(TaskSettings(**SMALL, **settings))


def test_vocabulary_rules() -> None:
    plain = task()
    lovely = plain.tokenizer.encode(" lovely", add_special_tokens=False)[0]
    eos = next(iter(plain.eos_ids))
    lengths = np.zeros(1, dtype=np.int64)
    assert not plain.masks.active
    without = task(forbidden_tokens=[" lovely", 7]).masks
    assert without.active
    forbidden = np.flatnonzero(~without.of(lengths, None)[0])
    assert sorted(forbidden) == sorted([7, lovely])
    only = task(allowed_tokens=[" lovely"]).masks.of(lengths, None)[0]
    assert sorted(np.flatnonzero(only)) == sorted([lovely, eos])
    pattern = task(allowed_pattern=r" [a-m]+").masks.of(lengths, None)[0]
    texts = [plain.tokenizer.decode([i]) for i in np.flatnonzero(pattern) if i not in plain.eos_ids]
    assert len(texts) > 20
    assert all(t[0] == " " and set(t[1:]) <= set("abcdefghijklm") for t in texts)


def test_no_end_before_the_minimum_length() -> None:
    rules = task(min_new_tokens=3).masks
    eos = next(iter(task().eos_ids))
    masks = rules.of(np.array([0, 2, 3]), None)
    assert masks[:, eos].tolist() == [False, False, True]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"forbidden_tokens": ["two words here"]}, "'two words here' is 10 tokens here"),
        ({"forbidden_tokens": [5000]}, "5000 is not a token; tokens are 0 … 1023"),
        ({"allowed_pattern": "("}, r"allowed_pattern='\(' is not a regular expression"),
        ({"allowed_tokens": [2], "min_new_tokens": 2}, "leave no token to choose"),
        ({"allowed_tokens": [2]}, "leave no token to choose but an end token"),
        ({"allowed_pattern": "nosuchtext"}, "allowed_pattern='nosuchtext' matches no token"),
        ({"forbidden_tokens": " lovely"}, "must be a list of tokens, not one text"),
        ({"top_k": -1}, "top_k=-1 must be a whole number"),
        ({"top_p": 0.0}, "top_p=0.0 must be a finite number above 0, at most 1"),
        ({"min_new_tokens": 7}, "min_new_tokens=7 must be at most max_new_tokens=6"),
    ],
)
def test_bad_rules(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        task(**settings)


def test_the_faces_give_the_same_masks_and_sb3_contrib_finds_them() -> None:
    rules = {"top_p": 0.8, "min_new_tokens": 2, "forbidden_tokens": [" lovely"]}
    venv = LLMTextVecEnv(2, **SMALL, **rules)
    single = gym.make("LLMText-v0", **SMALL, **rules)
    vector = gym.make_vec("LLMText-v0", num_envs=2, **SMALL, **rules)
    assert is_masking_supported(venv)
    assert is_masking_supported(single)
    venv.set_options([{"prompt_index": 0}, {"prompt_index": 1}])
    venv.reset()
    vector.reset(options={"prompt_index": [0, 1]})
    single.reset(options={"prompt_index": 1})
    for _ in range(3):
        masks = get_action_masks(venv)
        assert masks.shape == (2, 1024)
        assert masks.sum(1).min() > 0
        assert masks.sum(1).max() < 300
        np.testing.assert_array_equal(masks, vector.unwrapped.action_masks())
        np.testing.assert_array_equal(masks[1], get_action_masks(single))
        actions = masks.argmax(1)
        venv.step(actions)
        vector.step(actions)
        single.step(actions[1])


def trained(**settings: Any) -> MaskablePPO:
    env_kwargs = {**SMALL, "top_p": 0.7, "min_new_tokens": 3, **settings.pop("env_kwargs", {})}
    model = make_algorithm("maskable_ppo", n_envs=8, seed=0, env_kwargs=env_kwargs, **settings)
    assert type(model) is MaskablePPO
    model.set_logger(configure(None, []))
    return model


def test_what_is_sampled_is_what_is_scored() -> None:
    model = trained(learning_rate=0.0)
    model.learn(8 * 6)
    buffer: Any = model.rollout_buffer
    logs = model.logger.name_to_value
    assert float(logs["train/approx_kl"]) == pytest.approx(0, abs=1e-7)
    assert logs["train/clip_fraction"] == 0
    policy: Any = model.policy
    for segment in buffer.segments:
        ids = torch.tensor([segment.context + segment.actions])
        with torch.no_grad():
            hidden = policy.lm.hidden(ids).last_hidden_state[0, len(segment.context) - 1 : -1]
            logits = policy.lm.logits(hidden)
        for t, (bits, token) in enumerate(zip(segment.masks, segment.actions, strict=True)):
            mask = np.unpackbits(bits, bitorder="little")[:1024].astype(bool)
            assert mask[token]
            own = logits[t].double().numpy()
            want = own[token] - np.log(np.exp(own[mask]).sum())
            assert segment.log_probs[t] == pytest.approx(want, abs=1e-4)
    assert min(len(s.actions) for s in buffer.segments) >= 4  # three others and an end token


def test_masks_are_stored_as_bits_only() -> None:
    model = trained()
    model.learn(8 * 6)
    buffer: Any = model.rollout_buffer
    assert buffer.segments[0].masks[0].nbytes == 1024 // 8
    arrays = [v for v in vars(buffer).values() if isinstance(v, np.ndarray)]
    assert arrays
    assert not any(v.dtype == np.float32 and v.shape[-1] == 1024 for v in arrays)


@pytest.mark.parametrize("fused", [True, False])
def test_masked_log_probs_and_entropy_against_a_slow_loop(fused: bool) -> None:
    lm = task().model.lm
    torch.manual_seed(0)
    hidden = torch.randn(7, 128, requires_grad=True)
    allowed = torch.rand(7, 1024) < 0.05
    targets = allowed.float().argmax(-1)
    bits = torch.from_numpy(pack_bits(allowed.numpy()))
    log_prob, entropy = head_log_probs(lm, hidden, targets, 0.7, entropy_grad=not fused, fused=fused, masks=bits)
    logits = lm.logits(hidden) / 0.7
    for i in range(7):
        inside = torch.log_softmax(logits[i][allowed[i]].double(), 0)
        at = int(allowed[i][: targets[i]].sum())
        assert log_prob[i].item() == pytest.approx(inside[at].item(), abs=1e-4)
        assert entropy[i].item() == pytest.approx(-(inside.exp() * inside).sum().item(), abs=1e-4)
    want = torch.autograd.grad(
        sum(torch.log_softmax(logits[i][allowed[i]], 0)[int(allowed[i][: targets[i]].sum())] for i in range(7)), hidden
    )[0]
    got = torch.autograd.grad(log_prob.sum(), hidden)[0]
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)


def test_evaluation_samples_under_the_masks() -> None:
    restricted = task(min_new_tokens=6, forbidden_tokens=["."])
    prompts = restricted.prompts.spread(8)
    episodes = respond(restricted.model.lm, restricted, prompts, 0, mask="reference")
    assert all(not e.has_end and "." not in e.response_text for e in episodes)
    assert any("." in e.response_text for e in respond(restricted.model.lm, restricted, prompts, 0))


def test_masks_from_an_older_actor_are_refreshed_every_n_rollouts() -> None:
    model = trained(learning_rate=3e-3)
    policy: Any = model.policy
    env: Any = model.env

    def behind() -> bool:
        theirs = dict(env.mask_copy.model.named_parameters())
        return any(not torch.equal(p, theirs[n]) for n, p in policy.actor.named_parameters())

    ages: list[bool] = []

    class Look(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_start(self) -> None:
            ages.append(behind())

    source = env.batch.mask_source
    model.learn(8 * 6 * 5, callback=[MaskRefresh(2), Look()])
    assert ages == [False, True, False, True, False]  # what each rollout's masks looked at
    assert policy.mask_model == "actor"
    assert env.batch.mask_source is not source
    with pytest.raises(ValueError, match="mask_refresh=0 must be a whole number, at least 1"):
        MaskRefresh(0)
    with pytest.raises(ValueError, match="mask_refresh: PPO knows no masks"):
        make_algorithm("ppo", n_envs=4, env_kwargs={"max_new_tokens": 6}).learn(24, callback=MaskRefresh(1))


def test_masked_rollouts_with_bf16_score_again_under_the_masks() -> None:
    model = trained(mixed_precision="bf16", learning_rate=0.0)
    model.learn(8 * 6)
    assert abs(float(model.logger.name_to_value["train/approx_kl"])) < 1e-6


def test_predict_heeds_the_masks() -> None:
    model = trained()
    obs = model.env.reset()  # type: ignore[union-attr]
    only = np.zeros((8, 1024), dtype=bool)
    only[:, 9] = True
    assert model.predict(obs, action_masks=only)[0].tolist() == [9] * 8
