"""A score is the number that the model's own forward gives for that sequence alone: every family of classifiers."""

from __future__ import annotations

import itertools
import logging
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoTokenizer, PreTrainedModel

from llm_env.default_task import DEFAULT_MODEL
from llm_env.episode import Episode
from llm_env.lm.loading import load_tokenizer
from llm_env.lm.names import LoadSettings
from llm_env.reward import reading
from llm_env.reward.classifier import ClassifierReward, scalar_head
from llm_env.reward.reading import logits, pooled_length, way_of_reading
from llm_env.reward.scores import RewardModelError
from llm_env.text.prompts import Prompt
from tests.conftest import SIZE, WIDE, save_model
from tests.llm_env.reward.families import BEGINNING, END, FAMILIES, classifier

LOAD = LoadSettings("float32", "cpu")
TOKENIZER = load_tokenizer(DEFAULT_MODEL)
PAD = 0

# Each way of reading, each way of pooling, absolute, relative and rotary positions.
FAST = {
    "gpt2": "packed",
    "llama": "packed",
    "opt": "packed",
    "bloom": "packed",
    "qwen3": "packed",
    "falcon": "packed",
    "gemma2": "packed",
    "bert": "padded",
    "roberta": "padded",
    "distilbert": "padded",
    "deberta-v2": "padded",
    "modernbert": "padded",
    "bart": "padded by ends",
    "t5": "padded by ends",
    "xlnet": "equal lengths",
    "flaubert": "equal lengths",
}


def sequences(pad: int, seed: int = 1) -> list[list[int]]:
    """Ragged texts, as they come and as they should not: one token, only ends, only padding, pads and ends anywhere."""
    rng = random.Random(seed)
    out: list[list[int]] = []
    for kind in range(24):
        text = [rng.randrange(3, 1000) for _ in range(rng.randrange(1, 40))]
        if kind % 3 == 0:
            text.append(END)
        if kind % 4 == 1:
            text.insert(rng.randrange(len(text)), pad)
        if kind % 5 == 2:
            text += [END] + [pad] * rng.randrange(1, 3)
        if kind % 6 == 3:
            text = [BEGINNING, *text, END]
        out.append(text)
    return [*out, [END], [5], [END, END], [pad] * 3, [7, END], [pad, 9, 8], [PAD]]


def own(model: PreTrainedModel, sequence: list[int]) -> float | None:
    """The model's own forward on one sequence; None where it refuses."""
    try:
        with torch.no_grad():
            return model(input_ids=torch.tensor([sequence])).logits[0, 0].item()
    except Exception:
        return None


def largest_difference(model: PreTrainedModel, pad: int | None) -> float:
    """Between scores read together and one at a time, over all sequences that the model takes."""
    pairs = [(s, own(model, s)) for s in sequences(PAD if pad is None else pad)]
    taken = [(s, value) for s, value in pairs if value is not None]
    assert len(taken) >= 8
    with torch.no_grad():
        got = logits(model, [s for s, _ in taken])[:, 0].tolist()
    want = [value for _, value in taken]
    assert max(want) - min(want) > 1e-2  # scores that are all alike would agree whatever is read
    return max(abs(g - w) for g, w in zip(got, want, strict=True))


@pytest.mark.parametrize("pad", [PAD, END])
@pytest.mark.parametrize("family", FAST)
def test_scores_are_the_models_own_of_each_sequence_alone(family: str, pad: int) -> None:
    model = classifier(family, pad)
    assert largest_difference(model, pad) < 1e-4
    # Where pad is eos, BART and T5 would take padding for ends.
    ends_are_padding = pad == END and FAST[family] == "padded by ends"
    assert way_of_reading(model) == ("equal lengths" if ends_are_padding else FAST[family])


@pytest.mark.slow
@pytest.mark.parametrize(("family", "pad"), list(zip(FAMILIES, itertools.cycle((PAD, END, None)), strict=False)))
def test_every_family_of_transformers(family: str, pad: int | None) -> None:
    try:
        model = classifier(family, pad)
        with torch.no_grad():
            model(input_ids=torch.tensor([[*range(5, 28), END]]))
    except Exception as error:
        if pad is not None:
            raise
        pytest.skip(f"knows no model without a pad token: {error!r:.80}")
    assert largest_difference(model, pad) < 1e-4


def test_decoders_without_a_pad_token_are_packed() -> None:
    """Their own forward refuses batches."""
    for family in ("gpt2", "llama"):
        model = classifier(family, None)
        assert largest_difference(model, None) < 1e-4
        assert way_of_reading(model) == "packed"
    model = classifier("ctrl", None)
    assert largest_difference(model, None) == 0.0
    assert way_of_reading(model) == "alone"


