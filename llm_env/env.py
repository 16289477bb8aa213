"""`LLMTextEnv`: one episode at a time, ``gymnasium.make("LLMText-v0")``."""

from __future__ import annotations

import sys
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from llm_env.arguments import prompt_from_options, token_actions
from llm_env.rendering import render_episode
from llm_env.settings import check_temperature, task_settings
from llm_env.slots import EpisodeSlots
from llm_env.task import TextTask

Observation = dict[str, NDArray[np.int64]]
RENDER_MODES = ("ansi", "rgb_array")
HUMAN = "human"
"""The render mode of one environment alone, which prints."""


def check_render_mode(render_mode: str | None, modes: tuple[str, ...] = RENDER_MODES) -> None:
    """Refuses unknown render modes.

    Raises:
        ValueError: the mode is neither None nor one of `modes`, which the error names.
    """
    if render_mode is not None and render_mode not in modes:
        raise ValueError(f"render_mode={render_mode!r} is not known; use one of {', '.join(modes)}, or None.")


class LLMTextEnv(gymnasium.Env[Observation, np.int64]):
    """Token generation with a language model as a Markov decision process.

    ## Description
    The agent continues a prompt, token by token. When it ends the response, a frozen reward model scores it. A frozen
    reference model, usually the one that the agent starts from, pulls it back to plausible text at every step:
    the KL-regularized objective of RLHF (Ziegler et al. 2019, https://arxiv.org/abs/1909.08593).

    ## Action Space
    `Discrete(V)`: the next token, V being the number of the model's logits.

    Which of them may be chosen, `action_masks()` says: all, unless there are rules (`top_k`, `top_p`, `min_new_tokens`, …;
    see `llm_env.masks`). The environment itself refuses no token: masks are part of a policy.

    ## Observation Space
    `Dict`: ``input_ids``, `Box` of int64, shape (max_prompt_length + max_new_tokens,): prompt and response so far, then
    the value V, which no token has; ``length``, `Box` of int64, shape (1,): how many of them are tokens.

    ## Rewards
    r_t = β·log π_ref(a_t | s_t) + 1[t is last]·R(x, y). This is the full reward
    −β·(log π − log π_ref) + 1[last]·R without the part −β·log π(a_t | s_t), which the environment cannot know: it sees
    actions, no policy. For a deterministic agent (log π = 0) it is the full reward. The stable-baselines3 side of this
    project adds the rest by itself; `llm_env.wrappers.PolicyKLReward` does for a loop of your own.

    ## Turns
    With a `world`, a token that ends a turn has the world answer in the same step: the state grows by the answer too, and the
    step pays what the world paid (docs/turns.md).

    ## Starting State
    The next prompt of a seeded shuffle of the prompt set, or the one that ``reset(options={"prompt": …})`` or
    ``{"prompt_index": …}`` names.

    ## Episode End
    Terminated by an end-of-sequence token, or by `max_new_tokens` tokens; both pay the score. With a world, by the world, by
    `max_new_tokens`, `max_turns` or `max_length`. Never truncated, except by a `TimeLimit` put around it, which pays none.

    ## Information
    The last step's `info` has ``prompt``, ``response``, ``rm_score`` (before any penalty), ``ref_log_prob`` (the sum
    over the response, in nats), ``response_length`` (tokens), ``has_end``, ``end`` (a name of `llm_env.episode.ENDS`); with a
    world ``turns``, ``world_return``, ``world_seed``, ``world_text``, ``world_cut``, ``world_fault`` and ``world_info`` too.

    ## Arguments
    Those of `llm_env.settings.TaskSettings`; and `render_mode`: ``"ansi"``, ``"rgb_array"``, or ``"human"``, which prints each
    response when it has ended. A reward model may be a
    Python function; `env.spec.to_json()` then fails, because Gymnasium writes plain values only.

    ```python
    import gymnasium as gym
    import llm_env
    env = gym.make("LLMText-v0", max_new_tokens=24, kl_coef=0.1)
    ```

    ## Copies
    Pickled or deep-copied, as for a process of its own, an environment is its settings and its state: the copy loads the
    models that the settings name, or shares those of its process, and goes on as this one does. Python objects among the
    settings, such as a reward function, are pickled as they are; a world's turns are played again.

    ## Vectorized environment
    ``gym.make_vec("LLMText-v0", num_envs=8)`` steps all of them with one forward pass, SAME_STEP autoreset.

    ## Version History
    * v0: first version. The number rises when a change can alter learning results.
    """

    metadata: dict[str, Any] = {"render_modes": [HUMAN, *RENDER_MODES], "render_fps": 8}  # noqa: RUF012

    def __init__(self, render_mode: str | None = None, **settings: Any) -> None:
        check_render_mode(render_mode, (HUMAN, *RENDER_MODES))
        self.render_mode = render_mode
        self.task = TextTask(task_settings(settings))
        self.observation_space = self.task.observation_space  # type: ignore[assignment]
        self.action_space = self.task.action_space  # type: ignore[assignment]
        self.batch = EpisodeSlots(self.task, 1)
        self._seeded = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Starts a response; see the class for the options.

        Raises:
            ValueError: an unknown option, or a prompt that cannot be used.
        """
        super().reset(seed=seed)
        prompt = prompt_from_options(self.task, options)
        # The first reset shuffles the prompts even without a seed; later ones without a seed go on in that order.
        if seed is not None or not self._seeded:
            self.batch.seed(self.np_random)
            self._seeded = True
        episode = self.batch.begin(0, prompt)
        return self._observation(), {"prompt": episode.prompt.text}

    def step(self, action: np.int64 | int) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Appends a token to the response.

        Args:
            action: The token. If it has an attribute `log_prob` (nats), as actions of `agents.LLMActorCriticPolicy` do, the
                reward is the full one, -β·log π included.

        Returns:
            Observation, reward, terminated, truncated (always False), info.

        Raises:
            ValueError: the action is not a token, or was drawn at another temperature than the reference's.
            RuntimeError: no response is under way; call `reset`.
        """
        episode = self.batch.episodes[0]
        if episode is None or episode.done:
            raise RuntimeError("The response has ended (or never began); call reset() before step().")
        # An ordinary action is an integer; one of a policy of this project also tells its log π, in nats.
        log_prob = getattr(action, "log_prob", None)
        if log_prob is not None:
            check_temperature(getattr(action, "temperature", None), self.task.settings.temperature)
        log_probs = None if log_prob is None else np.array([log_prob], dtype=np.float64)  # (1,)
        # One slot: N = 1 in `EpisodeSlots`. Its ended episode stays in place until `reset`, for `render`.
        reward = self.batch.step(token_actions(action, 1), log_probs)[0]
        info: dict[str, Any] = self.task.final_info(episode) if episode.done else {}
        if episode.done and self.render_mode == HUMAN:
            self.render()
        return self._observation(), float(reward), episode.done, False, info

    def action_masks(self) -> NDArray[np.bool_]:
        """Which tokens may come next, shape (V,), as sb3-contrib's MaskablePPO asks for; see `llm_env.masks`."""
        return self.batch.action_masks()[0]

    def render(self) -> Any:
        """The text so far, each response token colored by its KL: a string, an (H, W, 3) uint8 array, or printed (human)."""
        if self.render_mode is None:
            gymnasium.logger.warn("render() needs a render_mode; make the environment with 'ansi' or 'rgb_array'.")
            return None
        if self.render_mode == HUMAN:
            sys.stdout.write(str(render_episode(self.task, self.batch.episodes[0], "ansi")))
            return None
        return render_episode(self.task, self.batch.episodes[0], self.render_mode)

    def close(self) -> None:
        """Parts with the world, if there is one; the models are shared by the process."""
        self.batch.close()

    def _observation(self) -> Observation:
        # Slot 0 of the batch: (1, max_length) -> (max_length,).
        return {name: values[0] for name, values in self.batch.observation().items()}
