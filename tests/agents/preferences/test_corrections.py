"""Corrections by people and by a language model: files, page, what trains on them, interruptions, bad input."""

from __future__ import annotations

import json
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from agents.cli import collect_preferences as script
from agents.cli import iterate
from agents.preferences.answers import Question
from agents.preferences.corrections import CorrectionAnswers, correction_rankings, read_corrections
from agents.preferences.page import CorrectionPage
from agents.preferences.records import Candidates, Response, read_rankings, write_jsonl
from llm_env.lm.names import LoadSettings
from llm_env.reward.judges.local import LocalJudge
from llm_env.text.texts import read_texts
from tests.agents.preferences.test_page import begin, candidates, free_port, start_server
from tests.browser import needs_browser, open_page
from tests.chat_servers import ChatServer

CPU = LoadSettings("float32", "cpu")
LIMITS = ("--reward-timeout", "20", "--reward-wait", "1")


def response_in(question: str) -> str:
    """The response that a question asks to rewrite."""
    return re.search(r"\[Response\]\n(.*)\n\[End of the response\]", question, re.DOTALL)[1].strip()


def politely(question: str) -> str:
    """A corrector that adds thanks, and leaves the third response as it is."""
    text = response_in(question)
    return text if "Answer 2" in text else f"{text} Thank you."


def responses_in(folder: Path, count: int = 3) -> Path:
    write_jsonl(folder / "responses.jsonl", [c.to_json() for c in candidates(count)])
    return folder


def collect(folder: Path, *options: str) -> int:
    return script.main(["--output-dir", str(folder), "--device", "cpu", *LIMITS, *options])


def test_a_corrector_rewrites_and_both_files_come_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with ChatServer(politely) as server:
        assert collect(responses_in(tmp_path), "--corrector", server.judge) == 0
        assert len(server.requests) == 9
        assert collect(tmp_path, "--corrector", server.judge) == 0
        assert len(server.requests) == 9, "nothing is asked twice"
        corrections = read_corrections(tmp_path / "corrections.jsonl")
        assert [[r.id for r in c.texts] for c in corrections] == [["r0", "r1"]] * 3
        assert {c.annotator for c in corrections} == {server.judge}
        assert f"{server.judge}: 6 of 9 responses corrected." in capsys.readouterr().out
    pairs = read_rankings(tmp_path / "corrected_pairs.jsonl")
    assert [(b.text, w.text) for p in pairs[:1] for b, w, _ in p.pairs()] == [
        ("Answer 0 to 0. Thank you.", " Answer 0 to 0.")
    ]
    texts = read_texts(tmp_path / "corrected_texts.jsonl")
    assert len(pairs) == len(texts) == 6
    assert texts[0].prompt == "Question 0?"
    assert texts[0].response == "Answer 0 to 0. Thank you."


def test_a_corrector_that_dies_half_way_goes_on_and_ends_the_same(tmp_path: Path) -> None:
    with ChatServer(politely, "same") as server:
        assert collect(responses_in(tmp_path / "whole"), "--corrector", server.judge) == 0
        whole = {n: (tmp_path / "whole" / n).read_text() for n in ("corrections.jsonl", "corrected_texts.jsonl")}
        asked = server.questions
    served = 0

    def dies(question: str) -> Any:
        nonlocal served
        served += 1
        return {"no": "choices"} if served > 4 else politely(question)

    folder = responses_in(tmp_path / "parts")
    with ChatServer(dies, "same") as server:
        assert collect(folder, "--corrector", server.judge, "--judge-concurrency", "1") == 1
        kept = (folder / "judgments.jsonl").read_text().splitlines()
        assert len(kept) == 4
        assert not (folder / "corrections.jsonl").exists()
    # the same name again: the address of a test's server changes, so the journal's lines get the new one
    with ChatServer(politely, "same") as server:
        lines = [json.dumps({**json.loads(line), "judge": server.judge}) for line in kept]
        (folder / "judgments.jsonl").write_text("\n".join(lines) + '\n{"key": "half')
        assert collect(folder, "--corrector", server.judge) == 0
        assert len(server.requests) == len(asked) - 4
        name = server.judge
    for file, text in whole.items():
        got = (folder / file).read_text()
        assert re.sub(r"openai:[^\"]*", "", got) == re.sub(r"openai:[^\"]*", "", text)
    assert {c.annotator for c in read_corrections(folder / "corrections.jsonl")} == {name}