@pytest.mark.parametrize(
    ("ids", "pad", "length"),
    [
        ([5, 6, 2], 2, 2),
        ([5, 6, 2, 2, 2], 2, 2),
        ([5, 2, 6], 2, 3),
        ([2, 2], 2, 1),
        ([2], 2, 1),
        ([5, 6, 2], 0, 3),
        ([5, 6, 2], None, 3),
    ],
)
def test_decoders_pool_at_the_last_token_that_is_not_the_pad(ids: list[int], pad: int | None, length: int) -> None:
    assert pooled_length(ids, pad) == length
    model = classifier("llama", pad)
    got = own(model, ids)
    model.config.pad_token_id = None  # which pools at the end
    assert got == pytest.approx(own(model, ids[:length]), abs=1e-6)


def test_each_model_is_tried_once_and_the_log_says_how_it_is_read(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model, tried = classifier("xlnet", PAD), []
    trial = reading.trial_sequences
    monkeypatch.setattr(reading, "trial_sequences", lambda m: tried.append(m) or trial(m))
    with caplog.at_level(logging.INFO, logger=reading.__name__):
        for _ in range(3):
            logits(model, [[5, 6, 7], [8, 9]])
    assert tried == [model]
    (line,) = [r.getMessage() for r in caplog.records]
    assert line.startswith(
        "XLNetForSequenceClassification is scored by its own forward pass: batches of one length agree"
    )


def test_padded_models_are_not_read_one_at_a_time() -> None:
    model, calls = classifier("bert", PAD), []
    way_of_reading(model)
    model.register_forward_pre_hook(lambda m, args, kwargs: calls.append(kwargs["input_ids"].shape), with_kwargs=True)
    logits(model, [[5, 6, 7, 8], [9, 10], [11]])
    assert calls == [(3, 4)]


@pytest.mark.parametrize(("rope", "family"), [("dynamic", "llama"), ("longrope", "phi3")])
def test_positions_that_a_longer_neighbor_stretches(rope: str, family: str) -> None:
    """Dynamic NTK and LongRoPE change a whole batch's positions once its longest sequence is beyond the first length."""
    size = {**SIZE, **WIDE, "num_key_value_heads": 2, "num_labels": 1}
    if rope == "dynamic":
        scaling: dict[str, Any] = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10_000.0}
        config: Any = transformers.LlamaConfig(**size, max_position_embeddings=16, rope_parameters=scaling)
    else:
        factors = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "original_max_position_embeddings": 16}
        scaling = {"rope_type": "longrope", "rope_theta": 10_000.0, **factors}
        config = transformers.Phi3Config(
            **size, max_position_embeddings=64, original_max_position_embeddings=16, rope_parameters=scaling
        )
    torch.manual_seed(0)
    model = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(8)
        texts = [[(7 * i + n) % 900 + 3 for i in range(n)] for n in (9, 40, 12, 15)]
        want = torch.cat([model(input_ids=torch.tensor([t])).logits for t in texts])
        if not torch.equal(want[:1], model(input_ids=torch.tensor(texts[:1])).logits):
            pytest.skip("in this transformers dynamic RoPE remembers longer texts that it has read")
        together = reading._packed(model, texts)
        got = logits(model, texts)
    assert (together - want).abs().max() > 1e-3  # it matters
    torch.testing.assert_close(got, want, rtol=0, atol=1e-4)


def test_scores_under_autocast_are_not_steps_of_a_hundredth() -> None:
    model = classifier("roberta", 1)
    texts = [[(7 * i + n) % 900 + 3 for i in range(n)] for n in range(3, 30)]
    with torch.no_grad():
        exact = logits(model, texts)
        with torch.autocast("cpu", torch.bfloat16):
            got = logits(model, texts)
    assert (got != got.bfloat16().float()).float().mean() > 0.9
    torch.testing.assert_close(got, exact, rtol=0, atol=0.05)
    assert not any(m._forward_hooks for m in model.modules())


def saved(folder: Path, family: str, pad: int | None, tokenizer: Any = None, **config: Any) -> str:
    model = classifier(family, pad)
    for name, value in config.items():
        setattr(model.config, name, value)
    return save_model(folder, model, tokenizer)


def episodes(tokenizer: Any, end: int = END, chat: bool = False) -> list[Episode]:
    """Responses that start with a space, with an end token and cut short; and one that ends at once."""
    out = []
    for prompt, response, ids in (
        ("How was the hotel?", " The room was lovely.", [end]),
        ("Review of the zoo:", " The", []),
        ("One opinion:", "", [end]),
        ("And the map", " I hated it. The designer was kind. They are all clowns.", [end]),
    ):
        messages = (("user", prompt),) if chat else None
        encoded = Prompt(prompt, tuple(tokenizer(prompt)["input_ids"]), messages)
        response_ids = tokenizer(response, add_special_tokens=False)["input_ids"] + ids
        out.append(Episode(encoded, response_ids, done=True, has_end=bool(ids), response_text=response))
    return out


