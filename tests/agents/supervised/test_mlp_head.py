"""Reward models with an MLP head: what is stored, what the classifier's own forward gives, and who loads it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from agents import make_algorithm
from agents.preferences.judge import episode_of
from agents.preferences.records import Response, read_rankings, write_jsonl
from agents.supervised.reward_model.model import load_base
from agents.supervised.reward_model.train import _encode, _make_trainer
from agents.supervised.reward_model.trainer import collate
from agents.supervised.settings import RewardSettings
from llm_env.default_task import DEFAULT_MODEL, DEFAULT_REWARD_MODEL
from llm_env.lm.loading import load_tokenizer
from llm_env.lm.names import LoadSettings
from llm_env.reward.heads import MLPHead
from llm_env.reward.models import ClassifierReward
from tests.agents.supervised.test_reward_model import QUICK, report_of, train
from tests.conftest import save_model
from tests.llm_env.reward.families import classifier

CPU = LoadSettings("float32", "cpu")
TEXTS = (" Fine.", " The room was awful.", " Good, good, good.")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    for name, count in (("train", 24), ("test", 4)):
        records = [{"prompt": f"{name} {i}?", "chosen": " Good room.", "rejected": " Bad room."} for i in range(count)]
        write_jsonl(folder / f"{name}.jsonl", records)
    return folder


@pytest.fixture(scope="module")
def trained(pairs: Path, model_folder: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a reward model with an MLP head of six units."""
    output = tmp_path_factory.mktemp("rm") / "out"
    options = (
        "--model",
        model_folder("llama"),
        "--mlp-head",
        "6",
        "--epochs",
        "4",
        "--batch-size",
        "8",
        "--evaluations",
        "1",
    )
    assert train(pairs, output, *options) == 0
    return output / "reward_model"


def by_hand(folder: Path, ids: list[int]) -> float:
    """The score from the classifier's own forward and the file beside it."""
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        units = model(input_ids=torch.tensor([ids])).logits[0]
    file = load_file(folder / "mlp_head.safetensors")
    config = json.loads((folder / "config.json").read_text())
    raw = (torch.nn.functional.gelu(units + file["bias"]) * file["weight"]).sum() + file["offset"][0]
    return (float(raw) - config["score_mean"]) / config["score_std"]


def test_the_score_is_a_function_of_the_classifiers_own_forward(trained: Path) -> None:
    model = ClassifierReward(str(trained), CPU, load_tokenizer(DEFAULT_MODEL))
    episodes = [episode_of("How was the hotel?", Response("a", text), model) for text in TEXTS]
    got = model.score(episodes)
    assert got == pytest.approx([by_hand(trained, e.ids) for e in episodes], abs=1e-4)
    assert len(set(got)) == 3
    assert report_of(trained.parent)["accuracy"] == 1
    assert not any(p.requires_grad for p in model.model.parameters())
    assert {p.suffix for p in trained.iterdir()} == {".safetensors", ".json"}


def test_whoever_expects_one_label_is_told_what_the_labels_are(trained: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(trained)
    assert model.config.num_labels == model.config.reward_mlp == 6
    assert model.config.id2label[5] == "hidden unit 5 of the reward's MLP head"
    assert model.score.weight.shape == (6, 32)


@pytest.mark.parametrize("kind", ["missing", "damaged", "other size", "other number"])
def test_half_a_head_is_refused(trained: Path, tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "rm"
    shutil.copytree(trained, folder)
    message = {
        "missing": "mlp_head.safetensors is missing",
        "damaged": "cut off or damaged",
        "other size": "does not fit the model beside it",
        "other number": "reward_mlp=7 and 6 labels",
    }[kind]
    if kind == "missing":
        (folder / "mlp_head.safetensors").unlink()
    elif kind == "damaged":
        (folder / "mlp_head.safetensors").write_bytes(b"half")
    elif kind == "other size":
        MLPHead(5).save(folder)
    else:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "reward_mlp": 7}))
    with pytest.raises(ValueError, match=message):
        ClassifierReward(str(folder), CPU, load_tokenizer(DEFAULT_MODEL))


