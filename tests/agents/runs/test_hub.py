from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest

from agents.cli import train
from agents.runs.hub import push_actor

SMALL = ["--n-envs", "4", "--max-new-tokens", "4", "--n-samples", "0", "--device", "cpu", "--total-timesteps", "32"]


class Hub:
    """A stand-in for `huggingface_hub.HfApi` that keeps what it was asked for."""

    def __init__(self, asked: list[dict[str, Any]], error: Exception | None = None) -> None:
        self.asked = asked
        self.error = error

    def create_repo(self, repo: str, **arguments: Any) -> Any:
        if self.error is not None:
            raise self.error
        self.asked.append({"repo": repo, **arguments})
        return SimpleNamespace(repo_id=f"me/{repo}")

    def upload_folder(self, **arguments: Any) -> Any:
        files = sorted(path.name for path in Path(arguments["folder_path"]).iterdir())
        self.asked.append({**arguments, "files": files})
        return SimpleNamespace(commit_url="https://hub/commit")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    requests: list[dict[str, Any]] = []
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: Hub(requests))
    return requests


def test_the_actor_is_pushed_with_its_card(
    asked: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert train.main([*SMALL, "--output-dir", str(folder), "--push-to-hub", "my-actor"]) == 0
    made, pushed = asked
    assert made == {"repo": "my-actor", "private": True, "exist_ok": True}
    assert (pushed["repo_id"], pushed["folder_path"]) == ("me/my-actor", folder.absolute() / "actor")
    assert {"README.md", "config.json", "model.safetensors"} <= set(pushed["files"])
    assert "Uploaded: https://hub/commit" in capsys.readouterr().out


def test_nothing_is_pushed_unless_asked(asked: list[dict[str, Any]], tmp_path: Path) -> None:
    assert train.main([*SMALL, "--output-dir", str(tmp_path / "run")]) == 0
    assert asked == []


def test_a_hub_that_refuses_loses_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: Hub([], OSError("no network")))
    folder = tmp_path / "run"
    assert train.main([*SMALL, "--output-dir", str(folder), "--push-to-hub", "me/a", "--no-hub-private"]) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "error: push_to_hub='me/a': no network. The actor is in" in said
    assert "hf upload me/a" in said
    assert (folder / "actor" / "model.safetensors").is_file()


def test_a_new_repository_may_be_public(asked: list[dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "x").write_text("x")
    assert push_actor(tmp_path, "a", private=False) == "https://hub/commit"
    assert asked[0]["private"] is False


def test_a_name_that_no_repository_has(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main([*SMALL, "--output-dir", str(tmp_path / "run"), "--push-to-hub", "a/b/c"]) == 1
    assert "push_to_hub='a/b/c' must be the name of a repository" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()
