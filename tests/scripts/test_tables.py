"""Pages show what the result files and the algorithms' table say; each algorithm's page is true, and its example runs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import algorithm_pages
import compare
import tables
from agents import make_algorithm
from agents.algorithms.explanations import EXPLANATIONS, OWN_MEANING
from agents.algorithms.table import ALGORITHMS, settings_of
from tests.conftest import ROOT

BLOCK = "<!-- made: compared compare/results.json algorithm 'KL (nats)=nats' -->\n{}<!-- end -->\n"
QUICK: dict[str, dict[str, Any]] = {
    "trpo": {"cg_max_steps": 2, "n_critic_updates": 1},
    "dqn": {"gradient_steps": 2, "batch_size": 64},
    "qr_dqn": {"gradient_steps": 2, "batch_size": 64},
    "ars": {"n_delta": 1},
}


def test_every_page_is_up_to_date() -> None:
    assert not [str(path.relative_to(ROOT)) for path in tables.out_of_date()], "run: python scripts/lab/tables.py"


def test_a_page_that_was_edited_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"Before.\n\n{BLOCK.format('| old |' + chr(10))}\nAfter.\n", encoding="utf-8")
    monkeypatch.setattr(tables, "DOCS", tmp_path)
    monkeypatch.setattr(tables, "FILES", {})
    monkeypatch.setattr(tables, "ALGORITHMS", {})
    monkeypatch.setattr(tables, "read", lambda file: json.loads((ROOT / "docs" / file).read_text(encoding="utf-8")))
    assert tables.main(tables.Args(check=True)) == 1
    assert "| old |" in page.read_text(encoding="utf-8")
    assert tables.main(tables.Args()) == 0
    text = page.read_text(encoding="utf-8")
    assert text.startswith("Before.\n\n<!-- made: ")
    assert text.endswith("<!-- end -->\n\nAfter.\n")
    assert "| algorithm | nats |\n|---|---|\n| reference | 0.00 (0.00 to 0.00) |" in text
    assert tables.main(tables.Args(check=True)) == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- made: compard x -->\n<!-- end -->\n", "'compard' is not known; there is about, "),
        (BLOCK.format("").replace("<!-- end -->\n", "") * 2 + "<!-- end -->\n", "2 blocks begin, and 1 end"),
    ],
)
def test_a_block_that_cannot_be_made_is_an_error(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tables.made(text)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_an_algorithm_has_a_page_with_notes(name: str) -> None:
    page = (ROOT / "docs" / "algorithms" / f"{name}.md").read_text(encoding="utf-8")
    assert re.search(r"## Notes\n\n- .{40}", page)
    assert page.count("<!-- made: ") == algorithm_pages.NEW_PAGE.count("<!-- made: ")
    assert f"\n{algorithm_pages.python_example(name)}```" in page


@pytest.mark.parametrize("name", ALGORITHMS)
def test_defaults_on_the_page_are_those_of_the_model(name: str) -> None:
    model = make_algorithm(name, n_envs=8, env_kwargs={"max_new_tokens": 6, "max_prompt_length": 12})
    compared = 0
    for setting in settings_of(name):
        told = algorithm_pages.default_of(name, setting)
        if not hasattr(model, setting) or setting in algorithm_pages.FROM_TASK or setting in ("seed", "device"):
            continue
        value = getattr(model, setting)
        if setting in algorithm_pages.SCHEDULES and value is not None:
            value = value(1.0) if callable(value) else value
        if told.startswith("`"):
            assert str(value) == told.strip("`") or float(value) == float(told.strip("`")), setting
            compared += 1
    assert compared >= 5


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_search_found_what_the_results_were_made_with(name: str) -> None:
    found = tables.read("compare/results.json")
    assert all(r["params"] == compare.best_settings(ROOT / "docs/compare", name) for r in found if r["algo"] == name)


def test_explanations_are_of_settings_that_are_there() -> None:
    known = {setting for name in ALGORITHMS for setting in settings_of(name)}
    assert set(EXPLANATIONS) <= known
    assert all(set(own) <= set(settings_of(name)) for name, own in OWN_MEANING.items())


def test_a_setting_without_an_explanation_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(EXPLANATIONS, "cg_damping")
    with pytest.raises(LookupError, match="trpo: cg_damping is explained nowhere; say what it is in agents/"):
        algorithm_pages.parameters("trpo")


@pytest.mark.slow
@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_example_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    text = algorithm_pages.python_example(name, n_envs=8, rollouts=1, **QUICK.get(name, {}))
    exec(compile(text, f"docs/algorithms/{name}.md", "exec"), names)
    assert names["model"].num_timesteps >= 8 * 32
    assert len(names["responses"]) == 8
    assert (tmp_path / f"{name}.zip").is_file()
