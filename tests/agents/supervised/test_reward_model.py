"""Reward models through the command: what they learn, heads, stopping and going on, bad input."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agents.cli import train_reward_model as script
from agents.preferences.judge import RewardJudge, episode_of
from agents.preferences.records import Response, read_rankings, write_jsonl
from agents.preferences.sampling import Sampling, Source, collect_responses
from agents.supervised.reward_model import train as training
from agents.supervised.reward_model.model import load_base
from agents.supervised.reward_model.train import _encode, _make_trainer
from agents.supervised.reward_model.trainer import collate
from agents.supervised.settings import RewardSettings
from llm_env.default_task import DEFAULT_HELDOUT_PROMPTS, DEFAULT_MODEL, DEFAULT_PROMPTS
from llm_env.lm.loading import load_tokenizer
from llm_env.lm.names import LoadSettings
from llm_env.reward.heads import Gate, load_gate
from llm_env.reward.models import ClassifierReward
from llm_env.text.prompts import read_prompts
from tests.conftest import save_model
from tests.llm_env.reward.families import classifier

CPU = LoadSettings("float32", "cpu")


def rank_responses(path: Path, prompts: list[Any], noise: float, seed: int = 0) -> None:
    """Writes rankings of the embedded actor's responses by the rule, or with noise 1 by Bradley-Terry's annotator."""
    sampling = Sampling((Source(DEFAULT_MODEL),), 4, 64, 32, seed)
    candidates = [c for part in collect_responses(prompts, sampling, CPU) for c in part.candidates]
    write_jsonl(path, [r.to_json() for r in RewardJudge("gold", CPU, noise).rank(candidates)])


def write_sides(folder: Path, train_prompts: int, heldout_prompts: int) -> Path:
    """Noisy rankings to train on, and clean ones of held-out prompts."""
    for name, source, count, noise in (
        ("train", DEFAULT_PROMPTS, train_prompts, 1.0),
        ("test", DEFAULT_HELDOUT_PROMPTS, heldout_prompts, 0.0),
    ):
        prompts = read_prompts(source)
        chosen = [prompts[i] for i in np.random.default_rng(0).permutation(len(prompts))[:count]]
        rank_responses(folder / f"{name}.jsonl", chosen, noise)
    return folder


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For what has to run, not to learn well."""
    return write_sides(tmp_path_factory.mktemp("small"), 60, 20)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pairs on each side, for what is refused."""
    folder = tmp_path_factory.mktemp("tiny")
    for name in ("train", "test"):
        pairs = [{"prompt": f"{name} {i}?", "chosen": " Good.", "rejected": " Bad."} for i in range(2)]
        write_jsonl(folder / f"{name}.jsonl", pairs)
    return folder


@pytest.fixture(scope="module")
def preferences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For what has to be learned."""
    return write_sides(tmp_path_factory.mktemp("preferences"), 900, 100)


@pytest.fixture(scope="module")
def many(preferences: Path) -> Path:
    """The same with three sets of responses to each training prompt, for what has to be learned well."""
    rank_responses(preferences / "many.jsonl", read_prompts(DEFAULT_PROMPTS) * 3, noise=1.0, seed=1)
    return preferences


def train(folder: Path, output: Path, *extra: str, train_file: str = "train.jsonl") -> int:
    arguments = ["--preferences", str(folder / train_file), "--eval-preferences", str(folder / "test.jsonl")]
    arguments += ["--output-dir", str(output), "--device", "cpu", "--learning-rate", "1e-3", "--epochs", "2"]
    return script.main([*arguments, *extra])


def report_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "report.json").read_text(encoding="utf-8"))


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["bradley_terry", "k_wise", "plackett_luce"])
def test_each_loss_recovers_the_gold_order_on_held_out_prompts(many: Path, tmp_path: Path, loss: str) -> None:
    extra = ["--loss", loss, "--gold", "llm_env.default_task.gold:gold_score", "--epochs", "1"]
    if loss == "bradley_terry":  # a pair is an element: as many updates
        extra += ["--batch-size", "192"]
    assert train(many, tmp_path / "rm", *extra, train_file="many.jsonl") == 0
    report = report_of(tmp_path / "rm")
    assert report["gold_accuracy"] >= 0.9
    assert report["accuracy_interval"][0] > 0.85
    # on load, scores have mean 0 and variance 1 on the training responses
    tokenizer = load_tokenizer(DEFAULT_MODEL)
    model = ClassifierReward(str(tmp_path / "rm" / "reward_model"), CPU, tokenizer)
    rankings = read_rankings(many / "many.jsonl")[:300]
    scores = model.score([episode_of(r.candidates.prompt, c, model) for r in rankings for c in r.candidates.responses])
    assert abs(np.mean(scores)) < 0.15
    assert np.std(scores) == pytest.approx(1, abs=0.15)
    assert (tmp_path / "rm" / "report.png").is_file()
    assert "preferred:" in (tmp_path / "rm" / "mistakes.md").read_text()


