"""A run's settings: what the command line and the YAML file may say, and their checks.

`RunSettings` is made of four groups. Each default, check and explanation stands once: the environment's in
`llm_env.settings.TaskSettings`, which `TaskOptions` extends by what only text can say, the others here.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Self

from agents.console import named_values
from agents.engines.engine import check_engine
from agents.flat_settings import flat_types
from agents.rules import ALARMS, ALGORITHM_RULES, OPTIMIZERS, WITH_A_CRITIC, check_arguments
from agents.runs.hub import check_repo
from llm_env.default_task import DEFAULT_GOLD
from llm_env.lm.names import check_base_quantization, check_choice
from llm_env.rules import FLAG, SEED, SLOTS, Each, Rule, check_settings, number, whole
from llm_env.settings import TaskSettings

BEST_BY = ("objective", "rm_score", "gold_score")
LR_SCHEDULES = ("linear", "constant")
CHANGEABLE = (
    "total_timesteps", "reward_timeout", "reward_wait", "judge_concurrency", "world_timeout", "world_errors", "report_to",
    "push_to_hub", "hub_private", "stop_on",
)  # fmt: skip
"""Settings that may differ when a run goes on: how long it is, how patient, what ends it, and where it tells of itself."""
TENSORBOARD = "tensorboard"
NO_REPORT = NO_ALARM = "none"
REPORTS = (TENSORBOARD, "wandb", "mlflow", "trackio", NO_REPORT)
EPISODES = ("synchronous", "continuous")
TRAINING_RULES: dict[str, Rule] = {
    "total_timesteps": whole(1),
    "n_envs": SLOTS,
    "rounds": whole(1),
    "ref_refresh_every": whole(0),
    "seed": SEED,
    "deterministic": FLAG,
}
FOLDER_RULES: dict[str, Rule] = {
    "checkpoint_every": whole(1),
    "sample_every": whole(1),
    "n_samples": whole(0),
    "eval_every": whole(0),
    "n_eval": whole(1),
    "hub_private": FLAG,
}


@dataclass(frozen=True)
class TaskOptions(TaskSettings):
    """The environment: models, prompts, sizes and the reward.

    The fields are `TaskSettings`'. Nothing is checked until `task_settings` makes one of these, because the command line may
    still replace a value that the YAML file has.

    Attributes:
        reward_model: Folder or hub id of a classifier with one label, package.module:function, the address of a server
            (docs/reward_server.md), verifier:NAME?option=value (docs/verifiers.md), or a language model that grades, llm:FOLDER
            or openai:URL#MODEL (docs/judges.md). Several are summed. Default: the embedded one, with the embedded model.
        reward_weights: One weight for each reward model.
        prompts: Prompts to train on: a .txt, .jsonl, .json, .csv or .parquet file, or a dataset id. Default: the embedded ones,
            with the embedded model. With a world, records that it is told of.
        world: What answers the policy's turns (docs/turns.md): a registered Gymnasium id, or package.module:factory.
        world_kwargs: Arguments of the world's factory, as name=value.
    """

    reward_model: tuple[str, ...] | None = None
    prompts: str | None = None
    reward_weights: tuple[float, ...] | None = None
    world: str | None = None
    world_kwargs: tuple[str, ...] | None = None  # type: ignore[assignment]  # a mapping as a command line writes it

    def __post_init__(self) -> None:
        """Checks nothing yet; see `task_settings`."""

    def task_arguments(self, prompts: Any) -> dict[str, Any]:
        """Gives the environment's keyword arguments.

        Args:
            prompts: What takes the place of the setting `prompts`: a file, a list of prompts, or None.
        """
        names = {f.name for f in dataclasses.fields(TaskSettings)} - {"reward_model", "prompts", "world_kwargs"}
        arguments = {name: getattr(self, name) for name in names}
        reward: Any = self.reward_model
        if reward is not None and self.reward_weights is not None:
            reward = [list(pair) for pair in zip(reward, self.reward_weights, strict=True)]
        elif reward is not None:
            reward = reward[0] if len(reward) == 1 else list(reward)
        world_kwargs = None if self.world_kwargs is None else named_values("world_kwargs", self.world_kwargs)
        return {**arguments, "reward_model": reward, "prompts": prompts, "world_kwargs": world_kwargs}

    def task_settings(self, prompts: Any) -> TaskSettings:
        """Makes the environment's settings, which checks them.

        Args:
            prompts: See `task_arguments`.

        Raises:
            ValueError: a setting breaks its rule.
        """
        if self.reward_model is not None and not self.reward_model:
            raise ValueError("reward_model names nothing: give at least one, or leave it out for the embedded one.")
        if self.reward_weights is not None:
            Each(number()).check("reward_weights", self.reward_weights)
        if self.reward_weights is not None and len(self.reward_weights) != len(self.reward_model or ()):
            raise ValueError(
                f"reward_weights has {len(self.reward_weights)} entries for {len(self.reward_model or ())} reward models."
            )
        return TaskSettings(**self.task_arguments(prompts))


@dataclass(frozen=True)
class AlgorithmSettings:
    """The algorithm, and what it and its policy take. What is left out is the algorithm's own default."""

    algo: str = "ppo"
    """Algorithm: ppo, a2c, trpo, maskable_ppo, recurrent_ppo, dqn, qr_dqn, ars, grpo, dr_grpo, rloo, remax or
    reinforce_pp. A setting that it does not have is refused."""
    learning_rate: float | None = None
    """Step size of AdamW at the start. Default: the algorithm's, less for a model that is wider than the embedded one, more
    with LoRA."""
    lr_schedule: str = "linear"
    """linear (to zero) or constant."""
    n_epochs: int | None = None
    """Passes over each rollout."""
    batch_size: int | None = None
    """Tokens in a mini-batch. Default: a quarter of a rollout."""
    gae_lambda: float | None = None
    """Lambda of generalized advantage estimation. Default of ppo: 0.9 with the critic reward_model, else 0.95."""
    clip_range: float | None = None
    """PPO's epsilon: how far an update may move the probability ratio from 1."""
    clip_range_vf: float | None = None
    """Values move at most this far from the old ones in an update (OpenAI's baselines; 0.2 in Ziegler et al. 2019)."""
    target_kl: float | None = None
    """Stop a rollout's updates when new and old policy are further apart than 1.5 times this (nats per token).
    Default: 0.1 / (kl_coef x max_new_tokens), so that an update's KL costs little; a large number switches it off."""
    ent_coef: float | None = None
    """Weight of the entropy bonus."""
    vf_coef: float | None = None
    """Weight of the value loss."""
    optimizer: str = "adamw"
    """adamw, or adamw_8bit: states of a quarter of the size (Dettmers et al. 2022); needs the extra quantized."""
    max_grad_norm: float | None = None
    """Gradients are scaled down to this norm."""
    advantages: str | None = None
    """For algorithms with a critic: gae, of each token, or turn_gae, of whole turns in a world."""
    critic: str | None = None
    """reward_model, actor, head, detached_head or top_layers. Default: the reward model if it fits."""
    critic_layers: int | None = None
    """With --critic top_layers: how many blocks are the critic's own, on the actor's lower ones. Default: 1."""
    critic_lr_scale: float | None = None
    """The critic's learning rate as a multiple of the actor's."""
    group_size: int | None = None
    """Responses to each prompt, for grpo, dr_grpo and rloo."""
    whiten_rewards: bool = False
    """Divide each rollout's token rewards by their standard deviation (Ziegler et al. 2019's code)."""
    mask_refresh: int | None = None
    """For maskable_ppo: take top-k and top-p from a copy of the actor, brought up to date every that many rollouts."""
    ptx_texts: str | None = None
    """Texts whose language-model loss is mixed into the update: PPO-ptx, InstructGPT eq. 2. A file with prompt and response,
    messages or text."""
    ptx_coef: float | None = None
    """Gamma, the weight of the loss on ptx_texts. Default: 1."""
    ptx_tokens: int | None = None
    """Tokens of ptx_texts with each mini-batch. Default: 1024."""
    lora_rank: int = 0
    """Rank of LoRA adapters; 0 trains all weights."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, a third more time."""
    micro_batch_tokens: int | None = None
    """Tokens of a mini-batch, prompts included, that are in memory at a time. Default: all, unless they do not fit."""
    planned: bool = True
    """Write turns ahead while collecting, instead of a token at each step of the environment: the same tokens, sooner."""
    engine: str | None = None
    """What writes those turns: transformers (its continuous batching) or vllm. Default: this project's own loop."""
    algo_kwargs: tuple[str, ...] = ()
    """Any other setting of the algorithm, as name=value: gradient_steps=32, clip_range_high=0.28, …"""

    def check(self) -> None:
        """Checks what can be checked without the algorithm's class.

        Raises:
            ValueError: a setting breaks its rule.
        """
        rules = {f.name: ALGORITHM_RULES[f.name] for f in dataclasses.fields(self) if f.name in ALGORITHM_RULES}
        check_settings(self, rules)
        check_arguments(named_values("algo_kwargs", self.algo_kwargs))
        check_choice("lr_schedule", self.lr_schedule, LR_SCHEDULES)
        check_engine(self.engine)
        check_choice("optimizer", self.optimizer, OPTIMIZERS)
        if self.advantages is not None:
            check_choice("advantages", self.advantages, WITH_A_CRITIC)
        if self.ptx_texts is None and (self.ptx_coef is not None or self.ptx_tokens is not None):
            raise ValueError("ptx_coef and ptx_tokens say how ptx_texts are mixed in: give ptx_texts too.")

    def arguments(self) -> dict[str, Any]:
        """Gives the algorithm's arguments that differ from the defaults here, without those of `algo_kwargs`."""
        elsewhere = ("algo", "lr_schedule", "algo_kwargs", "mask_refresh")  # the last one is a callback
        names = [f for f in dataclasses.fields(self) if f.name not in elsewhere]
        return {f.name: value for f in names if (value := getattr(self, f.name)) != f.default}