def test_what_the_corrector_is_told_is_a_file_that_users_change(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("Rhyme: {prompt}\n[Response]\n{response}\n[End of the response]")
    with ChatServer(politely) as server:
        options = ("--corrector", server.judge, "--corrector-prompt", str(path))
        assert collect(responses_in(tmp_path / "out", 1), *options) == 0
        assert all(q.startswith("Rhyme: Question 0?") for q in server.questions)
        (corrected,) = read_corrections(tmp_path / "out" / "corrections.jsonl")
        assert re.fullmatch(re.escape(server.judge) + r" \[correct [0-9a-f]{8}\]", corrected.annotator)


def test_a_model_on_this_machine_writes_the_likeliest_tokens(model_folder: Callable[..., str]) -> None:
    """As transformers' own greedy search does."""
    folder = model_folder("llama")
    judge = LocalJudge(f"llm:{folder}", CPU, "corrector")
    ((_, reply),) = judge.written(["How was the hotel?"], 12)
    model, ids = AutoModelForCausalLM.from_pretrained(folder), judge.model.tokenizer("How was the hotel?")["input_ids"]
    import torch

    with torch.no_grad():
        out = model.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False, pad_token_id=0)[0, len(ids) :]
    assert reply.text == judge.model.tokenizer.decode(out, skip_special_tokens=True).strip()
    assert reply.finished == (2 in out.tolist())
    with pytest.raises(ValueError, match=r"corrector='llm:.*its answer 300, and the model can read 256"):
        LocalJudge(f"llm:{model_folder('gpt2')}", CPU, "corrector").written(["a"], 300).__next__()


def test_answers_that_were_cut_off_are_no_finished_texts(tmp_path: Path) -> None:
    cut = {"choices": [{"message": {"content": "Answer with no end"}, "finish_reason": "length"}]}
    with ChatServer(lambda question: cut) as server:
        assert collect(responses_in(tmp_path, 1), "--corrector", server.judge) == 0
    assert not any(t.finished for t in read_texts(tmp_path / "corrected_texts.jsonl"))
    pairs = read_rankings(tmp_path / "corrected_pairs.jsonl")
    assert not any(r.candidates.response("chosen").finished for r in pairs)
    assert all(r.candidates.response("rejected").finished for r in pairs)


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CorrectionPage:
    gradio = SimpleNamespace(update=lambda **changes: changes, skip=lambda: None, Warning=lambda text: None)
    monkeypatch.setitem(sys.modules, "gradio", gradio)
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    return CorrectionPage(CorrectionAnswers(tmp_path / "corrections.jsonl", [Question(c) for c in candidates(2)]))


