"""`load_algorithm` gives back what `save` wrote, and executes nothing of what somebody put into the file."""

from __future__ import annotations

import base64
import io
import json
import pickle
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.utils import FloatSchedule, LinearSchedule

from agents import LLMActorCriticPolicy, LLMTextVecEnv, TokenRolloutBuffer, load_algorithm, make_algorithm
from agents.algorithms.table import ALGORITHMS

SMALL: dict[str, Any] = {"max_new_tokens": 6, "max_prompt_length": 12}
MORE: dict[str, dict[str, Any]] = {name: {"group_size": 4} for name in ("grpo", "dr_grpo", "rloo")}
LIKE_OTHERS = ("ppo", "dqn", "a2c", "qr_dqn", "dr_grpo", "rloo", "reinforce_pp")
COMPARED = (
    "num_timesteps",
    "_n_updates",
    "n_steps",
    "batch_size",
    "n_epochs",
    "gamma",
    "gae_lambda",
    "ent_coef",
    "vf_coef",
)


class Bomb:
    """Pickled, it writes a file when it is loaded."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.write_text, (self.target, "executed"))


def saved(tmp_path: Path, name: str = "ppo", **settings: Any) -> tuple[Any, Path]:
    model = make_algorithm(name, n_envs=8, seed=0, env_kwargs=SMALL, **{**MORE.get(name, {}), **settings})
    model.learn(48 * (20 if name == "ars" else 1))
    model.save(tmp_path / "model.zip")
    return model, tmp_path / "model.zip"


def assert_same(ours: Any, theirs: Any) -> None:
    assert type(ours) is type(theirs)
    one, other = ours.policy.state_dict(), theirs.policy.state_dict()
    assert one.keys() == other.keys()
    assert all(torch.equal(one[k], other[k]) for k in other)
    if getattr(theirs.policy, "optimizer", None) is not None:
        states = [m.policy.optimizer.state_dict()["state"] for m in (ours, theirs)]
        assert states[0].keys() == states[1].keys()
        assert all(torch.equal(states[0][i][k], v) for i in states[1] for k, v in states[1][i].items())
    for attribute in COMPARED:
        assert getattr(ours, attribute, None) == getattr(theirs, attribute, None), attribute
    assert ours.policy_kwargs == theirs.policy_kwargs
    task, other_task = ours.env.task.settings, theirs.env.task.settings
    assert task == other_task


@pytest.mark.parametrize(
    "name", ["ppo", "dqn", *(pytest.param(n, marks=pytest.mark.slow) for n in ALGORITHMS if n not in LIKE_OTHERS)]
)
def test_a_saved_algorithm_comes_back_and_learns_on(tmp_path: Path, name: str) -> None:
    model, path = saved(tmp_path, name)
    again = load_algorithm(path)
    assert_same(again, model)
    again.learn(48 * (20 if name == "ars" else 1), reset_num_timesteps=False)
    assert again.num_timesteps > model.num_timesteps
    if name == "ars":
        assert not torch.equal(again.weights, model.weights)  # type: ignore[attr-defined]


def test_schedules_lora_and_other_settings_come_back(tmp_path: Path) -> None:
    schedule = LinearSchedule(1e-3, 0.0, 1.0)
    model, path = saved(tmp_path, learning_rate=schedule, clip_range=0.3, lora_rank=2, critic="head", n_epochs=2)
    again: Any = load_algorithm(path)
    assert_same(again, model)
    assert [again.lr_schedule(x) for x in (1.0, 0.5)] == [1e-3, 5e-4]
    assert again.clip_range(1.0) == 0.3
    assert load_algorithm(path, n_epochs=3).n_epochs == 3  # type: ignore[attr-defined]


def test_stock_ppo_that_was_made_by_hand(tmp_path: Path) -> None:
    env = LLMTextVecEnv(8, episodes="synchronous", scoring="deferred", **SMALL)
    model = PPO(
        LLMActorCriticPolicy,
        env,
        n_steps=6,
        batch_size=24,
        gamma=1.0,
        clip_range=0.15,
        rollout_buffer_class=TokenRolloutBuffer,
        policy_kwargs={"critic": "head"},
        seed=0,
    )
    model.rollout_buffer.bind(model.policy, env)  # type: ignore[attr-defined]
    model.learn(48)
    path = tmp_path / "by_hand.zip"
    model.save(path)
    with pytest.raises(ValueError, match="Say which algorithm it is: algo='ppo'"):
        load_algorithm(path)
    with pytest.raises(ValueError, match="give env="):
        load_algorithm(path, algo="ppo")
    again: Any = load_algorithm(path, LLMTextVecEnv(8, episodes="synchronous", scoring="deferred", **SMALL), algo="ppo")
    assert (again.n_steps, again.batch_size, again.clip_range(1.0)) == (6, 24, 0.15)
    assert all(torch.equal(v, model.policy.state_dict()[k]) for k, v in again.policy.state_dict().items())


def rewritten(path: Path, change: Callable[[dict[str, Any]], None], **files: bytes) -> Path:
    """A copy of a zip with other data, and other files in it."""
    target = path.with_name("changed.zip")
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(target, "w") as archive:
        for item in source.infolist():
            content = source.read(item)
            if item.filename == "data":
                data = json.loads(content)
                change(data)
                content = json.dumps(data).encode()
            archive.writestr(item.filename, files.get(item.filename.replace(".", "_"), content))
    return target


def pickled(value: Any) -> dict[str, str]:
    return {":type:": "x", ":serialized:": base64.b64encode(cloudpickle.dumps(value)).decode()}


def test_a_zip_with_code_in_it_executes_nothing(tmp_path: Path) -> None:
    _, path = saved(tmp_path)
    sign = tmp_path / "sign"
    known = rewritten(path, lambda d: d.update(_last_obs=pickled(Bomb(sign)), clip_range=pickled(Bomb(sign))))
    PPO.load(known, custom_objects={"clip_range": 0.2})
    assert sign.read_text() == "executed"  # the bomb is one: SB3's own loader runs it
    sign.unlink()
    load_algorithm(known)  # these are not needed, and not looked at
    assert not sign.exists()
    unknown = rewritten(path, lambda d: d.update(helper=pickled(Bomb(sign))))
    with pytest.raises(ValueError, match="pickled Python under helper, which would be executed"):
        load_algorithm(unknown)
    assert not sign.exists()


@pytest.mark.parametrize("file", ["policy_pth", "policy_optimizer_pth", "pytorch_variables_pth"])
def test_weights_with_code_in_them_execute_nothing(tmp_path: Path, file: str) -> None:
    _, path = saved(tmp_path)
    sign, content = tmp_path / "sign", io.BytesIO()
    torch.save({"weight": Bomb(sign)}, content)
    for bad in (content.getvalue(), pickle.dumps(Bomb(sign), protocol=2)):
        with pytest.raises(ValueError, match=r"changed\.zip: its weights"):
            load_algorithm(rewritten(path, lambda d: None, **{file: bad}))
        assert not sign.exists()


BAD: list[tuple[str, Callable[[dict[str, Any]], None], str]] = [
    (
        "remote code in the environment",
        lambda d: d["made_with"]["env_kwargs"].update(trust_remote_code=True),
        "model code",
    ),
    (
        "remote code in the policy",
        lambda d: d["made_with"]["settings"].update(policy_kwargs={"trust_remote_code": True}),
        "model code",
    ),
    ("a function", lambda d: d["made_with"]["env_kwargs"].update(reward_model="subprocess:call"), "subprocess:call"),
    ("functions", lambda d: d["made_with"]["env_kwargs"].update(reward_model=[["os:system", 1.0]]), "os:system"),
    (
        "no reward",
        lambda d: d["made_with"].update(left_out=["env_kwargs.reward_model"]),
        "reward_model could not be saved",
    ),
    ("another algorithm", lambda d: d["made_with"].update(name="nosuch"), "nosuch"),
    ("no record", lambda d: d.update(made_with=3), "made_with is not what make_algorithm notes"),
    (
        "left out",
        lambda d: d["made_with"].update(left_out=["settings.learning_rate"]),
        "learning_rate could not be saved",
    ),
    ("other weights", lambda d: d["made_with"]["settings"].update(critic="head"), "its weights do not fit"),
]


@pytest.mark.parametrize(("change", "message"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_what_a_zip_asks_for_is_not_done_unasked(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    _, path = saved(tmp_path)
    with pytest.raises(ValueError, match=message):
        load_algorithm(rewritten(path, change))


def test_with_an_environment_of_ones_own_the_file_names_no_other(tmp_path: Path) -> None:
    _, path = saved(tmp_path)
    for extra in ({"env_kwargs": {"reward_model": "evil:f"}}, {"n_envs": 3}, {"trust_remote_code": True}):
        bad = rewritten(path, lambda d, extra=extra: d["made_with"]["settings"].update(extra))  # type: ignore[misc]
        with pytest.raises(ValueError, match=r"are no settings of ppo|model code from a hub"):
            load_algorithm(bad, "LLMText-v0")


def test_counters_and_paths_from_a_file_are_not_believed(tmp_path: Path) -> None:
    _, path = saved(tmp_path)
    odd = {"num_timesteps": float("nan"), "_n_updates": True, "_episode_num": -3}
    model: Any = load_algorithm(rewritten(path, lambda d: d.update(odd)))
    assert (model.num_timesteps, model._n_updates, model._episode_num) == (0, 0, 0)
    bad = rewritten(path, lambda d: d["made_with"]["settings"].update(tensorboard_log="/elsewhere"))
    assert load_algorithm(bad).tensorboard_log is None  # type: ignore[attr-defined]


class Client:
    """A reward that can be neither copied nor pickled."""

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def __call__(self, prompts: list[str], responses: list[str]) -> list[float]:
        return [float(len(r)) for r in responses]


def test_what_json_cannot_say_is_asked_for(tmp_path: Path) -> None:
    client, wave = Client(), FloatSchedule(lambda progress: 1e-3 * progress)
    env = {**SMALL, "reward_model": client, "temperature": 1.0}
    model = make_algorithm("ppo", n_envs=8, env_kwargs=env, critic="head", learning_rate=wave)
    assert model.env.task.settings.reward_model is client  # type: ignore[union-attr]
    model.save(tmp_path / "model")
    with pytest.raises(ValueError, match="learning_rate could not be saved"):
        load_algorithm(tmp_path / "model")
    with pytest.raises(ValueError, match=r"reward_model could not be saved.*env="):
        load_algorithm(tmp_path / "model", learning_rate=1e-3)
    again = load_algorithm(tmp_path / "model", model.env, learning_rate=1e-3)
    assert all(torch.equal(v, model.policy.state_dict()[k]) for k, v in again.policy.state_dict().items())


def test_what_is_no_zip_of_an_algorithm(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        load_algorithm(tmp_path / "none.zip")
    (tmp_path / "text.zip").write_text("hello")
    with pytest.raises(ValueError, match="is not what an algorithm's save writes"):
        load_algorithm(tmp_path / "text.zip")
    _, path = saved(tmp_path)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(ValueError, match="is not what an algorithm's save writes, or it is damaged"):
        load_algorithm(path)