@dataclass(frozen=True)
class TrainingSettings:
    """How long and on how many episodes at a time a run trains, and how beta and the reference move."""

    total_timesteps: int = 102_400
    """Environment steps in all: slots x steps, idle ones included."""
    n_envs: int = 64
    """Slots: episodes that are generated side by side."""
    rounds: int = 1
    """Synchronous rounds in a rollout: a rollout is rounds x n_envs episodes."""
    episodes: str | None = None
    """synchronous (whole episodes in each rollout) or continuous (a slot that ends takes the next prompt at once).
    Default: synchronous where the algorithm learns from rollouts of text."""
    kl_coef_end: float | None = None
    """Beta at the run's end, which it approaches from kl_coef in a straight line. Default: it stays where it is."""
    kl_target: float | None = None
    """Adaptive beta (Ziegler et al. 2019): nats per response to hold; kl_coef is where it starts."""
    kl_gain: float = 0.1
    """How fast beta adapts to kl_target: the paper's K. Runs of some fifty rollouts need about 1."""
    ref_refresh_every: int = 0
    """Rollouts after which the reference follows the actor (DeepSeekMath, ProRL); 0: never."""
    ref_refresh_share: float = 1.0
    """How far the reference follows: 1 puts the actor in its place, less is a moving average (WARP)."""
    stop_on: tuple[str, ...] = ("gold",)
    """Alarms that end the run: gold (the gold score falls while the score rises), repetition, length, kl, gradient, or none."""
    seed: int = 0
    """Seed of prompts, sampling and new weights."""
    deterministic: bool = False
    """On a GPU, only operations that give the same bits each time: slower, and refused where there is none. A CPU's are."""

    def check(self) -> None:
        """Checks the numbers.

        Raises:
            ValueError: a setting breaks its rule.
        """
        rules = {name: ALGORITHM_RULES[name] for name in ("kl_coef_end", "kl_target", "kl_gain", "ref_refresh_share")}
        check_settings(self, {**TRAINING_RULES, **rules})
        for name in self.stop_on:
            check_choice("stop_on", name, (*ALARMS, NO_ALARM))
        if NO_ALARM in self.stop_on and len(self.stop_on) > 1:
            raise ValueError(f"stop_on={list(self.stop_on)}: none stands alone.")
        if self.kl_coef_end is not None and self.kl_target is not None:
            raise ValueError("kl_coef_end and kl_target both say how beta moves: give one of them.")
        if self.kl_target is None and self.kl_gain != TrainingSettings.kl_gain:
            raise ValueError(f"kl_gain={self.kl_gain} says how fast beta adapts to kl_target: give kl_target too.")
        if not self.ref_refresh_every and self.ref_refresh_share != TrainingSettings.ref_refresh_share:
            raise ValueError(
                f"ref_refresh_share={self.ref_refresh_share} says how far the reference follows every ref_refresh_every "
                "rollouts: give ref_refresh_every too."
            )
        if self.episodes is not None:
            check_choice("episodes", self.episodes, EPISODES)

    @property
    def alarms_that_stop(self) -> tuple[str, ...]:
        """The alarms of `stop_on`; none where it says so."""
        return tuple(name for name in self.stop_on if name != NO_ALARM)


