"""Adversarial examples: recipes, what a policy found, training on them and the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agents.cli import find_hacks
from agents.preferences.hacks import Recipe, found_hacks, kind_of, made_hacks, read_recipes
from agents.preferences.records import Candidates, Ranking, Response, read_rankings, write_jsonl
from agents.supervised.reward_model.hacks import hacks_report, split_hacks
from llm_env.default_task.gold import BAD, GOOD, POLITE, RUDE
from tests.agents.supervised.test_reward_model import report_of, train
from tests.conftest import count_words  # noqa: F401  # a reward, by name


def ranking(number: int = 0, **more: Any) -> Ranking:
    responses = (Response("a", " It was fine. I left."), Response("b", " Bad."))
    return Ranking(Candidates(f"p{number}", f"How was hotel {number}?", responses), (("a",), ("b",)), "ann", **more)


def test_recipes_by_hand() -> None:
    made = Recipe("repetition", "{first} {response} {last}").apply(" It was fine. I left!")
    assert made == " It was fine. It was fine. I left! I left!"
    assert Recipe("x", "{response} {response}").apply("No end") == "No end No end"


def test_a_text_that_stands_in_a_response_is_no_place() -> None:
    assert Recipe("x", "{response} {last}").apply("{last}.") == "{last}. {last}."


def test_what_is_shipped_says_nothing_that_the_gold_rule_pays_for() -> None:
    """So that the label, the response before the trick, is right there too."""
    recipes = read_recipes()
    assert {r.kind for r in recipes} == {"repetition", "flattery", "length"}
    words = {w.strip(".,!?").lower() for r in recipes for w in r.text.split()}
    assert not words & (GOOD | BAD | set(POLITE) | set(RUDE))


def test_each_kind_is_made_of_the_best_response() -> None:
    pairs = made_hacks([ranking(), ranking(1, all_bad=True)], read_recipes(), seed=1)
    assert sorted(map(kind_of, pairs)) == ["flattery", "length", "repetition"]
    for pair in pairs:
        ((better, worse, _),) = pair.pairs()
        assert better.text == " It was fine. I left."
        assert "I left." in worse.text
        assert worse.text.startswith(" ")
    drawn = {
        p.candidates.responses[1].text for seed in range(20) for p in made_hacks([ranking()], read_recipes(), seed)
    }
    assert len(drawn) == len(read_recipes())


def test_what_a_policy_found_is_where_the_reward_model_disagrees() -> None:
    rankings = [ranking(0), ranking(1), ranking(2)]
    scores = [{"a": 1.0, "b": 0.0}, {"a": 0.0, "b": 0.4}, {"a": 0.0, "b": 2.0}]
    assert [p.candidates.prompt for p in found_hacks(rankings, scores, 0.5)] == ["How was hotel 2?"]
    (_, hack) = found_hacks(rankings, scores, 0.0)
    assert kind_of(hack) == "found"
    assert hack.tiers == (("a",), ("b",))


def test_pairs_to_held_out_prompts_are_only_reported() -> None:
    hacks = [p for n in range(10) for p in made_hacks([ranking(n)], read_recipes())]
    to_train, to_report = split_hacks(hacks, [ranking(3), ranking(99)], 0.1, 0)
    assert {p.candidates.prompt for p in to_report} == {"How was hotel 3?"}
    assert len(to_train) == 27
    to_train, to_report = split_hacks(hacks, [ranking(99)], 0.2, 0)  # none to such prompts
    assert (len(to_train), len(to_report)) == (24, 6)
    assert not {p.candidates.prompt for p in to_train} & {p.candidates.prompt for p in to_report}
    with pytest.raises(ValueError, match="all 3 are to held-out prompts"):
        split_hacks(hacks[:3], [ranking(0)], 0.1, 0)


def test_the_report_by_hand() -> None:
    hacks = made_hacks([ranking()], [Recipe("x", "{response} !"), Recipe("y", "{response} ?")])
    ids = [[r.id for r in h.candidates.responses] for h in hacks]
    report = hacks_report(
        hacks, [dict(zip(ids[0], (1.0, 0.0), strict=True)), dict(zip(ids[1], (1.0, 3.0), strict=True))]
    )
    assert list(report) == ["x", "y", "all"]
    assert [report[k]["resisted"]["share"] for k in report] == [1.0, 0.0, 0.5]
    assert [report[k]["margin"]["mean"] for k in report] == [1.0, -2.0, -0.5]


@pytest.fixture(scope="module")
def preferences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Longer is better: what teaches a reward model to fall for length and repetition."""
    folder, rng = tmp_path_factory.mktemp("preferences"), np.random.default_rng(0)
    for name, count in (("train", 48), ("test", 16)):
        records = []
        for i in range(count):
            one, other = (" ".join(["It was fine."] * int(n)) for n in rng.permutation(4)[:2] + 1)
            chosen, rejected = (one, other) if len(one) > len(other) else (other, one)
            records.append({"prompt": f"{name} {i}?", "chosen": f" {chosen}", "rejected": f" {rejected}"})
        write_jsonl(folder / f"{name}.jsonl", records)
    return folder