@pytest.mark.parametrize("pad", [PAD, END, None])
@pytest.mark.parametrize("reads", ["ids", "text", "chat"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "bert", "bart"])
def test_rewards_of_ids_texts_and_conversations(tmp_path: Path, family: str, reads: str, pad: int | None) -> None:
    if family == "bart" and (reads == "text" or pad is None):
        pytest.skip("refuses what has no end token, and wants a pad token")
    tokenizer = AutoTokenizer.from_pretrained(DEFAULT_MODEL)
    if reads != "ids":
        tokenizer.bos_token = tokenizer.convert_ids_to_tokens(7)  # no longer the same tokens
    if reads == "chat":
        # As many chat templates end.
        tokenizer.chat_template = "{% for m in messages %}{{ m.role + ': ' + m.content + eos_token }}{% endfor %}"
    folder = saved(tmp_path / "rm", family, pad, tokenizer, score_mean=0.3, score_std=2.0)
    reward = ClassifierReward(folder, LOAD, TOKENIZER)
    assert reward.shares_tokenizer == (reads == "ids")
    texts = [e for e in episodes(TOKENIZER, chat=reads == "chat") if family != "bart" or reads == "chat" or e.has_end]
    if reads == "chat":
        assert all(reward.token_ids(e)[-1] == END for e in texts)
    want = [own(reward.model, reward.token_ids(e)) for e in texts]
    assert None not in want
    assert reward.score(texts) == pytest.approx([(w - 0.3) / 2.0 for w in want if w is not None], abs=1e-4)


def test_an_end_token_that_is_the_pad_is_passed_over(tmp_path: Path) -> None:
    """As in transformers: a model that was trained so expects it."""
    reward = ClassifierReward(saved(tmp_path / "rm", "llama", END), LOAD, TOKENIZER)
    whole = episodes(TOKENIZER)[:1]
    cut = [Episode(e.prompt, e.response_ids[:-1], done=True, response_text=e.response_text) for e in whole]
    assert reward.score(whole) == pytest.approx(reward.score(cut), abs=1e-5)
    other = ClassifierReward(saved(tmp_path / "other", "llama", PAD), LOAD, TOKENIZER)
    assert abs(other.score(whole)[0] - other.score(cut)[0]) > 1e-2


def test_several_heads_are_read_where_the_model_pools(tmp_path: Path) -> None:
    model = classifier("llama", END, labels=2)
    model.config.reward_heads, model.config.reward_head_weights = ["kind", "short"], [0.25, 0.75]
    reward = ClassifierReward(save_model(tmp_path / "rm", model), LOAD, TOKENIZER)
    texts = episodes(TOKENIZER)
    with torch.no_grad():
        rows = [reward.model(input_ids=torch.tensor([e.ids])).logits[0] for e in texts]
    assert reward.score(texts) == pytest.approx([(0.25 * r[0] + 0.75 * r[1]).item() for r in rows], abs=1e-4)


def test_a_text_that_the_model_refuses_is_one_line(tmp_path: Path) -> None:
    reward = ClassifierReward(saved(tmp_path / "rm", "bart", PAD), LOAD, TOKENIZER)
    with pytest.raises(
        RewardModelError,
        match=r"rm': BartForSequenceClassification cannot score .*(must contain at least|out of bounds)",
    ):
        reward.score(episodes(TOKENIZER)[1:2])


def test_a_long_text_keeps_the_token_that_an_encoder_pools(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(DEFAULT_MODEL)
    tokenizer.add_tokens(["zzz"])
    tokenizer.model_max_length = 24  # RoBERTa's positions are two fewer than its configuration says
    model = classifier("roberta", 1)
    model.resize_token_embeddings(1025)
    reward = ClassifierReward(save_model(tmp_path / "rm", model, tokenizer), LOAD, TOKENIZER)
    text = " ".join(["The room was lovely."] * 20)
    ids = reward.token_ids(Episode(Prompt("How?", (5,)), [6], done=True, response_text=text))
    whole = tokenizer("How?" + text)["input_ids"]
    assert len(whole) > 24 == len(ids)
    assert ids[1:] == whole[-23:]
    assert ids[0] == whole[0] == tokenizer.bos_token_id


def test_a_critic_starts_from_decoders_alone() -> None:
    assert scalar_head(classifier("llama", END)) is not None
    assert scalar_head(classifier("bert", PAD)) is None
