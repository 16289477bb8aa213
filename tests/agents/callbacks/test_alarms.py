"""Faults end training before anything is saved, whatever the algorithm; alarms go by medians."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from agents import Alarms, TextMetricsCallback, make_algorithm
from agents.callbacks import alarms as alarms_module
from agents.callbacks.alarms import weights_are_finite
from agents.rollouts.vec_env import text_env
from tests.agents.small_runs import SMALL


def letters(prompts: list[str], responses: list[str]) -> list[float]:
    return [float(len(response)) for response in responses]


def small(name: str, model: str, env: dict[str, Any] | None = None, **settings: Any) -> Any:
    kwargs = {**SMALL, "model": model, "reward_model": letters, "prompts": ["One two", "Three"], **(env or {})}
    return make_algorithm(name, n_envs=8, seed=0, env_kwargs=kwargs, **settings)


def train(model: Any, iterations: int = 3, alarms: type[Alarms] = Alarms) -> Alarms:
    metrics = TextMetricsCallback()
    watch = alarms(metrics)
    per_iteration = 8 * 6 if "ARS" not in type(model).__name__ else 2 * model.n_delta * 8 * 6
    model.learn(per_iteration * iterations, callback=[watch, metrics], log_interval=None)
    return watch


TOO_HIGH = {
    "ppo": ("gradient of mini-batch 2", {}),
    "a2c": ("Iteration 2: the gradient of mini-batch 1", {}),
    "maskable_ppo": ("gradient of mini-batch 2", {}),
    "grpo": ("gradient of mini-batch 2", {}),
    "trpo": ("gradient of mini-batch", {}),
    "dqn": ("gradient of mini-batch 2", {"gradient_steps": 4}),
    "qr_dqn": ("gradient of mini-batch 2", {"gradient_steps": 4}),
    "ars": ("weights are not finite after the update", {"n_delta": 1}),
}


@pytest.mark.parametrize("name", TOO_HIGH)
def test_too_high_a_learning_rate_ends_training_before_the_weights_are_nan(
    name: str, model_folder: Callable[..., str]
) -> None:
    message, settings = TOO_HIGH[name]
    model = small(name, model_folder("llama"), learning_rate=1e30 if name == "ars" else 1e9, **settings)
    with pytest.raises(FloatingPointError, match=message) as error:
        train(model)
    assert f"learning_rate={1e30 if name == 'ars' else 1e9:g} is too high" in str(error.value)
    assert "\n" not in str(error.value)
    assert name == "ars" or weights_are_finite(model.policy.state_dict().values())


class Late(Alarms):
    """As on a GPU, where a norm is read one update later."""

    def _on_training_start(self) -> None:
        super()._on_training_start()
        self._lag = 1


def test_on_a_gpu_the_update_is_named_that_was_bad_and_not_the_one_where_it_was_seen(
    model_folder: Callable[..., str],
) -> None:
    model = small("ppo", model_folder("llama"), learning_rate=1e9)
    with pytest.raises(FloatingPointError, match="Iteration 1: the gradient of mini-batch 2 has the norm"):
        train(model, alarms=Late)
    assert not weights_are_finite(model.policy.state_dict().values())  # that is what it saves


def test_the_last_update_of_an_iteration_is_looked_at_on_a_gpu_too(model_folder: Callable[..., str]) -> None:
    model = small("a2c", model_folder("llama"))  # one update an iteration
    watch = train(model, alarms=Late)
    assert len(watch.norms) == 3


@pytest.mark.parametrize(
    ("name", "scale", "what"),
    [
        ("ppo", 1e300, "the rollout's rewards are not finite"),
        ("ppo", 1e30, "the gradient of mini-batch 1 has the norm inf"),  # finite, but its square is not
        ("recurrent_ppo", 1e300, "the rollout's rewards are not finite"),
        ("dqn", 1e300, "the gradient of mini-batch 1 has the norm nan"),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning", "ignore:invalid value:RuntimeWarning")
def test_rewards_beyond_float32_end_training(
    name: str, scale: float, what: str, model_folder: Callable[..., str]
) -> None:
    model = small(name, model_folder("llama"), {"reward_scale": scale})
    with pytest.raises(FloatingPointError, match=what) as error:
        train(model)
    assert f"reward_scale={scale:g}" in str(error.value)
    assert weights_are_finite(model.policy.state_dict().values())


def test_a_half_precision_reference_that_overflows_is_named(model_folder: Callable[..., str]) -> None:
    model = small("ppo", model_folder("llama"), {"dtype": "float16"})
    reference = text_env(model.env).task.model.lm.model
    assert {p.dtype for p in reference.parameters()} == {torch.float16}
    assert {p.dtype for p in model.policy.parameters()} == {torch.float32}  # gradients need no scaling
    saved = [p.clone() for p in reference.parameters()]
    try:
        with torch.no_grad():
            for parameter in reference.parameters():
                parameter.mul_(500)
        with pytest.raises(FloatingPointError, match=r"rewards are not finite.*dtype='float16' ends at 65,504"):
            train(model)
    finally:  # other tests share the model
        with torch.no_grad():
            for parameter, value in zip(reference.parameters(), saved, strict=True):
                parameter.copy_(value)


NORMS: dict[str, dict[str, Any]] = {
    "ppo": {},
    "a2c": {},
    "maskable_ppo": {},
    "recurrent_ppo": {},
    "grpo": {},
    "dqn": {"gradient_steps": 4},
    "ppo in parts": {"micro_batch_tokens": 24},
    "ppo with LoRA": {"lora_rank": 2},
    "ppo with texts": {"ptx_texts": "texts.jsonl", "ptx_coef": 5.0},  # a loss of two nodes
}


@pytest.mark.parametrize("case", NORMS)
def test_the_logged_norm_is_the_one_before_clipping(
    case: str, model_folder: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What SB3's own clipping finds, and throws away."""
    monkeypatch.chdir(tmp_path)
    Path("texts.jsonl").write_text('{"prompt": "How was it?", "response": " Good."}\n')
    clip, found = torch.nn.utils.clip_grad_norm_, []

    def remember(*args: Any, **kwargs: Any) -> torch.Tensor:
        found.append(clip(*args, **kwargs))
        return found[-1]

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", remember)
    model = small(case.partition(" ")[0], model_folder("llama"), max_grad_norm=1e-9, **NORMS[case])
    watch = train(model, 2)
    assert len(found) >= 2
    assert min(found) > 1e-8  # all were clipped
    assert list(watch.norms) == pytest.approx([float(n) for n in found], rel=1e-4)


