from __future__ import annotations

from pathlib import Path

import pytest

from agents.cli import sweep
from agents.cli.train import parse
from agents.pipeline.commands import run_child, run_here


def result(score: float, gold: float | None) -> dict[str, object]:
    estimate = {"mean": score, "half_width": 0.1, "std": 1.0}
    reference = {"mean": 0.0, "half_width": 0.1, "std": 1.0}
    return {
        "rm_score": estimate, "reference_rm_score": reference, "kl": estimate, "win_rate": 0.9,
        "response_length": {"mean": 12.0}, "reference_response_length": {"mean": 10.0},
        "gain_in_reference_stds": score, "gold_score": None if gold is None else {"mean": gold},
        "reference_gold_score": None if gold is None else {"mean": -1.0},
    }  # fmt: skip


def test_the_table_has_means_and_ranges_over_seeds() -> None:
    table = sweep.markdown_table({"a": [result(1.0, 2.0), result(3.0, 4.0)], "b": [result(5.0, 6.0)]})
    assert "| reference | | 0.00 | 0 | -1.00 | 0 | | 10.0 |" in table
    assert "| a | 2 | 2.00 (1.00 to 3.00) | 2.00 (1.00 to 3.00) | 3.00 (2.00 to 4.00) |" in table
    assert table.count("reference") == 1


def test_a_variant_is_read_as_train_reads_it() -> None:
    settings = parse(sweep.variant_options("critic=head, whiten_rewards=True,gradient_checkpointing=false")).settings
    assert settings.algorithm.critic == "head"
    assert settings.algorithm.whiten_rewards
    assert not settings.algorithm.gradient_checkpointing
    assert sweep.variant_options("") == []


def test_a_variant_without_its_value_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep.run(sweep.Args(tmp_path / "out", vary=("critic=head", "critic")), run_here) == 1
    assert "vary: 'critic' must be setting=value" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("run", [run_here, pytest.param(run_child, marks=pytest.mark.slow)])
def test_a_sweep_trains_evaluates_and_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], run: sweep.RunCommand
) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("n_envs: 4\nmax_new_tokens: 6\nmax_prompt_length: 12\ntotal_timesteps: 48\n")
    args = sweep.Args(tmp_path / "out", config, ("critic=head", "critic=oracle"), (0,), n_prompts=4)
    assert sweep.run(args, run) == 1
    out = capsys.readouterr().out
    assert "failed: critic=oracle, seed 0" in out
    assert "| critic=head | 1 |" in (tmp_path / "out" / "table.md").read_text()
    assert (tmp_path / "out" / "curves.png").stat().st_size > 10_000
    command = tmp_path / "out" / "critic=head-seed0" / "command.txt"
    before = command.stat().st_mtime_ns
    sweep.run(args, run)
    assert command.stat().st_mtime_ns == before
    if run is run_child:
        assert "error: " in (tmp_path / "out" / "critic=oracle-seed0.log").read_text()
