"""The page of a run: its data by hand, its texts as texts, and what it says of runs that are not whole."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from agents.cli import compare, report
from agents.cli.compare import names_of
from agents.runs.figure import draw_beside
from agents.runs.report.data import MOST_ROWS, MOST_TIMES, read_run, spread
from agents.runs.report.page import page, write_report
from llm_env.rendering import ABOVE, BELOW
from tests.agents.runs.hand_made import HARM, ROWS, record, tokens, write_run
from tests.browser import needs_browser, open_page


class Parts(HTMLParser):
    """The scripts of a page, with their attributes, and the addresses that it names."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.scripts: list[tuple[dict[str, Any], str]] = []
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [str(value) for name, value in attrs if name in ("src", "href")]
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] == "script" and self.scripts:
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)

    def handle_endtag(self, tag: str) -> None:
        self.tags.append("/" + tag)


def test_tokens_have_the_colors_that_pictures_and_chats_have(tmp_path: Path) -> None:
    html = page([read_run(write_run(tmp_path / "run"))])
    orange, blue = (", ".join(map(str, rgb)) for rgb in (ABOVE, BELOW))
    assert f"--above: {orange}; --below: {blue};" in html
    assert "{{" not in html.partition("<script")[0]


def test_the_data_of_a_run_by_hand(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run", kl_coef=0.3, seed=0, learning_rate=None))
    assert (run["name"], run["algo"], run["state"]) == ("run", "ppo", "unfinished")
    assert (run["timestep"], run["total"], run["iterations"]) == (30, 40, 3)
    assert run["columns"]["rollout/tokens"] == [8, 16, 25]
    assert run["columns"]["rollout/rm_score"] == [0.5, 1.5, 2.12346]
    assert run["columns"]["rollout/kl"] == [0.25, 0.75, None]
    assert run["columns"]["train/late"] == [None, None, 7]
    assert [(s["timestep"], s["iteration"], len(s["records"])) for s in run["samples"]] == [(0, 0, 2), (20, 2, 2)]
    assert run["samples"][1]["records"][0]["tokens"]["world"] == [1]
    assert run["settings"] == {"algo": "ppo", "total_timesteps": 40, "kl_coef": 0.3, "seed": 0, "learning_rate": None}
    assert run["changed"] == ["kl_coef", "total_timesteps"]
    assert run["notes"] == []


def test_the_state_of_a_run(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", rows=(), records=[])
    empty = read_run(folder)
    assert (empty["state"], empty["timestep"], empty["columns"], empty["samples"]) == ("empty", 0, {}, [])
    assert empty["notes"][0].startswith("No iteration has ended yet")
    assert "There are no samples" in empty["notes"][1]
    write_run(folder)
    (folder / "actor").mkdir()  # of a shorter run, which goes on
    assert read_run(folder)["state"] == "unfinished"
    write_run(folder, rows=(*ROWS, "40,30,2,1,-1,7"))
    assert read_run(folder)["state"] == "ended"


def test_a_run_that_is_writing_or_was_killed(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    with (folder / "progress.csv").open("ab") as file:
        file.write(b"40,3")
    with (folder / "samples.jsonl").open("a") as file:
        file.write('{"timestep": 30, "prompt": 1, "response": "x"}\n{"broken\n[]\n')
        bad = record(30, "first?", "x", tokens=tokens("x", "y", kl=[0.5]))  # columns of two lengths
        file.write(json.dumps(bad) + '\n{"timestep": NaN, "prompt": "half a li')
    run = read_run(folder)
    assert (run["iterations"], len(run["samples"])) == (3, 2)
    assert run["notes"] == ["4 of 8 lines of samples.jsonl cannot be read."]
    old = read_run(write_run(tmp_path / "old", records=[record(0, "first?", "a b", kl=float("nan"))]))
    assert old["samples"][0]["records"][0]["kl"] is None
    assert old["notes"] == ["The samples have no numbers for each token: the run is from before they were kept."]


def test_a_long_run_is_thinned(tmp_path: Path) -> None:
    count = 3 * MOST_ROWS
    rows = tuple(f"{i * 10},{i * 8},{i},0,0," for i in range(1, count + 1))
    records = [record(i * 10, "first?", "x", tokens=tokens("x", kl=[0.0])) for i in range(4 * MOST_TIMES)]
    run = read_run(write_run(tmp_path / "run", rows, records + [records[-1]] * 40))
    kept = run["columns"]["rollout/rm_score"]
    assert (len(kept), kept[0], kept[-1]) == (MOST_ROWS, 1, count)
    assert max(np.diff(kept)) <= 4
    assert (len(run["samples"]), run["samples"][-1]["timestep"]) == (MOST_TIMES, records[-1]["timestep"])
    assert len(run["samples"][-1]["records"]) == 32
    assert len(run["notes"]) == 3
    assert spread([1, 2, 3, 4, 5], 3) == [1, 3, 5]


def test_texts_cannot_leave_the_data(tmp_path: Path) -> None:
    """Whatever a model writes, also half a pair of surrogates, which JSON can hold and UTF-8 cannot."""
    odd = record(0, HARM, "\ud800\u2028", columns={HARM: HARM}, tokens=tokens("\ud800\u2028", kl=[0.0]))
    folder = write_run(tmp_path / "run", records=[odd], prompts=HARM)
    text = write_report(folder).read_text(encoding="utf-8")
    parts = Parts(text)
    assert [attributes.get("type") for attributes, _ in parts.scripts] == ["application/json", None]
    data = json.loads(parts.scripts[0][1])
    shown = data["runs"][0]["samples"][0]["records"][0]
    assert (shown["prompt"], shown["response"], shown["columns"]) == (HARM, "\ud800\u2028", {HARM: HARM})
    assert data["runs"][0]["settings"]["prompts"] == HARM
    assert text.count("<script") == 2
    assert "img" not in parts.tags
    titled = Parts(page([read_run(folder, HARM)]))
    assert len(titled.scripts) == 2
    assert "img" not in titled.tags


def test_the_page_is_one_file_that_loads_nothing(tmp_path: Path) -> None:
    text = write_report(write_run(tmp_path / "run")).read_text(encoding="utf-8")
    assert Parts(text).addresses == ["data:,"]
    assert "default-src 'none'" in text
    assert "connect-src 'none'" in text
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)
    assert "{{" not in text.replace(HARM.replace("<", "\\u003c"), "")


def test_what_is_no_run_is_said_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(*argv: object) -> str:
        assert report.main([str(word) for word in argv]) == 1
        return capsys.readouterr().err.replace("\n", " ")

    assert "no run there (no config.yaml in it)" in refused(tmp_path / "nowhere")
    folder = write_run(tmp_path / "run")
    assert "is a folder. Name a file." in refused(folder, "--output", tmp_path)
    (folder / "progress.csv").write_text("a,b\n1,x\n")
    assert f"{folder / 'progress.csv'}: this is no log of a run" in refused(folder).replace("  ", " ")
    (folder / "progress.csv").write_text("a,b\n1\n")
    assert "this is no log of a run" in refused(folder)
    (folder / "config.yaml").write_text("- algo\n")
    assert "no settings of a training run" in refused(folder)
    (folder / "config.yaml").write_text("learning_rate: 1.0\n")
    assert "no settings of a training run" in refused(folder)
    write_run(folder)
    assert report.main([str(folder), "--output", str(tmp_path / "new" / "page.html")]) == 0
    assert (tmp_path / "new" / "page.html").is_file()
    assert not (folder / "report.html").exists()


def test_compare_writes_a_page_and_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    one, other = write_run(tmp_path / "x" / "run", kl_coef=0.1), write_run(tmp_path / "y" / "run", kl_coef=0.2)
    out = tmp_path / "out"
    assert compare.main([str(one), str(other), "--output-dir", str(out)]) == 0
    assert {path.name for path in out.iterdir()} == {"compare.html", "compare.png"}
    data = json.loads(Parts((out / "compare.html").read_text(encoding="utf-8")).scripts[0][1])
    assert [run["name"] for run in data["runs"]] == ["x/run", "y/run"]
    assert names_of([one, tmp_path / "x" / "other"]) == ["run", "other"]
    capsys.readouterr()
    for runs, said in (([one], "1 runs were named"), ([one, other, one], "is named twice"), ([one] * 7, "7 runs")):
        assert compare.main([*map(str, runs), "--output-dir", str(out)]) == 1
        assert said in capsys.readouterr().err
    assert compare.main([str(one), str(tmp_path), "--output-dir", str(out)]) == 1
    assert "no run there" in capsys.readouterr().err
    empty = write_run(tmp_path / "empty", rows=())
    assert compare.main([str(one), str(empty), "--output-dir", str(tmp_path / "more")]) == 0


def test_the_picture_has_a_line_for_each_run(tmp_path: Path) -> None:
    flat = {"rollout/tokens": np.arange(5.0), "rollout/rm_score": np.zeros(5)}
    draw_beside({"low": flat, "high": {**flat, "rollout/rm_score": np.ones(5)}, "none": {}}, tmp_path / "picture.png")
    picture = np.asarray(Image.open(tmp_path / "picture.png"))[:, :, :3].astype(int)
    panel = picture[: picture.shape[0] // 2, : picture.shape[1] // 2]
    rows = [
        float((abs(panel - color).sum(-1) < 30).any(1).nonzero()[0].mean()) for color in ([0, 114, 178], [213, 94, 0])
    ]
    assert rows[0] > rows[1] + 100  # the flat line at 0 is the lower one


@needs_browser
@pytest.mark.slow
def test_the_slider_and_the_colors(tmp_path: Path) -> None:
    path = write_report(write_run(tmp_path / "run"))
    with open_page(path.as_uri()) as browser:
        asked: list[str] = []
        browser.on("request", lambda request: asked.append(request.url))
        assert browser.locator("#title").inner_text() == "run"
        status = browser.locator("#status").inner_text()
        assert status == "ppo, not at its end: 30 of 40 timesteps, 3 iterations."
        captions = browser.locator("#charts figcaption").all_inner_texts()
        assert captions == ["Score", "KL to the reference, nats per response", "Entropy of the policy, nats per token"]
        # The entropy is minus SB3's loss: it falls from 1.5 to 1, so that its line goes down, to larger y.
        line = browser.locator("#charts figure").nth(2).locator("path.line").get_attribute("d")
        heights = [float(pair.split()[1]) for pair in line[1:].split("L")]
        assert heights == sorted(heights)
        assert len(heights) == 3
        numbers = browser.locator("#numbers td").all_inner_texts()
        assert numbers[:6] == [
            "score of the rollouts",
            "0.5",
            "2.123",
            "KL to the reference, nats per response",
            "0.25",
            "0.75",
        ]
        # The newest samples first.
        place, boxes = browser.locator("#time-text"), browser.locator(".response")
        assert place.inner_text() == "iteration 2, timestep 20"
        assert boxes.first.inner_text() == "c\nworld\nd"
        assert boxes.first.locator(".world").all_inner_texts() == ["\nworld\n"]
        ground = "node => [...node.querySelectorAll('span')].map(s => s.style.background)"
        kl = boxes.first.evaluate(ground)
        assert kl == ["rgba(var(--above), 0.750)", "", "rgba(var(--below), 0.750)"]  # the world's has none
        assert (
            boxes.first.locator(".token").first.get_attribute("title")
            == "KL 4 nats\nadvantage 0.5 score\nvalue 1 score"
        )
        browser.locator("#color").select_option("advantage")
        assert (
            boxes.first.evaluate(ground)[::2] == [f"rgba(var(--above), {0.75 * 0.5:.3f})"] * 2
        )  # 1 is full: 95 % of |-1, 0, 2 …|
        # Back to the beginning.
        browser.locator("#time").fill("0")
        assert place.inner_text() == "iteration 0, timestep 0, before training"
        assert boxes.all_inner_texts() == ["a b■", HARM]
        browser.locator("#color").select_option("none")
        assert set(boxes.first.evaluate(ground)) == {""}
        browser.locator("#time").fill("1")
        browser.locator("#first").check()
        assert browser.locator(".sample").first.locator("h3").all_inner_texts() == ["timestep 0", "timestep 20"]
        assert boxes.all_inner_texts()[:2] == ["a b■", "c\nworld\nd"]
        assert browser.locator("#column").input_value() in browser.locator("#other figcaption").inner_text()
        assert browser.evaluate("window.harmed") is None
        assert not asked
        assert not browser.errors


@needs_browser
@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wider_than_a_phone(tmp_path: Path, scheme: Any) -> None:
    long = record(0, "a_very_long_name" * 20, "x" * 300, tokens=tokens("x" * 300, kl=[0.5]))
    folder = write_run(tmp_path / ("a_folder" * 20), records=[long], model="/a/long/path" * 20)
    with open_page(write_report(folder).as_uri(), 360) as browser:
        browser.emulate_media(color_scheme=scheme)
        assert browser.evaluate("document.documentElement.scrollWidth") <= 360
        ground, text = browser.evaluate(
            "['backgroundColor', 'color'].map(n => getComputedStyle(document.body)[n].match(/\\d+/g).map(Number))"
        )
        assert (sum(ground) > sum(text)) == (scheme == "light")


@needs_browser
@pytest.mark.slow
def test_runs_beside_each_other(tmp_path: Path) -> None:
    grpo = [record(t, "first?", "only", tokens=tokens("only", kl=[0.1])) for t in (0, 10)]
    one = write_run(tmp_path / "one", kl_coef=0.1, seed=3)
    other = write_run(tmp_path / "other", records=grpo, algo="grpo", kl_coef=0.2, seed=3, group_size=8)
    empty = write_run(tmp_path / "empty", (), [], kl_coef=0.2, seed=3)
    assert compare.main([*map(str, (one, other, empty)), "--output-dir", str(tmp_path / "out")]) == 0
    with open_page((tmp_path / "out" / "compare.html").as_uri()) as browser:
        rows = browser.locator("#settings > table tbody tr").all()
        assert [row.locator("td").all_inner_texts() for row in rows] == [
            ["algo", "ppo", "grpo", "ppo"],
            ["group_size", "–", "8", "–"],
            ["kl_coef", "0.1", "0.2", "0.2"],
        ]
        assert browser.locator("#numbers tr").nth(1).locator("td").all_inner_texts() == [
            "score of the rollouts", "2.123", "2.123", "–",
        ]  # fmt: skip
        first = browser.locator(".sample").first
        assert first.locator(".prompt").inner_text() == "first?"
        assert first.locator(".response").all_inner_texts() == ["c\nworld\nd", "only"]
        # Each at its latest samples until the slider's moment; who has none of the prompt says so.
        assert [h.partition(",")[2] for h in first.locator("h3").all_inner_texts()] == [
            " timestep 20",
            " timestep 10",
            " timestep –",
        ]
        assert browser.locator(".sample").nth(1).get_by_text("No sample of this prompt.").count() == 2
        dashes = browser.locator("#charts figure").first.locator("svg[role=img] path.line")
        assert dashes.count() == 2
        assert dashes.nth(0).get_attribute("stroke-dasharray") != dashes.nth(1).get_attribute("stroke-dasharray")
        assert "empty: No iteration has ended yet" in browser.locator("#notes").inner_text()
        assert not browser.errors
