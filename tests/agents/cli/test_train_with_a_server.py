"""A run whose reward server dies in the middle of a rollout, as a user would see it."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.agents.cli.test_train import QUICK, ROLLOUT, command, environment
from tests.conftest import ROOT
from tests.reward_servers import example_server, free_port

pytestmark = pytest.mark.slow
SCORE = """
import os, pathlib, signal

def score(prompts, responses):
    last_word = pathlib.Path(__file__).with_name("die")
    if last_word.exists():
        last_word.unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    return [r.count("e") / 3 + len(p) / 7 for p, r in zip(prompts, responses)]
"""
OUTAGE = float(os.environ.get("LLM_ENV_TEST_OUTAGE", "2"))
"""Seconds for which the server is gone."""


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a reward function that kills its own process, once, where a file ``die`` is beside it."""
    folder = tmp_path_factory.mktemp("scorer")
    (folder / "dying_score.py").write_text(SCORE)
    return folder


@pytest.fixture(scope="module")
def undisturbed(scorer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with the function itself as its reward model."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    subprocess.run(arguments(folder, "dying_score:score"), env=here(scorer), check=True, capture_output=True)
    return folder


def here(scorer: Path) -> dict[str, str]:
    return {**environment(), "PYTHONPATH": f"{ROOT}{os.pathsep}{scorer}"}


def arguments(folder: Path, reward: str) -> list[str]:
    steps = str(ROLLOUT * 12)
    return command("--output-dir", str(folder), *QUICK, "--total-timesteps", steps, "--reward-model", reward)


class Run:
    """A training process, whose two streams are read as they come."""

    def __init__(self, words: list[str]) -> None:
        self.process = subprocess.Popen(
            words, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.lines: list[str] = []
        self.reader = threading.Thread(target=self._read)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        self.lines.extend(iter(self.process.stdout.readline, ""))

    def wait_for(self, text: str) -> None:
        deadline = time.monotonic() + 120
        while not any(text in line for line in self.lines):
            assert time.monotonic() < deadline, f"{text!r} never came:\n{''.join(self.lines)}"
            assert self.process.poll() is None or any(text in line for line in self.lines), "".join(self.lines)
            time.sleep(0.02)

    def end(self) -> int:
        status = self.process.wait(timeout=180)
        self.reader.join()
        return status

    def close(self) -> None:
        self.process.kill()
        self.end()
        assert self.process.stdout is not None
        self.process.stdout.close()


def assert_same(run: Path, other: Path) -> None:
    for name in ("actor/model.safetensors", "samples.jsonl"):
        assert (run / name).read_bytes() == (other / name).read_bytes(), name


@pytest.fixture
def killed_in_a_rollout(scorer: Path, tmp_path: Path) -> Iterator[tuple[Run, Path, int]]:
    """A run that waits for its server, which has died after a checkpoint; its folder, and the server's port."""
    port, folder = free_port(), tmp_path / "run"
    with example_server(port, "--function", "dying_score:score", folder=scorer) as server:
        run = Run(arguments(folder, f"http://127.0.0.1:{port}/"))
        deadline = time.monotonic() + 120
        while not list(folder.glob("checkpoints/step_*/state.json")) and time.monotonic() < deadline:
            time.sleep(0.01)
        (scorer / "die").touch()
        assert server.wait(timeout=60) == -signal.SIGKILL
    try:
        run.wait_for("It is asked again for up to 600 s")
        yield run, folder, port
    finally:
        run.close()


def test_the_run_waits_goes_on_and_ends_with_the_same_weights(
    killed_in_a_rollout: tuple[Run, Path, int], scorer: Path, undisturbed: Path
) -> None:
    run, folder, port = killed_in_a_rollout
    time.sleep(OUTAGE)
    assert run.process.poll() is None
    with example_server(port, "--function", "dying_score:score", folder=scorer):
        assert run.end() == 0, "".join(run.lines)
    assert sum("It is asked again" in line for line in run.lines) == 1
    assert sum("answers again after" in line for line in run.lines) == 1
    assert_same(folder, undisturbed)


def test_ctrl_c_ends_the_waiting_and_the_run_can_go_on(
    killed_in_a_rollout: tuple[Run, Path, int], scorer: Path, undisturbed: Path
) -> None:
    run, folder, port = killed_in_a_rollout
    run.process.send_signal(signal.SIGINT)
    run.wait_for("once more: stop at once")
    run.process.send_signal(signal.SIGINT)
    assert run.end() == 130
    assert any(f"--resume {folder}" in line for line in run.lines)
    with example_server(port, "--function", "dying_score:score", folder=scorer):
        subprocess.run(command("--resume", str(folder)), env=environment(), check=True, capture_output=True)
    assert_same(folder, undisturbed)


def test_a_function_that_hangs_ends_the_run_and_the_process(scorer: Path, tmp_path: Path) -> None:
    (scorer / "hanging.py").write_text(
        "import re\nn = 0\ndef score(p, r):\n    global n\n    n += 1\n"
        "    if n > 4: re.match('(a+)+b', 'a' * 60)\n    return [float(len(x)) for x in r]\n"
    )
    words = arguments(tmp_path / "run", "hanging:score")
    done = subprocess.run(
        [*words, "--reward-timeout", "1"], env=here(scorer), capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(
        "error: reward_model='hanging:score' did not return within 1 s (reward_timeout); it was stopped"
    )
    assert line.endswith("hanging.py, line 6).")
    assert f"--resume {tmp_path / 'run'}" in done.stdout
