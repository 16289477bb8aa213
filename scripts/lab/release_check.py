"""Says whether the sources are ready for a release of the version in `llm_env.__version__`: `make release-check`.

    python scripts/lab/release_check.py

The version stands in `llm_env/__init__.py`; the package, the documentation and the citation must have the same, and
CHANGELOG.md a section of its own for it, `## [VERSION] - YYYY-MM-DD`, with nothing left under `## [Unreleased]`.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]


def version_of(root: Path) -> str:
    """The version, read without importing anything.

    Raises:
        ValueError: there is none.
    """
    found = re.search(r'^__version__ = "([^"]+)"$', (root / "llm_env" / "__init__.py").read_text("utf-8"), re.MULTILINE)
    if found is None:
        raise ValueError('llm_env/__init__.py has no line __version__ = "…".')
    return found[1]


def problems(root: Path) -> list[str]:
    """What is not ready, a line each.

    Args:
        root: The project's folder.
    """
    version = version_of(root)
    told = []
    project = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))
    if "version" in project["project"] or "version" not in project["project"].get("dynamic", []):
        told.append('pyproject.toml has a version of its own: it should say dynamic = ["version"].')
    if project["tool"]["setuptools"].get("dynamic", {}).get("version") != {"attr": "llm_env.__version__"}:
        told.append("pyproject.toml: [tool.setuptools.dynamic] should take the version from llm_env.__version__.")
    cited = str(yaml.safe_load((root / "CITATION.cff").read_text("utf-8")).get("version"))
    if cited != version:
        told.append(f"CITATION.cff has version {cited}; llm_env.__version__ is {version}.")
    sections = sections_of((root / "CHANGELOG.md").read_text("utf-8"))
    heading = next((title for title in sections if title.startswith(f"[{version}]")), None)
    if heading is None:
        told.append(f"CHANGELOG.md has no section ## [{version}] - YYYY-MM-DD.")
    elif not re.fullmatch(r"\[[^\]]+\] - \d{4}-\d{2}-\d{2}", heading):
        told.append(f"CHANGELOG.md: the section {heading!r} should be called [{version}] - YYYY-MM-DD.")
    elif not sections[heading].strip():
        told.append(f"CHANGELOG.md says nothing about {version}.")
    if sections.get("[Unreleased]", "").strip():
        told.append("CHANGELOG.md has lines under [Unreleased]: move them to the version's section.")
    return told


def sections_of(changelog: str) -> dict[str, str]:
    """The text below each heading of the second level, by the heading."""
    parts = re.split(r"^## (.+)$", changelog, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def main(root: Path = ROOT) -> int:
    """Prints what is not ready; returns the exit status."""
    told = problems(root)
    for line in told:
        sys.stderr.write(f"error: {line}\n")
    if not told:
        sys.stdout.write(f"Version {version_of(root)} is the same everywhere, and the changelog has it.\n")
    return int(bool(told))


if __name__ == "__main__":
    sys.exit(main())
