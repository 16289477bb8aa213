"""README and pages: their commands can be read, their Python runs, their links lead somewhere, the site builds."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agents.cli.arguments import read_command_line
from agents.cli.main import commands
from agents.flat_settings import find_config
from agents.pipeline.commands import check_command

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(page for page in (ROOT / "docs").rglob("*.md") if "_build" not in page.parts)
DOCUMENTS = [ROOT / "README.md", *PAGES]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)
COMMENT = re.compile(r"(?:^|\s)#.*")  # as in a shell, not within a word
LINK = re.compile(r"\]\((?!\w+:|#)([^)#\s]+)")
UNCHECKED = ("python scripts/lab/", "python examples/", "python my_")
"""Beginnings of commands that have no check of their own."""


def blocks(page: Path, kind: str) -> list[str]:
    return [text for language, text in BLOCK.findall(page.read_text(encoding="utf-8")) if language == kind]


def command_lines(page: Path) -> Iterator[list[str]]:
    """The words of each of our commands in a page's shell blocks, without its comments."""
    for text in blocks(page, "bash"):
        for line in text.replace("\\\n", " ").splitlines():
            words = shlex.split(COMMENT.sub("", line))
            if "..." not in words and words:
                yield words


def name_of(words: list[str]) -> str | None:
    """The module in `agents.cli` that a command line calls; None where it is another's."""
    if words[0] == "llm-env":
        return commands()[words[1]].module
    called = re.fullmatch(r"scripts/(\w+)\.py", words[1]) if words[0] == "python" else None
    return called[1] if called else None


def without_files(words: list[str]) -> list[str]:
    """A command line without the options that read a file or folder at once, where it is the reader's own."""
    reads = [i for i, word in enumerate(words) if word in ("--config", "--resume")]
    gone = {i for i in reads if not (ROOT / find_config(Path(words[i + 1]))).exists()}
    return [word for i, word in enumerate(words) if i not in gone and i - 1 not in gone]


def check(module: str, words: list[str], where: str) -> None:
    """Has a command check its line; the two that check nothing before they begin only read it."""
    if module in ("pipeline", "sweep"):
        read_command_line(importlib.import_module(f"agents.cli.{module}").Args, words)
    else:
        check_command(module, without_files(words), where)


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_bytes()) <= 12_000


@pytest.mark.parametrize("page", DOCUMENTS, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    lost = [link for link in LINK.findall(page.read_text(encoding="utf-8")) if not (page.parent / link).exists()]
    assert not lost


def test_commands_can_be_read() -> None:
    checked = 0
    for page in DOCUMENTS:
        for words in command_lines(page):
            module = name_of(words)
            if module is None:
                line = " ".join(words)
                assert not line.startswith(("python scripts/", "llm-env")) or line.startswith(UNCHECKED), line
                continue
            check(module, words[2:], f"{name(page)}: {' '.join(words)}")
            checked += 1
    assert checked > 40


def test_targets_of_make_are_there() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for page in DOCUMENTS:
        for words in command_lines(page):
            if words[0] == "make":
                assert f"\n{words[1]}:" in makefile, words


def test_the_first_steps_are_the_readmes() -> None:
    assert blocks(ROOT / "docs/first_steps.md", "python") == blocks(ROOT / "README.md", "python")


@pytest.mark.slow
def test_the_readmes_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "a_page"}
    for text in blocks(ROOT / "README.md", "python"):
        exec(compile(text, "README.md", "exec"), names)
    assert type(names["model"]).__name__ == "PPO"


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("furo") is None, reason="pip install 'llm-env[docs]'")
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    # In a copy, since the tutorials' pages are written beside the sources; test_tutorials.py runs the tutorials.
    copy, out = tmp_path / "copy", tmp_path / "html"
    shutil.copytree(ROOT / "docs", copy / "docs", ignore=shutil.ignore_patterns("_build", "gallery"))
    for path in ROOT.iterdir():
        if path.name != "docs":
            (copy / path.name).symlink_to(path)
    sphinx = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-D", "plot_gallery=0"]
    done = subprocess.run(
        [*sphinx, "-b", "html", "docs", str(out)],
        cwd=copy,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Discrete(V)" in (out / "environment.html").read_text(encoding="utf-8")
    assert "max_new_tokens" in (out / "reference.html").read_text(encoding="utf-8")
    first = (out / "gallery" / "01_first_run.html").read_text(encoding="utf-8")
    assert "What a reward is made of" in first
    assert "01_first_run.ipynb" in first  # the notebook to download
