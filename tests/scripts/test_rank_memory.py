from __future__ import annotations

import json
from pathlib import Path

import pytest

import rank_memory


@pytest.mark.slow
def test_two_shards_need_half_of_what_is_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert rank_memory.main(["--output-dir", str(tmp_path), "--model", "default"]) == 0
    assert capsys.readouterr().out.count("\n") == 5
    found = json.loads((tmp_path / "default" / "ranks.json").read_text())
    (one,), replicas, shards = found["one process"], found["2 replicas"], found["2 shards"]
    for part in ("weights", "gradients", "Adam"):
        assert [row[part] for row in replicas] == [one[part]] * 2
        assert [row[part] for row in shards] == pytest.approx([one[part] / 2] * 2, rel=0.01)
    assert one["decoding copy"] == 0
    assert [row["decoding copy"] for row in shards] == pytest.approx([one["weights"] / 2] * 2, rel=0.01)
