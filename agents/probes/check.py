"""`check_agent`: trains an algorithm on the probes and compares what it reaches with the optimum."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm

from agents.probes.tasks import PROBES, Probe, write_model
from agents.rollouts.vec_env import LLMTextVecEnv

MakeAgent = Callable[[dict[str, Any]], BaseAlgorithm]


@dataclass(frozen=True)
class ProbeResult:
    """What an algorithm reached on a probe: mean returns of an episode, in score.

    Attributes:
        name: The probe's name in `agents.probes.tasks.PROBES`.
        before: The untrained algorithm's, sampled.
        after: The trained one's, sampled from the same prompts and worlds.
        optimum: The largest that any policy has in expectation.
    """

    name: str
    before: float
    after: float
    optimum: float

    @property
    def share(self) -> float:
        """How much of the way from `before` to the optimum was made; 1 is all of it."""
        return (self.after - self.before) / (self.optimum - self.before)


def check_agent(
    make: MakeAgent,
    timesteps: int = 16_384,
    probes: Mapping[str, Probe] = PROBES,
    share: float = 0.5,
    episodes: int = 500,
) -> list[ProbeResult]:
    """Has an algorithm learn each probe, and says what is likely to be broken where it does not.

    >>> check_agent(lambda env_kwargs: make_algorithm("ppo", env_kwargs=env_kwargs, critic="head", learning_rate=3e-3))

    Args:
        make: From the environment's keyword arguments to a new algorithm, whose ``predict`` samples where it is asked to.
        timesteps: Steps that it is trained for, on each probe.
        probes: Tasks by name, from the easiest on, so that the first that fails names the cause. Default: all six.
        share: How much of the way from what it reached untrained to the optimum is asked of it. One answer to all prompts makes
            less than a fifth of it; a right algorithm may settle early on a wrong answer to one of them.
        episodes: Episodes that each mean return is of.

    Returns:
        What was reached, probe by probe.

    Raises:
        AssertionError: a probe was not learned; the message names each, with what is likely to be broken.
    """
    results = []
    with tempfile.TemporaryDirectory() as folder:
        model_folder = write_model(Path(folder) / "model")
        for name, probe in probes.items():
            env_kwargs = probe.env_kwargs(model_folder)
            judge = LLMTextVecEnv(50, episodes="continuous", **env_kwargs)
            agent = make(env_kwargs)
            before = mean_return(agent, judge, episodes)
            agent.learn(timesteps)
            after = mean_return(agent, judge, episodes)
            results.append(ProbeResult(name, before, after, probe.optimum(judge.task)))
    failed = [r for r in results if r.share < share]
    if failed:  # no `assert`, which `python -O` leaves out
        raise AssertionError(
            "\n".join(
                f"{r.name} ({probes[r.name].about}): {r.before:.2f} before, {r.after:.2f} after {timesteps} steps, optimum "
                f"{r.optimum:.2f}. Look at {probes[r.name].broken}."
                for r in failed
            )
        )
    return results


def mean_return(agent: BaseAlgorithm, env: LLMTextVecEnv, episodes: int) -> float:
    """The mean return of sampled episodes, in score.

    Args:
        agent: Chooses the actions.
        env: An environment that scores every step; it is seeded and reset.
        episodes: At least so many.
    """
    env.seed(0)
    observation: Any = env.reset()
    returns: list[float] = []
    while len(returns) < episodes:
        actions, _ = agent.predict(observation, deterministic=False)
        observation, _, dones, infos = env.step(actions)
        returns += [infos[slot]["episode"]["r"] for slot in np.flatnonzero(dones)]
    return float(np.mean(returns))
