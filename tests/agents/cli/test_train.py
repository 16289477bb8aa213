from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from agents.cli import train
from agents.flat_settings import write_settings
from tests.conftest import ROOT

QUICK = [
    "--n-envs",
    "4",
    "--max-new-tokens",
    "6",
    "--max-prompt-length",
    "12",
    "--sample-every",
    "2",
    "--checkpoint-every",
    "2",
]
ROLLOUT = 4 * 6


def run(folder: Path, *extra: str, iterations: int = 4) -> int:
    return train.main(["--output-dir", str(folder), "--total-timesteps", str(ROLLOUT * iterations), *QUICK, *extra])


def command(*arguments: str) -> list[str]:
    return [sys.executable, str(ROOT / "scripts" / "train.py"), *arguments]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def final_weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "actor" / "model.safetensors")


def assert_same_run(one: Path, other: Path) -> None:
    ours, theirs = final_weights(one), final_weights(other)
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs)
    assert (one / "samples.jsonl").read_text() == (other / "samples.jsonl").read_text()
    rows = [(f / "progress.csv").read_text().splitlines() for f in (one, other)]
    assert len(rows[0]) == len(rows[1])
    column = rows[0][0].split(",").index("rollout/rm_score")
    assert [r.split(",")[column] for r in rows[0]] == [r.split(",")[column] for r in rows[1]]


def test_a_run_leaves_a_folder_that_describes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    assert run(folder, "--learning-rate", "1e-3") == 0
    names = {p.name for p in folder.iterdir()}
    assert names == {
        ".llm-env.lock", "actor", "checkpoints", "command.txt", "config.yaml", "progress.csv", "report.html", "report.png",
        "run.json", "samples.jsonl", "tensorboard", "versions.json",
    }  # fmt: skip
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert (config["learning_rate"], config["n_envs"], config["kl_coef"]) == (1e-3, 4, train.RunSettings().task.kl_coef)
    assert json.loads((folder / "versions.json").read_text())["torch"].startswith(torch.__version__.split("+")[0])
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert [s["timestep"] for s in samples] == [0] * 8 + [ROLLOUT * 2] * 8 + [ROLLOUT * 4] * 8
    assert all(math.isfinite(s["rm_score"]) and isinstance(s["response"], str) for s in samples)
    assert len((folder / "progress.csv").read_text().splitlines()) == 5
    assert (folder / "report.png").stat().st_size > 10_000
    tokenizer = AutoTokenizer.from_pretrained(folder / "actor")
    model = AutoModelForCausalLM.from_pretrained(folder / "actor")
    ids = model.generate(**tokenizer("How was the hotel?", return_tensors="pt"), max_new_tokens=5)
    assert ids.shape[1] > 5
    assert f"Page: {folder / 'report.html'}" in capsys.readouterr().out

    from agents.cli import evaluate_actor

    assert evaluate_actor.run(evaluate_actor.Args(folder / "actor", n_prompts=8)) == 0
    report = json.loads((folder / "evaluation.json").read_text())
    assert report["n_prompts"] == 8
    assert abs(report["kl"]["mean"]) > 1e-3  # it moved; k1 over eight responses may have either sign
    assert "Samples" in capsys.readouterr().out


@pytest.mark.slow
def test_killed_and_interrupted_runs_go_on_to_the_same_result(tmp_path: Path) -> None:
    """Bit for bit after kill -9 and after Ctrl-C, as a user would do it."""
    iterations = 40
    arguments = [*QUICK, "--total-timesteps", str(ROLLOUT * iterations), "--kl-coef", "0.2"]
    whole, killed, stopped = (tmp_path / n for n in ("whole", "killed", "stopped"))
    subprocess.run(command("--output-dir", str(whole), *arguments), env=environment(), check=True, capture_output=True)
    for folder, how in ((killed, signal.SIGKILL), (stopped, signal.SIGINT)):
        process = subprocess.Popen(
            command("--output-dir", str(folder), *arguments), env=environment(), stdout=subprocess.PIPE, text=True
        )
        deadline = time.monotonic() + 120
        while not list(folder.glob("checkpoints/step_*/state.json")) and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(how)
        out, _ = process.communicate(timeout=120)
        assert not (folder / "actor").exists(), "the run ended before it could be stopped"
        if how == signal.SIGINT:
            assert process.returncode == 130
            assert f"--resume {folder}" in out
        (folder / "checkpoints" / ".partial-step_000000999999").mkdir()
        subprocess.run(command("--resume", str(folder)), env=environment(), check=True, capture_output=True)
        assert_same_run(folder, whole)
        assert len((folder / "command.txt").read_text().splitlines()) == 2


