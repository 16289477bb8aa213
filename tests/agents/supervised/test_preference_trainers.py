"""Trainers of preferences: every method's loss and gradient against numbers from plain log-probs; the rows that they read."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from datasets import Dataset
from torch import Tensor
from transformers import AutoModelForCausalLM

from agents.preferences.records import read_rankings
from agents.supervised.preference.build import make_trainer
from agents.supervised.preference.methods import METHODS, UNPAIRED, method
from agents.supervised.preference.trainers import labeled_rows, sides, unpaired_rows
from agents.supervised.rows import encode_rankings
from agents.supervised.settings import PreferenceSettings
from llm_env.default_task import DEFAULT_MODEL
from llm_env.lm.loading import load_tokenizer

PAIRS = [
    {"prompt_ids": [1, 30, 31], "chosen_ids": [40, 41, 2], "rejected_ids": [50, 2]},
    {"prompt_ids": [1, 33], "chosen_ids": [42], "rejected_ids": [51, 52, 53, 2]},
]


IN_PAIRS = [n for n, m in METHODS.items() if m.trainer == "DPOTrainer"]


def trainer_of(tmp_path: Path, models: tuple[str, str], loss: str, **extra: Any) -> Any:
    policy, reference = models
    options = {"model": policy, "ref_model": reference if method(loss).reference else None, "device": "cpu"}
    options |= {"output_dir": tmp_path / "out", "preferences": "", "loss": loss, "batch_size": 2}
    settings = PreferenceSettings(**{**options, **extra})
    rows = sides(PAIRS) if method(loss).trainer == UNPAIRED else PAIRS
    return make_trainer(settings, load_tokenizer(policy), rows, rows)


@pytest.mark.parametrize("loss", ["dpo", "ipo", "orpo", "simpo"])
def test_each_held_out_pair_counts_once(tmp_path: Path, models: tuple[str, str], loss: str) -> None:
    trainer = trainer_of(tmp_path, models, loss)
    trainer.eval_dataset = Dataset.from_list([*trainer.eval_dataset, trainer.eval_dataset[0]])
    by_size = []
    for size in (2, 1):  # batches of two and of one, and of one each
        trainer.args.per_device_eval_batch_size = size
        by_size.append(trainer.evaluate())
    for name in ("rewards/accuracies", "rewards/margins", "logps/chosen", "logps/rejected"):
        uneven, single = (metrics[f"eval_{name}"] for metrics in by_size)
        assert uneven == pytest.approx(single, rel=1e-4), name


def loss_of(trainer: Any) -> Tensor:
    batch = next(iter(trainer.get_eval_dataloader()))  # all pairs; of kto's single sides the first ones
    trainer.model.train()
    return trainer.compute_loss(trainer.model, batch)


def plain(model: Any) -> tuple[list[Tensor], list[Tensor]]:
    """(log-probs of each chosen response's tokens, of each rejected one's), one sequence at a time."""
    sides: tuple[list[Tensor], list[Tensor]] = ([], [])
    for pair, (side, name) in itertools.product(PAIRS, enumerate(("chosen_ids", "rejected_ids"))):
        ids = torch.tensor([pair["prompt_ids"] + pair[name]])
        log_p = torch.log_softmax(model(input_ids=ids).logits[0, :-1].float(), -1)
        tokens = log_p[torch.arange(ids.shape[1] - 1), ids[0, 1:]]
        sides[side].append(tokens[len(pair["prompt_ids"]) - 1 :])
    return sides


def sequential_kl(policy: Any, reference: Any, name: str) -> Tensor:
    """Sum over a response's positions of KL(π_ref‖π)."""
    sums = []
    for pair in PAIRS:
        ids = torch.tensor([pair["prompt_ids"] + pair[name]])
        ours, theirs = (
            torch.log_softmax(m(input_ids=ids).logits[0, :-1].float(), -1)[len(pair["prompt_ids"]) - 1 :]
            for m in (policy, reference)
        )
        sums.append((theirs.exp() * (theirs - ours)).sum())
    return torch.stack(sums)


