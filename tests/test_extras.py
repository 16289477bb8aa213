"""The core needs none of the optional packages, and what needs one says which extra brings it."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from collections.abc import Sequence
from importlib.metadata import requires
from pathlib import Path

import pytest

from llm_env.extras import PURPOSES, SERVICES, installed, require
from tests.conftest import ROOT

SB3_PLOTS = any(line.startswith("matplotlib") and "extra" not in line for line in requires("stable-baselines3") or [])
"""SB3 2.8 needs matplotlib and pandas itself, and cannot be imported without them."""
OPTIONAL = (
    "accelerate", "datasets", "gradio", "lm_eval", "matplotlib", "optuna", "pandas", "peft", "PIL", "pyarrow", "tensorboard",
    "trl",
)  # fmt: skip
BESIDE_SB3 = [name for name in OPTIONAL if not (SB3_PLOTS and name in ("matplotlib", "pandas", "PIL"))]
IMPORT_ALL = """
import importlib, pkgutil

def import_all(package):
    for found in pkgutil.iter_modules([package.replace(".", "/")], package + "."):
        module = importlib.import_module(found.name)
        if found.ispkg:
            import_all(found.name)
"""


def run_without_extras(code: str, folder: Path, hidden: Sequence[str] = OPTIONAL) -> str:
    """The output of a child process in which no optional package can be imported."""
    program = folder / "program.py"
    hide = f"import sys\nsys.modules.update(dict.fromkeys({hidden}))\n"  # None in sys.modules: importing it fails
    program.write_text(hide + IMPORT_ALL + code)
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, '.'); exec(open({str(program)!r}).read())"]
    child = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert child.returncode == 0, child.stderr[-3000:]
    return child.stdout


def test_the_environment_needs_no_extra(tmp_path: Path) -> None:
    code = """
import_all("llm_env")
import gymnasium
env = gymnasium.make("LLMText-v0", max_new_tokens=2, render_mode="ansi")
env.reset(seed=0)
env.step(5)
assert env.render()
env = gymnasium.make("LLMText-v0", render_mode="rgb_array")
env.reset(seed=0)
try:
    env.render()
except ImportError as error:
    print(error)
from llm_env.text.prompts import read_prompts
try:
    read_prompts("org/dataset")
except ImportError as error:
    print(error)
"""
    told = run_without_extras(code, tmp_path).splitlines()
    assert told == [
        "pillow is needed for pictures and TensorBoard logs and is not installed: pip install 'llm-env[plots]'",
        "datasets is needed for prompts from .parquet files and from datasets and is not installed: "
        "pip install 'llm-env[data]'",
    ]


def test_training_needs_no_extra(tmp_path: Path) -> None:
    code = f"""
for package in ("agents.rollouts", "agents.algorithms", "agents.callbacks", "agents.runs", "agents.cli"):
    import_all(package)
from agents import make_algorithm
settings = {{"n_envs": 2, "n_steps": 4, "batch_size": 8, "n_epochs": 1}}
model = make_algorithm("ppo", env_kwargs={{"max_new_tokens": 4}}, **settings)
model.learn(8)
from agents.cli.train import main
folder = {str(tmp_path / "run")!r}
options = ["--output-dir", folder, "--max-new-tokens", "4", "--n-envs", "2", "--total-timesteps", "8", "--batch-size", "8"]
assert main(options) == 0
assert main([*options[2:], "--output-dir", folder + "-lora", "--lora-rank", "2"]) == 1
"""
    told = run_without_extras(code, tmp_path, BESIDE_SB3)
    assert "tensorboard is not installed" in told
    assert ("matplotlib is not installed" in told) != SB3_PLOTS
    assert (tmp_path / "run" / "actor" / "model.safetensors").is_file()
    assert (tmp_path / "run" / "report.png").exists() == SB3_PLOTS
    assert not (tmp_path / "run" / "tensorboard").exists()


def test_each_extra_is_one_of_the_project() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(PURPOSES) < set(extras)
    (everything,) = extras["all"]
    # bitsandbytes may fetch a kernel for CPUs over the network when it is imported; only who asks for it has it.
    apart = {*SERVICES, "quantized"}
    assert set(everything.removeprefix("llm-env[").removesuffix("]").split(",")) == set(PURPOSES) - apart


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match=r"peft is needed for LoRA adapters .*pip install 'llm-env\[lora\]'"):
        require("peft", "lora")
    assert not installed("peft")
    assert installed("numpy")
    assert require("json", "data").dumps([1]) == "[1]"


def test_an_error_inside_an_installed_package_is_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "half_installed.py").write_text("import a_module_that_is_nowhere\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="a_module_that_is_nowhere"):
        require("half_installed", "data")
