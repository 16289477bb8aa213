from __future__ import annotations

import re
import shutil
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from llm_env import __version__
from scripts.lab import release_check
from tests.conftest import ROOT

FILES = ("pyproject.toml", "CITATION.cff", "CHANGELOG.md", "llm_env/__init__.py")


@pytest.fixture
def ready(tmp_path: Path) -> Path:
    """The project's files as they are when a release is ready."""
    (tmp_path / "llm_env").mkdir()
    for name in FILES:
        shutil.copy(ROOT / name, tmp_path / name)
    changelog = (tmp_path / "CHANGELOG.md").read_text()
    heading = f"## [Unreleased]\n\n## [{__version__}] - 2026-12-01"
    (tmp_path / "CHANGELOG.md").write_text(changelog.replace("## [Unreleased]", heading, 1))
    return tmp_path


def test_a_release_that_is_ready(ready: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert release_check.main(ready) == 0
    assert __version__ in capsys.readouterr().out


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("llm_env/__init__.py", f'__version__ = "{__version__}"', '__version__ = "9.9"', "CITATION.cff has version"),
        ("llm_env/__init__.py", f'__version__ = "{__version__}"', '__version__ = "9.9"', "no section ## [9.9]"),
        ("pyproject.toml", 'dynamic = ["version"]', f'version = "{__version__}"', "pyproject.toml has a version"),
        ("pyproject.toml", 'attr = "llm_env.__version__"', 'attr = "agents.__version__"', "[tool.setuptools.dynamic]"),
        ("CHANGELOG.md", " - 2026-12-01", "", "should be called"),
        ("CHANGELOG.md", "## [Unreleased]\n", "## [Unreleased]\n\n- A change.\n", "lines under [Unreleased]"),
    ],
)
def test_what_is_not_ready_is_said(
    file: str, old: str, new: str, message: str, ready: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (ready / file).read_text()
    assert old in text
    (ready / file).write_text(text.replace(old, new, 1))
    assert release_check.main(ready) == 1
    assert message in capsys.readouterr().err


def test_all_but_the_changelog_is_ready_always() -> None:
    assert [line for line in release_check.problems(ROOT) if "CHANGELOG" not in line] == []


def test_the_lowest_versions_are_the_bounds_of_the_project() -> None:
    lines = (ROOT / "constraints-lowest.txt").read_text().splitlines()
    pairs = (line.split("==") for line in lines if line and not line.startswith("#"))
    pins = {canonicalize_name(name): version for name, version in pairs}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = re.findall(r"[\w-]+", project["optional-dependencies"]["all"][0])[2:]
    wanted = [*project["dependencies"], *(r for name in names for r in project["optional-dependencies"][name])]
    wanted += [r for r in project["optional-dependencies"]["test"] if r.startswith(("pytest>", "pytest-xdist"))]
    bounds = {r.name: spec.version for r in map(Requirement, wanted) for spec in r.specifier if spec.operator == ">="}
    assert len(bounds) > 20
    assert {
        name: pins[canonicalize_name(name)]
        for name, low in bounds.items()
        if Version(pins[canonicalize_name(name)]) != Version(low)
    } == {}