def by_hand(loss: str, policy: Any, reference: Any) -> Tensor:
    """What the papers say, from plain log-probs."""
    (chosen, rejected), (ref_chosen, ref_rejected) = plain(policy), plain(reference)
    w = torch.stack([a.sum() - b.sum() for a, b in zip(chosen, ref_chosen, strict=True)])
    v = torch.stack([a.sum() - b.sum() for a, b in zip(rejected, ref_rejected, strict=True)])
    mean_w, mean_v = (torch.stack([t.mean() for t in side]) for side in (chosen, rejected))
    lengths = [torch.tensor([float(len(t)) for t in side]) for side in (chosen, rejected)]
    beta = METHODS[loss].beta
    log_sigmoid = F.logsigmoid
    if loss == "dpo":
        return -log_sigmoid(beta * (w - v)).mean()
    if loss == "dpop":
        return -log_sigmoid(beta * (w - v - 50 * torch.relu(-w))).mean()
    if loss in ("tdpo1", "tdpo2"):
        kl_w, kl_v = (sequential_kl(policy, reference, name) for name in ("chosen_ids", "rejected_ids"))
        alpha = 1.0 if loss == "tdpo1" else 0.5
        return -log_sigmoid(beta * (w - v) - alpha * beta * (kl_v - kl_w)).mean()
    if loss == "ipo":  # TRL's, with log ratios per token
        return ((w / lengths[0] - v / lengths[1] - 1 / (2 * beta)) ** 2).mean()
    if loss == "hinge":
        return torch.relu(1 - beta * (w - v)).mean()
    if loss == "robust":
        right, wrong = -log_sigmoid(beta * (w - v)), -log_sigmoid(-beta * (w - v))
        return ((0.9 * right - 0.1 * wrong) / 0.8).mean()
    if loss == "sppo_hard":
        return ((w - 0.5 / beta) ** 2 + (v + 0.5 / beta) ** 2).mean()
    if loss == "apo_zero":
        return (1 - torch.sigmoid(beta * w) + torch.sigmoid(beta * v)).mean()
    if loss == "orpo":  # eq. 6 and 7; its likelihood term reads prompts too, in TRL as in the paper's code
        odds = mean_w - mean_v - (torch.log1p(-mean_w.exp()) - torch.log1p(-mean_v.exp()))
        nll = []
        for pair in PAIRS:
            ids = torch.tensor([pair["prompt_ids"] + pair["chosen_ids"]])
            log_p = torch.log_softmax(policy(input_ids=ids).logits[0, :-1].float(), -1)
            nll.append(-log_p[torch.arange(ids.shape[1] - 1), ids[0, 1:]])
        return torch.cat(nll).mean() - beta * log_sigmoid(odds).mean()
    if loss == "cpo":
        total_w, total_v = (torch.stack([t.sum() for t in side]) for side in (chosen, rejected))
        return (-log_sigmoid(beta * (total_w - total_v))).mean() - torch.cat(chosen).mean()
    assert loss == "simpo"
    return -log_sigmoid(beta * (mean_w - mean_v) - 1.0).mean()


HAND = [
    "dpo", "dpop", "tdpo1", "tdpo2", "ipo", "hinge", "robust", "sppo_hard", "apo_zero", "orpo", "cpo", "simpo",
]  # fmt: skip


@pytest.mark.parametrize("loss", HAND)
def test_a_trainers_loss_is_the_papers_on_plain_log_probs(tmp_path: Path, models: tuple[str, str], loss: str) -> None:
    policy, reference = (AutoModelForCausalLM.from_pretrained(m).eval() for m in models)
    with torch.no_grad():
        expected = by_hand(loss, policy, reference).item()
    assert loss_of(trainer_of(tmp_path, models, loss)).item() == pytest.approx(expected, rel=2e-4, abs=2e-5)


