"""What `--resume` needs, and what it does where something of it was changed, is damaged, or is in use."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from agents.cli import train
from agents.output_folder import LOCK_FILE, locked
from tests.agents.cli.test_train import QUICK, ROLLOUT, assert_same_run


def start(folder: Path, prompts: Path, *extra: str) -> int:
    arguments = ["--output-dir", str(folder), "--prompts", str(prompts), "--total-timesteps", str(ROLLOUT * 4)]
    # At the default rate a gradient is a spike, which an alarm says.
    return train.main([*arguments, "--learning-rate", "1e-4", *QUICK, *extra])


def broken_reward(prompts: list[str], responses: list[str]) -> list[float]:
    raise KeyError("no answer")


def wandering_reward(prompts: list[str], responses: list[str]) -> list[float]:
    os.chdir("/")
    return [float(len(r)) for r in responses]


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "p.txt"
    path.write_text("".join(f"Prompt {i}\n" for i in range(30)))
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, prompts: Path) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert start(folder, prompts) == 0
    return folder


@pytest.fixture
def folder(tmp_path: Path, whole: Path) -> Path:
    """A copy of a run that has ended: 4 iterations, a checkpoint after the second and the last."""
    return Path(shutil.copytree(whole, tmp_path / "run"))


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def edited(**changes: object) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        config = yaml.safe_load((folder / "config.yaml").read_text())
        (folder / "config.yaml").write_text(yaml.safe_dump({**config, **changes}))

    return edit


def emptied(name: str) -> Callable[[Path], None]:
    return lambda folder: [shutil.rmtree(p) for p in (folder / name).iterdir()] and None  # type: ignore[func-returns-value]


CHANGES: list[tuple[str, Callable[[Path], None], str]] = [
    ("algorithm", edited(algo="a2c"), "algo='a2c' (it began with 'ppo')"),
    ("beta", edited(kl_coef=0.3), "kl_coef=0.3 (it began with 0.05)"),
    ("length", edited(max_new_tokens=4), "max_new_tokens=4 (it began with 6)"),
    ("seed", edited(seed=1), "seed=1 (it began with 0)"),
    ("empty config", lambda f: (f / "config.yaml").write_text("") and None, "config.yaml is empty"),
    ("other config", lambda f: (f / "config.yaml").write_text("seed: 0\n") and None, "prompts=None (it began with"),
    ("no prompts", lambda f: (f / "train_prompts.jsonl").unlink(), "train_prompts.jsonl is missing"),
    ("no held-out", lambda f: (f / "heldout_prompts.jsonl").unlink(), "heldout_prompts.jsonl is missing"),
    ("prompts", lambda f: (f / "train_prompts.jsonl").write_text("x\n") and None, "train_prompts.jsonl was changed"),
    ("manifest", lambda f: (f / "run.json").write_text("{") and None, "run.json is damaged"),
    ("no checkpoints", emptied("checkpoints"), "has no whole checkpoint, though the run has 4 iterations behind it"),
]


@pytest.mark.parametrize(("change", "message"), [c[1:] for c in CHANGES], ids=[c[0] for c in CHANGES])
def test_a_run_that_was_changed_is_not_gone_on_with(
    folder: Path, capfd: pytest.CaptureFixture[str], change: Callable[[Path], None], message: str
) -> None:
    change(folder)
    before = files(folder)
    assert train.main(["--resume", str(folder)]) == 1
    errors = capfd.readouterr().err.splitlines()
    assert len(errors) == 1
    assert errors[0].startswith("error: ")
    assert message in errors[0]
    assert files(folder) == before


@pytest.mark.parametrize("name", ["policy.safetensors", "state.json", "checksums.json"])
def test_of_a_damaged_checkpoint_the_one_before_is_taken(
    folder: Path, whole: Path, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    older, newest = sorted((folder / "checkpoints").iterdir())
    content = (newest / name).read_bytes()
    (newest / name).write_bytes(content[: len(content) // 2])
    shutil.rmtree(folder / "actor")
    assert train.main(["--resume", str(folder)]) == 0
    out = capfd.readouterr().out
    assert f"{newest} is damaged: {name}" in out
    assert f"damaged_{newest.name}" in out
    assert_same_run(folder, whole)
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == [
        f"damaged_{newest.name}",
        older.name,
        newest.name,
    ]


def test_another_version_of_a_package_is_said(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    versions = json.loads((folder / "versions.json").read_text())
    (folder / "versions.json").write_text(json.dumps({**versions, "torch": "0.4.1", "platform": "another"}))
    assert train.main(["--resume", str(folder)]) == 0
    notes = [line for line in capfd.readouterr().out.splitlines() if line.startswith("note: ")]
    assert len(notes) == 1
    assert notes[0].startswith("note: torch was 0.4.1 when the run began")


def test_without_a_whole_checkpoint_nothing_is_begun_again(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for checkpoint in (folder / "checkpoints").iterdir():
        (checkpoint / "state.json").write_text("{}")
    progress = (folder / "progress.csv").read_bytes()
    assert train.main(["--resume", str(folder)]) == 1
    captured = capfd.readouterr()
    assert "has no whole checkpoint" in captured.err
    assert captured.out.count("the one before it is next") == 1  # there is none before the older one
    shutil.rmtree(folder / "actor")
    assert (
        train.main(["--resume", str(folder), "--total-timesteps", str(ROLLOUT * 5)]) == 1
    )  # and no second time either
    assert "has no whole checkpoint" in capfd.readouterr().err
    assert (folder / "progress.csv").read_bytes() == progress


def test_two_processes_do_not_write_to_one_folder(
    folder: Path, prompts: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = files(folder)
    with locked(folder):
        assert train.main(["--resume", str(folder)]) == 1
    captured = capfd.readouterr()
    assert "another process is writing there" in captured.err
    assert "Go on with" not in captured.out
    assert files(folder) == before
    with locked(tmp_path / "new"):
        assert start(tmp_path / "new", prompts) == 1
    assert [p.name for p in (tmp_path / "new").iterdir()] == [LOCK_FILE]


def test_after_a_first_command_that_failed_the_folder_is_free(
    tmp_path: Path, prompts: Path, whole: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert start(folder, prompts, "--reward-model", f"{__name__}:broken_reward") == 1
    assert "KeyError" in capfd.readouterr().err
    assert start(folder, prompts) == 0
    assert_same_run(folder, whole)
    assert start(folder, prompts) == 1  # now it has results


def test_files_of_the_users_are_not_taken_for_a_runs(tmp_path: Path, prompts: Path) -> None:
    (tmp_path / "train_prompts.jsonl").write_text('{"prompt": "mine"}\n')
    assert start(tmp_path, prompts) == 1
    assert (tmp_path / "train_prompts.jsonl").read_text() == '{"prompt": "mine"}\n'


def test_a_run_stopped_while_its_folder_was_begun_is_no_run(
    tmp_path: Path, prompts: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import agents.runs.folder as module

    def stop(*arguments: object) -> None:
        raise KeyboardInterrupt

    folder = tmp_path / "run"
    for name in ("write_manifest", "write_settings"):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, stop)
            assert start(folder, prompts) == 130
        assert train.main(["--resume", str(folder)]) == 1
        assert "no run there" in capfd.readouterr().err
    assert start(folder, prompts) == 0
    assert_same_run(folder, whole)


def test_a_relative_folder_stays_where_the_run_began(
    tmp_path: Path, prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert start(Path("run"), prompts, "--reward-model", f"{__name__}:wandering_reward") == 0
    assert (tmp_path / "run" / "actor" / "model.safetensors").is_file()


@pytest.mark.parametrize("path", ["file", "file/run"])
def test_a_folder_that_cannot_be_is_refused_before_anything_is_loaded(
    tmp_path: Path, prompts: Path, capfd: pytest.CaptureFixture[str], path: str
) -> None:
    (tmp_path / "file").write_text("mine")
    assert start(tmp_path / path, prompts) == 1
    assert f"{tmp_path / 'file'} is a file, or a link to nothing. Name a folder." in capfd.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"
