"""A run's networks without their weights, and how many tokens go through them at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from stable_baselines3 import A2C
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike
from torch import Tensor, nn

from agents.algorithms.factory import Arranged, arrange
from agents.algorithms.table import algorithm, checked_settings
from agents.policies.q_network import LLMQPolicy
from agents.runs.settings import RunSettings
from llm_env.lm.causal_lm import CausalLM
from llm_env.lm.decoding import CachedDecoder
from llm_env.lm.registry import MODELS, SharedLM
from llm_env.task import TextTask


@dataclass(frozen=True)
class Sizes:
    """What one process works on.

    Attributes:
        slots: Episodes that are written side by side.
        episodes: Episodes that are scored together: a rollout's, or of a Q-network those in the slots.
        batch: Episodes of a mini-batch.
        prompt: Tokens of the longest prompt.
        response: Tokens of the longest response.
        longest: Tokens of the longest state: prompt, response, and what a world says.
    """

    slots: int
    episodes: int
    batch: int
    prompt: int
    response: int
    longest: int


@dataclass(frozen=True)
class Networks:
    """All models of a run, made in `agents.memory.weightless.weightless`.

    Attributes:
        made: What the algorithm is made from, its environment among it.
        policy: The policy, with its optimizer.
        rewards: Reward models and judges that are in this process.
    """

    made: Arranged
    policy: Any
    rewards: list[nn.Module]

    @property
    def task(self) -> TextTask:
        """The environment's task, which has the reference."""
        return self.made.base.task

    @property
    def is_q_network(self) -> bool:
        """Whether the policy is a Q-network, which learns from a replay buffer."""
        return isinstance(self.policy, LLMQPolicy)

    @property
    def decoder(self) -> CachedDecoder:
        """What decodes; in mixed precision with a copy of the weights."""
        decoder: CachedDecoder = self.policy._decoder if self.is_q_network else self.policy._acting.decoder
        return decoder

    @property
    def lm(self) -> CausalLM:
        """The actor."""
        lm: CausalLM = self.policy.lm
        return lm

    @property
    def idle(self) -> frozenset[str]:
        """The plan's names of the models that are on the CPU while nobody asks them, as the code has it (`--offload`)."""
        found = {
            "reference": self.task.model.settings.offload and self.task.model.lm.model is not self.lm.model,
            "reward model": self.task.settings.offload,
            "critic": not self.is_q_network and self.policy.idle_critic.idles,
        }
        return frozenset(name for name, idles in found.items() if idles)

    def critic_parameters(self) -> list[nn.Parameter]:
        """The parameters of a critic that has a module of its own."""
        critic = getattr(self.policy, "critic", None)
        return list(critic.parameters()) if isinstance(critic, nn.Module) else []

    def weights(self) -> dict[str, list[Tensor]]:
        """The policy's parameters and buffers by what they are: actor, critic, target network."""
        found: dict[str, list[Tensor]] = {"actor": [], "critic": [], "target": []}
        for name, tensor in [*nn.Module.named_parameters(self.policy), *self.policy.named_buffers()]:
            first, _, second = name.partition(".")
            # Of a policy ``actor.…`` and ``critic.…``; of a Q-network one name deeper. A head of quantiles belongs to V.
            part = second.partition(".")[0] if first == "q_net" else first
            found["target" if first == "q_net_target" else "actor" if part in ("actor", "lm") else "critic"].append(
                tensor
            )
        return found


def build(settings: RunSettings) -> Networks:
    """Makes a run's networks; to be called in `weightless`. Prompts and tokenizers are read, and functions imported, as ever.

    Raises:
        FileNotFoundError, ValueError, TypeError, ImportError: as `agents.algorithms.factory.make_algorithm`; or the algorithm
            trains no language model.
    """
    name, training = settings.algorithm.algo, settings.training
    if not algorithm(name).trains_language_model:
        raise ValueError(
            f"{name} trains no language model's weights: there is nothing to plan. Take another algorithm."
        )
    arguments = checked_settings(name, settings.algorithm_arguments())
    environment = {
        **settings.task.task_arguments(settings.task.prompts),
        "device": "cpu",
    }  # where tensors without data are
    made = arrange(
        name,
        "LLMText-v0",
        n_envs=training.n_envs,
        rounds=training.rounds,
        episodes=training.episodes,
        env_kwargs=environment,
        **{**arguments, "device": "cpu"},
    )
    policy = dict(made.arguments["policy_kwargs"])
    if made.cls is A2C and made.arguments.get("use_rms_prop", True):  # as A2C's constructor has it
        policy.setdefault("optimizer_class", RMSpropTFLike)
    rate = float(made.arguments["learning_rate"])
    spaces = made.base.observation_space, made.base.action_space
    networks = Networks(made, made.row.policy(*spaces, lambda _: rate, **policy), reward_networks(made.base.task))
    networks.policy.scored_by_buffer = True  # as a bound buffer says
    return networks


def reward_networks(task: TextTask) -> list[nn.Module]:
    """The models in the registry that are not the task's reference."""
    networks: list[nn.Module] = []
    for entry in MODELS.all():
        if isinstance(entry, SharedLM):
            networks += [] if entry is task.model else [entry.lm.model]
        else:  # a classifier with its tokenizer
            networks.append(entry[0])
    return networks


def sizes(networks: Networks, settings: RunSettings, processes: int) -> Sizes:
    """What one of several processes works on, where all episodes are as long as they can be."""
    made, task = networks.made, networks.task
    cap, slots = task.settings.max_new_tokens, made.base.num_envs
    prompts = [len(p.ids) for p in (task.prompts[i] for i in range(len(task.prompts)))]
    prompt = max(prompts, default=task.settings.max_prompt_length)
    longest = prompt + cap if task.make_world is None else task.max_length
    if networks.is_q_network:
        tokens = batch_size = made.arguments["batch_size"]
    else:
        tokens = made.arguments["n_steps"] * cap // made.base.round_steps * slots
        batch_size = made.arguments.get("batch_size", tokens)
        if made.row.cls.__name__ in ("A2C", "TRPO"):  # whose update of the actor takes the whole rollout
            batch_size = tokens
    episodes = math.ceil(tokens / cap)
    groups = math.ceil(episodes * cap / batch_size)
    return Sizes(
        slots=math.ceil(slots / processes),
        episodes=math.ceil((slots if networks.is_q_network else episodes) / processes),
        batch=math.ceil(episodes / groups / processes),
        prompt=prompt,
        response=cap,
        longest=longest,
    )
