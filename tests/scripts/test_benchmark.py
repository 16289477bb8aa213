"""The benchmark: contenders that run everywhere work on the same objective; what cannot run says why."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import benchmark
from benchmark import Args, suite_of
from benchmarks.case import EOS, Case, build_models, write_case
from benchmarks.tables import cells, same_objective, summary
from llm_env.lm.causal_lm import load_causal_lm
from llm_env.lm.names import LoadSettings
from llm_env.lm.sampling import choose_tokens

SMALL = {"model": "default", "batch": 4, "prompt": 6, "response": 8, "iterations": 1, "epochs": 2}


def test_the_script_is_the_same_for_all_and_has_the_lengths_that_it_says() -> None:
    case = Case(batch=5, prompt=4, response=9, lengths="spread")
    prompts, responses = case.script(100)
    assert case.response_lengths() == [1, 3, 5, 7, 9] == [len(r) for r in responses]
    assert [r[-1] == EOS for r in responses] == [True] * 4 + [False]
    assert all(EOS not in r[:-1] for r in responses)
    assert case.tokens() == 25
    assert (prompts, responses) == case.script(100)


def in_this_process(command: list[str], cwd: Path, **_: Any) -> None:
    """Stands for `subprocess.run`: a contender's script, where importing torch anew would take most of the time."""
    _, flag, module, *arguments = command
    assert flag == "-m"
    argv, sys.argv = sys.argv, [module, *arguments]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=False)
    finally:
        sys.argv = argv


