from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from agents.cli import train_sft, write_reviews
from agents.output_folder import locked
from agents.supervised.settings import SFTSettings
from agents.supervised.sft import text_perplexity
from llm_env.default_task import DEFAULT_MODEL, DEFAULT_REWARD_MODEL
from llm_env.lm.loading import load_tokenizer
from llm_env.text.texts import EncodedText
from tests.agents.runs.test_adapter import assert_adapter_gives_the_actor
from tests.conftest import short_model


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    assert write_reviews.run(write_reviews.Args(folder, reviews=300, heldout_reviews=60)) == 0
    return folder


def tune(text: Path, output: Path, *extra: str) -> int:
    arguments = ["--texts", str(text / "reviews.jsonl"), "--heldout-texts", str(text / "heldout_reviews.jsonl")]
    arguments += ["--output-dir", str(output), "--device", "cpu", "--n-samples", "2"]
    return train_sft.main([*arguments, *extra])


def test_no_topic_stands_on_both_sides(text: Path) -> None:
    from llm_env.default_task.grammar import topic_of

    sides = []
    for name in ("", "heldout_"):
        records = [json.loads(x) for x in (text / f"{name}reviews.jsonl").read_text().splitlines()]
        prompts = [json.loads(x)["prompt"] for x in (text / f"{name}prompts.jsonl").read_text().splitlines()]
        sides.append({topic_of(r["prompt"]) for r in records} | {topic_of(p) for p in prompts})
    assert not sides[0] & sides[1]


def test_new_weights_learn_the_texts(text: Path, tmp_path: Path) -> None:
    extra = ["--from-scratch", "--learning-rate", "3e-3", "--epochs", "2", "--max-length", "64"]
    assert tune(text, tmp_path / "sft", *extra) == 0
    report = json.loads((tmp_path / "sft" / "sft.json").read_text())
    assert report["perplexity_before"] > 900  # as likely as any other of 1,024 tokens
    assert report["perplexity"] < 300
    assert len(report["samples"]) == 2
    assert (tmp_path / "sft" / "sft.png").is_file()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "sft" / "actor")
    assert model.config.use_cache


def test_perplexity_is_exp_of_the_mean_loss() -> None:
    tokenizer = load_tokenizer(DEFAULT_MODEL)
    model = AutoModelForCausalLM.from_pretrained(DEFAULT_MODEL).eval()
    texts = [EncodedText([1, 20, 30, 40, 2], 2), EncodedText([1, 50, 60, 2], 1)]
    losses = []
    for t in texts:
        logits = torch.log_softmax(model(torch.tensor([t.ids])).logits[0], -1)
        losses += [-logits[i - 1, t.ids[i]].item() for i in range(t.start, len(t.ids))]
    want = float(torch.tensor(losses).mean().exp())
    assert text_perplexity(model, tokenizer, texts) == pytest.approx(want, rel=1e-4)


def first_loss(folder: Path) -> float:
    return json.loads((folder / "sft.json").read_text())["log"][0]["loss"]


def test_the_loss_is_on_the_response_only_where_asked(text: Path, tmp_path: Path) -> None:
    quick = ["--epochs", "0.1", "--evaluations", "1", "--learning-rate", "1e-9"]
    assert tune(text, tmp_path / "response", *quick) == 0
    assert tune(text, tmp_path / "all", *quick, "--no-response-only") == 0
    report = json.loads((tmp_path / "response" / "sft.json").read_text())
    # the embedded actor has read reviews, not prompts, and finds these less likely
    assert first_loss(tmp_path / "response") < 1.3
    assert first_loss(tmp_path / "all") > first_loss(tmp_path / "response") + 0.5
    assert report["perplexity"] == pytest.approx(report["perplexity_before"], rel=1e-3)


