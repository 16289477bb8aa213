"""Imports point one way: scripts → agents → llm_env, and the environment knows no stable-baselines3."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.conftest import ROOT

FORBIDDEN = {"llm_env": {"agents", "scripts", "stable_baselines3", "sb3_contrib"}, "agents": {"scripts"}}


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    return names


@pytest.mark.parametrize("package", FORBIDDEN)
def test_imports_point_one_way(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert len(files) > 8
    for path in files:
        assert not imported(path) & FORBIDDEN[package], path.name


def test_the_assets_are_safetensors_and_small() -> None:
    files = [p for p in (ROOT / "llm_env" / "assets").rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) <= 8_000_000
    assert {p.suffix for p in files} == {".json", ".jsonl", ".safetensors"}
