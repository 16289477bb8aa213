from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig, LlamaConfig

from llm_env.default_task import DEFAULT_MODEL, DEFAULT_REWARD_MODEL
from llm_env.episode import Episode
from llm_env.lm.loading import load_tokenizer
from llm_env.lm.names import LoadSettings
from llm_env.reward.classifier import ClassifierReward, same_tokenizer, tokenizer_difference
from llm_env.reward.functions import FunctionReward
from llm_env.reward.models import load_reward_model
from llm_env.reward.scores import RewardModelError
from llm_env.text.prompts import Prompt
from tests.conftest import SIZE, WIDE, count_dots, save_model

LOAD = LoadSettings("float32", "cpu")
TOKENIZER = load_tokenizer(DEFAULT_MODEL)


def episode(prompt: str, response: str, end: bool = True) -> Episode:
    ids = TOKENIZER.encode(response, add_special_tokens=False) + ([2] if end else [])
    return Episode(
        Prompt(prompt, tuple(TOKENIZER(prompt)["input_ids"])), ids, done=True, has_end=end, response_text=response
    )


EPISODES = [
    episode("How was the hotel?", " The room was lovely."),
    episode("Review of the zoo:", " The", end=False),
    episode("One opinion on the new video game:", " I hated the map. The designer was kind. They are all clowns."),
]


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "bloom", "gpt_neox", "qwen2"])
def test_a_batched_score_is_the_models_own_of_that_sequence_alone(
    model_folder: Callable[..., str], family: str
) -> None:
    folder = model_folder(family, 1)
    reward = ClassifierReward(folder, LOAD, load_tokenizer(folder))
    assert reward.shares_tokenizer
    scores = reward.score(EPISODES)
    for e, got in zip(EPISODES, scores, strict=True):
        with torch.no_grad():
            want = reward.model(input_ids=torch.tensor([e.ids])).logits[0, 0].item()
        assert got == pytest.approx(want, rel=1e-4, abs=1e-4)
    assert len({round(s, 4) for s in scores}) == 3


def test_scores_leave_no_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    reward = ClassifierReward(DEFAULT_REWARD_MODEL, LOAD, TOKENIZER)
    forward, seen = reward._forward, []

    def watched(*arguments: Any) -> torch.Tensor:
        seen.append(torch.is_grad_enabled())
        return forward(*arguments)

    monkeypatch.setattr(reward, "_forward", watched)
    reward.score(EPISODES)
    assert seen == [False]


def test_a_token_beyond_the_reward_models_vocabulary_does_not_stop_a_run() -> None:
    reward = ClassifierReward(DEFAULT_REWARD_MODEL, LOAD, TOKENIZER)
    padded, last = (Episode(EPISODES[0].prompt, [17, t], done=True, response_text="x") for t in (1026, 1023))
    assert reward.score([padded]) == reward.score([last])


def test_the_default_is_normalised_as_its_configuration_says() -> None:
    reward = ClassifierReward(DEFAULT_REWARD_MODEL, LOAD, TOKENIZER)
    with torch.no_grad():
        raw = reward.model(input_ids=torch.tensor([EPISODES[0].ids])).logits[0, 0].item()
    assert reward.score(EPISODES[:1])[0] == pytest.approx((raw - reward.mean) / reward.std, abs=1e-4)
    assert reward.std != 1.0