@pytest.mark.slow
def test_shuffled_labels_teach_nothing(preferences: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    shuffled = []
    for r in read_rankings(preferences / "train.jsonl"):
        names = rng.permutation([n for tier in r.tiers for n in tier]).tolist()
        shuffled.append(dataclasses.replace(r, tiers=tuple((n,) for n in names)).to_json())
    write_jsonl(preferences / "shuffled.jsonl", shuffled)
    assert train(preferences, tmp_path / "rm", train_file="shuffled.jsonl") == 0
    assert abs(report_of(tmp_path / "rm")["accuracy"] - 0.5) < 0.2


def test_leaked_prompts_are_refused(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = {name: (tiny / f"{name}.jsonl").read_text() for name in ("train", "test")}
    leaky = tmp_path / "leaky.jsonl"
    leaky.write_text(texts["train"] + texts["test"].splitlines()[1] + "\n")
    assert train(tiny, tmp_path / "rm", "--preferences", str(leaky)) == 1
    error = " ".join(capsys.readouterr().err.split())
    assert "test.jsonl, line 2: this prompt is among the training preferences too" in error
    assert not (tmp_path / "rm").exists()


QUICK = ("--epochs", "0.1", "--evaluations", "1")


@pytest.mark.parametrize("gate", [False, True])
def test_heads_are_put_together_by_weights_or_a_gate(small: Path, tmp_path: Path, gate: bool) -> None:
    rankings = read_rankings(small / "train.jsonl")
    aspects = ["good", "polite", None]
    labeled = [dataclasses.replace(r, aspect=aspects[i % 3]).to_json() for i, r in enumerate(rankings)]
    write_jsonl(small / "aspects.jsonl", labeled)
    extra = ["--heads", "good", "polite", *(["--gate"] if gate else ["--head-weights", "0.8", "0.2"])]
    assert train(small, tmp_path / "rm", *extra, "--epochs", "1", train_file="aspects.jsonl") == 0
    folder = tmp_path / "rm" / "reward_model"
    tokenizer = load_tokenizer(DEFAULT_MODEL)
    model = ClassifierReward(str(folder), CPU, tokenizer)
    assert model.heads == ["good", "polite"]
    episodes = [episode_of("How was the hotel?", Response("a", t), model) for t in (" Fine.", " The room was awful.")]
    got = model.score(episodes)
    want = []
    for e in episodes:  # the same by hand
        hidden = model.model.base_model(torch.tensor([e.ids])).last_hidden_state[0]
        heads = model.model.score(hidden[-1])
        if gate:
            loaded = load_gate(str(folder), hidden.shape[-1], 2)
            weights = loaded(hidden[len(e.prompt.ids) - 1][None])[0]
            assert weights.sum().item() == pytest.approx(1)
        else:
            weights = torch.tensor([0.8, 0.2])
        want.append((((heads * weights).sum().item()) - model.mean) / model.std)
    assert got == pytest.approx(want, abs=1e-4)
    assert got[0] != got[1]
    if not gate:  # fixed weights are one linear head, so a critic can start there
        from agents import make_algorithm

        env = {"reward_model": str(folder), "model": DEFAULT_MODEL, "prompts": ["Hi"], "max_new_tokens": 4}
        assert make_algorithm("ppo", n_envs=2, env_kwargs=env).policy_kwargs["critic"] == "reward_model"


def test_a_gate_begins_with_equal_parts() -> None:
    assert Gate(8, 4)(torch.randn(3, 8)).tolist() == [[0.25] * 4] * 3


def test_freezing_dropout_and_lora(small: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    before = load_file(Path(DEFAULT_MODEL) / "model.safetensors")
    assert train(small, tmp_path / "frozen", "--freeze-layers", "3", "--dropout", "0.1", *QUICK) == 0
    after = load_file(tmp_path / "frozen" / "reward_model" / "model.safetensors")
    moved = {n for n, w in after.items() if n in before and not torch.equal(w, before[n])}
    assert not [n for n in moved if ".layers.0." in n or ".layers.2." in n or "embed" in n]
    assert [n for n in moved if ".layers.3." in n]
    config = json.loads((tmp_path / "frozen" / "reward_model" / "config.json").read_text())
    assert config["attention_dropout"] == 0
    assert train(small, tmp_path / "lora", "--lora-rank", "4", *QUICK) == 0
    assert report_of(tmp_path / "lora")["pairs"] > 0


def test_early_stopping_keeps_the_best(small: Path, tmp_path: Path) -> None:
    extra = [
        "--early-stopping",
        "1",
        "--evaluations",
        "6",
        "--learning-rate",
        "1e-7",
        "--batch-size",
        "8",
        "--epochs",
        "1",
    ]
    assert train(small, tmp_path / "rm", *extra) == 0
    log = [e["eval_accuracy"] for e in report_of(tmp_path / "rm")["log"] if "eval_accuracy" in e]
    assert 2 <= len(log) < 4  # of at least four


def test_each_held_out_pair_counts_once(tiny: Path, tmp_path: Path) -> None:
    settings = RewardSettings(
        preferences=str(tiny / "train.jsonl"),
        output_dir=tmp_path / "rm",
        device="cpu",
        loss="bradley_terry",
        batch_size=2,
    )
    tokenizer = load_tokenizer(DEFAULT_MODEL)
    rows, _ = _encode(read_rankings(tiny / "train.jsonl"), tokenizer, settings)
    rows.append({**rows[0], "ids": [rows[0]["ids"][1], [*rows[0]["ids"][0][:-1], 9, 9, 2]]})
    trainer: Any = _make_trainer(settings, load_base(DEFAULT_MODEL, settings, tokenizer), tokenizer, rows, rows)
    by_size = []
    for size in (2, 1):  # batches of two and of one, and of one each
        trainer.args.per_device_eval_batch_size = size
        by_size.append(trainer.evaluate())
    with torch.no_grad():
        scores = trainer.scores(trainer.model, collate(rows))
    right = (scores[::2] > scores[1::2]).float().mean().item()
    assert 0 < right < 1
    for metrics in by_size:
        assert metrics["eval_accuracy"] == pytest.approx(right)
        assert metrics["eval_mean_reward"] == pytest.approx(scores.mean().item(), abs=1e-5)


def test_a_run_that_stopped_goes_on(small: Path, tmp_path: Path) -> None:
    """Weights of a run that was interrupted after its first checkpoint and one that was not."""
    from agents.supervised.trainer import StageProgress

    class Stop(StageProgress):
        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            raise KeyboardInterrupt

    settings = ["--epochs", "1", "--evaluations", "2", "--batch-size", "16"]
    assert train(small, tmp_path / "whole", *settings) == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("agents.supervised.trainer.StageProgress", Stop)
        assert train(small, tmp_path / "parts", *settings) == 130
    assert train(small, tmp_path / "parts", *settings) == 1  # without --resume: refused
    assert train(small, tmp_path / "parts", *settings, "--resume") == 0
    one, other = (report_of(tmp_path / n) for n in ("whole", "parts"))
    assert one["accuracy"] == other["accuracy"]
    assert one["score_mean"] == pytest.approx(other["score_mean"], abs=1e-6)


def test_packed_and_padded_scores_agree(small: Path, tmp_path: Path) -> None:
    """One device reads without padding, several through the whole model: the same loss."""
    assert train(small, tmp_path / "packed", *QUICK) == 0
    assert train(small, tmp_path / "padded", *QUICK, "--gradient-checkpointing") == 0
    one, other = (report_of(tmp_path / n) for n in ("packed", "padded"))
    assert one["log"][0]["loss"] == pytest.approx(other["log"][0]["loss"], abs=1e-4)
    assert one["score_mean"] == pytest.approx(other["score_mean"], abs=2e-2)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (("--loss", "elo"), "loss='elo' is not known"),
        (("--gate",), "name them: --heads"),
        (("--freeze-layers", "9"), "has 2 layers"),
        (("--model", "/no/such/folder"), "there is no such folder"),
        (("--gold", "nothing:here"), "gold='nothing:here': module 'nothing' cannot be imported"),
        (("--normalize-on", "/no/such.jsonl", *QUICK), "normalize_on='/no/such.jsonl': there is no such file"),
    ],
)
def test_bad_settings(
    tiny: Path,
    model_folder: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    extra: tuple[str, ...],
    message: str,
) -> None:
    assert train(tiny, tmp_path / "rm", "--model", model_folder("llama"), *extra) == 1
    assert message in " ".join(capsys.readouterr().err.split())


def test_scores_are_normalized_on_other_rankings(tiny: Path, model_folder: Any, tmp_path: Path) -> None:
    """Mean 0 and variance 1 on the responses of the file that is named."""
    extra = ["--model", model_folder("llama"), "--normalize-on", str(tiny / "test.jsonl"), *QUICK]
    assert train(tiny, tmp_path / "rm", *extra) == 0
    folder = tmp_path / "rm" / "reward_model"
    model = ClassifierReward(str(folder), CPU, load_tokenizer(DEFAULT_MODEL))
    rankings = read_rankings(tiny / "test.jsonl")
    scores = model.score([episode_of(r.candidates.prompt, c, model) for r in rankings for c in r.candidates.responses])
    assert np.mean(scores) == pytest.approx(0, abs=1e-4)
    assert np.std(scores) == pytest.approx(1, abs=1e-4)


def test_of_many_responses_some_are_read_for_the_mean_and_it_says_so(
    tiny: Path, model_folder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rankings = read_rankings(tiny / "train.jsonl")
    most = max(len(r.candidates.responses) for r in rankings)
    assert len(rankings) > 1
    read: list[int] = []
    real = training.raw_scores

    def noted(folder: Path, some: Any, settings: Any) -> Any:
        read.append(sum(len(r.candidates.responses) for r in some))
        return real(folder, some, settings)

    monkeypatch.setattr(training, "NORMALIZED_ON", 2)
    monkeypatch.setattr(training, "raw_scores", noted)
    assert train(tiny, tmp_path / "rm", "--model", model_folder("llama"), *QUICK) == 0
    assert 2 <= read[0] <= most < sum(len(r.candidates.responses) for r in rankings)
    said = capsys.readouterr().out
    assert f"scoring {read[0]} reference responses" in said
    assert f"scoring {read[1]} held-out responses" in said


def test_an_empty_split_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "train.jsonl").write_text("")
    (tmp_path / "test.jsonl").write_text("")
    assert train(tmp_path, tmp_path / "rm") == 1
    assert "is empty; at least one is needed" in " ".join(capsys.readouterr().err.split())


def test_a_reward_model_of_another_vocabulary_is_named(model_folder: Any, tmp_path: Path) -> None:
    """Its tokenizer knows tokens that the model does not."""
    import shutil

    folder = tmp_path / "rm"
    shutil.copytree(model_folder("llama", 1), folder)
    tokenizer = load_tokenizer(str(folder))
    tokenizer.add_tokens(["superb"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(ValueError, match=r"^reward_model=.*gives ids up to 1024, the model has 1024"):
        ClassifierReward(str(folder), CPU, load_tokenizer(DEFAULT_MODEL))


def test_encoders_can_be_reward_models(small: Path, tmp_path: Path) -> None:
    import transformers

    config = transformers.BertConfig(
        vocab_size=1024, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, num_labels=1
    )
    torch.manual_seed(0)
    folder = save_model(tmp_path / "bert", transformers.BertForSequenceClassification(config))
    assert train(small, tmp_path / "rm", "--model", folder, *QUICK) == 0
    assert report_of(tmp_path / "rm")["pairs"] > 0


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("pad", [0, 2])
@pytest.mark.parametrize("family", ["llama", "gpt2", "roberta", "bert"])
def test_what_is_trained_is_what_is_scored(
    tiny: Path, tmp_path: Path, family: str, pad: int, checkpointing: bool
) -> None:
    """The scores of a training batch are those that the saved model's own forward gives: with pad = eos too."""
    tokenizer: Any = load_tokenizer(DEFAULT_MODEL)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad)
    folder = save_model(tmp_path / "start", classifier(family, pad), tokenizer)
    settings = RewardSettings(
        preferences=str(tiny / "train.jsonl"),
        model=folder,
        output_dir=tmp_path / "rm",
        device="cpu",
        gradient_checkpointing=checkpointing,
    )
    rows, _ = _encode(read_rankings(tiny / "train.jsonl"), tokenizer, settings)
    assert all(ids[-1] == 2 for row in rows for ids in row["ids"])
    rows[0]["ids"][0] = [*rows[0]["ids"][0][:-1], 9, 9, 9, 2]  # ragged
    trainer = _make_trainer(settings, load_base(folder, settings, tokenizer), tokenizer, rows, rows)
    model: Any = trainer.model
    model.eval()
    with torch.no_grad():
        got = trainer.scores(model, collate(rows))
        want = [model(input_ids=torch.tensor([ids])).logits[0, 0] for row in rows for ids in row["ids"]]
    assert model.config.pad_token_id == pad
    torch.testing.assert_close(got, torch.stack(want), rtol=0, atol=1e-4)
