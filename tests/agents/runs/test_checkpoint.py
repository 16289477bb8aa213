from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

import agents.runs.checkpoint as checkpoint
from agents import TextMetricsCallback, make_algorithm
from agents.checksums import checksum
from agents.runs.checkpoint import CheckpointError, damage, list_checkpoints, load_checkpoint, save_checkpoint

SMALL: dict[str, Any] = {"max_new_tokens": 6, "max_prompt_length": 12}
ROLLOUT = 8 * 6


def algorithm(episodes: str = "synchronous", **kwargs: Any) -> Any:
    return make_algorithm("ppo", n_envs=8, seed=0, episodes=episodes, env_kwargs=SMALL, **kwargs)


class SaveAt(TextMetricsCallback):
    """Saves after the n-th iteration."""

    def __init__(self, folder: Path, n: int) -> None:
        super().__init__()
        self.folder, self.n = folder, n

    def after_iteration(self) -> None:
        if self.iteration == self.n:
            save_checkpoint(self.model, self.folder, {"iteration": self.iteration})


@pytest.mark.parametrize("episodes", ["synchronous", "continuous"])
@pytest.mark.parametrize("lora_rank", [0, 4])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, episodes: str, lora_rank: int) -> None:
    """Invariant 7: bit for bit, with a schedule, in the middle of episodes too."""
    from stable_baselines3.common.utils import LinearSchedule

    schedule = LinearSchedule(1e-3, 0.0, 1.0)
    whole = algorithm(episodes, learning_rate=schedule, lora_rank=lora_rank)
    whole.learn(ROLLOUT * 4, callback=SaveAt(tmp_path, 2), log_interval=None)

    second = algorithm(episodes, learning_rate=schedule, lora_rank=lora_rank)
    assert load_checkpoint(second, list_checkpoints(tmp_path)[0]) == {"iteration": 2}
    assert second.num_timesteps == ROLLOUT * 2
    torch.rand(7)  # whatever happened in this process before does not matter
    load_checkpoint(second, list_checkpoints(tmp_path)[0])
    second.learn(ROLLOUT * 4 - second.num_timesteps, reset_num_timesteps=False)
    assert second.num_timesteps == whole.num_timesteps
    ours, theirs = second.policy.state_dict(), whole.policy.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)
    one, other = second.policy.optimizer.state_dict()["state"], whole.policy.optimizer.state_dict()["state"]
    assert all(torch.equal(one[i]["exp_avg"], other[i]["exp_avg"]) for i in other)


def test_nothing_in_a_checkpoint_is_pickled(tmp_path: Path) -> None:
    model = algorithm()
    model.learn(ROLLOUT)
    folder = save_checkpoint(model, tmp_path)
    assert sorted(p.suffix for p in folder.iterdir()) == [".json"] * 2 + [".safetensors"] * 3
    json.loads((folder / "state.json").read_text())


def test_the_newest_are_kept_and_half_written_ones_are_never_taken(tmp_path: Path) -> None:
    model = algorithm()
    for _ in range(3):
        model.learn(ROLLOUT, reset_num_timesteps=False)
        save_checkpoint(model, tmp_path, keep=2)
    names = [p.name for p in list_checkpoints(tmp_path)]
    assert names == [f"step_{ROLLOUT * n:012d}" for n in (2, 3)]
    shutil.copytree(tmp_path / names[-1], tmp_path / ".partial-step_000000099999")
    assert [p.name for p in list_checkpoints(tmp_path)] == names


def saved(tmp_path: Path) -> Path:
    model = algorithm()
    model.learn(ROLLOUT)
    return save_checkpoint(model, tmp_path)


def test_damage_to_any_file_of_a_checkpoint_is_found(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    assert damage(folder) is None
    for path in sorted(folder.iterdir()):
        whole = path.read_bytes()
        flipped = whole[: len(whole) // 2] + bytes([whole[len(whole) // 2] ^ 1]) + whole[len(whole) // 2 + 1 :]
        for content in (flipped, whole[: len(whole) // 2], b"", b"{}"):
            path.write_bytes(content)
            reason = damage(folder)
            assert reason is not None
            assert path.name in reason or path.name == "checksums.json"
            with pytest.raises(CheckpointError, match=r"is damaged: .*\."):
                load_checkpoint(algorithm(), folder)
        path.unlink()
        assert path.name in (damage(folder) or "")
        path.write_bytes(whole)
    assert damage(folder) is None


def test_checkpoints_of_earlier_versions_have_no_checksums(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    (folder / "checksums.json").unlink()
    assert damage(folder) == "checksums.json is missing, or lacks a file"
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps({**state, "format": 1}))
    assert damage(folder) is None
    assert load_checkpoint(algorithm(), folder) == {}
    (folder / "state.json").write_text(json.dumps({**state, "format": 99, "x": 1}))
    (folder / "checksums.json").write_text(json.dumps({p.name: checksum(p) for p in folder.iterdir()}))
    with pytest.raises(CheckpointError, match="format 99"):
        load_checkpoint(algorithm(), folder)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("I/O error (os error 28)")])
def test_a_full_disk_leaves_earlier_checkpoints_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    model = algorithm()
    model.learn(ROLLOUT)
    first = save_checkpoint(model, tmp_path)
    model.learn(ROLLOUT, reset_num_timesteps=False)
    real = checkpoint.save_file

    def full(tensors: Any, path: Path) -> None:
        if path.name == "optimizer.safetensors":
            raise error
        real(tensors, path)

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(type(error)):
        save_checkpoint(model, tmp_path)
    assert list_checkpoints(tmp_path) == [first]
    assert list(tmp_path.iterdir()) == [first]


def test_a_checkpoint_of_another_shape_is_refused(tmp_path: Path) -> None:
    model = algorithm()
    model.learn(ROLLOUT)
    folder = save_checkpoint(model, tmp_path)
    other = make_algorithm("ppo", n_envs=4, seed=0, env_kwargs=SMALL)
    with pytest.raises(CheckpointError, match="has 8 slots, the environment 4"):
        load_checkpoint(other, folder)
    with pytest.raises(CheckpointError, match="do not fit this policy"):
        load_checkpoint(algorithm(critic="head"), folder)
    with pytest.raises(FileNotFoundError, match="holds no checkpoint"):
        load_checkpoint(model, tmp_path / "step_1")
