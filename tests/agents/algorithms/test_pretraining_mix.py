"""PPO-ptx: its loss, what it keeps, and what it needs of memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agents.algorithms.pretraining_mix import PretrainingMix
from llm_env.default_task import DEFAULT_REWARD_MODEL
from llm_env.lm.packing import PackedBatch
from llm_env.text.texts import EncodedText
from tests.agents.small_runs import filled, made, trained, weights_of
from tests.conftest import short_model


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
    with pytest.raises(ValueError, match="no text has a token to learn within 2 tokens; ptx_tokens=2"):
        PretrainingMix([EncodedText([1, 2, 3], 2)], 1.0, 2)


def with_texts(folder: Path) -> str:
    path = folder / "texts.jsonl"
    path.write_text('{"text": "zebra zebra quartz"}\n' * 3)
    return str(path)


def test_texts_that_are_not_there_are_named_as_ptx_texts() -> None:
    with pytest.raises(FileNotFoundError, match=r"ptx_texts='/no/such.jsonl': there is no such file"):
        made(ptx_texts="/no/such.jsonl")


def test_texts_are_cut_to_what_the_model_can_read(tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    path.write_text('{"text": "' + "zebra quartz " * 60 + '"}\n')
    model = made(
        {"model": short_model(tmp_path / "short"), "reward_model": DEFAULT_REWARD_MODEL, "prompts": ["The room"]},
        ptx_texts=str(path),
        ptx_coef=1.0,
    )
    assert [len(t.ids) for t in model.mix.texts] == [48]
    model.learn(8 * 6)
    assert weights_of(model.policy).isfinite().all()


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