def test_another_tokenizer_reads_the_text(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(DEFAULT_MODEL)
    tokenizer.add_tokens(["zzz"])  # same text, but no longer the same ids
    config = LlamaConfig(**{**SIZE, "vocab_size": 1025}, **WIDE, num_labels=1)
    folder = save_model(tmp_path / "rm", AutoModelForSequenceClassification.from_config(config), tokenizer)
    reward = ClassifierReward(folder, LOAD, TOKENIZER)
    assert not reward.shares_tokenizer
    e = EPISODES[0]
    want = tokenizer(e.prompt.text + e.response_text)["input_ids"]
    assert reward.token_ids(e) == want
    with torch.no_grad():
        assert reward.score([e])[0] == pytest.approx(
            reward.model(input_ids=torch.tensor([want])).logits[0, 0].item(), abs=1e-4
        )


def test_a_tokenizer_with_another_pad_is_the_same(model_folder: Callable[..., str], tmp_path: Path) -> None:
    """The same vocabulary, first token and end token: the classifier reads the actor's ids, end token included."""
    folder = tmp_path / "rm"
    shutil.copytree(model_folder("llama", 1), folder)
    tokenizer = AutoTokenizer.from_pretrained(DEFAULT_MODEL)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(7)
    tokenizer.save_pretrained(folder)
    assert load_tokenizer(str(folder)).all_special_ids != TOKENIZER.all_special_ids
    reward = ClassifierReward(str(folder), LOAD, TOKENIZER)
    assert reward.shares_tokenizer
    assert reward.token_ids(EPISODES[0]) == EPISODES[0].ids
    other_end = AutoTokenizer.from_pretrained(DEFAULT_MODEL)
    other_end.eos_token = other_end.convert_ids_to_tokens(7)
    assert not same_tokenizer(other_end, TOKENIZER)
    assert tokenizer_difference(other_end, TOKENIZER) == "its eos_token_id is 7 against 2"


def test_a_classifier_that_reads_text_says_so_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = AutoTokenizer.from_pretrained(DEFAULT_MODEL)
    tokenizer.add_tokens(["zzz"])
    config = LlamaConfig(**{**SIZE, "vocab_size": 1025}, **WIDE, num_labels=1)
    folder = save_model(tmp_path / "rm", AutoModelForSequenceClassification.from_config(config), tokenizer)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            load_reward_model([folder, "tests.conftest:count_dots"], LOAD, TOKENIZER)
    (message,) = [r.getMessage() for r in caplog.records if "another tokenizer" in r.getMessage()]
    assert message.startswith(f"reward_model={folder!r} has another tokenizer than the actor (1025 tokens in its")
    assert "reads the decoded text of prompt and response, encoded anew" in message
    assert "without its end token" in message


def test_an_encoder_is_masked_not_mixed_with_its_padding(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(DEFAULT_MODEL)
    config = BertConfig(
        vocab_size=1024, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, num_labels=1
    )
    folder = save_model(tmp_path / "rm", AutoModelForSequenceClassification.from_config(config), tokenizer)
    reward = ClassifierReward(folder, LOAD, TOKENIZER)
    together = reward.score(EPISODES)
    alone = [reward.score([e])[0] for e in EPISODES]
    assert together == pytest.approx(alone, abs=1e-5)


def test_functions_and_weighted_sums() -> None:
    one = load_reward_model("tests.conftest:count_dots", LOAD, TOKENIZER)
    assert one.score(EPISODES) == [1.0, 0.0, 3.0]
    both = load_reward_model(
        [["tests.conftest:count_dots", 2.0], ["llm_env.default_task.gold:gold_score", 0.5]], LOAD, TOKENIZER
    )
    from llm_env.default_task.gold import gold_score

    gold = gold_score([""] * 3, [e.response_text for e in EPISODES])
    assert both.score(EPISODES) == pytest.approx([2 + gold[0] / 2, gold[1] / 2, 6 + gold[2] / 2])


def test_functions_themselves_are_reward_models() -> None:
    one = load_reward_model(count_dots, LOAD, TOKENIZER)
    assert one.score(EPISODES) == [1.0, 0.0, 3.0]
    assert isinstance(one, FunctionReward)
    assert one.name == "tests.conftest:count_dots"
    mixed = load_reward_model(
        [count_dots, [lambda prompts, responses: [10.0] * len(prompts), 0.5], ["tests.conftest:count_dots", 2.0]],
        LOAD,
        TOKENIZER,
    )
    assert mixed.score(EPISODES) == [8.0, 5.0, 14.0]


class Judge:
    """A callable object."""

    def __call__(self, prompts: list[str], responses: list[str]) -> list[float]:
        return [math.nan] * len(prompts)


def test_errors_of_a_function_name_it_and_the_option() -> None:
    with pytest.raises(
        RewardModelError, match=r"^gold='tests\.llm_env\.reward\.test_models:too_few' \(.*\) returned 2 scores"
    ):
        load_reward_model(too_few, LOAD, TOKENIZER, option="gold").score(EPISODES)
    with pytest.raises(
        RewardModelError, match=r"^reward_model='tests\.llm_env\.reward\.test_models:Judge' \(.*\) returned nan"
    ):
        load_reward_model(Judge(), LOAD, TOKENIZER).score(EPISODES)
    with pytest.raises(RewardModelError, match=r"^judge='tests\.llm_env\.reward\.test_models:raises' raised KeyError"):
        load_reward_model("tests.llm_env.reward.test_models:raises", LOAD, TOKENIZER, option="judge").score(EPISODES)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("no_such_module:f", "^gold='no_such_module:f': module 'no_such_module' cannot be imported"),
        ("llm_env.default_task.gold:g", "^gold='llm_env.default_task.gold:g': module .* has no 'g'"),
        ("math:pi", "^gold='math:pi' is not a function"),
        ("/nowhere/at/all", "^gold='/nowhere/at/all': there is no such folder"),
        ("", "^gold='' names nothing"),
        ([["tests.conftest:count_dots", "much"]], "^gold: the weight of 'tests.conftest:count_dots' must be"),
        ([("tests.conftest:count_dots", 1, 2)], "^gold: an entry is a name, a function, or a pair"),
        ([0.5], "^gold: an entry is a name, a function, or a pair .*got 0.5"),
        (lambda completions, **kwargs: [0.0], r"has the signature \(completions, \*\*kwargs\).*written for TRL"),
    ],
)
def test_errors_name_the_option_that_the_user_gave(source: Any, message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load_reward_model(source, LOAD, TOKENIZER, option="gold")


def test_a_broken_classifier_is_named_by_its_option(model_folder: Callable[..., str]) -> None:
    with pytest.raises(ValueError, match=r"^judge='.*' has 2 labels"):
        ClassifierReward(model_folder("llama", 2), LOAD, TOKENIZER, option="judge")


def raises(prompts: list[str], responses: list[str]) -> list[float]:
    raise KeyError("broken")


def too_few(prompts: list[str], responses: list[str]) -> list[float]:
    return [0.0] * (len(responses) - 1)


def nan(prompts: list[str], responses: list[str]) -> list[float]:
    return [math.nan] * len(responses)


def infinite(prompts: list[str], responses: list[str]) -> list[float]:
    return [math.inf] * len(responses)


def text(prompts: list[str], responses: list[str]) -> list[str]:
    return ["good"] * len(responses)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("raises", "raised KeyError"),
        ("too_few", "returned 2 scores for 3 responses"),
        ("nan", "returned nan for 3 of 3 responses"),
        ("infinite", "returned inf for 3 of 3 responses"),
        ("text", "must return one float"),
    ],
)
def test_a_function_that_fails_is_named(name: str, message: str) -> None:
    reward = load_reward_model(f"tests.llm_env.reward.test_models:{name}", LOAD, TOKENIZER)
    with pytest.raises(RewardModelError, match=f"tests.llm_env.reward.test_models:{name}.*{message}"):
        reward.score(EPISODES)


def test_unusable_names(model_folder: Callable[..., str], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has 2 labels"):
        load_reward_model(model_folder("llama", 2), LOAD, TOKENIZER)
    with pytest.raises(ValueError, match="not a sequence-classification model"):
        load_reward_model(model_folder("llama"), LOAD, TOKENIZER)
    with pytest.raises(ValueError, match=r"no config\.json"):
        load_reward_model(str(tmp_path), LOAD, TOKENIZER)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        load_reward_model("/nowhere/at/all", LOAD, TOKENIZER)
    with pytest.raises(ValueError, match="cannot be imported"):
        load_reward_model("no_such_module:f", LOAD, TOKENIZER)
    with pytest.raises(ValueError, match="has no 'g'"):
        load_reward_model("llm_env.default_task.gold:g", LOAD, TOKENIZER)
    with pytest.raises(ValueError, match="empty list"):
        load_reward_model([], LOAD, TOKENIZER)
