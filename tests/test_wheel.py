"""The wheel: what it holds, and that the command works from it, without a clone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("llm_env", "agents")


def run(words: list[str], folder: Path) -> str:
    """What a program prints, run outside of the clone and without this process's search path."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "COVERAGE_PROCESS_START")}
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built without a network of a copy of what belongs to it."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-index"]
    run([*pip, "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(source)], folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a new environment with the wheel, which finds the other packages where this one does."""
    folder = tmp_path_factory.mktemp("environment")
    run([sys.executable, "-m", "venv", "--without-pip", str(folder)], folder)
    interpreter = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(interpreter), "install"]
    run([*pip, "--quiet", "--no-index", "--no-deps", str(wheel)], folder)
    (site,) = folder.glob("lib/python*/site-packages")
    # A folder that a .pth file names is searched, but .pth files in it are not read: an editable install stays out.
    (site / "others.pth").write_text(f"{sysconfig.get_paths()['purelib']}\n", encoding="utf-8")
    return interpreter


@pytest.mark.slow
def test_the_wheel_holds_every_module_and_all_data(wheel: Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())
    files = {path for name in PACKAGES for path in (ROOT / name).rglob("*") if path.is_file()}
    names = {path.relative_to(ROOT).as_posix() for path in files if "__pycache__" not in path.parts}
    assert len(names) > 300
    assert names - held == set()
    assert {name.partition("/")[0] for name in held - names} == {f"{wheel.name.rpartition('-py3')[0]}.dist-info"}


@pytest.mark.slow
def test_the_command_trains_and_evaluates_from_the_wheel(python: Path, tmp_path: Path) -> None:
    where = run([str(python), "-c", "import llm_env, agents; print(llm_env.__file__, agents.__file__)"], tmp_path)
    assert str(ROOT) not in where
    command = str(python.parent / "llm-env")
    train = [command, "train", "--n-envs", "8", "--total-timesteps", "512", "--output-dir", "run"]
    said = run(train, tmp_path)
    assert "Done." in said
    assert (tmp_path / "run" / "report.html").is_file()
    said = run([command, "evaluate", "--actor", "run", "--n-prompts", "4", "--n-samples", "1"], tmp_path)
    assert "gold score" in said
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text())["n_prompts"] == 4


@pytest.mark.slow
def test_the_second_task_and_the_texts_are_in_the_wheel(python: Path, tmp_path: Path) -> None:
    command = str(python.parent / "llm-env")
    run([command, "write-reviews", "--reviews", "5", "--heldout-reviews", "2", "--output-dir", "texts"], tmp_path)
    assert len((tmp_path / "texts" / "reviews.jsonl").read_text().splitlines()) == 5
    model = run([str(python), "-c", "from llm_env.guess_the_number import GUESSER; print(GUESSER)"], tmp_path).strip()
    sizes = [
        "--max-turns",
        "4",
        "--max-turn-tokens",
        "3",
        "--max-new-tokens",
        "12",
        "--max-world-tokens",
        "4",
        "--max-prompt-length",
        "4",
    ]
    game = ["--model", model, "--world", "GuessTheNumber-v0", *sizes, "--critic", "actor"]
    run([command, "train", *game, "--n-envs", "8", "--total-timesteps", "128", "--output-dir", "game"], tmp_path)
    assert (tmp_path / "game" / "actor" / "model.safetensors").is_file()
    assert run([command, "--version"], tmp_path).startswith("llm-env ")