def test_a_stop_after_any_iteration_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where episodes are under way, also between two checkpoints of the uninterrupted run."""
    from agents.runs.run import TrainingRun

    arguments = ["--algo", "recurrent_ppo", "--checkpoint-every", "4"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert run(whole, *arguments) == 0
    with monkeypatch.context() as patch:
        patch.setattr(
            TrainingRun, "stop_requested", property(lambda self: True, lambda self, value: None), raising=False
        )
        assert run(stopped, *arguments) == 130
    assert len((stopped / "progress.csv").read_text().splitlines()) == 2
    assert train.main(["--resume", str(stopped)]) == 0
    assert (stopped / "samples.jsonl").read_text() == (whole / "samples.jsonl").read_text()
    ours, theirs = (load_file(f / "actor" / "policy.safetensors") for f in (stopped, whole))
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs)


def test_a_model_prompts_and_reward_of_ones_own(
    tmp_path: Path, model_folder: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "p.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"Number {i}:"}) + "\n" for i in range(30)))
    folder = tmp_path / "run"
    arguments = [
        "--model",
        model_folder("gpt2"),
        "--reward-model",
        model_folder("gpt2", 1),
        "tests.conftest:count_dots",
    ]
    arguments += ["--reward-weights", "0.5", "1", "--prompts", str(prompts), "--critic", "head", "--lora-rank", "2"]
    assert run(folder, *arguments) == 0
    held_out = (folder / "heldout_prompts.jsonl").read_text().splitlines()
    trained = (folder / "train_prompts.jsonl").read_text().splitlines()
    assert len(held_out) == 3
    assert sorted(held_out + trained) == sorted(prompts.read_text().splitlines())
    AutoModelForCausalLM.from_pretrained(folder / "actor")
    capsys.readouterr()
    from agents.cli import evaluate_actor

    assert evaluate_actor.run(evaluate_actor.Args(folder / "actor")) == 0
    assert json.loads((folder / "evaluation.json").read_text())["n_prompts"] == 3


def test_yaml_gives_defaults_and_the_command_line_has_the_last_word(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("kl_coef: 0.3\nlearning_rate: 1e-5\nreward_model: llm_env.default_task.gold:gold_score\n")
    settings = train.parse(["--config", str(config), "--kl-coef", "0.4"]).settings
    assert (settings.task.kl_coef, settings.algorithm.learning_rate) == (0.4, 1e-5)
    assert settings.task.reward_model == ("llm_env.default_task.gold:gold_score",)


BAD: list[tuple[list[str], str]] = [
    (["--max-new-tokens", "0"], "max_new_tokens=0 must be"),
    (["--kl-coef", "-1"], "kl_coef=-1.0 must be"),
    (["--total-timesteps", "5"], "total_timesteps=5 is less than one rollout"),
    (["--model", "/no/such"], "needs reward_model too"),
    (["--model", "/no/such", "--reward-model", "a:b", "--prompts", "P"], "no such file"),
    (["--prompts", "BROKEN"], "broken.jsonl, line 2: not valid JSON"),
    (["--prompts", "EMPTY"], "is empty"),
    (["--reward-model", "FOLDER"], "no config.json"),
    (["--reward-model", "TWO"], "has 2 labels"),
    (["--reward-model", "tests.llm_env.reward.test_models:nan"], ") returned nan for 8 of 8 responses"),
    (["--reward-model", "tests.llm_env.reward.test_models:raises"], "raised KeyError"),
    (["--reward-model", "tests.llm_env.reward.test_models:too_few"], "scores for"),
    (["--config", "MISSING"], "no such file"),
    (["--config", "TYPO"], "Did you mean 'kl_coef'"),
    (["--resume", "FOLDER"], "no run there"),
    (["--device", "abacus"], "device='abacus'"),
    (["--algo", "pppo"], "Did you mean 'ppo'"),
    (["--algo", "a2c", "--n-epochs", "3"], "a2c has no setting 'n_epochs'"),
    (["--gold", "no.such:function"], "gold='no.such:function': module 'no.such' cannot be imported"),
    (["--micro-batch-tokens", "0"], "micro_batch_tokens=0 must be a whole number of tokens, at least 1"),
    (["--algo", "dqn", "--kl-target", "4"], "kl_target: the backup of DQN is made for one beta"),
    (["--algo", "ars", "--total-timesteps", "200"], "total_timesteps=200 is less than one iteration of ars"),
    (["--eval-prompts", "/no/such.txt"], "eval_prompts='/no/such.txt': there is no such file"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[" ".join(a) for a, _ in BAD])
def test_bad_input_gets_one_line_and_writes_nothing(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    model_folder: Callable[..., str],
    arguments: list[str],
    message: str,
) -> None:
    (tmp_path / "broken.jsonl").write_text('{"prompt": "x"}\n{"prompt"\n')
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "typo.yaml").write_text("kl_coeff: 1\n")
    (tmp_path / "folder").mkdir()
    names = {
        "BROKEN": tmp_path / "broken.jsonl", "EMPTY": tmp_path / "empty.txt", "FOLDER": tmp_path / "folder",
        "TYPO": tmp_path / "typo.yaml", "MISSING": tmp_path / "missing.yaml", "P": tmp_path / "p.txt",
    }  # fmt: skip
    filled = [model_folder("llama", 2) if a == "TWO" else str(names.get(a, a)) for a in arguments]
    out = tmp_path / "out"
    extra = [] if "--resume" in arguments else ["--output-dir", str(out), "--n-envs", "4"]
    assert train.main([*filled, *extra]) == 1
    errors = [line for line in capfd.readouterr().err.splitlines() if line]
    assert len(errors) == 1
    assert errors[0].startswith("error: ")
    assert message in errors[0]
    assert not (out / "actor").exists()
    if "tests.llm_env.reward.test_models" not in str(arguments):
        assert not out.exists()


def test_a_folder_that_holds_a_run_is_not_written_over(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "precious.txt").write_text("mine")
    assert run(folder) == 1
    assert f"--resume {folder}" in capfd.readouterr().err
    assert [p.name for p in folder.iterdir()] == ["precious.txt"]


def test_a_full_disk_is_one_line_and_the_run_can_go_on(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import agents.runs.checkpoint as checkpoint

    folder, real, calls = tmp_path / "run", checkpoint.save_file, []

    def full(tensors: Any, path: Path) -> None:
        calls.append(path)
        if len(calls) > 3:  # the second checkpoint
            raise OSError(28, "No space left on device")
        real(tensors, path)

    monkeypatch.setattr(checkpoint, "save_file", full)
    assert run(folder) == 1
    captured = capfd.readouterr()
    assert "error: the disk is full" in captured.err
    assert f"--resume {folder}" in captured.out
    assert [p.name for p in (folder / "checkpoints").iterdir()] == [f"step_{ROLLOUT * 2:012d}"]
    monkeypatch.setattr(checkpoint, "save_file", real)
    assert train.main(["--resume", str(folder)]) == 0
    whole = tmp_path / "whole"
    assert run(whole) == 0
    assert_same_run(folder, whole)


def test_resume_takes_the_runs_own_settings_but_may_go_further(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert run(folder, iterations=2) == 0
    assert train.main(["--resume", str(folder), "--kl-coef", "0.9"]) == 1
    assert "kl_coef cannot be changed" in capfd.readouterr().err
    assert train.main(["--resume", str(folder), "--reward-timeout", "300", "--reward-wait", "5"]) == 0
    assert f"{ROLLOUT * 2} timesteps, of {ROLLOUT * 2}: nothing is left" in " ".join(capfd.readouterr().out.split())
    assert train.main(["--resume", str(folder), "--total-timesteps", str(ROLLOUT)]) == 0
    assert f"{ROLLOUT * 2} timesteps, of {ROLLOUT}: nothing is left" in " ".join(capfd.readouterr().out.split())
    assert train.main(["--resume", str(folder), "--total-timesteps", str(ROLLOUT * 3)]) == 0
    assert len((folder / "progress.csv").read_text().splitlines()) == 4


@pytest.mark.slow
def test_the_script_has_the_commands_help() -> None:
    out = subprocess.run(command("--help"), env=environment(), capture_output=True, text=True, check=True).stdout
    assert "--total-timesteps" in out


def test_the_command_that_began_a_run_goes_on_with_resume_at_its_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, config = tmp_path / "run", tmp_path / "c.yaml"
    config.write_text("kl_coef: 0.3\n")
    began = ["--config", str(config), "--n-envs", "4", "--total-timesteps", "512", "--output-dir", str(folder)]
    with pytest.raises(FileNotFoundError, match="no run there"):
        train.parse([*began, "--resume"])
    folder.mkdir()
    write_settings(train.parse(began).settings, folder / "config.yaml")
    args = train.parse([*began, "--resume"])
    assert (args.resume, args.output_dir, train.folder_of(args)) == (folder, None, folder)
    assert args.settings == train.parse(["--resume", str(folder)]).settings
    longer = train.parse(["--resume", *began, "--total-timesteps", "1024"])
    assert (longer.resume, longer.settings.training.total_timesteps) == (folder, 1024)
    with pytest.raises(ValueError, match=r"has other settings \(kl_coef\)"):
        train.parse([*began, "--kl-coef", "0.9", "--resume"])
    with pytest.raises(ValueError, match="--resume without a folder goes on in --output-dir"):
        train.parse(["--n-envs", "4", "--resume"])