def test_hooks_go_when_training_ends(model_folder: Callable[..., str]) -> None:
    model = small("a2c", model_folder("llama"))
    watch = train(model, 2)
    assert len(watch.norms) == 2
    train(model, 2)  # another callback
    assert len(watch.norms) == 2


def watch_of(norms: int = 20) -> Alarms:
    watch = Alarms(TextMetricsCallback())
    watch.norms.extend([1.0] * norms)
    return watch


def read(watch: Alarms, *norms: float) -> None:
    watch._unread.extend(torch.tensor(n) for n in norms)
    watch._read_norms()


def test_a_spike_is_said_once_and_counted_each_time() -> None:
    watch = watch_of()
    read(watch, 9.9)
    with pytest.warns(
        UserWarning, match=r"mini-batch 2: the gradient's norm is 10.1, and the median of the 21"
    ) as said:
        read(watch, 10.1, 5.0, 50.0)
    assert len(said) == 1
    assert watch._alarms == 2
    assert max(watch.norms) == pytest.approx(9.9)  # a spike is no part of what is usual


def test_there_is_no_alarm_without_enough_to_compare_with() -> None:
    watch = watch_of(alarms_module.LEAST_UPDATES - 1)
    read(watch, 1000.0)
    assert watch._alarms == 0
    assert max(watch.norms) == pytest.approx(1000.0)  # it counts as usual


@pytest.mark.parametrize(
    ("kl", "score", "said"),
    [(31.0, 1.9, True), (29.0, 1.9, False), (31.0, 2.1, False), (math.nan, 0.0, False)],
    ids=["both", "kl too low", "the score rose", "no kl"],
)
def test_a_kl_that_jumps_while_the_score_falls(kl: float, score: float, said: bool) -> None:
    watch = watch_of()
    for _ in range(5):
        watch._compare_kl(10.0, 2.0)
    if said:
        with pytest.warns(
            UserWarning, match="the KL is 31 nats per response, and the median of the 5 iterations before is 10"
        ):
            watch._compare_kl(kl, score)
    else:
        watch._compare_kl(kl, score)
    assert watch._alarms == int(said)


def test_a_kl_that_grows_from_nothing_is_no_alarm() -> None:
    watch = watch_of()
    for kl in (0.01, 0.1, 0.3, 1.0, 3.0, 9.9):
        watch._compare_kl(kl, -kl)
    assert watch._alarms == 0


def test_a_resumed_run_compares_with_what_it_had() -> None:
    watch, other = watch_of(), watch_of(0)
    with pytest.warns(UserWarning, match="gradient"):
        read(watch, 100.0)
    watch._compare_kl(1.0, 2.0)
    other.load_state_dict(watch.state_dict())
    assert (list(other.norms), list(other.kls), list(other.scores)) == ([1.0] * 20, [1.0], [2.0])
    read(other, 100.0)  # said already
    assert other._alarms == 1
    assert other.norms.maxlen == alarms_module.UPDATES
