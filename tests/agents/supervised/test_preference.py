"""Training on preferences: every method's loss against numbers from plain log-probs, the closed-form optimum, the script."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from agents.cli import train_preference as script
from agents.preferences.records import read_rankings
from agents.supervised.preference.build import make_trainer
from agents.supervised.preference.methods import METHODS, method
from agents.supervised.preference.trainers import labeled_rows, unpaired_rows
from agents.supervised.rows import encode_rankings, read_split
from agents.supervised.settings import PreferenceSettings
from llm_env.default_task import DEFAULT_MODEL, DEFAULT_REWARD_MODEL
from llm_env.lm.loading import load_tokenizer
from tests.conftest import SIZE, WIDE, save_model

PAIRS = [
    {"prompt_ids": [1, 30, 31], "chosen_ids": [40, 41, 2], "rejected_ids": [50, 2]},
    {"prompt_ids": [1, 33], "chosen_ids": [42], "rejected_ids": [51, 52, 53, 2]},
]
IN_PAIRS = [n for n, m in METHODS.items() if m.trainer == "DPOTrainer"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """(policy, reference): near one another, so that log ratios are of the size that training meets."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZE, **WIDE, num_key_value_heads=2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3 if parameter.ndim > 1 else 1)
    first = save_model(tmp_path_factory.mktemp("reference"), model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return save_model(tmp_path_factory.mktemp("policy"), model), first


def trainer_of(tmp_path: Path, models: tuple[str, str], loss: str, **extra: Any) -> Any:
    policy, reference = models
    options = {"model": policy, "ref_model": reference if method(loss).reference else None, "device": "cpu"}
    options |= {"output_dir": tmp_path / "out", "preferences": "", "loss": loss, "batch_size": 2}
    settings = PreferenceSettings(**{**options, **extra})
    return make_trainer(settings, load_tokenizer(policy), PAIRS, PAIRS)


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
    assert trainer._metrics["train"]["logps/shortfall"] == [pytest.approx(expected, rel=1e-4)]


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
    rows = unpaired_rows(PAIRS * 3, 4, seed=0)
    assert sum(r["label"] for r in rows) == 6
    for start in range(0, 12, 4):
        batch = rows[start : start + 4]
        assert [r["KL_completion_ids"] for r in batch] == [batch[i - 1]["completion_ids"] for i in range(4)]
    row = labeled_rows(PAIRS)[0]
    assert row["chosen_labels"] == [-100, -100, -100, 40, 41, 2]
    assert row["rejected_input_ids"] == [1, 30, 31, 50, 2]


def two_answers(folder: Path, gap: float, count: int) -> Path:
    """Verdicts of Bradley-Terry's annotator on two one-word answers whose rewards lie `gap` apart, in their exact shares."""
    better = round(count / (1 + math.exp(-gap)))
    sides = [{"id": "a", "text": " good", "finished": False}, {"id": "b", "text": " bad", "finished": False}]
    lines = [
        {"prompt": p, "responses": sides, "ranking": [["a"], ["b"]] if i < better else [["b"], ["a"]]}
        for p in ("The film was", "It is")
        for i in range(count)
    ]
    path = folder / "verdicts.jsonl"
    path.write_text("".join(json.dumps(x) + "\n" for x in lines))
    return path


@pytest.mark.slow
@pytest.mark.parametrize(("loss", "gap", "beta"), [("dpo", 1.0, 0.5), ("dpo", -0.8, 1.0)])
def test_dpo_converges_to_the_closed_form_optimum(tmp_path: Path, loss: str, gap: float, beta: float) -> None:
    data = two_answers(tmp_path, gap, 200)
    arguments = [
        "--preferences", str(data), "--output-dir", str(tmp_path / "out"), "--loss", loss, "--beta", str(beta),
        "--learning-rate", "1e-3", "--batch-size", "200", "--epochs", "60", "--weight-decay", "0", "--device", "cpu",
        "--heldout-share", "0.5", "--n-samples", "0",
    ]  # fmt: skip
    assert run(*arguments) == 0
    log = json.loads((tmp_path / "out" / "preference.json").read_text())["log"]
    tokenizer = load_tokenizer(DEFAULT_MODEL)
    answers = [tokenizer(a, add_special_tokens=False)["input_ids"] for a in (" good", " bad")]
    trained, reference = (
        {
            prompt: _log_prob(model, tokenizer(prompt)["input_ids"], answers[0])
            - _log_prob(model, tokenizer(prompt)["input_ids"], answers[1])
            for prompt in ("The film was", "It is")
        }
        for model in (
            AutoModelForCausalLM.from_pretrained(m).eval() for m in (tmp_path / "out" / "actor", DEFAULT_MODEL)
        )
    )
    share = round(200 / (1 + math.exp(-gap))) / 200
    optimum = math.log(share / (1 - share)) / beta  # log π(a)/π(b) - log π_ref(a)/π_ref(b) = (r_a - r_b) / β
    (learned,) = set(trained) - {held_out_prompt(tmp_path / "verdicts.jsonl")}
    assert trained[learned] - reference[learned] == pytest.approx(optimum, rel=0.05)
    assert log[-1]["step"] == 60


def held_out_prompt(path: Path) -> str:
    """Which of the two the script holds out."""
    return str(read_split(str(path), None, 0.5, 0)[1][0].candidates.prompt)


def _log_prob(model: Any, prompt: list[int], answer: list[int]) -> float:
    with torch.no_grad():
        log_p = torch.log_softmax(model(input_ids=torch.tensor([prompt + answer])).logits[0], -1)
    return sum(float(log_p[len(prompt) - 1 + i, token]) for i, token in enumerate(answer))


def run(*arguments: str) -> int:
    return script.main(list(arguments))


@pytest.fixture(scope="module")
def preferences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded actor's responses, ranked by the rule."""
    from agents.cli import collect_preferences

    folder = tmp_path_factory.mktemp("preferences")
    args = collect_preferences.Args(output_dir=folder, judge="gold", n_prompts=80, device="cpu")
    assert collect_preferences.run(args) == 0
    return folder / "rankings.jsonl"


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


def train_with(loss: str, preferences: Path, output: Path, *extra: str) -> dict[str, Any]:
    """Trains through the command, checks the files that it leaves, and returns the report."""
    arguments = ["--preferences", str(preferences), "--output-dir", str(output), "--loss", loss, *extra]
    assert run(*arguments, "--device", "cpu", "--n-samples", "2", "--learning-rate", "3e-4") == 0
    report = json.loads((output / "preference.json").read_text())
    assert report["loss"] == loss
    assert len(report["samples"]) == 2
    held_out_prompts = {r.candidates.prompt for r in read_split(str(preferences), None, 0.1, 0)[1]}
    assert {s["prompt"] for s in report["samples"]} <= held_out_prompts
    assert (output / "preference.png").stat().st_size > 10_000
    trained, first = (AutoModelForCausalLM.from_pretrained(m) for m in (output / "actor", report["model"]))
    moved = (trained.model.layers[0].mlp.up_proj.weight - first.model.layers[0].mlp.up_proj.weight).abs().max()
    assert 0 < moved < 0.1
    return report


@pytest.mark.parametrize("loss", ["dpo", "kto", "orpo", "simpo"])
def test_a_method_of_each_of_trls_trainers_leaves_an_actor(
    tmp_path: Path, preferences: Path, models: tuple[str, str], loss: str, capsys: pytest.CaptureFixture[str]
) -> None:
    extra = ["--model", models[0], "--pairs", "best_worst", "--evaluations", "1"]
    report = train_with(loss, preferences, tmp_path / "out", *extra)
    assert report["heldout"]["loss"] > 0
    printed = capsys.readouterr().out
    assert "nan%" not in printed
    assert ("held-out pairs in the right order" in printed) == (loss != "kto")
    if loss != "kto":  # which compares no pairs
        assert 0 <= report["heldout"]["rewards/accuracies"] <= 1


@pytest.mark.slow
@pytest.mark.parametrize("loss", METHODS)
def test_every_method_learns(tmp_path: Path, preferences: Path, loss: str) -> None:
    report = train_with(loss, preferences, tmp_path / "out")
    assert report["pairs"] > 300
    held_out = [e for e in report["log"] if "eval_loss" in e]
    assert len(held_out) == 4
    if loss != "discopop":  # which rises with the margin at 0, by (1 - ln 2) / 4τ - 3/4 with τ = 0.05
        assert held_out[-1]["eval_rewards/margins"] > held_out[0]["eval_rewards/margins"]
    if loss == "dpop":  # λ = 50 charges for each held-out response that became less likely; nothing trains against that
        assert held_out[-1]["eval_logps/shortfall"] > 0
    else:
        assert held_out[-1]["eval_loss"] < held_out[0]["eval_loss"]


@pytest.mark.slow
def test_interrupted_it_goes_on_to_the_same_weights(
    tmp_path: Path, preferences: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import load_file
    from transformers import TrainerCallback

    from agents.supervised import trainer as supervised

    common = ["--preferences", str(preferences), "--device", "cpu", "--n-samples", "0", "--loss", "dpop"]
    common += ["--pairs", "best_worst", "--batch-size", "8"]
    assert run(*common, "--output-dir", str(tmp_path / "whole")) == 0

    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 9:
                raise KeyboardInterrupt

    real = supervised.StageProgress
    with monkeypatch.context() as patch:
        patch.setattr(supervised, "StageProgress", lambda console: Stop())
        assert run(*common, "--output-dir", str(tmp_path / "parts")) == 130
    assert supervised.StageProgress is real
    broken = tmp_path / "parts" / "checkpoints" / "checkpoint-10"  # the process died while it wrote this one
    broken.mkdir()
    (broken / "model.safetensors").write_bytes(b"half")
    assert run(*common, "--output-dir", str(tmp_path / "parts"), "--resume") == 0
    one, other = (load_file(tmp_path / name / "actor" / "model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(one[k], other[k]) for k in one)
    report = json.loads((tmp_path / "whole" / "preference.json").read_text())
    assert report["pairs"] + report["heldout_pairs"] < 80  # one of each ranking that is not all tied


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--loss", "dppo"], "loss='dppo' is not known; use one of dpo, dpop"),
        (["--loss", "dpo", "--dpop-lambda", "3"], "dpop_lambda: loss='dpo' does not have it; dpop do"),
        (["--loss", "tdpo2", "--cache-reference"], "whole distributions"),
        (["--pairs", "some"], "pairs='some' is not known; use one of all, best_worst"),
        (["--beta", "0"], "beta=0.0 must be a finite number above 0"),
        (["--loss", "robust", "--label-smoothing", "0.5"], "label_smoothing=0.5 must be below 0.5"),
        (["--max-prompt-length", "512"], "must be at least 1 and below max_length=512"),
        (["--trl-kwargs", "what=1"], "DPOConfig has no 'what'"),
        (["--trl-kwargs", "beta=1"], "beta is set by the other options already"),
        (["--trl-kwargs", "nonsense"], "must be name=value"),
        (["--preferences", "nothing.jsonl"], "preferences='nothing.jsonl': there is no such file"),
        (["--eval-preferences", "nothing.jsonl"], "eval_preferences='nothing.jsonl': there is no such file"),
        (["--ref-model", "./no-folder"], "ref_model='./no-folder': there is no such folder"),
        (["--model", DEFAULT_REWARD_MODEL], f"model={DEFAULT_REWARD_MODEL!r} is a sequence classifier"),
        (["--ref-model", DEFAULT_REWARD_MODEL], f"ref_model={DEFAULT_REWARD_MODEL!r} is a sequence classifier"),
    ],
)
def test_bad_input_is_named(
    tmp_path: Path, models: tuple[str, str], extra: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = [{"prompt": f"Number {i}?", "chosen": " Good.", "rejected": " Bad."} for i in range(2)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    arguments = ["--preferences", str(tmp_path / "pairs.jsonl"), "--output-dir", str(tmp_path / "out")]
    arguments += ["--model", models[0], "--device", "cpu"]
    if extra[0] == "--preferences":
        arguments = arguments[2:]
    assert run(*arguments, *extra) == 1
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out" / "actor").exists()


def test_a_broken_record_is_named_with_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(
        '{"prompt": "a", "chosen": "b", "rejected": "c"}\n{"prompt": "a", "chosen": "b", "rejected": "b"}\n'
    )
    assert run("--preferences", str(path), "--output-dir", str(tmp_path / "out")) == 1
    assert "line 2" in capsys.readouterr().err
