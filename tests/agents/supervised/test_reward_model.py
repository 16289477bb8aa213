from __future__ import annotations

import dataclasses
import json
import math
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agents.cli import train_reward_model as script
from agents.preferences.judge import Judge, episode_of
from agents.preferences.records import Candidates, Ranking, Response, read_rankings, write_jsonl
from agents.preferences.sampling import Sampling, Source, collect_responses
from agents.supervised.reward_model.losses import RankingLoss, centering_loss, pairwise_loss, plackett_luce_loss
from agents.supervised.reward_model.report import (
    JudgedPair,
    bootstrap_interval,
    calibration,
    rank_correlation,
    summarize,
    worst_mistakes,
)
from agents.supervised.reward_model.trainer import collate
from agents.supervised.rows import encode_rankings
from agents.supervised.settings import RewardSettings
from llm_env.default_task import DEFAULT_HELDOUT_PROMPTS, DEFAULT_MODEL, DEFAULT_PROMPTS
from llm_env.lm.loading import load_tokenizer
from llm_env.lm.names import LoadSettings
from llm_env.reward.heads import Gate, load_gate
from llm_env.reward.models import ClassifierReward, RewardModelError
from llm_env.text.prompts import read_prompts

CPU = LoadSettings("float32", "cpu")


def test_bradley_terry_by_hand() -> None:
    scores = torch.tensor([1.0, 3.0])
    assert pairwise_loss(scores, [0, 1]).item() == pytest.approx(-math.log(1 / (1 + math.exp(2))))
    assert pairwise_loss(scores, [1, 0]).item() == pytest.approx(-math.log(1 / (1 + math.exp(-2))))
    margins = torch.tensor([[0.0, 0.0], [0.5, 0.0]])
    assert pairwise_loss(scores, [1, 0], margins).item() == pytest.approx(-math.log(1 / (1 + math.exp(-1.5))))
    smooth = -0.9 * math.log(1 / (1 + math.exp(-2))) - 0.1 * math.log(1 / (1 + math.exp(2)))
    assert pairwise_loss(scores, [1, 0], label_smoothing=0.1).item() == pytest.approx(smooth)


def test_k_wise_is_the_mean_over_all_pairs_that_do_not_tie() -> None:
    scores, tiers = torch.tensor([0.3, -1.0, 2.0, 0.7]), [1, 2, 0, 1]
    want = [
        -math.log(1 / (1 + math.exp(-(scores[i] - scores[j]))))
        for i, j in permutations(range(4), 2)
        if tiers[i] < tiers[j]
    ]
    assert len(want) == 5
    assert pairwise_loss(scores, tiers).item() == pytest.approx(np.mean(want))
    assert pairwise_loss(scores, [0, 0, 0, 0]).item() == 0


def test_plackett_luce_sums_to_one_over_all_rankings_and_is_bradley_terry_for_two() -> None:
    scores = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64)
    total = sum(math.exp(-2 * plackett_luce_loss(scores, tiers).item()) for tiers in permutations(range(3)))
    assert total == pytest.approx(1)  # the mean is over two choices
    two = torch.tensor([0.4, 1.1])
    assert plackett_luce_loss(two, [1, 0]).item() == pytest.approx(pairwise_loss(two, [1, 0]).item())
    assert plackett_luce_loss(scores, [0, 0, 0]).item() == 0
    tie = plackett_luce_loss(scores, [0, 0, 1]).item()
    lse = torch.logsumexp(scores, 0).item()
    assert tie == pytest.approx(np.mean([lse - 0.3, lse + 1.0]))


@pytest.mark.parametrize("loss", [pairwise_loss, plackett_luce_loss])
def test_gradients_of_the_losses_by_finite_differences(loss: Any) -> None:
    scores = torch.tensor([0.3, -1.0, 2.0, 0.1], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: loss(s, [2, 0, 1, 1]), (scores,))


def reward_settings(**changes: Any) -> RewardSettings:
    return RewardSettings(**{"output_dir": Path("no-such-folder"), "preferences": "", **changes})