def test_ours_and_the_floor_have_the_same_objective(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from agents.engines import ahead
    from llm_env.lm import sampling

    monkeypatch.setattr(sampling, "pick_tokens", sampling.pick_tokens)  # the script puts its own there
    monkeypatch.setattr(ahead, "make_engine", ahead.make_engine)  # and there
    monkeypatch.syspath_prepend(str(Path(benchmark.__file__).parent / "benchmarks"))
    monkeypatch.setattr(benchmark.subprocess, "run", in_this_process)
    contenders = ("ours", "stepped", "engine-transformers", "floor")
    args = Args(**SMALL, lengths="spread", contenders=contenders, warmup=0, output_dir=tmp_path)  # type: ignore[arg-type]
    assert benchmark.main(args) == 0
    (result,) = json.loads((tmp_path / "results.json").read_text())
    ours, stepped, floor = (result["contenders"][name]["objective"] for name in ("ours", "stepped", "floor"))
    assert ours == pytest.approx(floor, abs=1e-2)
    assert stepped == ours
    assert result["contenders"]["engine-transformers"]["objective"] == pytest.approx(ours, abs=1e-3)
    assert abs(floor["kl"]) > 1e-3


def test_decoding_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import decode

    monkeypatch.setattr(decode, "COPIED", 2**20)
    written: list[tuple[str, int]] = []
    for name in ("our_loop", "an_engine"):
        monkeypatch.setattr(decode, name, lambda *given, name=name: lambda count: written.append((name, count)))
    case_path, case = tmp_path / "case.json", Case(batch=3, prompt=5, response=4, warmup=1, iterations=1)
    write_case(case_path, case, build_models("default", tmp_path / "models"))
    for who in ("ours", "transformers", "reading"):
        decode.main(str(case_path), str(tmp_path / f"{who}.json"), who)
        assert len(json.loads((tmp_path / f"{who}.json").read_text())["iterations"]) == 1
    assert written == [(name, count) for name in ("our_loop", "an_engine") for count in (1, 4) * 2]
    lm = load_causal_lm(str(tmp_path / "models" / "actor"), LoadSettings("float32", "cpu"))
    # Three steps read 935,040 weights of 4 bytes, and of 3 texts with 6, 7 and 8 tokens keys and values, 4 layers, 128 wide.
    assert decode.bytes_of_steps(lm, case) == 3 * 935_040 * 4 + 3 * (6 + 7 + 8) * 2 * 4 * 128 * 4


def test_our_loop_writes_as_many_tokens_as_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import decode

    steps: list[int] = []

    def counted(logits: torch.Tensor, drawn: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        steps.append(len(logits))
        return choose_tokens(logits, drawn)

    monkeypatch.setattr(decode, "choose_tokens", counted)
    lm = load_causal_lm(build_models("default", tmp_path)["actor"], LoadSettings("float32", "cpu"))
    decode.our_loop(lm, [[5, 6], [7, 8]], 9)(7)
    assert steps == [2] * 7


@pytest.mark.slow
@pytest.mark.parametrize("lengths", ["equal", "spread"])
def test_contenders_have_the_same_objective(tmp_path: Path, lengths: str, capsys: pytest.CaptureFixture[str]) -> None:
    contenders = ("ours", "naive", "floor") if lengths == "equal" else ("ours", "naive", "floor", "a2c")
    args = Args(**SMALL, lengths=lengths, contenders=contenders, output_dir=tmp_path)  # type: ignore[arg-type]
    assert benchmark.main(args) == 0
    (result,) = json.loads((tmp_path / "results.json").read_text())
    rows = result["contenders"]
    assert set(rows) == set(contenders) - ({"naive"} if lengths == "spread" else set())
    for row in rows.values():
        assert row["seconds"]["total"] > 0
        assert row["objective"]["kl"] == pytest.approx(rows["floor"]["objective"]["kl"], abs=1e-3)
        assert row["objective"]["log_prob"] == pytest.approx(rows["floor"]["objective"]["log_prob"], abs=1e-2)
        assert row["objective"]["score"] == pytest.approx(rows["floor"]["objective"]["score"], abs=1e-3)
    if lengths == "spread":
        assert "naive cannot run here" in capsys.readouterr().out
    assert (tmp_path / "times.png").stat().st_size > 5000
    assert "| ours |" in (tmp_path / "table.md").read_text()


@pytest.mark.slow
def test_dpo_in_our_pass_and_in_trls_is_the_same_loss(tmp_path: Path) -> None:
    args = Args(**SMALL, lengths="spread", contenders=("dpo", "dpo-trl"), output_dir=tmp_path)  # type: ignore[arg-type]
    assert benchmark.main(args) == 0
    (result,) = json.loads((tmp_path / "results.json").read_text())
    ours, theirs = (result["contenders"][name]["objective"]["dpo_loss"] for name in ("dpo", "dpo-trl"))
    assert ours == pytest.approx(theirs, rel=1e-4)
    assert ours != pytest.approx(0.6931, abs=1e-4)  # the two models differ


def test_medians_and_ratios() -> None:
    runs = [
        {"iterations": [{"generate": [t, 2 * t], "train": [1.0, 2.0]}], "peak_mb": t, "objective": {}, "threads": 2,
         "torch": "", "transformers": ""}
        for t in (1.0, 2.0, 9.0)
    ]  # fmt: skip
    row = summary(Case(batch=2, response=15), runs)
    assert row["seconds"] == {"generate": 2.0, "score": 0.0, "train": 1.0, "total": 3.0}
    assert row["range"] == [2.0, 10.0]
    assert row["tokens_per_second"] == 10.0
    assert row["tokens_per_cpu_second"] == 5.0
    assert row["peak_mb"] == 9.0
    assert row["busy"] == 1.0
    slow = {**row, "seconds": {**row["seconds"], "total": 7.5}}
    assert cells("other", slow, {"ours": row, "other": slow})[-1] == "2.50"


def test_another_objective_is_seen(capsys: pytest.CaptureFixture[str]) -> None:
    rows = {"ours": {"objective": {"kl": 1.0, "score": 0.0}}, "other": {"objective": {"kl": 1.1, "score": 0.0}}}
    assert not same_objective(Case(), rows)
    assert "NOT the same objective: kl" in capsys.readouterr().out
    assert same_objective(Case(precision="bf16"), rows)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"suite": "quik"}, "suite='quik' is not known"),
        ({"contenders": ("us",)}, "contender 'us' is not known"),
        ({"model": "/nowhere"}, "is neither default, 30m, 135m, 1b nor a folder"),
    ],
)
def test_what_is_not_known_is_an_error(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        suite_of(Args(**settings))  # type: ignore[arg-type]
