"""Arrays that carry what stable-baselines3's rollout loop would otherwise drop on the way.

`OnPolicyAlgorithm.collect_rollouts` hands actions from the policy to the environment, and rewards and log-probs from
there to the buffer, and nothing else. Two things must travel with them, without the loop being rewritten:

- the log-probability of each action, to the environment, whose reward has a term -β·log π (`SampledActions`);
- the episodes behind rewards that are not known yet, to the buffer, which scores them after collection
  (`DeferredRewards`), and the policy that can score them again (`scorer_of`).

And the values of the states behind a rollout's edge need no computing where no episode crosses it (`LazyValues`).

All are ordinary arrays to everybody else. Deferred rewards are NaN, so that a buffer which does not know about them
fails at once instead of learning from zeros.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._pytree import tree_map

from llm_env.settings import check_temperature

if TYPE_CHECKING:
    from llm_env.episode import Episode
    from llm_env.reward.reference import Reference
    from llm_env.task import TextTask
    from llm_env.text.prompts import Prompt


class SampledAction(np.int64):
    """One action that knows its `log_prob`, in nats, and the `temperature` it was drawn at."""

    log_prob: float
    temperature: float | None

    @classmethod
    def carry(cls, action: int, log_prob: float, temperature: float | None) -> SampledAction:
        """Wraps an action."""
        wrapped = cls(action)
        wrapped.log_prob, wrapped.temperature = log_prob, temperature
        return wrapped


class SampledActions(np.ndarray):
    """Actions of shape (N,) that know their `log_probs` (N,), in nats, and the `temperature` they were drawn at.

    ``actions[i]`` is a `SampledAction`: that is how SB3's `DummyVecEnv` hands it to a single environment.
    """

    log_probs: NDArray[np.float32] | None
    temperature: float | None

    def __array_finalize__(self, obj: Any) -> None:
        """Views and copies are ordinary actions: a slice's log-probs would be other actions'."""
        self.log_probs = None
        self.temperature = None

    def __getitem__(self, key: Any) -> Any:
        """A single action keeps its log-prob."""
        item = super().__getitem__(key)
        if self.log_probs is not None and isinstance(key, int | np.integer) and np.ndim(item) == 0:
            return SampledAction.carry(int(item), float(self.log_probs[key]), self.temperature)
        return item


class ActionTensor(Tensor):
    """The tensor that `forward` returns; ``.cpu().numpy()`` gives `SampledActions`."""

    log_probs: Tensor
    temperature: float

    @classmethod
    def carry(cls, actions: Tensor, log_probs: Tensor, temperature: float) -> ActionTensor:
        """Wraps actions (N,) and their log π (N,)."""
        wrapped = actions.as_subclass(cls)
        wrapped.log_probs = log_probs
        wrapped.temperature = temperature
        return wrapped

    def cpu(self, *args: Any, **kwargs: Any) -> ActionTensor:
        """On the CPU, log-probs too."""
        plain = self.as_subclass(Tensor).cpu(*args, **kwargs)
        return ActionTensor.carry(plain, self.log_probs, self.temperature)

    def numpy(self, *args: Any, **kwargs: Any) -> SampledActions:
        """As `SampledActions`."""
        array = self.as_subclass(Tensor).numpy(*args, **kwargs).view(SampledActions)
        array.log_probs = self.log_probs.detach().cpu().numpy()
        array.temperature = self.temperature
        return array


class DeferredRewards(np.ndarray):
    """NaN rewards of shape (N,) that know the `episodes` (N entries, None for idle slots) and the `task` to score them."""

    episodes: list[Episode | None]
    task: TextTask | None

    def __array_finalize__(self, obj: Any) -> None:
        """Views and copies keep the promise."""
        self.episodes = getattr(obj, "episodes", [])
        self.task = getattr(obj, "task", None)

    @classmethod
    def of(cls, episodes: list[Episode | None], task: TextTask) -> DeferredRewards:
        """A promise for one step of N slots."""
        array = np.full(len(episodes), np.nan, dtype=np.float32).view(cls)
        array.episodes, array.task = list(episodes), task
        return array


class LazyValues(Tensor):
    """Values of shape (N, 1) that are computed when somebody looks at them.

    `collect_rollouts` asks for V of the states that follow a rollout; with whole episodes these are fresh prompts, whose
    values nobody uses.
    """

    compute: Callable[[], Tensor]

    @classmethod
    def of(cls, compute: Callable[[], Tensor], rows: int) -> LazyValues:
        """A promise of `rows` values; `compute` is called at most once."""
        lazy = torch.empty(rows, 1).as_subclass(cls)
        lazy.compute = functools.cache(compute)
        return lazy

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Any operation takes the computed values."""

        def real(value: Any) -> Any:
            return value.compute() if isinstance(value, LazyValues) else value

        return func(*tree_map(real, args), **tree_map(real, kwargs or {}))


class SegmentScorer(Protocol):
    """A policy that can score whole episodes again after collection."""

    @property
    def rescores_values(self) -> bool:
        """Whether values given while collecting are missing or not exact."""

    @property
    def rescores_log_probs(self) -> bool:
        """Whether log-probs given while collecting are not exact."""

    def score_segments(
        self, sequences: list[list[int]], starts: list[int], masks: list[NDArray[np.uint8]] | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(log π, value) of every token from `starts` on, flat, sequence by sequence; under the masks, if any."""

    def exact_kl(
        self,
        reference: Reference,
        sequences: list[list[int]],
        starts: list[int],
        masks: list[NDArray[np.uint8]] | None = None,
    ) -> NDArray[np.float32]:
        """KL(π‖π_ref) of the whole distributions before every token from `starts` on, flat."""

    def greedy_episodes(self, task: TextTask, prompts: list[Prompt]) -> list[Episode]:
        """The likeliest token at every step, from each prompt to the end, scored."""


def attach_scorer(log_probs: Tensor, scorer: SegmentScorer) -> Tensor:
    """Marks log-probs with the policy that they come from."""
    log_probs.scorer = scorer  # type: ignore[attr-defined]
    return log_probs


def scorer_of(log_probs: Tensor) -> SegmentScorer | None:
    """The policy that log-probs come from, if they know it."""
    return getattr(log_probs, "scorer", None)


def carried_log_probs(actions: Any, temperature: float) -> NDArray[np.float32] | None:
    """The log-probs that actions carry, or None.

    Raises:
        ValueError: they were drawn at another temperature than the environment's, so the KL would compare two different
            families of distributions.
    """
    log_probs = getattr(actions, "log_probs", None)
    if log_probs is None:
        return None
    check_temperature(actions.temperature, temperature)
    return np.asarray(log_probs)


def behaviour_log_probs(actions: Any) -> NDArray[np.float32] | None:
    """The log-probs that actions carry, whatever their temperature, or None."""
    log_probs = getattr(actions, "log_probs", None)
    return None if log_probs is None else np.asarray(log_probs)


class CarriesLogProbs:
    """For policies whose `_predict` gives an `ActionTensor`: SB3's `predict`, without what it drops on the way.

    Off-policy algorithms and evaluations act through `predict`; its actions then tell environment and replay buffer their
    log-probs.
    """

    obs_to_tensor: Any
    _predict: Any

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """As SB3's."""
        obs, vectorized = self.obs_to_tensor(observation)
        actions = self._predict(obs, deterministic).cpu().numpy()
        return (actions if vectorized else actions[0]), state