def test_lora_is_merged_and_the_base_unchanged_in_shape(text: Path, tmp_path: Path) -> None:
    assert tune(text, tmp_path / "lora", "--lora-rank", "4", "--epochs", "0.2", "--learning-rate", "1e-2") == 0
    before = load_file(Path(DEFAULT_MODEL) / "model.safetensors")
    after = load_file(tmp_path / "lora" / "actor" / "model.safetensors")
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[n], after[n]) for n in before)
    assert_adapter_gives_the_actor(tmp_path / "lora", DEFAULT_MODEL)


@pytest.mark.parametrize("rank", ["0", "4"])
def test_a_model_trained_in_bf16_is_float32_for_who_asks_it(
    text: Path, tmp_path: Path, rank: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[Any] = []
    monkeypatch.setattr("agents.supervised.sft.save_model", lambda model, *rest: trained.append(model))
    quick = ["--epochs", "0.1", "--evaluations", "1", "--mixed-precision", "bf16", "--lora-rank", rank]
    assert tune(text, tmp_path / "half", *quick) == 0
    (model,) = trained
    ids = torch.tensor([[1, 20, 30, 40]])
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, model.lm_head(model.model(ids).last_hidden_state))


def test_samples_fit_a_model_of_few_positions(text: Path, tmp_path: Path) -> None:
    model = ["--model", short_model(tmp_path / "short"), "--max-length", "48"]
    assert tune(text, tmp_path / "sft", *model) == 0
    samples = json.loads((tmp_path / "sft" / "sft.json").read_text())["samples"]
    assert len(samples) == 2


def test_a_run_that_stopped_goes_on(text: Path, tmp_path: Path, model_folder: Any) -> None:
    from agents.supervised.trainer import StageProgress

    class Stop(StageProgress):
        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            raise KeyboardInterrupt

    settings = ["--epochs", "1", "--evaluations", "2", "--model", model_folder("llama")]
    assert tune(text, tmp_path / "whole", *settings) == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("agents.supervised.trainer.StageProgress", Stop)
        assert tune(text, tmp_path / "parts", *settings) == 130
    assert tune(text, tmp_path / "parts", *settings) == 1
    assert tune(text, tmp_path / "parts", *settings, "--resume") == 0
    one, other = (load_file(tmp_path / n / "actor" / "model.safetensors") for n in ("whole", "parts"))
    assert all(torch.equal(one[n], other[n]) for n in one)


def test_a_second_stage_takes_nothing_from_the_first(tmp_path: Path) -> None:
    settings = SFTSettings(texts="x.jsonl", output_dir=tmp_path)
    cache = tmp_path / "reference_log_probs" / "0.json"
    cache.parent.mkdir()
    cache.touch()

    def second() -> None:
        settings.check()
        with settings.writing():
            raise AssertionError

    with locked(tmp_path):
        with pytest.raises(FileExistsError, match="another process is writing there"):
            second()
        assert cache.exists()
    with settings.writing():
        assert not cache.exists()  # a stage that failed before its first checkpoint left it
        (tmp_path / "checkpoints").mkdir()
        (tmp_path / "checkpoints" / "x").touch()
    with pytest.raises(FileExistsError, match="is not empty"), settings.writing():
        pass


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (("--learning-rate", "-1"), "learning_rate=-1.0"),
        (("--lr-schedule", "wavy"), "lr_schedule='wavy' is not known"),
        (("--mixed-precision", "fp16"), "mixed_precision='fp16' is not known; use one of no, bf16"),
        (("--max-length", "1"), "max_length=1"),
        (("--max-length", "5"), "No token is left to learn"),
        (("--texts", "/no/such.jsonl"), "texts='/no/such.jsonl': there is no such file"),
        (("--heldout-texts", "/no/such.jsonl"), "heldout_texts='/no/such.jsonl': there is no such file"),
        (("--model", DEFAULT_REWARD_MODEL), f"model={DEFAULT_REWARD_MODEL!r} is a sequence classifier"),
        (("--resume",), "there is nothing to go on with"),
    ],
)
def test_bad_settings(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], extra: tuple[str, ...], message: str
) -> None:
    assert tune(text, tmp_path / "sft", *extra) == 1
    assert message in " ".join(capsys.readouterr().err.split())