@dataclass(frozen=True)
class FolderSettings:
    """What a run writes to its folder: samples, evaluations on held-out prompts, checkpoints."""

    eval_prompts: str | None = None
    """Prompts to evaluate on. Default: a tenth of the prompts, held out (at most 256)."""
    gold: str | None = None
    """package.module:function that is only logged, never trained on. Default: the embedded rule, with the embedded model."""
    checkpoint_every: int = 10
    """Iterations between checkpoints."""
    sample_every: int = 10
    """Iterations between samples on held-out prompts."""
    n_samples: int = 8
    """Held-out prompts whose responses are kept as samples; 0: none."""
    eval_every: int = 0
    """Iterations between evaluations on held-out prompts, the best of which is kept in RUN/best; 0: none."""
    n_eval: int = 64
    """Held-out prompts of each evaluation, at most."""
    best_by: str = "objective"
    """What the best evaluation is by: objective (score - kl_coef x KL to the first reference), rm_score, or gold_score."""
    report_to: tuple[str, ...] | None = None
    """Where the numbers go beside progress.csv: tensorboard, wandb, mlflow, trackio, or none. Default: tensorboard, where it
    is installed."""
    push_to_hub: str | None = None
    """Repository of the Hugging Face hub, owner/name, that the actor is uploaded to in the end. Default: nothing is."""
    hub_private: bool = True
    """Make that repository private, if it is not there yet."""

    def check(self) -> None:
        """Checks numbers and names.

        Raises:
            ValueError: a setting breaks its rule.
        """
        check_settings(self, FOLDER_RULES)
        check_choice("best_by", self.best_by, BEST_BY)
        for name in self.report_to or ():
            check_choice("report_to", name, REPORTS)
        if self.report_to and NO_REPORT in self.report_to and len(self.report_to) > 1:
            raise ValueError(f"report_to={list(self.report_to)}: none stands alone.")
        if self.push_to_hub is not None:
            check_repo(self.push_to_hub)


