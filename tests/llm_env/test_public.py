"""What `import llm_env` offers."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import llm_env


def test_every_public_name_is_there_and_is_listed() -> None:
    namespace: dict[str, object] = {}
    exec("from llm_env import *", namespace)
    for name in llm_env.__all__:
        assert namespace[name] is getattr(llm_env, name)
        assert name in dir(llm_env)
    assert llm_env.TaskSettings().max_new_tokens == 32
    with pytest.raises(AttributeError, match="has no attribute 'LLMEnv'; it has ENV_ID"):
        _ = llm_env.LLMEnv  # type: ignore[attr-defined]


def test_types_and_lazy_table_agree() -> None:
    """A type checker reads the imports under TYPE_CHECKING; at run time the table is read."""
    tree = ast.parse(Path(llm_env.__file__).read_text(encoding="utf-8"))
    typed = {
        (alias.name, node.module)
        for block in tree.body
        if isinstance(block, ast.If) and getattr(block.test, "id", "") == "TYPE_CHECKING"
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert {name for name, _ in typed} == set(llm_env.__all__) - {"ENV_ID", "GUESS_ID", "__version__"}
    for name, module in typed:
        assert getattr(llm_env, name) is getattr(sys.modules[str(module)], name)


def test_settings_are_checked_without_torch() -> None:
    code = (
        "import sys, llm_env; llm_env.TaskSettings(); llm_env.Episode; llm_env.Prompt; llm_env.RewardModelError; "
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ.copy(), check=False
    )
    assert done.returncode == 0, done.stderr
