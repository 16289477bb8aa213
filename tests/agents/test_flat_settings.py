from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from agents.flat_settings import find_config, flat_types, from_flat, read_settings, to_flat, write_settings
from agents.runs.settings import AlgorithmSettings, RunSettings, TaskOptions, TrainingSettings
from llm_env.settings import TaskSettings

# A run's config.yaml as the flat `RunSettings` of version 0.1.0 wrote it: each name and value must still be read.
CONFIG_OF_0_1_0 = """
algo: maskable_ppo
model: M
reward_model: [a:b, c:d]
reward_weights: [0.5, 1.0]
prompts: p.jsonl
eval_prompts: e.jsonl
gold: g:h
total_timesteps: 102400
n_envs: 64
rounds: 1
episodes: null
group_size: null
max_prompt_length: 64
max_new_tokens: 32
temperature: 1.0
kl_coef: 0.05
kl_estimator: k1
kl_in: reward
kl_target: 4.0
kl_gain: 0.1
ref_refresh_every: 3
ref_refresh_share: 1.0
reward_shift: 0.0
reward_scale: 1.0
reward_clip: null
whiten_rewards: null
length_penalty: 0.0
missing_eos_penalty: 0.0
overlong_buffer: 0
overlong_penalty: 0.0
top_k: 5
top_p: 0.9
min_new_tokens: 0
forbidden_tokens: [x, y]
allowed_tokens: [' a']
allowed_pattern: null
mask_refresh: null
algo_kwargs: [gamma=0.99, clip_range_high=0.28]
learning_rate: 0.0003
lr_schedule: linear
n_epochs: null
batch_size: 128
gae_lambda: null
clip_range: null
clip_range_vf: null
critic_lr_scale: null
vf_coef: null
ent_coef: null
max_grad_norm: null
target_kl: null
critic: null
ptx_texts: null
ptx_coef: null
ptx_tokens: null
lora_rank: 2
mixed_precision: bf16
gradient_checkpointing: true
micro_batch_tokens: null
dtype: float32
device: auto
trust_remote_code: false
seed: 7
checkpoint_every: 10
sample_every: 10
n_samples: 8
eval_every: 2
n_eval: 64
best_by: objective
"""


def test_a_run_of_the_version_before_is_read_and_written_with_the_same_names(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG_OF_0_1_0)
    settings = read_settings(RunSettings, path)
    assert settings.task == TaskOptions(
        model="M", reward_model=("a:b", "c:d"), reward_weights=(0.5, 1.0), prompts="p.jsonl", top_k=5, top_p=0.9,
        forbidden_tokens=("x", "y"), allowed_tokens=(" a",), mixed_precision="bf16",
        kl_estimator="k1", kl_in="reward",
    )  # fmt: skip
    assert settings.training == TrainingSettings(kl_target=4.0, ref_refresh_every=3, seed=7)
    assert settings.algorithm.algo_kwargs == ("gamma=0.99", "clip_range_high=0.28")
    write_settings(settings, path)
    before, after = yaml.safe_load(CONFIG_OF_0_1_0), yaml.safe_load(path.read_text())
    newer = {"reward_timeout": None, "reward_wait": None, "special_tokens_in_text": False, "deterministic": False}
    newer |= {
        "world": None, "world_kwargs": None, "max_turns": 8, "max_turn_tokens": None, "max_length": None,
        "max_world_tokens": 256, "world_timeout": 60.0, "world_errors": "raise", "world_lag": 0, "advantages": None,
    }  # fmt: skip
    newer |= {
        "kl_coef_end": None,
        "stop_on": ["gold"],
        "judge_prompt": None,
        "judge_concurrency": 8,
        "critic_layers": None,
        "planned": True,
        "engine": None,
        "stop_strings": None,
        "report_to": None,
        "push_to_hub": None,
        "hub_private": True,
        "offload": False,
        "optimizer": "adamw",
        "base_quantization": "none",
    }
    assert after == {**before, "whiten_rewards": False, **newer}  # null was its default
    assert read_settings(RunSettings, path) == settings


