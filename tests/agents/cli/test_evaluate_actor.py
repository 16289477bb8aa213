from __future__ import annotations

from pathlib import Path

import pytest

from agents.cli.evaluate_actor import actor_of


def test_a_runs_folder_stands_for_its_actor(tmp_path: Path) -> None:
    assert actor_of(tmp_path) == tmp_path  # a model's folder
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(ValueError, match="is a run that has not ended: it has no actor yet"):
        actor_of(tmp_path)
    (tmp_path / "actor").mkdir()
    assert actor_of(tmp_path) == tmp_path / "actor"
