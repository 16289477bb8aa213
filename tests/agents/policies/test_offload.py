"""What idles is elsewhere: the order of the moves by a device that stands for a GPU, and the same bits with and without."""

from __future__ import annotations

import contextlib
from typing import Any

import gymnasium
import pytest
import torch
from stable_baselines3.common.logger import Logger
from torch import nn

from agents import LLMTextVecEnv, make_algorithm
from agents.policies import idle_critic
from agents.policies.idle_critic import IdleCritic, can_idle, move_states
from llm_env.lm import placement
from llm_env.lm.names import LoadSettings
from llm_env.lm.placement import at_hand, is_on
from llm_env.lm.registry import MODELS
from llm_env.settings import TaskSettings

DEVICE = torch.device("xla:0")
"""Stands for a GPU. Nothing is there: a module that is moved there is marked, and computes where it is."""
SIZES: dict[str, Any] = {"max_new_tokens": 4, "max_prompt_length": 12}


class StandIn:
    """Marks modules instead of moving them, and writes down what is moved and asked.

    Attributes:
        names: Names of the modules that are told of, by their ids.
        told: What happened: ``critic to xla``, ``ask reference``, …
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.names: dict[int, str] = {}
        self.told: list[str] = []
        self.places: dict[int, torch.device] = {}
        stand_in = self

        def move(module: nn.Module, device: torch.device) -> None:
            stand_in.told.append(f"{stand_in.names.get(id(module), '?')} to {device.type}")
            stand_in.places[id(module)] = device if device.type == "cpu" else DEVICE

        def move_states(optimizer: Any, module: nn.Module, device: torch.device) -> None:
            stand_in.told.append(f"{stand_in.names[id(module)]}'s states to {device.type}")

        for module in (placement, idle_critic):
            monkeypatch.setattr(module, "move", move)
        monkeypatch.setattr(placement, "device_of", lambda m: stand_in.places.get(id(m), torch.device("cpu")))
        monkeypatch.setattr(idle_critic, "move_states", move_states)
        monkeypatch.setattr(IdleCritic, "device", property(lambda self: DEVICE))

    def watch(self, name: str, module: nn.Module, asked: nn.Module | None = None) -> None:
        """Tells of a module from now on, and has it be on the device whenever it, or a part of it, is asked."""
        self.names[id(module)] = name

        def before(*_: Any) -> None:
            assert is_on(module, DEVICE), f"{name} is asked while it is put aside"
            if self.told[-1:] != [f"ask {name}"]:
                self.told.append(f"ask {name}")

        (asked or module).register_forward_pre_hook(before)


def algorithm(offload: bool, **settings: Any) -> Any:
    """An algorithm whose networks are made anew, so that nobody else has a hook in them."""
    kwargs = {**SIZES, "device": "xla" if offload else "cpu", "offload": offload}
    with MODELS.apart():
        model = make_algorithm(
            settings.pop("name", "ppo"),
            n_envs=4,
            env_kwargs=kwargs | settings.pop("env_kwargs", {}),
            **{"n_epochs": 1, "batch_size": 64, "critic": "actor", "seed": 3, "device": "cpu", **settings},
        )
    model.set_logger(Logger(None, []))
    return model


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    return StandIn(monkeypatch)


def watch_all(stand_in: StandIn, model: Any) -> None:
    task = model.env.unwrapped.task
    stand_in.names |= {id(model.policy.critic): "critic"}
    stand_in.places[id(model.policy.critic)] = DEVICE  # as SB3 puts the whole policy on its device
    stand_in.watch("critic", model.policy.critic, model.policy.critic.trunk)
    stand_in.watch("reference", task.model.lm.model, task.model.lm.trunk)
    stand_in.watch("reward", task.reward_model.model, task.reward_model.model.base_model)
    actor = model.policy.lm.trunk

    def acts(*_: Any) -> None:
        if stand_in.told[-1:] != ["actor"]:
            stand_in.told.append("actor")

    actor.register_forward_pre_hook(acts)


def test_each_model_is_on_the_device_while_it_is_asked_and_the_critic_while_it_is_trained(stand_in: StandIn) -> None:
    model = algorithm(offload=True)
    watch_all(stand_in, model)
    model.learn(2 * 4 * SIZES["max_new_tokens"], log_interval=None)
    collecting = ["critic to cpu", "critic's states to cpu", "actor"]
    scoring = ["critic to xla", "ask critic", "critic to cpu"]
    scoring += ["reference to xla", "ask reference", "reference to cpu", "reward to xla", "ask reward", "reward to cpu"]
    training = ["critic to xla", "critic's states to xla", "actor", "ask critic"]
    assert stand_in.told == 2 * (collecting + scoring + training)


def test_the_same_bits_with_and_without(stand_in: StandIn) -> None:
    weights = []
    for offload in (False, True):
        model = algorithm(offload)
        if offload:
            watch_all(stand_in, model)
        model.learn(2 * 4 * SIZES["max_new_tokens"], log_interval=None)
        weights.append({n: p.detach().clone() for n, p in model.policy.named_parameters()})
    assert "critic to xla" in stand_in.told
    assert weights[0].keys() == weights[1].keys()
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), name


def test_values_outside_of_a_rollout_are_asked_where_the_critic_computes(stand_in: StandIn) -> None:
    model = algorithm(offload=True)
    watch_all(stand_in, model)
    policy = model.policy
    policy.set_training_mode(False)
    observation, _ = policy.obs_to_tensor(model.env.reset())
    for ask in (lambda: policy.predict_values(observation), lambda: policy.state_values([[1, 2, 3]])):
        stand_in.told.clear()
        with torch.no_grad():
            ask()
        assert stand_in.told == ["critic to xla", "ask critic", "critic to cpu"]
    stand_in.told.clear()
    policy.evaluate_actions(observation, torch.zeros(4))
    assert [t for t in stand_in.told if t != "actor"] == ["critic to xla", "critic's states to xla", "ask critic"]


@pytest.mark.parametrize(
    ("kwargs", "settings"),
    [
        ({"top_k": 5}, {"name": "maskable_ppo"}),  # masks look at it at every step
        ({"kl_in": "loss", "kl_estimator": "exact"}, {}),  # the loss asks it for each mini-batch
    ],
)
def test_a_reference_that_is_asked_all_the_time_stays(kwargs: dict[str, Any], settings: dict[str, Any]) -> None:
    rules = TaskSettings(offload=True, device="cpu", **kwargs)
    assert rules.load.offload
    assert not rules.load_reference.offload
    assert TaskSettings(offload=True, device="cpu").load_reference.offload
    model = algorithm(offload=True, env_kwargs=kwargs | {"device": "cpu"}, **settings)
    assert not model.env.unwrapped.task.model.settings.offload


def test_adapters_share_the_reference_and_nothing_of_it_moves(stand_in: StandIn) -> None:
    model = algorithm(offload=True, lora_rank=2, critic="detached_head", env_kwargs={"device": "cpu"})
    assert model.policy.lm is model.env.unwrapped.task.model.lm
    model.learn(4 * SIZES["max_new_tokens"], log_interval=None)
    assert not stand_in.told
    assert not model.policy.idle_critic.idles


def test_a_critic_with_the_actors_layers_stays() -> None:
    model = algorithm(offload=True, critic="top_layers", env_kwargs={"device": "cpu"})
    assert not can_idle(model.policy.critic)
    assert can_idle(algorithm(offload=False).policy.critic)


@pytest.mark.parametrize(
    "make", [lambda **kwargs: gymnasium.make("LLMText-v0", **kwargs), lambda **kwargs: LLMTextVecEnv(2, **kwargs)]
)
def test_scoring_by_steps_is_refused(make: Any) -> None:

    with pytest.raises(ValueError, match=r"offload=True goes with LLMTextVecEnv\(scoring='deferred'\)"):
        make(offload=True, device="cpu")


def test_algorithms_that_score_by_steps_refuse_it() -> None:
    with pytest.raises(TypeError, match="dqn has no setting 'offload'"):
        make_algorithm("dqn", offload=True)
    with pytest.raises(TypeError, match="dqn has no setting 'offload'"):
        make_algorithm("dqn", env_kwargs={"offload": True})


def test_a_block_within_a_block_moves_nothing(stand_in: StandIn) -> None:
    module = nn.Linear(2, 2)
    with at_hand(module, DEVICE), at_hand(module, DEVICE):
        assert is_on(module, DEVICE)
    assert stand_in.told == ["? to xla", "? to cpu"]


def test_a_model_is_put_aside_again_after_an_error(stand_in: StandIn) -> None:
    module = nn.Linear(2, 2)
    with contextlib.suppress(KeyError), at_hand(module, DEVICE):
        raise KeyError
    assert stand_in.told == ["? to xla", "? to cpu"]


def test_which_devices_are_the_same() -> None:
    module = nn.Linear(2, 2, device="meta")
    assert is_on(module, torch.device("meta"))
    assert not is_on(module, torch.device("cpu"))
    assert is_on(nn.ReLU(), torch.device("cpu"))


def test_parameters_that_the_optimizer_would_lose_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    idle = IdleCritic(algorithm(offload=False).policy, offload=True)
    idle.put_aside()  # it is there
    monkeypatch.setattr(idle_critic, "CPU", torch.device("meta"))  # for which torch makes other parameters
    with pytest.raises(AssertionError, match="the optimizer moves others now"):
        idle.put_aside()


@pytest.mark.parametrize("fused", [False, True])
def test_an_optimizers_states_go_along(fused: bool) -> None:
    mine, other = nn.Linear(2, 2), nn.Linear(2, 2)
    optimizer = torch.optim.AdamW([*other.parameters(), *mine.parameters()], fused=fused)
    (mine(torch.ones(2)).sum() + other(torch.ones(2)).sum()).backward()
    optimizer.step()
    move_states(optimizer, mine, torch.device("meta"))
    for module in (mine, other):
        for parameter in module.parameters():
            state = {name: value.device.type for name, value in optimizer.state[parameter].items()}
            moved = "meta" if module is mine else "cpu"
            # The number of steps is a tensor on the parameters' device only where the step is fused.
            assert state == {"exp_avg": moved, "exp_avg_sq": moved, "step": moved if fused else "cpu"}


def test_models_rest_on_the_cpu_and_are_known_apart() -> None:
    settings = LoadSettings("float32", "xla", offload=True)
    assert settings.at_rest == LoadSettings("float32", "cpu", offload=True)
    assert settings._replace(offload=False).at_rest.device == "xla"