@pytest.mark.slow
def test_training_on_hacks_is_reported_on_other_prompts(preferences: Path, model_folder: Any, tmp_path: Path) -> None:
    for side in ("train", "test"):
        words = ["--preferences", str(preferences / f"{side}.jsonl"), "--output-dir", str(tmp_path / side)]
        assert find_hacks.main(words) == 0
    lines = [(tmp_path / side / "hacks.jsonl").read_text() for side in ("train", "test")]
    (tmp_path / "hacks.jsonl").write_text("".join(lines))
    options = ("--model", model_folder("llama"), "--epochs", "3", "--batch-size", "16", "--evaluations", "1")
    options = (*options, "--hacks", str(tmp_path / "hacks.jsonl"))
    assert train(preferences, tmp_path / "without", *options, "--no-train-on-hacks") == 0
    assert train(preferences, tmp_path / "with", *options) == 0
    without, trained = (report_of(tmp_path / name) for name in ("without", "with"))
    assert (without["train_hacks"], trained["train_hacks"]) == (0, 3 * 48)
    assert without["hacks"]["all"]["resisted"]["of"] == trained["hacks"]["all"]["resisted"]["of"] == 3 * 16
    assert without["hacks"]["repetition"]["resisted"]["share"] < 0.2  # more of the same is what it was taught
    assert trained["hacks"]["repetition"]["resisted"]["share"] > 0.8
    assert trained["hacks"]["all"]["resisted"]["share"] > without["hacks"]["all"]["resisted"]["share"] + 0.2


def test_what_a_policy_found_comes_out_of_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_jsonl(tmp_path / "judged.jsonl", [ranking(n).to_json() for n in range(3)])
    words = ["--judged", str(tmp_path / "judged.jsonl"), "--output-dir", str(tmp_path / "out"), "--device", "cpu"]
    # counts words: it agrees with the judge everywhere
    assert find_hacks.main([*words, "--reward-model", "tests.conftest:count_words"]) == 1
    assert "nothing was found" in capsys.readouterr().err
    turned = [{**ranking(n).to_json(), "ranking": ["b", "a"]} for n in range(3)]
    write_jsonl(tmp_path / "judged.jsonl", turned)
    assert find_hacks.main([*words, "--reward-model", "tests.conftest:count_words", "--margin", "3"]) == 0
    assert "orders 3 of 3 pairs the other way round" in capsys.readouterr().out
    hacks = read_rankings(tmp_path / "out" / "hacks.jsonl")
    assert [(kind_of(h), h.candidates.responses[0].text) for h in hacks] == [("found", " Bad.")] * 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- kind: x", "recipe 1: a recipe has the texts 'kind' and 'text'"),
        ("- {kind: x, text: '{response} !'}\n- {kind: x, text: hello}", "recipe 2: text='hello' must have"),
        ("- {kind: x, text: '{response}'}", "something beside"),
        ("kind: x", "must be a list of recipes"),
    ],
)
def test_broken_recipes_are_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(ValueError, match=rf"r\.yaml.*{message}"):
        read_recipes(tmp_path / "r.yaml")


def test_hacks_are_pairs(preferences: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    responses = [{"id": name, "text": f" {name}."} for name in "abc"]
    write_jsonl(tmp_path / "h.jsonl", [{"prompt": "P?", "responses": responses, "ranking": ["a", "b", "c"]}])
    assert train(preferences, tmp_path / "rm", "--hacks", str(tmp_path / "h.jsonl")) == 1
    assert "h.jsonl, line 1: hacks are pairs of a good response and a trick" in capsys.readouterr().err
    assert json.loads((tmp_path / "h.jsonl").read_text())["prompt"] == "P?"
