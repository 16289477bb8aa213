"""A model on this machine as a judge: exact probabilities of answers, through a chat template or as plain text."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llm_env.default_task import DEFAULT_MODEL
from llm_env.episode import Episode
from llm_env.lm.loading import load_tokenizer
from llm_env.lm.names import LoadSettings
from llm_env.reward.judges import local
from llm_env.reward.judges.instruction import read_instruction
from llm_env.reward.judges.local import LocalJudge, option_ids, option_log_prob
from llm_env.reward.judges.names import JudgeOptions
from llm_env.reward.models import load_reward_model
from llm_env.reward.scores import RewardModelError
from llm_env.text.prompts import Prompt
from tests.conftest import save_model

CPU = LoadSettings("float32", "cpu")
LETTERS = ("A", "B")
GRADES = tuple(str(g) for g in range(1, 11))
TEMPLATE = (
    "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant:{% endif %}"
)


def next_log_probs(folder: str, ids: list[int]) -> torch.Tensor:
    """By transformers alone."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        return torch.log_softmax(model(input_ids=torch.tensor([ids])).logits[0, -1].double(), -1)


def expected(folder: str, ids: list[int], options: tuple[str, ...]) -> dict[str, float]:
    """The probability that a reply begins with each answer, one forward pass of transformers for each token."""
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def probability(answer: tuple[int, ...]) -> float:
        return math.exp(sum(float(next_log_probs(folder, [*ids, *answer[:n]])[t]) for n, t in enumerate(answer)))

    spellings = {o: option_ids(o, lambda t: tokenizer(t, add_special_tokens=False)["input_ids"]) for o in options}
    weights = {o: sum(map(probability, spellings[o])) for o in options}
    if "10" in weights:  # a "1" that goes on to "10" is none
        longer = {s for s in spellings["10"] if any(s[: len(one)] == one for one in spellings["1"])}
        weights["1"] -= sum(map(probability, longer))
    return weights


@pytest.mark.parametrize("options", [LETTERS, GRADES])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_shares_are_those_of_replies_that_begin_with_an_answer(
    model_folder: Callable[..., str], family: str, options: tuple[str, ...]
) -> None:
    folder = model_folder(family)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    questions = ["Which is better? It is", "Is this any good, tell me, on a scale? It is a"]
    replies = dict(LocalJudge(f"llm:{folder}", CPU).replies(questions, options))
    for place, question in enumerate(questions):
        ids = tokenizer(question)["input_ids"]
        weights = expected(folder, ids[:-1] if ids[-1] == tokenizer.eos_token_id else ids, options)
        reply, total = replies[place], sum(weights.values())
        assert reply.mass == pytest.approx(total, rel=1e-4)
        assert reply.shares == pytest.approx({o: w / total for o, w in weights.items()}, rel=1e-3, abs=1e-9)


def test_a_one_that_goes_on_to_ten_is_no_one() -> None:
    steps = {(): {1: math.log(0.6), 2: math.log(0.3)}, (1,): {0: math.log(0.75)}}
    spellings = [{(1,)}, {(2,)}, {(1, 0)}]  # 1, 2 and 10 of a tokenizer that writes digit by digit
    shares = [math.exp(option_log_prob(s, spellings, steps)) for s in spellings]
    assert shares == pytest.approx([0.6 * 0.25, 0.3, 0.6 * 0.75])


def test_spellings_cover_a_line_end_and_a_space_before() -> None:
    bytes_of = {"A": [65], " A": [32, 65], "\n": [10], "\nA": [10, 65], ":": [58], ": A": [58, 32, 65]}
    assert option_ids("A", lambda text: bytes_of[text]) == {(65,), (32, 65)}
    # One that puts a mark of a word's beginning before every text, as SentencePiece does.
    marked = {"A": [7], " A": [5, 7], "\n": [5, 10], "\nA": [5, 10, 65], ":": [58], ": A": [58, 7]}
    assert option_ids("A", lambda text: marked[text]) == {(7,), (5, 7), (65,)}