def test_the_demos_configuration_changes_what_it_says_and_nothing_else() -> None:
    settings = read_settings(RunSettings, Path("demo"))
    assert settings == RunSettings(training=TrainingSettings(total_timesteps=102_400))


def test_a_file_of_ones_own_goes_before_one_of_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_config(Path("demo")).parent.name == "configs"
    for name in ("demo.yaml", "folder/demo", "nosuch"):
        assert find_config(Path(name)) == Path(name)
    Path("demo").write_text("total_timesteps: 7\n", encoding="utf-8")
    assert read_settings(RunSettings, Path("demo")).training.total_timesteps == 7


def test_the_task_options_are_the_environments_settings() -> None:
    for field_ in dataclasses.fields(TaskSettings):
        assert getattr(TaskOptions(), field_.name) == getattr(TaskSettings(), field_.name), field_.name
    assert TaskOptions().task_settings(None) == TaskSettings()
    pairs = TaskOptions(reward_model=("a:b", "c:d"), reward_weights=(1.0, 0.5)).task_settings(None).reward_model
    assert pairs == [["a:b", 1.0], ["c:d", 0.5]]
    assert TaskOptions(reward_model=("a:b",)).task_settings(None).reward_model == "a:b"


def test_arguments_of_the_algorithm_are_those_that_were_set() -> None:
    assert RunSettings().algorithm_arguments() == {}
    settings = RunSettings(
        task=TaskOptions(mixed_precision="bf16"),
        algorithm=AlgorithmSettings(n_epochs=3, lora_rank=2, lr_schedule="constant", algo_kwargs=("gamma=0.9",)),
    )
    assert settings.algorithm_arguments() == {"n_epochs": 3, "lora_rank": 2, "mixed_precision": "bf16", "gamma": 0.9}
    repeated = RunSettings(algorithm=AlgorithmSettings(algo_kwargs=("kl_coef=1",)))
    with pytest.raises(ValueError, match="kl_coef has a setting of its own; use --kl-coef"):
        repeated.algorithm_arguments()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("kl_coeff", 1, "'kl_coeff' is not a setting. Did you mean 'kl_coef'"),
        ("kl_coef", "high", "kl_coef='high' must be a number"),
        ("kl_coef", True, "kl_coef=True must be a number"),
        ("kl_coef", [0.1], "must be a number"),
        ("n_envs", 1.5, "n_envs=1.5 must be a whole number"),
        ("n_envs", True, "n_envs=True must be a whole number"),
        ("whiten_rewards", "yes", "whiten_rewards='yes' must be true or false"),
        ("model", 3, "model=3 must be a text"),
        ("reward_model", [3], "must be a text"),
        ("forbidden_tokens", [1.5], "must be a text or a whole number"),
    ],
)
def test_values_are_checked_by_their_fields_types(name: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_flat(RunSettings, {name: value}, "c.yaml")


def test_values_take_their_fields_types() -> None:
    values = {
        "learning_rate": "3e-4",
        "kl_coef": 1,
        "forbidden_tokens": ["a", 5],
        "reward_model": "a:b",
        "critic": None,
    }
    settings = from_flat(RunSettings, values, "c.yaml")
    assert (settings.algorithm.learning_rate, settings.task.kl_coef) == (3e-4, 1.0)
    assert isinstance(settings.task.kl_coef, float)
    assert (settings.task.forbidden_tokens, settings.task.reward_model) == (("a", 5), ("a:b",))


@dataclass(frozen=True)
class Inner:
    size: int = 1
    names: Sequence[str] = ()


@dataclass(frozen=True)
class Outer:
    inner: Inner = field(default_factory=Inner)
    place: Path | None = None


@dataclass(frozen=True)
class Twice:
    inner: Inner = field(default_factory=Inner)
    size: int = 2


def test_groups_are_flat_and_names_are_unique() -> None:
    outer = from_flat(Outer, {"size": 3, "place": "a/b", "names": "x"}, "here")
    assert outer == Outer(Inner(3, ("x",)), Path("a/b"))
    assert to_flat(outer) == {"size": 3, "names": ["x"], "place": Path("a/b")}
    with pytest.raises(TypeError, match="two of its groups have a setting named 'size'"):
        flat_types(Twice)