@dataclass(frozen=True)
class RunSettings:
    """Settings of one training run. Everything is a name, a path or a number.

    `agents.flat_settings` reads and writes them as one flat mapping: ``config.yaml`` of a run, and the YAML files of
    agents/configs.
    """

    task: TaskOptions = field(default_factory=TaskOptions)
    """The environment."""
    algorithm: AlgorithmSettings = field(default_factory=AlgorithmSettings)
    """The algorithm and its policy."""
    training: TrainingSettings = field(default_factory=TrainingSettings)
    """Length of the run and size of its rollouts."""
    folder: FolderSettings = field(default_factory=FolderSettings)
    """What is evaluated and written."""

    def checked(self) -> Self:
        """Gives these settings, after checking what can be checked before anything is loaded.

        Raises:
            ValueError: a setting breaks its rule.
        """
        for group in (self.training, self.algorithm, self.folder):
            group.check()
        self.task.task_settings(self.task.prompts)
        if self.folder.best_by == "gold_score" and self.gold_name is None:
            raise ValueError("best_by='gold_score' needs a gold score: give gold.")
        base = self.task.base_quantization
        check_base_quantization(base, self.algorithm.lora_rank)
        if base != "none" and self.training.ref_refresh_every:
            raise ValueError(
                f"ref_refresh_every={self.training.ref_refresh_every} cannot be used with base_quantization={base!r}: weights "
                "in 4 bits cannot move. Leave one of them out."
            )
        rollout = self.training.n_envs * self.training.rounds * self.task.round_steps
        if self.training.episodes != "continuous" and self.training.total_timesteps < rollout:
            raise ValueError(
                f"total_timesteps={self.training.total_timesteps} is less than one rollout: "
                f"n_envs x rounds x max_new_tokens{' (and the lag of its world)' * bool(self.task.world_lag)} = {rollout}."
            )
        return self

    def algorithm_arguments(self) -> dict[str, Any]:
        """Gives what was set of the algorithm's and its policy's own arguments.

        Raises:
            ValueError: an entry of `algo_kwargs` is not name=value, or repeats another setting.
        """
        arguments = self.algorithm.arguments()
        if self.task.mixed_precision != "no":  # said here too, so that an algorithm that does not have it refuses it
            arguments["mixed_precision"] = self.task.mixed_precision
        if self.task.offload:
            arguments["offload"] = True
        if self.task.base_quantization != "none":
            arguments["base_quantization"] = self.task.base_quantization
        for name, value in named_values("algo_kwargs", self.algorithm.algo_kwargs).items():
            if name in flat_types(type(self)):
                raise ValueError(f"algo_kwargs: {name} has a setting of its own; use --{name.replace('_', '-')}.")
            arguments[name] = value
        return arguments

    @property
    def keeps_best_gold(self) -> bool:
        """Whether a fall of the gold score ends the run, which then goes back to the weights of before."""
        return self.gold_name is not None and "gold" in self.training.alarms_that_stop

    @property
    def gold_name(self) -> str | None:
        """The name of the gold function: what `gold` says, or the embedded rule where model and reward are embedded too."""
        embedded = (self.task.model, self.task.reward_model, self.task.world) == (None, None, None)
        if self.folder.gold is None and embedded:
            return DEFAULT_GOLD
        return self.folder.gold
