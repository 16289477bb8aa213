"""Training on preferences through the command: what is learned, the closed-form optimum, resuming, bad input."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from agents.cli import train_preference as script
from agents.supervised.preference import train
from agents.supervised.rows import read_split
from llm_env.default_task import DEFAULT_MODEL, DEFAULT_REWARD_MODEL
from llm_env.lm.loading import load_tokenizer


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


def test_the_actor_is_kept_whatever_its_samples_come_to(
    tmp_path: Path, preferences: Path, models: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any) -> None:
        raise FloatingPointError("logits are NaN")

    monkeypatch.setattr(train, "sample_responses", fail)
    small = ["--model", models[0], "--pairs", "best_worst", "--epochs", "0.2", "--evaluations", "1", "--device", "cpu"]
    assert run("--preferences", str(preferences), "--output-dir", str(tmp_path / "out"), *small) == 1
    assert (tmp_path / "out" / "actor" / "model.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["dpo", "ipo", "dpop", "tdpo2", "kto", "orpo", "simpo", "discopop"])
def test_a_method_of_each_kind_learns(tmp_path: Path, preferences: Path, loss: str) -> None:
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
        (
            ["--loss", "robust", "--label-smoothing", "0.5"],
            "label_smoothing=0.5 must be a finite number, at least 0, below",
        ),
        (["--max-prompt-length", "512"], "max_prompt_length=512 must be below max_length=512 tokens"),
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
