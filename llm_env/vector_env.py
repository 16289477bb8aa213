"""`LLMTextVectorEnv`: N episodes with one forward pass, ``gymnasium.make_vec("LLMText-v0", num_envs=N)``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from llm_env.arguments import RESET_OPTIONS, check_options, prompt_from_options, token_actions
from llm_env.env import RENDER_MODES, Observation, check_render_mode
from llm_env.rendering import render_episode
from llm_env.rules import SLOTS
from llm_env.settings import task_settings
from llm_env.slots import EpisodeSlots, Start
from llm_env.task import TextTask


class LLMTextVectorEnv(VectorEnv[Observation, NDArray[np.int64], NDArray[Any]]):
    """N environments like `llm_env.env.LLMTextEnv`, stepped together with one forward pass of the reference.

    An episode that ends is replaced in the same step (SAME_STEP autoreset): the observation is the next episode's. The
    ended one's last observation is in ``infos["final_obs"]``, its information in ``infos["final_info"]``.

    Args:
        num_envs: Number of environments N.
        render_mode: ``"ansi"``, ``"rgb_array"`` or None; `render` returns a tuple of N renderings.
        max_episode_steps: Not supported: `max_new_tokens` is the length cap.
        settings: The keyword arguments of `llm_env.settings.TaskSettings`.

    Raises:
        TypeError, ValueError: an unknown or a bad setting.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012
        "render_modes": list(RENDER_MODES),
        "render_fps": 8,
        "autoreset_mode": AutoresetMode.SAME_STEP,
    }

    def __init__(
        self,
        num_envs: int = 1,
        render_mode: str | None = None,
        max_episode_steps: int | None = None,
        **settings: Any,
    ) -> None:
        SLOTS.check("num_envs", num_envs)
        if max_episode_steps is not None:
            raise ValueError(
                f"max_episode_steps={max_episode_steps} is not supported here; set max_new_tokens, the length cap of a "
                "response, instead."
            )
        check_render_mode(render_mode)
        self.num_envs = num_envs
        self.render_mode = render_mode
        self.task = TextTask(task_settings(settings))
        self.single_observation_space = self.task.observation_space
        self.single_action_space = self.task.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.batch = EpisodeSlots(self.task, num_envs)
        self._seeded = False

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Starts a response in every slot.

        Args:
            seed: Seed of the prompt order, which all slots share; of a sequence of seeds, the first one.
            options: ``{"prompt": …}`` or ``{"prompt_index": …}``, one value for all slots or a list of N.

        Raises:
            ValueError: an unknown option, a list of another length, or a prompt that cannot be used.
        """
        # Gymnasium allows one seed, or one for each environment; the slots share one prompt order, and so one seed.
        first = seed if seed is None or isinstance(seed, int | np.integer) else next(iter(seed))
        super().reset(seed=None if first is None else int(first))
        per_slot = self._split_options(options)
        # The first reset shuffles the prompts even without a seed; later ones without a seed go on in that order.
        if first is not None or not self._seeded:
            self.batch.seed(self.np_random)
            self._seeded = True
        self.batch.begin_all([Start(i, prompt_from_options(self.task, own)) for i, own in enumerate(per_slot)])
        return self.batch.observation(), {}

    def step(
        self, actions: NDArray[np.int64]
    ) -> tuple[Observation, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """Appends a token in every slot.

        Raises:
            ValueError: an action is not a token.
            RuntimeError: `reset` was never called.
        """
        if self.batch.episodes[0] is None:
            raise RuntimeError("Call reset() before step().")
        rewards = self.batch.step(token_actions(actions, self.num_envs))
        terminated = np.array([e is not None and e.done for e in self.batch.episodes])
        infos: dict[str, Any] = {}
        if terminated.any():
            # Report what has ended before its slot is overwritten by the next episode (SAME_STEP autoreset).
            last = self.batch.observation()
            for slot in np.flatnonzero(terminated):
                episode = self.batch.episodes[slot]
                assert episode is not None
                final = {
                    "final_obs": {name: values[slot] for name, values in last.items()},
                    "final_info": self.task.final_info(episode),
                }
                # Gymnasium's own: arrays of N entries, and a mask `_key` of the slots that have one.
                infos = self._add_info(infos, final, int(slot))
            self.batch.begin_all([Start(int(slot)) for slot in np.flatnonzero(terminated)])
        return self.batch.observation(), rewards, terminated, np.zeros(self.num_envs, dtype=bool), infos

    def action_masks(self) -> NDArray[np.bool_]:
        """Which tokens may come next in each slot, shape (N, V); see `llm_env.masks`."""
        return self.batch.action_masks()

    def render(self) -> tuple[Any, ...] | None:
        """A rendering of every slot; see `llm_env.env.LLMTextEnv.render`."""
        if self.render_mode is None:
            gymnasium.logger.warn("render() needs a render_mode; make the environment with 'ansi' or 'rgb_array'.")
            return None
        return tuple(render_episode(self.task, episode, self.render_mode) for episode in self.batch.episodes)

    def close_extras(self, **kwargs: Any) -> None:
        """Parts with the worlds, if there are any; the models are shared by the process."""
        if hasattr(self, "batch"):  # Gymnasium closes an environment that could not be made, too
            self.batch.close()

    def _split_options(self, options: dict[str, Any] | None) -> list[dict[str, Any]]:
        options = options or {}
        check_options(options, RESET_OPTIONS)
        per_slot: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for name, value in options.items():
            is_messages = isinstance(value, list | tuple) and len(value) > 0 and isinstance(value[0], dict)
            one_each = isinstance(value, list | tuple | np.ndarray) and not is_messages
            # A list of messages is one prompt; any other list has one value for each slot.
            if one_each and len(value) != self.num_envs:
                raise ValueError(f"options[{name!r}] has {len(value)} entries for {self.num_envs} environments.")
            for slot in range(self.num_envs):
                # `prompt_from_options` then reads each slot's options as it reads those of a single environment.
                per_slot[slot][name] = value[slot] if one_each else value
        return per_slot
