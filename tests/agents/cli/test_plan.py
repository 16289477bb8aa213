from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from agents.cli import plan, train
from agents.memory import device, remedies
from agents.memory.networks import Sizes
from agents.memory.plan import PHASES, Plan, make_plan
from agents.memory.table import text

ARGS = ["--max-new-tokens", "6", "--n-envs", "8", "--total-timesteps", "48", "--device", "cpu"]


def test_the_table_and_the_verdict(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Plan] = []

    def kept(*args: Any) -> Plan:
        made.append(make_plan(*args))
        return made[-1]

    monkeypatch.setattr("agents.memory.show.make_plan", kept)
    assert plan.main([*ARGS, "--memory", "500GB", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["fits"]
    assert told["memory"] == 500 * 10**9
    assert told["remedies"] == []
    assert told["sums"] == {p: sum(part[p] for part in told["parts"].values()) for p in PHASES}
    assert told["peak"]["bytes"] == max(told["sums"].values()) == told["needed"]
    monkeypatch.setattr("agents.memory.show.make_plan", lambda *_: made[0])
    monkeypatch.setattr("agents.memory.show.remedies", lambda *_: [("--lora-rank 16", "trains less", made[0])])
    assert plan.main([*ARGS, "--memory", "2MB"]) == 3
    out = capsys.readouterr().out
    assert text(made[0]) in out
    assert "actor's weights" in out
    assert "It does not fit." in out
    assert "  --lora-rank 16" in out


def test_a_dry_run_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main([*ARGS, "--output-dir", str(tmp_path / "out"), "--dry-run"]) == 0
    assert "optimizer's states" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_a_dry_run_under_torchrun_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="Leave torchrun out"):
        train.settings_of_first(["--dry-run"])


def test_which_device_is_meant() -> None:
    assert [device.kind(name, True) for name in ("auto", "cuda:1", "cpu")] == ["cuda", "cuda", "cpu"]
    assert device.kind("cpu", False) == "cpu"
    size, whose = device.memory("cpu")
    assert size > 2**28
    assert "machine" in whose


GB = 10**9


def needing(sizes: dict[str, int]) -> Any:
    """Stands for `make_plan`: the least that any of a plan's settings, named in `sizes`, makes of what is needed."""

    def make(settings: Any, processes: int, sharding: str, kind: str) -> Plan:
        has = {
            "micro": settings.algorithm.micro_batch_tokens or 10**9,
            "checkpoints": settings.algorithm.gradient_checkpointing,
            "lora": settings.algorithm.lora_rank,
            "bf16": settings.task.mixed_precision == "bf16",
            "offload": settings.task.offload,
            "8bit": settings.algorithm.optimizer == "adamw_8bit" and sharding == "none",
            "4bit": settings.task.base_quantization == "nf4" and settings.algorithm.lora_rank and sharding == "none",
            "shards": processes if sharding == "full" else 0,
        }
        saved = sum(size for name, size in sizes.items() if (has[name] <= 100 if name == "micro" else has[name]))
        parts = {"activations": dict.fromkeys(PHASES, 10 * GB - saved)}
        work = Sizes(slots=64, episodes=64, batch=16, prompt=10, response=6, longest=16)
        return Plan(parts, settings, work, processes, sharding, kind, {"actor": 1, "trained": 1}, 0, True)

    return make


NF4 = "--lora-rank 16 --base-quantization nf4"


@pytest.mark.parametrize(
    ("sizes", "memory", "options"),
    [
        ({"checkpoints": 5 * GB, "bf16": 1 * GB}, 6 * GB, ["--gradient-checkpointing"]),
        ({"lora": 5 * GB, "checkpoints": 5 * GB}, 6 * GB, ["--gradient-checkpointing", "--lora-rank 16", NF4]),
        ({"micro": 5 * GB}, 6 * GB, ["--micro-batch-tokens 64"]),
        ({"bf16": 2 * GB, "checkpoints": 3 * GB}, 6 * GB, ["--mixed-precision bf16 --gradient-checkpointing"]),
        ({"offload": 5 * GB, "checkpoints": 5 * GB}, 6 * GB, ["--offload", "--gradient-checkpointing"]),
        ({"bf16": 2 * GB, "offload": 3 * GB}, 6 * GB, ["--mixed-precision bf16 --offload"]),
        ({"8bit": 5 * GB, "lora": 5 * GB}, 6 * GB, ["--optimizer adamw_8bit", "--lora-rank 16", NF4]),
        ({"4bit": 5 * GB}, 6 * GB, [NF4]),
        ({"lora": 2 * GB, "4bit": 3 * GB}, 6 * GB, [NF4]),
        ({"shards": 5 * GB}, 6 * GB, ["--processes 2 --sharding full"]),
        ({"bf16": 1 * GB}, 6 * GB, []),
    ],
)
def test_what_would_make_it_fit(
    sizes: dict[str, int], memory: int, options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make = needing(sizes)
    monkeypatch.setattr(remedies, "make_plan", make)
    settings = plan.parse_as(plan.Args, ARGS).settings
    tried: list[tuple[str, Plan]] = []
    found = remedies.remedies(make(settings, 1, "none", "cuda"), memory, lambda *one: tried.append(one))
    assert [row[0] for row in found] == options
    assert {row[0] for row in found} <= {name for name, _ in tried}
    assert len(tried) <= 2 * len(remedies.STEPS) + 3  # each takes seconds
    assert all(planned.needed <= memory for _, _, planned in found)


def test_a_milder_remedy_stands_in_for_one_that_does_not_go_with_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    make = needing({"micro": 5 * GB})

    def refused(settings: Any, *others: Any) -> Plan:
        if (settings.algorithm.micro_batch_tokens or 100) < 32:
            raise ValueError("too small")
        return make(settings, *others)  # type: ignore[no-any-return]

    monkeypatch.setattr(remedies, "make_plan", refused)
    settings = plan.parse_as(plan.Args, ARGS).settings
    found = remedies.remedies(make(settings, 1, "none", "cuda"), 6 * GB)
    assert [row[0] for row in found] == ["--micro-batch-tokens 64"]