def test_margins_by_rank_and_centering() -> None:
    margins = RankingLoss(reward_settings(margins="rank", margin_scale=0.5)).margins([0, 1, 2])
    assert margins is not None
    assert margins[0].tolist() == [0.0, 0.0, 0.5]  # one place apart: none; two: one more
    recorded = RankingLoss(reward_settings(loss="bradley_terry", margins="given"))
    assert recorded(torch.tensor([1.0, 0.0]), [0, 1], 1.0).item() == pytest.approx(math.log(2))
    scores = torch.tensor([1.0, 3.0])
    assert centering_loss(scores).item() == 16  # (1 + 3)², as Eisenstein et al. have it for a pair
    with_term = RankingLoss(reward_settings(center_rewards_coefficient=0.01))(scores, [1, 0]).item()
    assert with_term == pytest.approx(pairwise_loss(scores, [1, 0]).item() + 0.16)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": "elo"}, "loss='elo' is not known"),
        ({"margins": "wide"}, "margins='wide' is not known"),
        ({"label_smoothing": 0.5}, "label_smoothing=0.5"),
        ({"loss": "plackett_luce", "margins": "rank"}, "neither margins nor label smoothing"),
        (
            {"center_rewards_coefficient": -1.0},
            "center_rewards_coefficient=-1.0 and margin_scale=1.0 must be at least 0",
        ),
        ({"max_length": 1}, "max_length=1 must be at least 2 tokens"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"gate": True}, "name them: --heads"),
        ({"heads": ("good",)}, "two or more different aspects"),
        ({"heads": ("a", "b"), "head_weights": (1.0,)}, "must be one for each"),
        ({"batch_size": 32, "micro_batch_size": 5}, "must divide batch_size"),
        ({"mixed_precision": "fp16"}, "mixed_precision='fp16' is not known; use 'no' or 'bf16'"),
    ],
)
def test_unusable_settings(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        reward_settings(**changes).check()


def ranking(prompt: str, texts: list[str], tiers: list[list[str]], **more: Any) -> Ranking:
    responses = tuple(Response(f"r{i}", t) for i, t in enumerate(texts))
    return Ranking(Candidates(prompt, prompt, responses), tuple(map(tuple, tiers)), "x", **more)


def test_rows_hold_what_the_environment_would_show_the_model() -> None:
    tokenizer = load_tokenizer(DEFAULT_MODEL)
    texts = [" The room was great.", " The room was poor.", " I left."]
    one = ranking("How was the hotel?", texts, [["r0"], ["r1"], ["r2"]])
    rows, left_out = encode_rankings([one], tokenizer, 64, False)
    assert len(rows) == 1
    assert rows[0]["ids"][1] == [
        *tokenizer("How was the hotel?")["input_ids"],
        *tokenizer(" The room was poor.", add_special_tokens=False)["input_ids"],
        tokenizer.eos_token_id,
    ]
    assert rows[0]["tiers"] == [0, 1, 2]
    pairs, _ = encode_rankings([one], tokenizer, 64, True)
    assert [len(r["ids"]) for r in pairs] == [2, 2, 2]
    batch = collate(pairs)
    assert batch["lengths"].tolist() == [len(ids) for r in pairs for ids in r["ids"]]
    nothing = [
        ranking("A?", texts, [["r0", "r1", "r2"]]),
        ranking("A?", texts, [], all_bad=True),
        ranking("A?", [" Same.", " Same."], [["r0"], ["r1"]]),
    ]
    rows, left_out = encode_rankings(nothing, tokenizer, 64, False)
    assert not rows
    assert left_out == {"all bad": 1, "all tied": 1, "equal texts": 1, "cut": 0}


def test_the_reports_numbers_by_hand() -> None:
    pairs = [JudgedPair("p", "a b", "c", d, longer, group) for d, longer, group in
             [(2.0, 1, 0), (1.0, -1, 0), (-0.5, 1, 1), (0.0, 0, 1)]]  # fmt: skip
    report = summarize(pairs, [1.0, 2.0, 3.0], [10, 20, 15])
    assert report["accuracy"] == (1 + 1 + 0 + 0.5) / 4
    assert report["longer_is_better"] == (1 + 0 + 1 + 0.5) / 4
    assert report["length_correlation"] == pytest.approx(0.5)
    assert worst_mistakes(pairs)[0] == {"prompt": "p", "preferred": "a b", "model_prefers": "c", "by": 0.5}
    assert rank_correlation(np.array([1.0, 2, 2, 3]), np.array([4.0, 5, 5, 9])) == pytest.approx(1)
    low, high = bootstrap_interval(np.array([1.0] * 90 + [-1.0] * 10), np.arange(100))
    assert low < 0.9 < high
    assert high - low < 0.15
    with pytest.raises(ValueError, match="no pair"):
        summarize([], [], [])


def test_a_calibrated_model_is_on_the_diagonal() -> None:
    rng = np.random.default_rng(0)
    true = rng.normal(0, 2, 20_000)
    preferred = rng.random(20_000) < 1 / (1 + np.exp(-true))
    curve = calibration(np.where(preferred, true, -true))
    assert max(abs(b["predicted"] - b["observed"]) for b in curve) < 0.03
    sure = calibration(np.where(preferred, 3 * true, -3 * true))  # three times too sure
    assert max(b["predicted"] - b["observed"] for b in sure) > 0.1


def rank_responses(path: Path, prompts: list[Any], noise: float, seed: int = 0) -> None:
    """Writes rankings of the embedded actor's responses by the rule, or with noise 1 by Bradley-Terry's annotator."""
    sampling = Sampling((Source(DEFAULT_MODEL),), 4, 64, 32, seed)
    candidates = [c for part in collect_responses(prompts, sampling, CPU) for c in part.candidates]
    write_jsonl(path, [r.to_json() for r in Judge("gold", CPU, noise).rank(candidates)])


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
    model = ClassifierReward(str(folder), CPU, load_tokenizer(DEFAULT_MODEL))
    with pytest.raises(RewardModelError, match="gives token 1024, the model has 1024"):
        model.score([episode_of("How?", Response("a", " superb"), model)])


def test_encoders_can_be_reward_models(small: Path, tmp_path: Path) -> None:
    import transformers

    from tests.conftest import save_model

    config = transformers.BertConfig(
        vocab_size=1024, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, num_labels=1
    )
    torch.manual_seed(0)
    folder = save_model(tmp_path / "bert", transformers.BertForSequenceClassification(config))
    assert train(small, tmp_path / "rm", "--model", folder, *QUICK) == 0
    assert report_of(tmp_path / "rm")["pairs"] > 0
