"""Actions that carry their log-probabilities to the environment.

stable-baselines3's loops hand actions from the policy to the environment, and nothing else; the environment's reward has a term
-β·log π. So the policy returns an `ActionTensor`, whose ``.cpu().numpy()`` is `SampledActions`, whose entries are
`SampledAction`s: that is how `DummyVecEnv` hands them to single environments, and `SubprocVecEnv` through its pipes. To
everybody else they are ordinary tensors, arrays and integers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from llm_env.settings import check_temperature


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

    def __reduce__(self) -> Any:
        """Pickles as what it is: numpy's own would send a plain integer through `SubprocVecEnv`'s pipes."""
        return (SampledAction.carry, (int(self), self.log_prob, self.temperature))


class SampledActions(np.ndarray):
    """Actions of shape (N,) that know their `log_probs` (N,), in nats, and the `temperature` they were drawn at.

    ``actions[i]`` is a `SampledAction`.
    """

    log_probs: NDArray[np.float32] | None
    temperature: float | None

    def __array_finalize__(self, obj: Any) -> None:
        """Views and copies are ordinary actions: a slice's log-probs would be other actions'."""
        self.log_probs = None
        self.temperature = None

    def __getitem__(self, key: Any) -> Any:
        """A single action keeps its log-prob."""
        # A single entry only: slices are ordinary actions, see `__array_finalize__`.
        item = super().__getitem__(key)
        if self.log_probs is not None and isinstance(key, int | np.integer) and np.ndim(item) == 0:
            return SampledAction.carry(int(item), float(self.log_probs[key]), self.temperature)
        return item

    def __iter__(self) -> Any:
        """Entries as `__getitem__` gives them; numpy's own iteration would drop the log-probs (`SubprocVecEnv` iterates)."""
        return (self[i] for i in range(len(self)))


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
        # As a plain tensor first: a method of this class would call itself.
        plain = self.as_subclass(Tensor).cpu(*args, **kwargs)
        return ActionTensor.carry(plain, self.log_probs, self.temperature)

    def numpy(self, *args: Any, **kwargs: Any) -> SampledActions:
        """As `SampledActions`."""
        # The view shares the tensor's memory; `__array_finalize__` has left its log-probs empty. (N,)
        array = self.as_subclass(Tensor).numpy(*args, **kwargs).view(SampledActions)
        array.log_probs = self.log_probs.detach().cpu().numpy()
        array.temperature = self.temperature
        return array


class CarriesLogProbs:
    """For policies whose `_predict` gives an `ActionTensor`: SB3's `predict`, without what it drops on the way.

    Off-policy algorithms and evaluations act through `predict`; its actions then tell environment and replay buffer their
    log-probs.
    """

    obs_to_tensor: Any
    set_training_mode: Any
    _predict: Any

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """SB3's `predict`: the next tokens, an array of N or a single one."""
        return self._act(observation, lambda obs: self._predict(obs, deterministic)), state

    def _act(self, observation: np.ndarray | dict[str, np.ndarray], choose: Callable[[Any], Tensor]) -> Any:
        """Numpy observations to actions, chosen by a function of the observations as tensors."""
        self.set_training_mode(False)
        obs, vectorized = self.obs_to_tensor(observation)
        # SB3 reshapes the array here, and a reshaped view has no log-probs.
        actions = choose(obs).cpu().numpy()
        return actions if vectorized else actions[0]


def carried_log_probs(actions: Any, temperature: float | None = None) -> NDArray[np.float32] | None:
    """The log-probs that actions carry, in nats, shape (N,); None where they carry none.

    Args:
        actions: What the policy returned, as it came through stable-baselines3.
        temperature: The environment's; None: any will do.

    Raises:
        ValueError: they were drawn at another temperature than the environment's, so the KL would compare two different
            families of distributions.
    """
    # Actions of other policies, or ones that a wrapper has rewritten, are ordinary arrays.
    log_probs = getattr(actions, "log_probs", None)
    if log_probs is None:
        return None
    if temperature is not None:
        check_temperature(actions.temperature, temperature)
    return np.asarray(log_probs)