def test_an_edited_text_corrects_the_response_that_stood_there(page: CorrectionPage) -> None:
    for name in ("ann", "bob", "cid", "dan"):  # each sees another order
        number, _, _, _, *rest = page.show(name)
        assert not any(r["visible"] for r in rest[3:6])
        texts = [t["value"] for t in rest[:3]]
        assert page.submit(name, number, *texts)[2].startswith("**Nothing was changed.")
        assert page.submit(name, number, texts[0], " ", texts[2])[2].startswith("**Response B is empty.")
        edited = [t.replace("Answer 1", "Answer one") for t in texts]
        assert page.submit(name, number, *edited)[2] == "Saved: 1 corrected."
        page.all_bad(name, 1)
    again = CorrectionAnswers(page.answers.path, page.answers.questions)
    assert again.next("ann") is None
    assert again.next("eve") == 0
    assert again.complete
    corrections = read_corrections(page.answers.path)
    assert [[(r.id, r.text) for r in c.texts] for c in corrections] == [[("r1", "Answer one to 0.")], []] * 4
    (first, *_) = correction_rankings(corrections)
    assert [(b.text, w.text) for b, w, _ in first.pairs()] == [("Answer one to 0.", " Answer 1 to 0.")]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"corrections": None}, "'corrections' must be a list"),
        ({"corrections": [{"of": "x", "text": "a"}]}, "a correction needs 'of', one of r0, r1"),
        ({"corrections": [{"of": "r0", "text": " Text."}]}, "is empty, or the same text"),
        ({"corrections": [{"of": "r0", "text": "a", "finished": "no"}]}, "finished='no' must be true or false"),
    ],
)
def test_broken_corrections_are_refused_with_file_and_line(tmp_path: Path, changes: Any, message: str) -> None:
    whole = Candidates("p0", "How?", (Response("r0", " Text."), Response("r1", " Other."))).to_json()
    path = tmp_path / "corrections.jsonl"
    write_jsonl(path, [{**whole, "corrections": []}, {**whole, **changes}])
    with pytest.raises(ValueError, match=rf"corrections\.jsonl, line 2: .*{message}"):
        read_corrections(path)


@pytest.mark.parametrize("method", [pytest.param("dpo", marks=pytest.mark.slow), "rejection_sampling"])
def test_rounds_train_on_corrections_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda self, path, **options: Path(path).write_bytes(b""))
    small = (
        "--prompts-per-round",
        "6",
        "--n-responses",
        "2",
        "--n-eval",
        "4",
        "--max-new-tokens",
        "8",
        "--batch-size",
        "4",
    )
    with ChatServer(lambda q: f"{response_in(q)} Thank you.") as server:
        options = (*small, "--device", "cpu", "--rounds", "1", "--method", method, "--corrector", server.judge)
        assert iterate.main(["--output-dir", str(tmp_path), "--judge", "gold", *options]) == 0
        assert len(server.requests) == 12
    counts = json.loads((tmp_path / "round_1" / "selection.json").read_text())
    assert counts["corrections"] == 12
    lines = (tmp_path / "round_1" / "train.jsonl").read_text().splitlines()
    assert sum("Thank you." in line for line in lines) == 12
    assert len(lines) > 12


@needs_browser
@pytest.mark.slow
def test_corrections_in_a_browser_survive_a_killed_server(tmp_path: Path) -> None:
    pytest.importorskip("gradio")
    port = free_port()
    server = start_server(responses_in(tmp_path), port, "--page", "corrections")
    try:
        with open_page(f"http://127.0.0.1:{port}") as page:
            begin(page, "ann")
            page.locator("#submit").click()
            page.get_by_text("Nothing was changed").first.wait_for()
            for place in range(3):
                box = page.locator(f"#response{place} textarea")
                box.fill(box.input_value().replace("Answer", "Better answer"))
            page.locator("#submit").click()
            page.wait_for_function("document.querySelector('#status').innerText.includes('1 of 3')")
            assert not page.errors
        server.send_signal(signal.SIGKILL)
        server.wait()
        assert [len(c.texts) for c in read_corrections(tmp_path / "corrections.jsonl")] == [3]
        server = start_server(tmp_path, port, "--page", "corrections")
        with open_page(f"http://127.0.0.1:{port}") as page:
            begin(page, "ann")
            assert "Question 1" in page.locator("#prompt textarea").input_value()
            page.locator("#all_bad").click()
            page.wait_for_function("document.querySelector('#status').innerText.includes('2 of 3')")
    finally:
        server.kill()
        server.wait()
    first, second = read_corrections(tmp_path / "corrections.jsonl")
    assert {r.id: r.text for r in first.texts} == {f"r{k}": f"Better answer {k} to 0." for k in range(3)}
    assert not second.texts