@pytest.mark.parametrize("loss", ["dpo", "dpop", "tdpo1", "orpo", "simpo"])
def test_its_gradient_is_that_of_finite_differences(tmp_path: Path, models: tuple[str, str], loss: str) -> None:
    trainer = trainer_of(tmp_path, models, loss)
    weights = [p for p in trainer.model.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(loss_of(trainer), weights, allow_unused=True)
    torch.manual_seed(1)
    direction = [torch.randn_like(p) for p in weights]
    slope = sum(float((g * d).sum()) for g, d in zip(gradients, direction, strict=True) if g is not None)
    values = []
    for step in (1e-3, -2e-3):
        with torch.no_grad():
            for p, d in zip(weights, direction, strict=True):
                p.add_(step * d)
            values.append(loss_of(trainer).item())
    assert (values[0] - values[1]) / 2e-3 == pytest.approx(slope, rel=0.03, abs=1e-3)


def test_tdpo2_sends_no_gradient_through_the_preferred_responses_kl(tmp_path: Path, models: tuple[str, str]) -> None:
    policy, reference = (AutoModelForCausalLM.from_pretrained(m).eval() for m in models)
    (chosen, rejected) = plain(policy)
    (ref_chosen, ref_rejected) = plain(reference)
    w = torch.stack([a.sum() - b.sum().detach() for a, b in zip(chosen, ref_chosen, strict=True)])
    v = torch.stack([a.sum() - b.sum().detach() for a, b in zip(rejected, ref_rejected, strict=True)])
    kl_w, kl_v = (sequential_kl(policy, reference, name) for name in ("chosen_ids", "rejected_ids"))
    expected = -F.logsigmoid(0.1 * (w - v) - 0.05 * (kl_v - kl_w.detach())).mean()
    weight = policy.model.layers[0].mlp.up_proj.weight
    (by_hand_gradient,) = torch.autograd.grad(expected, weight)
    trainer = trainer_of(tmp_path, models, "tdpo2")
    (gradient,) = torch.autograd.grad(loss_of(trainer), trainer.model.model.layers[0].mlp.up_proj.weight)
    torch.testing.assert_close(gradient, by_hand_gradient, rtol=1e-3, atol=1e-6)


def test_our_pass_and_trls_agree_on_dpo(tmp_path: Path, models: tuple[str, str]) -> None:
    results, metrics = [], []
    for i, extra in enumerate(({}, {"trl_kwargs": ("f_divergence_type=reverse_kl",)})):
        trainer = trainer_of(tmp_path / str(i), models, "dpo", **extra)
        assert (trainer.pair_loss is None) == bool(extra)
        loss = loss_of(trainer)
        loss.backward()
        results.append((loss.detach(), trainer.model.model.embed_tokens.weight.grad))
        metrics.append({name: values[-1] for name, values in trainer._metrics["train"].items()})
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-6)
    names = [f"{group}/{side}" for group in ("rewards", "logps") for side in ("chosen", "rejected")]
    for name in (*names, "rewards/margins", "rewards/accuracies"):
        assert metrics[0][name] == pytest.approx(metrics[1][name], rel=1e-4, abs=1e-5)
    assert metrics[0]["rewards/margins"] != 0


def test_the_shortfall_is_what_preferred_responses_lost_against_the_reference(
    tmp_path: Path, models: tuple[str, str]
) -> None:
    trainer = trainer_of(tmp_path, models, "dpo")
    loss_of(trainer)
    with torch.no_grad():
        ours, theirs = (plain(AutoModelForCausalLM.from_pretrained(name))[0] for name in models)
    ratios = [float(a.sum() - b.sum()) for a, b in zip(ours, theirs, strict=True)]
    assert min(ratios) < 0
    expected = sum(max(0.0, -ratio) for ratio in ratios) / len(ratios)
    # Once for each pair, so that a mean over batches is one over pairs.
    assert trainer._metrics["train"]["logps/shortfall"] == pytest.approx([expected] * len(ratios), rel=1e-4)


