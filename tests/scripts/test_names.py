"""A script's folder stands first in the path of what it runs: a script must not have the name of a package that is imported."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.conftest import ROOT

ALWAYS = {"evaluate", "datasets", "tokenizers", "transformers", "trl", "peft", "accelerate", "torch", "gymnasium"}
"""Packages that a script could shadow although this installation may lack them; lm-eval imports ``evaluate``."""


def shadowed(names: Iterable[str]) -> set[str]:
    """Those of the names that an installed distribution or the standard library has as a top-level module."""
    installed = {name for name, by in importlib.metadata.packages_distributions().items() if by != ["llm-env"]}
    return set(names) & (installed | ALWAYS | set(sys.stdlib_module_names))


@pytest.mark.parametrize("folder", ["scripts", "scripts/lab"])
def test_no_script_shadows_a_package(folder: str) -> None:
    modules = [p for p in (ROOT / folder).iterdir() if p.suffix == ".py" or (p / "__init__.py").is_file()]
    assert len(modules) > 3
    assert not shadowed(Path(p).stem for p in modules)


def test_the_check_knows_what_was_shadowed_once() -> None:
    assert shadowed(["evaluate", "evaluate_actor", "yaml", "json"]) == {"evaluate", "yaml", "json"}
