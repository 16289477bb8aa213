"""Supervised stages in two processes: as many updates, of as many records, as in one, to the same weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from agents.cli import train
from agents.cli.arguments import read_command_line
from agents.flat_settings import to_words
from agents.pipeline.stages import Pipeline, Stage
from agents.processes import ProcessSettings
from agents.runs.in_processes import train_run
from agents.runs.settings import AlgorithmSettings, RunSettings, TaskOptions
from agents.supervised.settings import PreferenceSettings, RewardSettings, SFTSettings
from agents.supervised.sft import fine_tune
from agents.supervised.trainer import trainer_arguments
from llm_env.default_task import DEFAULT_MODEL
from tests.conftest import ROOT

WORDS = ("good", "warm", "quiet", "late", "cold", "loud", "small", "new")
COMMON = ["--epochs", "2", "--batch-size", "8", "--evaluations", "1", "--device", "cpu"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    texts, pairs = [], []
    for i in range(40):
        prompt = f"Review of the {WORDS[i % 8]} hotel number {i}:"
        texts.append({"prompt": prompt, "response": f" It was {WORDS[i % 7]}{' and nice' * (i % 3)}."})
        pairs.append({"prompt": prompt, "chosen": f" I enjoyed it{' a lot' * (i % 3)}.", "rejected": " I was bored."})
    for name, records in (("texts", texts), ("pairs", pairs)):
        for part, chosen in (("", records[:32]), ("heldout_", records[32:])):
            lines = "".join(json.dumps(r) + "\n" for r in chosen)
            (folder / f"{part}{name}.jsonl").write_text(lines, encoding="utf-8")
    return folder


STAGES: dict[str, tuple[str, list[str], str, str]] = {
    "sft": ("train_sft", ["--texts", "{texts}", "--heldout-texts", "{heldout_texts}"], "actor", "sft.json"),
    "sft, micro-batches": (
        "train_sft",
        ["--texts", "{texts}", "--heldout-texts", "{heldout_texts}", "--micro-batch-size", "2"],
        "actor",
        "sft.json",
    ),
    "dpo": (
        "train_preference",
        ["--preferences", "{pairs}", "--eval-preferences", "{heldout_pairs}"],
        "actor",
        "preference.json",
    ),
    "reward model": (
        "train_reward_model",
        ["--preferences", "{pairs}", "--eval-preferences", "{heldout_pairs}"],
        "reward_model",
        "report.json",
    ),
}


def trained(
    stage: str, processes: int, data: Path, folder: Path
) -> tuple[dict[str, torch.Tensor], dict[str, Any], str]:
    """The weights and the report that a stage leaves, and what it printed."""
    script, options, model, report = STAGES[stage]
    words = [w.format(**{p.stem: str(p) for p in data.iterdir()}) for w in options]
    out = folder / str(processes)
    command = [sys.executable, f"scripts/{script}.py", *words, *COMMON, "--output-dir", str(out)]
    command += ["--processes", str(processes)] if processes > 1 else []
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    return load_file(out / model / "model.safetensors"), json.loads((out / report).read_text("utf-8")), done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_two_processes_come_to_the_weights_of_one(stage: str, data: Path, tmp_path: Path) -> None:
    alone, report, said = trained(stage, 1, data, tmp_path)
    together, joint_report, joint_said = trained(stage, 2, data, tmp_path)
    start = load_file(Path(DEFAULT_MODEL) / "model.safetensors")
    steps = [max(entry["step"] for entry in r["log"]) for r in (report, joint_report)]
    assert steps == [8, 8]  # 2 epochs of 32 records, 8 an update
    shared = [n for n in start if n in alone and start[n].shape == alone[n].shape]
    moved = torch.cat([(alone[n] - start[n]).flatten() for n in shared]).norm()
    apart = torch.cat([(together[n] - alone[n]).flatten() for n in shared]).norm()
    assert moved > 0.1
    assert apart < 1e-3 * moved, float(apart / moved)
    assert said.count("Done.") == joint_said.count("Done.") == 1


# ------------------------------------------------------------------------------------------------- in this process
def test_batch_sizes_are_those_of_all_processes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settings = SFTSettings(texts="t", output_dir=tmp_path, batch_size=32, micro_batch_size=4)
    alone = trainer_arguments(settings, 320, 128)
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}.items():
        monkeypatch.setenv(name, value)
    together = trainer_arguments(settings, 320, 128)
    assert (alone["per_device_train_batch_size"], alone["gradient_accumulation_steps"]) == (4, 8)
    assert (together["per_device_train_batch_size"], together["gradient_accumulation_steps"]) == (4, 4)
    assert (alone["warmup_steps"], alone["save_steps"]) == (together["warmup_steps"], together["save_steps"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"processes": 3}, "batch_size=32 must be a multiple of the 3 processes: take 33"),
        ({"processes": 4, "micro_batch_size": 16}, "micro_batch_size=16 must divide batch_size=32 / 4 processes"),
        ({"processes": 0}, "processes=0 must be"),
    ],
)
def test_what_cannot_be_shared(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        SFTSettings(texts="t", output_dir=tmp_path, **settings).check_values()


def test_a_cache_of_several_processes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cache_reference: several processes would write one cache"):
        PreferenceSettings(preferences="p", output_dir=tmp_path, cache_reference=True, processes=2).check_values()


def test_settings_as_words() -> None:
    words = to_words(
        RewardSettings(preferences="p", output_dir=Path("out"), heads=("a", "b"), resume=True, processes=2)
    )
    assert words[words.index("--heads") : words.index("--heads") + 3] == ["--heads", "a", "b"]
    assert {"--resume", "--no-gate"} <= set(words)
    assert words[words.index("--processes") + 1] == "2"
    assert "--head-weights" not in words
    assert to_words(ProcessSettings()) == ["--processes", "1", "--rank-timeout", "1800.0"]


class Launched:
    """Stands for `launch`: notes what was started, leaves a report, and ends with a status."""

    def __init__(self, status: int = 0) -> None:
        self.status = status
        self.started: list[tuple[str, list[str], int]] = []
        self.called: str | None = None

    def __call__(self, command: str, argv: list[str], count: int, called: str | None = None) -> int:
        self.started.append((command, argv, count))
        self.called = called
        folder = Path(argv[argv.index("--output-dir") + 1])
        folder.mkdir()
        (folder / "sft.json").write_text('{"perplexity": 2.0}', encoding="utf-8")
        return self.status


def test_a_caller_that_is_one_process_starts_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    launched = Launched()
    monkeypatch.setattr("agents.supervised.trainer.launch", launched)
    settings = SFTSettings(texts="t.jsonl", output_dir=tmp_path / "out", processes=2, batch_size=4)
    assert fine_tune(settings) == {"perplexity": 2.0}
    [(command, argv, count)] = launched.started
    assert (command, count) == ("train_sft", 2)
    assert read_command_line(SFTSettings, argv) == settings


@pytest.mark.parametrize(("status", "error"), [(1, ChildProcessError), (130, KeyboardInterrupt)])
def test_a_command_that_fails(
    status: int, error: type[BaseException], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("agents.supervised.trainer.launch", Launched(status))
    with pytest.raises(error):
        fine_tune(SFTSettings(texts="t.jsonl", output_dir=tmp_path / "out", processes=2))


def test_a_run_of_rounds_in_processes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    launched = Launched()
    monkeypatch.setattr("agents.runs.in_processes.launch", launched)
    settings = RunSettings(task=TaskOptions(max_new_tokens=8), algorithm=AlgorithmSettings("grpo"))
    folder = tmp_path / "out"
    train_run(settings, folder, Console(quiet=True), False, ProcessSettings(processes=2, rank_timeout=5.0))
    [(command, argv, count)] = launched.started
    assert (command, count, launched.called) == ("train", 2, "scripts/train.py")
    args = train.parse(argv, read_command_line)
    assert (args.settings, args.output_dir, args.together.rank_timeout) == (settings, folder, 5.0)


def test_a_pipeline_passes_the_number_on_to_what_trains(tmp_path: Path) -> None:
    stages = [
        Stage("sft", "train_sft", {"texts": "t"}, ()),
        Stage("own", "train", {"processes": 4}, ()),
        Stage("look", "evaluate_actor", {"actor": "{sft}"}, ("sft",)),
    ]
    two, one = (Pipeline(stages, tmp_path, 0, processes=n) for n in (2, 1))
    assert two.command_line(stages[0])[-2:] == ["--processes", "2"]
    assert two.command_line(stages[1]).count("--processes") == 1
    assert "--processes" not in two.command_line(stages[2])
    assert [two.inputs(s) for s in stages] == [one.inputs(s) for s in stages]  # no stage runs again for it