def test_a_chat_template_is_used_where_there_is_one(model_folder: Callable[..., str], tmp_path: Path) -> None:
    plain = model_folder("llama")
    tokenizer = AutoTokenizer.from_pretrained(plain)
    tokenizer.chat_template = TEMPLATE
    chat = save_model(tmp_path / "chat", AutoModelForCausalLM.from_pretrained(plain), tokenizer)
    question = "A or B?"
    ids = tokenizer(f"<s>user: {question}</s><s>assistant:", add_special_tokens=False)["input_ids"]
    weights = expected(chat, ids, LETTERS)
    ((_, reply),) = LocalJudge(f"llm:{chat}", CPU).replies([question], LETTERS)
    ((_, of_plain),) = LocalJudge(f"llm:{plain}", CPU).replies([question], LETTERS)
    assert reply.mass == pytest.approx(sum(weights.values()), rel=1e-4)
    assert reply.shares != pytest.approx(of_plain.shares, rel=1e-3)


def test_many_questions_are_answered_in_order_and_as_each_alone(model_folder: Callable[..., str]) -> None:
    judge = LocalJudge(f"llm:{model_folder('llama')}", CPU)
    questions = [f"Number {i}: {'very ' * (i % 7)}good?" for i in range(70)]
    replies = list(judge.replies(questions, LETTERS))
    assert [place for place, _ in replies] == list(range(70))
    for i in (0, 5, 69):
        ((_, alone),) = judge.replies([questions[i]], LETTERS)
        assert replies[i][1].shares == pytest.approx(alone.shares, rel=1e-4)


def test_a_question_that_the_model_cannot_read_whole_is_refused(model_folder: Callable[..., str]) -> None:
    judge = LocalJudge(f"llm:{model_folder('gpt2')}", CPU)  # reads 256 tokens
    with pytest.raises(
        ValueError, match=r"judge='llm:.*a question has .* tokens, its answer .*, and the model can read 256"
    ):
        list(judge.replies(["good " * 400], LETTERS))


def test_probabilities_that_are_no_numbers_are_refused(model_folder: Callable[..., str], tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(model_folder("llama"))
    judge = LocalJudge(f"llm:{save_model(tmp_path / 'broken', model)}", CPU)
    with torch.no_grad():
        judge.model.lm.model.get_output_embeddings().weight.fill_(math.nan)
    with pytest.raises(RewardModelError, match="its probabilities are not finite"):
        list(judge.replies(["good?"], LETTERS))


def test_what_is_written_has_no_thoughts(model_folder: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    judge = LocalJudge(f"llm:{model_folder('llama')}", CPU)
    thinks = judge.model.tokenizer("<think>\nHm.\n</think>\n\nBetter.", add_special_tokens=False)["input_ids"]
    monkeypatch.setattr(local, "continue_prompts", lambda *args, **kwargs: [thinks])
    ((_, reply),) = judge.written(["Rewrite it."], 100)
    assert reply.text == "Better."


def test_grades_are_a_reward_model_alone_and_in_a_sum(model_folder: Callable[..., str]) -> None:
    name, tokenizer = f"llm:{model_folder('llama')}", load_tokenizer(DEFAULT_MODEL)
    episodes = [Episode(Prompt("How?", (1,)), done=True, response_text=t) for t in (" Good.", " Bad. Very.", " Good.")]
    instruction = read_instruction("grade")
    expected: list[Any] = []
    for episode in episodes:
        question = instruction.question("How?", episode.response_text)
        ((_, reply),) = LocalJudge(name, CPU).replies([question], GRADES)
        assert reply.shares is not None
        expected.append(sum(int(g) * share for g, share in reply.shares.items()))
    scores = load_reward_model(name, CPU, tokenizer).score(episodes)
    assert scores == pytest.approx(expected, rel=1e-4)
    assert scores[0] == scores[2] != scores[1]
    assert all(1 <= s <= 10 for s in scores)
    both = load_reward_model([[name, 2.0], "tests.conftest:count_dots"], CPU, tokenizer)
    assert both.score(episodes) == pytest.approx([2 * s + n for s, n in zip(scores, (1, 2, 1), strict=True)])


def test_a_chats_messages_are_graded_and_not_the_templates_text(
    model_folder: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "judge.txt"
    path.write_text("{prompt}|{response}|Grade:")
    asked: list[str] = []
    replies = LocalJudge.replies
    monkeypatch.setattr(LocalJudge, "replies", lambda self, q, o: (asked.extend(q), replies(self, q, o))[1])
    prompt = Prompt("<s>user: Hi</s>", (1,), (("user", "Hi"),))
    judging = JudgeOptions(str(path))
    tokenizer = load_tokenizer(DEFAULT_MODEL)
    reward = load_reward_model(f"llm:{model_folder('llama')}", CPU, tokenizer, judging=judging)
    reward.score([Episode(prompt, done=True, response_text="Yes?")])
    assert asked == ["Hi|Yes?|Grade:"]
