"""`LLMTextVecEnv`: the environment as stable-baselines3 sees it."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecNormalize
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

from agents.policies.decoding_copy import DecodingCopy
from agents.policies.sampled_actions import carried_log_probs
from llm_env.arguments import prompt_from_options, token_actions
from llm_env.env import LLMTextEnv, check_render_mode
from llm_env.episode import Episode
from llm_env.lm.causal_lm import CausalLM
from llm_env.lm.registry import SharedLM
from llm_env.rendering import render_episode
from llm_env.reward.reference import Reference, StepwiseReference
from llm_env.rules import FLAG, SLOTS
from llm_env.settings import task_settings
from llm_env.slots import EpisodeSlots, Start
from llm_env.task import TextTask
from llm_env.text.prompts import Prompt

EPISODE_MODES = ("continuous", "synchronous")
SCORING_MODES = ("step", "deferred")
_MOST_ENDED = 100_000
"""Episodes whose information is kept where nobody reads `LLMTextVecEnv.ended`."""


class LLMTextVecEnv(VecEnv):
    """N slots of `LLMText-v0` behind stable-baselines3's `VecEnv`; an adapter of `llm_env.slots.EpisodeSlots`.

    Args:
        n_envs: Number of slots N.
        episodes: ``"continuous"``: a slot that ends takes the next prompt at once, as SB3's own VecEnvs do.
            ``"synchronous"``: all slots start together every `max_new_tokens` steps, and one that ends early is idle
            until then (``length`` 0); for `TokenRolloutBuffer`, which drops the idle steps.
        group_size: Slots that share a prompt and the world's seed, next to each other: for advantages within a group. Needs
            synchronous episodes.
        pay_policy_kl: Whether rewards hold -β·log π where actions carry their log π. False: rewards are the environment's part
            alone, for soft Q-learning, whose backup has the rest.
        scoring: ``"step"``: every step pays its reward. ``"deferred"``: while a `TokenRolloutBuffer` that is bound to this
            environment collects a rollout, steps pay NaN, and the buffer has the rewards computed in a few large batches
            afterwards. The numbers are the same; at all other times every step pays.
        render_mode: ``"ansi"``, ``"rgb_array"``, or None: nothing is drawn.
        settings: Fields of `llm_env.settings.TaskSettings`.

    Where actions carry their log-probability, as `LLMActorCriticPolicy`'s do, rewards are the full formula of
    `llm_env.reward.formula`; else they are the environment's part of it. The last step's info has ``log_prob`` and ``kl`` (sums
    over the response, in nats) besides those of `LLMTextEnv`, and ``episode`` as from SB3's `Monitor`.

    Attributes:
        task: The frozen models, the prompts and the KL penalty.
        batch: The episodes, one in each slot or none; it makes the steps.

    Raises:
        TypeError, ValueError: an unknown or a bad setting.
    """

    def __init__(
        self,
        n_envs: int = 8,
        episodes: str = "continuous",
        scoring: str = "step",
        group_size: int = 1,
        pay_policy_kl: bool = True,
        render_mode: str | None = None,
        **settings: Any,
    ) -> None:
        SLOTS.check("n_envs", n_envs)
        SLOTS.check("group_size", group_size)
        FLAG.check("pay_policy_kl", pay_policy_kl)
        if episodes not in EPISODE_MODES:
            raise ValueError(f"episodes={episodes!r} is not known; use one of {', '.join(EPISODE_MODES)}.")
        if scoring not in SCORING_MODES:
            raise ValueError(f"scoring={scoring!r} is not known; use one of {', '.join(SCORING_MODES)}.")
        if n_envs % group_size:
            raise ValueError(f"group_size={group_size} must divide n_envs={n_envs}.")
        if group_size > 1 and episodes != "synchronous":
            raise ValueError(f"group_size={group_size} needs episodes='synchronous': a group starts together.")
        check_render_mode(render_mode)
        self.render_mode = render_mode
        self.task = TextTask(task_settings(settings))
        self.episodes = episodes
        self.scoring = scoring
        self.group_size = group_size
        self.ended: list[dict[str, Any]] = []
        """Info dictionaries of episodes that ended; whoever reads them empties the list."""
        self.acted: list[Episode | None] = []
        """The episodes that the last step appended a token to, a slot each; None for slots that are idle or wait."""
        self.collecting = False
        """Whether a bound buffer collects a rollout; the buffer sets it."""
        self.generated_tokens = 0
        """Tokens generated for training so far, a policy's extra responses included; idle slots generate none."""
        self._wrapped = False
        """Whether a wrapper around this environment reads rewards step by step; `check_wrappers` finds out."""
        self.mask_copy: DecodingCopy | None = None
        """The copy of the actor that top-k and top-p look at; None: they look at the reference."""
        self.pay_policy_kl = pay_policy_kl
        self.batch = EpisodeSlots(self.task, n_envs, score_steps=scoring == "step")
        self.batch.seed(np.random.default_rng())
        self.metadata = LLMTextEnv.metadata
        super().__init__(n_envs, self.task.observation_space, self.task.action_space)
        self._actions: Any = None
        """What `step_async` was given; `step_wait` makes the step."""
        self._clock = 0
        """Steps since synchronous slots last started together."""
        self._due: dict[int, int] = {}
        """The clock at which a slot that waits for its world is settled."""
        self._start_time = time.time()

    def reset(self) -> VecEnvObs:
        """Starts a response in every slot, at the prompts that `set_options` named, if it did.

        Returns:
            The first observation: ``input_ids`` (N, L), ``length`` (N, 1).
        """
        seed = self._seeds[0]
        if seed is not None:
            self.batch.seed(np.random.default_rng(seed))
        episodes = self._begin_all([prompt_from_options(self.task, options) for options in self._options])
        self.reset_infos = [{"prompt": episode.prompt.text} for episode in episodes]
        self._clock = 0
        self._due.clear()
        self.collecting = False  # whoever resets may be an evaluation; a buffer says so when a rollout begins
        self._reset_seeds()
        self._reset_options()
        return self.batch.observation()  # type: ignore[return-value]

    def step_async(self, actions: np.ndarray) -> None:
        """Keeps the next tokens, shape (n_envs,), until `step_wait`."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Appends the tokens that `step_async` kept; ended slots start anew, or become idle until the round is over.

        Returns:
            Observations, rewards (N,), whether each slot's response ended (N,), and an information dictionary for each slot.

        Raises:
            ValueError: an action is not a token, or was drawn at another temperature than the reference's.
        """
        # The actions, and the log-probs that they may carry, both (N,).
        log_probs = carried_log_probs(self._actions, self.task.settings.temperature)
        actions = token_actions(self._actions, self.num_envs)
        # Before the step, for ended slots will have other episodes after it.
        waited = self.batch.waiting
        self.acted = [None if slot in waited else e for slot, e in enumerate(self.batch.episodes)]
        in_slots = list(self.batch.episodes)
        self.batch.score_steps = not self.defers
        rewards = self.batch.step(actions, log_probs, self.pay_policy_kl, wait=not self._lags).astype(np.float32)
        if self.defers:  # NaN, so that whoever does not know about it fails at once instead of learning from zeros
            rewards[:] = np.nan
        self.generated_tokens += sum(episode is not None for episode in self.acted)
        self._clock += 1
        self._settle()
        # What the episodes that ended now are known by: information as SB3's Monitor and its VecEnvs give it.
        dones = np.array([episode is not None and episode.done for episode in in_slots])
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        if dones.any():
            last = self.batch.observation()
            for slot in np.flatnonzero(dones).tolist():
                episode = in_slots[slot]
                assert episode is not None
                infos[slot] = episode.info = {
                    **self.task.full_info(episode, self._start_time),
                    "columns": episode.prompt.columns,
                    "terminal_observation": {name: values[slot] for name, values in last.items()},
                    "TimeLimit.truncated": False,
                }
                self.ended.append(infos[slot])
            del self.ended[:-_MOST_ENDED]
        self._restart(dones)
        return self.batch.observation(), rewards, dones, infos  # type: ignore[return-value]

    @property
    def round_steps(self) -> int:
        """Steps after which synchronous slots start together again."""
        return self.task.settings.round_steps if self.episodes == "synchronous" else self.task.settings.max_new_tokens

    @property
    def calm_steps(self) -> int:
        """Steps in which nothing comes from outside but what follows a turn's end: until all slots start, or a world is due."""
        round_ends = self.round_steps - self._clock if self.episodes == "synchronous" else sys.maxsize
        return min([round_ends, *(clock - self._clock for clock in self._due.values())])

    @property
    def _lags(self) -> bool:
        """Whether worlds are waited for some steps later now: what a turn is paid must not be needed at once."""
        return self.task.settings.world_lag > 0 and self.episodes == "synchronous" and self.defers

    def _settle(self) -> None:
        """Waits for the worlds whose lag is over: after a number of steps, not of seconds, so that a seed gives one course."""
        lag = self.task.settings.world_lag if self._lags else 0
        for slot in self.batch.waiting - self._due.keys():
            self._due[slot] = self._clock + lag
        due = sorted(slot for slot, clock in self._due.items() if clock <= self._clock or not self._lags)
        self.batch.settle(due)
        for slot in due:
            del self._due[slot]

    def _restart(self, dones: np.ndarray) -> None:
        """Begins new episodes where it is time for them, and makes slots idle that have to wait for the others.

        Args:
            dones: Whether each slot's response has just ended, shape (N,).
        """
        if self.episodes == "continuous":
            self.batch.begin_all([Start(slot) for slot in np.flatnonzero(dones).tolist()])
        elif self._clock == self.round_steps:
            # Even the longest response has ended: all slots start together.
            self._clock = 0
            self._begin_all([None] * self.num_envs)
        else:
            for slot in np.flatnonzero(dones).tolist():
                self.batch.idle(slot)

    def _begin_all(self, prompts: Sequence[Prompt | None]) -> list[Episode]:
        """Starts an episode in each slot; unless a prompt is named, a group's slots take their first one's prompt and seed."""
        size = self.group_size
        return self.batch.begin_all(
            [
                Start(slot, prompt, like=slot - slot % size if prompt is None and slot % size else None)
                for slot, prompt in enumerate(prompts)
            ]
        )

    @property
    def defers(self) -> bool:
        """Whether steps pay NaN now, because a buffer will have the rewards computed after the rollout."""
        return self.scoring == "deferred" and self.collecting and not self._wrapped

    def check_wrappers(self, env: VecEnv) -> None:
        """Sees to it that wrappers around this environment get numbers that they can work with.

        `VecMonitor` and wrappers of one's own add up or change rewards step by step; around deferred rewards they would read
        NaN. Scoring is then done at each step, and a warning says what that costs.

        Args:
            env: This environment, or wrappers around it.

        Raises:
            ValueError: `VecNormalize` would rewrite token ids, or rewards that are not known yet.
        """
        wrappers = []  # from the outermost inwards
        while isinstance(env, VecEnvWrapper):
            wrappers.append(env)
            env = env.venv
        for wrapper in wrappers:
            if isinstance(wrapper, VecNormalize) and wrapper.norm_obs:
                raise ValueError("VecNormalize(norm_obs=True) would rescale token ids. Give it norm_obs=False.")
            if isinstance(wrapper, VecNormalize) and wrapper.norm_reward and self.scoring == "deferred":
                raise ValueError(
                    "VecNormalize(norm_reward=True) around an environment with scoring='deferred' would see rewards that are "
                    "not known yet. Make the environment with scoring='step', or leave VecNormalize out and take "
                    "whiten_rewards=True."
                )
        # Any other wrapper may read rewards, so that there is nothing to defer.
        readers = [type(w).__name__ for w in wrappers if not isinstance(w, VecNormalize)]
        self._wrapped = bool(readers)
        if readers and self.scoring == "deferred":
            warnings.warn(
                f"{', '.join(readers)} around LLMTextVecEnv reads rewards as they come: they are computed at each step, one "
                "forward pass of the reference a token, instead of after the rollout. LLMTextVecEnv reports episodes as "
                "VecMonitor does; without the wrapper training is faster.",
                stacklevel=3,
            )

    def take_masks_from(self, actor: CausalLM) -> None:
        """Takes top-k and top-p from a copy of a model instead of the reference; `refresh_masks` brings the copy up to date.

        Args:
            actor: The model to copy: the actor, whose weights change.
        """
        task = self.task
        self.mask_copy = DecodingCopy(actor, torch.float32)
        shared = SharedLM(self.mask_copy, task.tokenizer, task.eos_ids, task.settings.load._replace(offload=False))
        reference = Reference(shared, task.settings.temperature, task.settings.mixed_precision)
        self.batch.mask_source = StepwiseReference(reference, task.max_length)

    @torch.no_grad()
    def load_masks(self, weights: dict[str, torch.Tensor]) -> None:
        """Sets the weights of the copy that the masks look at.

        Args:
            weights: The copy's parameters by name, as a checkpoint kept them.
        """
        assert self.mask_copy is not None
        for name, parameter in self.mask_copy.model.named_parameters():
            parameter.copy_(weights[name])
        self.batch.mask_source.decoder.clear()

    def refresh_masks(self) -> None:
        """Copies the actor's weights as they are now into the copy that the masks look at."""
        assert self.mask_copy is not None
        self.mask_copy.update()
        self.batch.mask_source.decoder.clear()

    def action_masks(self) -> np.ndarray:
        """Tells which tokens may come next in each slot, boolean, shape (N, V); see `llm_env.masks`."""
        return self.batch.action_masks()

    def clear_caches(self) -> None:
        """Drops what is kept of the slots' prefixes; see `EpisodeSlots.clear_caches`."""
        self.batch.clear_caches()

    def state_dict(self) -> dict[str, Any]:
        """Gives slots, prompt order, clock and β in plain values: what a checkpoint needs to go on."""
        return {"batch": self.batch.state_dict(), "clock": self._clock, "kl_coef": self.task.kl.coef}

    def load_state_dict(self, state: dict[str, Any]) -> VecEnvObs:
        """Puts the environment where `state_dict` was taken; returns the current observation."""
        self.batch.load_state_dict(state["batch"])
        self._clock = int(state["clock"])
        self.task.kl.coef = float(state["kl_coef"])
        return self.batch.observation()  # type: ignore[return-value]

    def get_images(self) -> Sequence[np.ndarray | None]:
        """Draws each slot's episode; None for each without the render mode ``rgb_array``."""
        if self.render_mode != "rgb_array":
            return [None for _ in range(self.num_envs)]
        return [render_episode(self.task, e, "rgb_array") for e in self.batch.episodes]  # type: ignore[misc]

    def render(self, mode: str | None = None) -> Any:
        """Draws all slots as one picture, or with ``"ansi"`` as one text."""
        if (mode or self.render_mode) == "ansi":
            return "\n".join(str(render_episode(self.task, e, "ansi")) for e in self.batch.episodes)
        return super().render(mode)

    def close(self) -> None:
        """Parts with the worlds, if there are any; the models are shared by the process."""
        self.batch.close()

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Gives an attribute of this object, once for each slot in `indices`."""
        value = getattr(self, attr_name)
        return [value for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Sets an attribute of this object; slots have no attributes of their own."""
        setattr(self, attr_name, value)

    def env_method(self, method_name: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any) -> list[Any]:
        """Calls a method of this object, once for each slot in `indices`."""
        if method_name == "action_masks":  # the one method whose result has an entry for each slot
            masks = self.action_masks()
            return [masks[i] for i in self._get_indices(indices)]
        return [getattr(self, method_name)(*args, **kwargs) for _ in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: type[Any], indices: VecEnvIndices = None) -> list[bool]:
        """Says True for `Monitor`, since ``info["episode"]`` is here as from it; there are no other wrappers around slots."""
        slots: Iterable[int] = self._get_indices(indices)
        return [issubclass(wrapper_class, Monitor) for _ in slots]


def text_env(env: VecEnv | None) -> LLMTextVecEnv:
    """Finds the `LLMTextVecEnv` inside an algorithm's environment.

    Args:
        env: An environment, with or without wrappers; None, as an algorithm without environment has it, is refused.

    Raises:
        TypeError: there is none.
    """
    base = env.unwrapped if env is not None else None
    if not isinstance(base, LLMTextVecEnv):
        raise TypeError(f"An LLMTextVecEnv is needed; the algorithm's environment is {type(base).__name__}.")
    return base