def test_a_run_takes_it_as_reward_model_and_its_critic_starts_as_it(trained: Path) -> None:
    env = {"reward_model": str(trained), "model": DEFAULT_MODEL, "prompts": ["How was it?"], "max_new_tokens": 4}
    algorithm = make_algorithm("ppo", n_envs=2, seed=0, env_kwargs=env)
    assert algorithm.policy_kwargs["critic"] == "reward_model"
    critic, reward = algorithm.policy.critic, ClassifierReward(str(trained), CPU, load_tokenizer(DEFAULT_MODEL))
    states = torch.randn(5, 32)
    model: Any = reward.model
    want = (model.mlp_head(model.score(states))[:, 0] - reward.mean) / reward.std
    torch.testing.assert_close(critic.values_of(states), want)
    assert all(p.requires_grad for p in critic.parameters())
    algorithm.learn(2 * 4)


def test_it_is_trained_further_and_nothing_else_becomes_one(
    trained: Path, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(pairs, tmp_path / "more", "--model", str(trained), *QUICK) == 0
    config = json.loads((tmp_path / "more" / "reward_model" / "config.json").read_text())
    assert config["reward_mlp"] == 6
    assert train(pairs, tmp_path / "other", "--model", str(trained), "--mlp-head", "8") == 1
    assert "is a reward model with an MLP head of 6 units, which is trained further" in capsys.readouterr().err
    assert train(pairs, tmp_path / "linear", "--model", DEFAULT_REWARD_MODEL, "--mlp-head", "8") == 1
    assert "is a reward model with a linear head" in capsys.readouterr().err


def test_lora_trains_the_whole_head(pairs: Path, model_folder: Any, tmp_path: Path) -> None:
    options = (
        "--model",
        model_folder("llama"),
        "--mlp-head",
        "6",
        "--lora-rank",
        "2",
        "--seed",
        "3",
        "--batch-size",
        "8",
    )
    assert train(pairs, tmp_path / "rm", *options, "--evaluations", "1") == 0
    settings = RewardSettings(output_dir=tmp_path, preferences="", mlp_head=6, seed=3)
    before = load_base(model_folder("llama"), settings, load_tokenizer(DEFAULT_MODEL)).mlp_head.state_dict()
    after = load_file(tmp_path / "rm" / "reward_model" / "mlp_head.safetensors")
    assert all(not torch.equal(before[name], after[name]) for name in ("weight", "bias"))


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_what_is_trained_is_what_is_scored(pairs: Path, tmp_path: Path, family: str) -> None:
    """In training as by itself: the same function of the own forward's labels, for encoders too."""
    tokenizer: Any = load_tokenizer(DEFAULT_MODEL)
    base = classifier(family, 0)
    # the trunk alone, so that the head is new
    folder = save_model(tmp_path / "start", base.base_model, tokenizer)
    settings = RewardSettings(
        preferences=str(pairs / "train.jsonl"), model=folder, output_dir=tmp_path / "rm", device="cpu", mlp_head=5
    )
    rows, _ = _encode(read_rankings(pairs / "train.jsonl")[:3], tokenizer, settings)
    rows[0]["ids"][0] = [*rows[0]["ids"][0][:-1], 9, 9, 9, 2]  # ragged
    trainer = _make_trainer(settings, load_base(folder, settings, tokenizer), tokenizer, rows, rows)
    model: Any = trainer.model
    model.eval()
    with torch.no_grad():
        got = trainer.scores(model, collate(rows))
        units = [model(input_ids=torch.tensor([ids])).logits for row in rows for ids in row["ids"]]
        want = torch.cat([model.mlp_head(u)[:, 0] for u in units])
    torch.testing.assert_close(got, want, rtol=0, atol=1e-4)