def test_padded_and_packed_passes_agree(tmp_path: Path, models: tuple[str, str]) -> None:
    packed = loss_of(trainer_of(tmp_path / "a", models, "tdpo1"))
    padded = loss_of(trainer_of(tmp_path / "b", models, "tdpo1", gradient_checkpointing=True))
    torch.testing.assert_close(packed, padded, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("loss", ["dpo", "tdpo2", "ipo"])
def test_with_lora_the_reference_is_the_model_with_its_adapters_off(
    tmp_path: Path, models: tuple[str, str], loss: str
) -> None:
    trainer = trainer_of(tmp_path, models, loss, lora_rank=4, ref_model=None)
    assert trainer.ref_model is None
    first = loss_of(trainer).item()
    if loss != "ipo":
        assert first == pytest.approx(math.log(2), abs=1e-5)  # fresh adapters change nothing
    with torch.no_grad():
        for name, parameter in trainer.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.2)
    merged = AutoModelForCausalLM.from_pretrained(models[0]).eval()
    with torch.no_grad():
        state = {k: v.clone() for k, v in trainer.model.state_dict().items()}
        for name, module in merged.named_modules():
            if hasattr(module, "weight") and f"base_model.model.{name}.lora_B.default.weight" in state:
                a = state[f"base_model.model.{name}.lora_A.default.weight"]
                b = state[f"base_model.model.{name}.lora_B.default.weight"]
                module.weight.add_(2.0 * b @ a)  # alpha is twice the rank
        expected = by_hand(loss, merged, AutoModelForCausalLM.from_pretrained(models[0]).eval()).item()
    assert expected != pytest.approx(first, abs=1e-3)
    assert loss_of(trainer).item() == pytest.approx(expected, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("loss", ["dpo", "dpop", "ipo", "kto"])
def test_cached_reference_log_probs_are_the_references(
    tmp_path: Path, models: tuple[str, str], loss: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = trainer_of(tmp_path / "a", models, loss, cache_reference=True)
    live = trainer_of(tmp_path / "b", models, loss)
    assert loss_of(cached).item() == pytest.approx(loss_of(live).item(), rel=1e-4)
    folder = tmp_path / "a" / "out" / "reference_log_probs" / "train"
    assert list(folder.glob("*.arrow"))
    from trl import DPOTrainer, KTOTrainer

    def refuse(*args: Any) -> None:
        raise AssertionError("the reference was asked again")

    for trainer in (DPOTrainer, KTOTrainer):
        monkeypatch.setattr(trainer, "compute_ref_log_probs", refuse)
    again = trainer_of(tmp_path / "a", models, loss, cache_reference=True)
    assert loss_of(again).item() == pytest.approx(loss_of(live).item(), rel=1e-4)


def test_orpo_and_its_like_have_no_reference(tmp_path: Path, models: tuple[str, str]) -> None:
    for loss in ("orpo", "cpo", "simpo"):
        assert getattr(trainer_of(tmp_path / loss, models, loss), "ref_model", None) is None
        with pytest.raises(ValueError, match="has no reference"):
            PreferenceSettings(output_dir=tmp_path / "x", preferences="", loss=loss, ref_model="m").check()
    assert {n for n, m in METHODS.items() if not m.reference} == {"orpo", "cpo", "simpo"}


def test_rows_split_prompt_and_response_where_the_policy_does(tmp_path: Path) -> None:
    record = {
        "prompt": "one two three four five six", "ranking": [["a"], ["b"], ["c"]],
        "responses": [
            {"id": "a", "text": " Good.", "finished": True}, {"id": "b", "text": "Bad", "finished": False},
            {"id": "c", "text": " Worse.", "finished": True},
        ],
    }  # fmt: skip
    (tmp_path / "r.jsonl").write_text(json.dumps(record) + "\n")
    tokenizer = load_tokenizer(DEFAULT_MODEL)
    rows, left_out = encode_rankings(read_rankings(tmp_path / "r.jsonl"), tokenizer, 64, True, max_prompt_length=4)
    assert len(rows) == 3  # a over b, a over c, b over c
    assert not any(left_out.values())
    prompt = tokenizer(record["prompt"])["input_ids"][-4:]
    for row in rows:
        assert row["prompt_length"] == 4
        assert all(ids[:4] == prompt for ids in row["ids"])
    end = tokenizer.eos_token_id
    assert [ids[-1] == end for ids in rows[0]["ids"]] == [True, False]  # b was cut off: no end is learned
    assert tokenizer.decode(rows[0]["ids"][1][4:]) == " Bad"


def test_kto_and_orpo_rows_hold_both_sides() -> None:
    rows = unpaired_rows(sides(PAIRS * 3), 4, seed=0)
    assert sum(r["label"] for r in rows) == 6
    for start in range(0, 12, 4):
        batch = rows[start : start + 4]
        assert [r["KL_completion_ids"] for r in batch] == [batch[i - 1]["completion_ids"] for i in range(4)]
    row = labeled_rows(PAIRS)[0]
    assert row["chosen_labels"] == [-100, -100, -100, 40, 41, 2]
    assert row["rejected_input_ids"] == [1, 30, 31, 50, 2]


@pytest.mark.parametrize("loss", METHODS)
def test_a_step_of_every_method_moves_the_weights(tmp_path: Path, models: tuple[str, str], loss: str) -> None:
    trainer = trainer_of(tmp_path, models, loss, evaluations=1, batch_size=4)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    assert trainer.state.global_step == 1
    moved = {name: (p.detach() - before[name]).abs().max().item() for name, p in trainer.model.named_parameters()}
    assert all(
        0 < m < 1e-3 for n, m in moved.items() if ".layers." in n
    )  # AdamW's first step is the learning rate, 3e-4
    evaluation = next(e for e in trainer.state.log_history if "eval_loss" in e)
    assert math.isfinite(evaluation["eval_loss"])
    if loss != "kto":  # which compares no pairs
        assert 0 <= evaluation["eval_rewards/accuracies"] <= 1
