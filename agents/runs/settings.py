"""A run's settings: what the command line and the YAML file may say, and their checks."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import yaml

from agents.console import named_values
from llm_env.settings import TaskSettings

ALGORITHM_FIELDS = (
    *("learning_rate", "n_epochs", "batch_size", "gae_lambda", "clip_range", "vf_coef", "ent_coef", "max_grad_norm"),
    *("clip_range_vf", "critic_lr_scale", "kl_in", "whiten_rewards", "ptx_texts", "ptx_coef", "ptx_tokens"),
    *("target_kl", "critic", "group_size", "mask_refresh", "lora_rank", "mixed_precision", "gradient_checkpointing"),
    "micro_batch_tokens",
)


BEST_BY = ("objective", "rm_score")


@dataclass(frozen=True)
class RunSettings:
    """Settings of one training run. Everything is a name, a path or a number."""

    algo: str = "ppo"
    """Algorithm: ppo, a2c, trpo, maskable_ppo, recurrent_ppo, dqn, qr_dqn, ars, grpo, dr_grpo, rloo, remax or
    reinforce_pp. Settings below that it does not have are refused; those that are left out are the algorithm's own."""
    model: str | None = None
    """Actor, reference and tokenizer: model folder or hub id. Default: the embedded tiny model."""
    reward_model: tuple[str, ...] | None = None
    """Folder or hub id of a one-label classifier, or package.module:function; several are summed."""
    reward_weights: tuple[float, ...] | None = None
    """One weight for each reward model."""
    prompts: str | None = None
    """Prompts to train on: a .txt, .jsonl, .csv or .parquet file, or a dataset id."""
    eval_prompts: str | None = None
    """Prompts to evaluate on. Default: a tenth of the prompts, held out (at most 256)."""
    gold: str | None = None
    """package.module:function that is only logged, never trained on."""
    total_timesteps: int = 102_400
    """Environment steps in all: slots x steps, idle ones included."""
    n_envs: int = 64
    """Slots: episodes that are generated side by side."""
    rounds: int = 1
    """Synchronous rounds in a rollout: a rollout is rounds x n_envs episodes."""
    episodes: str | None = None
    """synchronous (whole episodes in each rollout) or continuous (a slot that ends takes the next prompt at once).
    Default: synchronous where the algorithm learns from rollouts of text."""
    group_size: int | None = None
    """Responses to each prompt, for grpo, dr_grpo and rloo."""
    max_prompt_length: int = 64
    """Tokens; longer prompts are cut on the left."""
    max_new_tokens: int = 32
    """Length cap of a response, in tokens."""
    temperature: float = 1.0
    """Sampling temperature; part of the policy, in the KL too."""
    kl_coef: float = 0.05
    """Beta: price of one nat of KL to the reference, in score."""
    kl_estimator: str = "k1"
    """KL of a token: k1, k2, k3 (Schulman 2020), or exact, of the two whole distributions (Amini et al. 2025)."""
    kl_in: str | None = None
    """Where the KL penalty is: reward (InstructGPT, the default), loss (as GRPO's), or both (for exact: the two halves of its
    gradient)."""
    kl_target: float | None = None
    """Adaptive beta (Ziegler et al. 2019): nats per response to hold; kl_coef is where it starts."""
    kl_gain: float = 0.1
    """How fast beta adapts: the paper's K. Runs of some fifty rollouts need about 1."""
    ref_refresh_every: int = 0
    """Rollouts after which the reference follows the actor (DeepSeekMath, ProRL); 0: never."""
    ref_refresh_share: float = 1.0
    """How far it follows: 1 takes the actor's place, less is a moving average (WARP)."""
    reward_shift: float = 0.0
    """Added to the reward model's score (Stiennon et al. 2020) …"""
    reward_scale: float = 1.0
    """… which is then multiplied with this (Ziegler et al. 2019) …"""
    reward_clip: float | None = None
    """… and held within plus and minus this."""
    whiten_rewards: bool | None = None
    """Divide each rollout's token rewards by their standard deviation (Ziegler et al. 2019's code)."""
    length_penalty: float = 0.0
    """Taken off the score for each token of a response."""
    missing_eos_penalty: float = 0.0
    """Taken off the score of a response without an end token."""
    overlong_buffer: int = 0
    """Tokens before the cap within which a response pays for its length (DAPO)."""
    overlong_penalty: float = 0.0
    """Price of a response at the cap, in score."""
    top_k: int = 0
    """For maskable_ppo: choose from the k likeliest tokens of the reference; 0: any."""
    top_p: float = 1.0
    """For maskable_ppo: choose from the fewest likeliest tokens that hold this probability."""
    min_new_tokens: int = 0
    """For maskable_ppo: no end token before that many others."""
    forbidden_tokens: tuple[str, ...] | None = None
    """For maskable_ppo: texts of one token that are never chosen."""
    allowed_tokens: tuple[str, ...] | None = None
    """For maskable_ppo: only these, and the end tokens."""
    allowed_pattern: str | None = None
    """For maskable_ppo: only tokens whose text matches this regular expression, and the end tokens."""
    mask_refresh: int | None = None
    """For maskable_ppo: take top-k and top-p from a copy of the actor, brought up to date every that many rollouts."""
    algo_kwargs: tuple[str, ...] = ()
    """Any other setting of the algorithm, as name=value: gradient_steps=32, clip_range_high=0.28, …"""
    learning_rate: float | None = None
    """Step size of AdamW at the start."""
    lr_schedule: str = "linear"
    """linear (to zero) or constant."""
    n_epochs: int | None = None
    """Passes over each rollout."""
    batch_size: int | None = None
    """Tokens in a mini-batch. Default: a quarter of a rollout."""
    gae_lambda: float | None = None
    """Lambda of generalised advantage estimation."""
    clip_range: float | None = None
    """PPO's epsilon."""
    clip_range_vf: float | None = None
    """Values move at most this far from the old ones in an update (OpenAI's baselines; 0.2 in Ziegler et al. 2019)."""
    critic_lr_scale: float | None = None
    """The critic's learning rate as a multiple of the actor's."""
    vf_coef: float | None = None
    """Weight of the value loss."""
    ent_coef: float | None = None
    """Weight of the entropy bonus."""
    max_grad_norm: float | None = None
    """Gradients are scaled down to this norm."""
    target_kl: float | None = None
    """Stop a rollout's updates when new and old policy are further apart than 1.5 times this (nats per token)."""
    critic: str | None = None
    """reward_model, actor, head or detached_head. Default: the reward model if it fits."""
    ptx_texts: str | None = None
    """Texts whose language-model loss is mixed into the update: PPO-ptx, InstructGPT eq. 2. A file with prompt and response,
    messages or text."""
    ptx_coef: float | None = None
    """Its weight, gamma. Default: 1."""
    ptx_tokens: int | None = None
    """Tokens of these texts with each mini-batch. Default: 1024."""
    lora_rank: int = 0
    """Rank of LoRA adapters; 0 trains all weights."""
    mixed_precision: str = "no"
    """no or bf16 (arithmetic of actor, critic, reference and reward model; decoding with a bf16 copy)."""
    gradient_checkpointing: bool = False
    """Less memory, a third more time."""
    micro_batch_tokens: int | None = None
    """Tokens of a mini-batch, prompts included, that are in memory at a time. Default: all, unless they do not fit."""
    dtype: str = "float32"
    """Weights of the frozen models: float32, bfloat16 or float16."""
    device: str = "auto"
    """auto, cpu, cuda."""
    trust_remote_code: bool = False
    """Let model code from a hub run."""
    seed: int = 0
    """Seed of prompts, sampling and new weights."""
    checkpoint_every: int = 10
    """Iterations between checkpoints."""
    sample_every: int = 10
    """Iterations between samples on held-out prompts."""
    n_samples: int = 8
    """Prompts that are sampled."""
    eval_every: int = 0
    """Iterations between evaluations on held-out prompts, the best of which is kept in RUN/best; 0: none."""
    n_eval: int = 64
    """Held-out prompts for it, at most."""
    best_by: str = "objective"
    """What the best is by: objective (score - kl_coef x KL to the first reference), or rm_score."""

    def checked(self) -> Self:
        """These settings, after checking what can be checked before anything is loaded.

        Raises:
            ValueError: a setting breaks its rule.
        """
        for name in (
            "total_timesteps",
            "n_envs",
            "rounds",
            "n_epochs",
            "checkpoint_every",
            "sample_every",
            "group_size",
            "n_eval",
            "ptx_tokens",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1.")
        for name in ("eval_every", "ref_refresh_every"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 0.")
        if self.kl_target is not None and self.kl_coef <= 0:
            raise ValueError("kl_target needs a kl_coef above 0 to start from: it is multiplied.")
        if self.best_by not in BEST_BY:
            raise ValueError(f"best_by={self.best_by!r} is not known; use one of {', '.join(BEST_BY)}.")
        if self.ptx_texts is None and (self.ptx_coef is not None or self.ptx_tokens is not None):
            raise ValueError("ptx_coef and ptx_tokens say how ptx_texts are mixed in: give ptx_texts too.")
        if self.n_samples < 0:
            raise ValueError(f"n_samples={self.n_samples} must be at least 0.")
        if self.learning_rate is not None and (not math.isfinite(self.learning_rate) or self.learning_rate < 0):
            raise ValueError(f"learning_rate={self.learning_rate} must be a finite number, at least 0.")
        if self.lr_schedule not in ("linear", "constant"):
            raise ValueError(f"lr_schedule={self.lr_schedule!r} is not known; use 'linear' or 'constant'.")
        if self.reward_weights is not None and len(self.reward_weights) != len(self.reward_model or ()):
            raise ValueError(
                f"reward_weights has {len(self.reward_weights)} entries for {len(self.reward_model or ())} reward models."
            )
        if self.episodes != "continuous" and self.total_timesteps < self.n_envs * self.rounds * self.max_new_tokens:
            least = self.n_envs * self.rounds * self.max_new_tokens
            raise ValueError(
                f"total_timesteps={self.total_timesteps} is less than one rollout: n_envs x rounds x max_new_tokens = {least}."
            )
        TaskSettings(**self.task_arguments(prompts=self.prompts))
        return self

    def algorithm_arguments(self) -> dict[str, Any]:
        """What was set of the algorithm's own settings.

        Raises:
            ValueError: an entry of `algo_kwargs` is not name=value, or says again what another setting says.
        """
        left_out = {"lora_rank": 0, "mixed_precision": "no", "gradient_checkpointing": False}
        given = {name: getattr(self, name) for name in ALGORITHM_FIELDS}
        arguments = {n: v for n, v in given.items() if v is not None and (n not in left_out or v != left_out[n])}
        for name, value in named_values("algo_kwargs", self.algo_kwargs).items():
            if name in ALGORITHM_FIELDS:
                raise ValueError(f"algo_kwargs: {name} has a setting of its own; use --{name.replace('_', '-')}.")
            arguments[name] = value
        return arguments

    def task_arguments(self, prompts: Any) -> dict[str, Any]:
        """The environment's keyword arguments, with the prompts given."""
        names = {f.name for f in dataclasses.fields(TaskSettings)} - {"reward_model", "prompts"}
        arguments = {name: getattr(self, name) for name in names}
        reward: Any = self.reward_model
        if reward is not None and self.reward_weights is not None:
            reward = [list(pair) for pair in zip(reward, self.reward_weights, strict=True)]
        elif reward is not None and len(reward) == 1:
            reward = reward[0]
        return {**arguments, "reward_model": list(reward) if isinstance(reward, tuple) else reward, "prompts": prompts}

    @classmethod
    def read(cls, path: Path) -> RunSettings:
        """Reads a YAML file of plain values; what it leaves out keeps its default.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is no mapping, or has a key that is not a setting.
        """
        if not path.is_file():
            raise FileNotFoundError(f"config={str(path)!r}: there is no such file.")
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            where = f", line {mark.line + 1}" if mark else ""
            raise ValueError(f"{path}{where}: not valid YAML.") from error
        if not isinstance(values, dict):
            raise ValueError(f"{path}: must be a mapping of settings to values.")
        return cls.of(values, str(path))

    @classmethod
    def of(cls, values: Mapping[str, Any], where: str) -> RunSettings:
        """From a mapping.

        Raises:
            ValueError: a key is not a setting, or a value has the wrong type; `where` is named.
        """
        fields = {f.name: f for f in dataclasses.fields(cls)}
        known = dict(values)
        for name, value in known.items():
            if name not in fields:
                near = difflib.get_close_matches(str(name), fields, 1)
                hint = f" Did you mean {near[0]!r}?" if near else ""
                raise ValueError(f"{where}: {name!r} is not a setting.{hint}")
            kind = str(fields[name].type)
            if "tuple" in kind and value is not None:
                known[name] = (value,) if isinstance(value, str | int | float) else tuple(value)
            elif kind.startswith("float") and isinstance(value, int | str) and not isinstance(value, bool):
                try:
                    known[name] = float(value)  # YAML reads 3e-4 as a text
                except ValueError:
                    raise ValueError(f"{where}: {name}={value!r} must be a number.") from None
            elif (
                kind.startswith("int") and (isinstance(value, bool) or not isinstance(value, int)) and value is not None
            ):
                raise ValueError(f"{where}: {name}={value!r} must be a whole number.")
            elif kind.startswith("bool") and not isinstance(value, bool) and value is not None:
                raise ValueError(f"{where}: {name}={value!r} must be true or false.")
            elif kind.startswith("str") and not isinstance(value, str) and value is not None:
                raise ValueError(f"{where}: {name}={value!r} must be a text.")
        return cls(**known)

    def write(self, path: Path) -> None:
        """Writes all settings as YAML."""
        values = {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}
        path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
