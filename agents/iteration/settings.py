"""Settings of rounds of generating, ranking and training."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from agents.console import named_values
from agents.preferences.selection import check_pairs
from agents.preferences.settings import CORRECTIONS, CollectionSettings
from agents.runs.settings import TRAINING_RULES, TrainingSettings
from agents.supervised.preference.methods import METHODS
from agents.supervised.settings import UpdateSettings
from llm_env.lm.names import check_choice
from llm_env.rules import SEED, SHARE, Rule, check_settings, number, whole
from llm_env.settings import TaskSettings

REJECTION_SAMPLING = "rejection_sampling"
PEOPLE = "people"
SELECTIONS = ("lost", "margin", "disputed")
REFERENCES = ("first", "previous")
SFT = "sft"
"""In a schedule, the arena's name of `REJECTION_SAMPLING`: fine-tuning on the winners' answers."""
STAGE_SETTINGS = ("learning_rate", "beta", "epochs", "pairs", "total_timesteps", "n_envs", "reference")
"""Settings that the methods of a schedule may have of their own; what is none of them is one of `method_kwargs`."""
ITERATION_RULES: dict[str, Rule] = {
    "rounds": whole(1),
    "prompts_per_round": whole(1),
    "select_share": SHARE,
    "keep_rounds": whole(0),
    "learning_rate": number(least=0),
    "beta": number(least=0),
    "checkpoints": whole(1),
    "n_eval": whole(1),
    "evaluate_every": whole(1),
}


@dataclass(frozen=True, kw_only=True)
class IterationSettings(CollectionSettings, UpdateSettings):
    """Settings of `iterate`. How responses are collected and how a training updates are settings of those stages too."""

    method: str = "dpo"
    """A loss of train_preference.py (dpo, dpop, tdpo1, tdpo2, ipo, kto, orpo, simpo, …), rejection_sampling (fine-tune on the
    best of each prompt: RAFT, Llama 2), or an algorithm of train.py (ppo, grpo, rloo, …)."""
    schedule: tuple[str, ...] = ()
    """A method for each round, from the first again when all were used: sft dpo ppo, with --opponent, is the schedule of Arena
    Learning: SFT on the winners' answers where the actor lost, DPO on lost pairs, a reward model on them and PPO with it.
    Default: --method in all rounds."""
    schedule_kwargs: tuple[str, ...] = ()
    """Settings of the methods of the schedule, as METHOD.NAME=VALUE: learning_rate, beta, epochs, pairs, total_timesteps,
    n_envs, reference, or what --method-kwargs takes: dpo.beta=0.05 ppo.total_timesteps=40960 ppo.n_epochs=2."""
    rounds: int = 3
    """Number of rounds in all. The same command with a larger number adds rounds later."""
    judge: tuple[str, ...] = ()
    """Who ranks: a reward model's folder, gold (the embedded default's rule), package.module:function, a reward server's
    address, a language model (llm:FOLDER, openai:URL#MODEL), or people (a page in the browser); several rank one after the
    other. Default: the embedded reward model."""
    first_preferences: str | None = None
    """File of rankings or pairs that exist already. The first round trains on them too."""
    eval_prompts: str | None = None
    """Prompts to evaluate on. Default: with the embedded prompts theirs, else a tenth of the prompts, held out."""
    prompts_per_round: int | None = None
    """Number of prompts of each round; a prompt comes again when all were used. Default: all."""
    temperature: float = TaskSettings.temperature
    """Sampling temperature."""
    opponent: tuple[str, ...] = ()
    """Other models, which respond to the same prompts in turn with the actor: folders, hub ids, checkpoints of runs, or
    best_of:N:MODEL?by=REWARD_MODEL (best_of:N samples from the first actor). With --select lost, the arena: learn where the
    actor loses. With an algorithm of train.py, a reward model is trained on the rankings. arena.md tells the strengths."""
    pairs: str = "best_worst"
    """Which pairs of a ranking are trained on: best_worst, or all."""
    select: tuple[str, ...] = ()
    """What to train on, one after the other: lost (prompts where the opponent stands above all the actor's responses), disputed
    (prompts on which the judges agree least, first), margin (pairs that lie furthest apart, first)."""
    select_share: float = 0.5
    """Share of the prompts or pairs that --select disputed and margin keep."""
    keep_rounds: int = 0
    """Number of earlier rounds whose pairs or texts a round trains on again."""
    reference: str | None = None
    """The reference of each round: first (the model that the rounds began with: one objective throughout) or previous (the
    actor that the round starts from). Default: first; algorithms of train.py and schedules have previous."""
    learning_rate: float | None = None
    """Step size. Default: for pairs 3e-4, for rejection_sampling 1e-3, else the algorithm's own, all for all weights of the
    embedded model; less for a wider one, ten times that for LoRA."""
    beta: float | None = None
    """The loss's beta; for algorithms of train.py kl_coef. Default: the method's."""
    method_kwargs: tuple[str, ...] = ()
    """Other settings of the method, as name=value: those of train_preference.py (dpop_lambda=5 sft_coef=0.1 …) and of TRL's
    trainer, or those of the algorithm (n_epochs=2 …)."""
    total_timesteps: int = 20_480
    """For algorithms of train.py: environment steps of a round."""
    n_envs: int = TrainingSettings.n_envs
    """For algorithms of train.py: slots, which are the episodes that are generated side by side."""
    checkpoints: int = 2
    """Number of checkpoints of a round's training on pairs or texts, from which it goes on after an interruption."""
    gold: str | None = None
    """package.module:function that nobody trains on, for the evaluation. Default: with the embedded model, its rule."""
    reward_model: str | None = None
    """Reward model that scores the evaluation. Default: the first judge, or the embedded reward model."""
    n_eval: int = 180
    """Number of held-out prompts of each evaluation, at most."""
    evaluate_every: int = 1
    """Number of rounds between evaluations; the last round is always evaluated."""

    @property
    def is_algorithm(self) -> bool:
        """Whether the method is an algorithm of `agents.algorithms.table`, which generates for itself."""
        from agents.algorithms.table import ALGORITHMS  # imports torch

        return self.method in ALGORITHMS

    @property
    def trains_reward_model(self) -> bool:
        """Whether an algorithm's reward model is trained on the rounds' rankings, by people or against opponents."""
        return self.is_algorithm and (PEOPLE in self.judge or bool(self.opponent))

    def of_round(self, number: int) -> IterationSettings:
        """The settings of one round: with a schedule, those of its method.

        Args:
            number: The round, from 1.

        Raises:
            ValueError: `schedule_kwargs` are not of their form.
        """
        if not self.schedule:
            return self
        name = self.schedule[(number - 1) % len(self.schedule)]
        values = self._schedule_values().get(name, {})
        own = {k: v for k, v in values.items() if k in STAGE_SETTINGS}
        method = REJECTION_SAMPLING if name == SFT else name
        stage = dataclasses.replace(self, schedule=(), schedule_kwargs=(), method=method)
        select = self.select or (("lost",) if self.opponent else ())
        if method == REJECTION_SAMPLING or stage.is_algorithm:  # they train on texts and rankings, not on pairs
            select = tuple(s for s in select if s != "margin")
        arguments = tuple(f"{k}={v}" for k, v in values.items() if k not in own)
        reference = self.reference or "previous"
        return dataclasses.replace(
            stage, **{"select": select, "method_kwargs": arguments, "reference": reference, **own}
        )

    def _schedule_values(self) -> dict[str, dict[str, Any]]:
        """`schedule_kwargs` by method and name.

        Raises:
            ValueError: one is not of its form, or its method is not in the schedule.
        """
        values: dict[str, dict[str, Any]] = {}
        for name, value in named_values("schedule_kwargs", self.schedule_kwargs).items():
            method, dot, setting = name.partition(".")
            if not dot or not setting or method not in self.schedule:
                raise ValueError(
                    f"schedule_kwargs: {name!r} must be METHOD.NAME, with a method of the schedule: "
                    f"{', '.join(self.schedule)}."
                )
            values.setdefault(method, {})[setting] = value
        return values

    @property
    def reference_name(self) -> str:
        """The reference of each round: ``first`` or ``previous``."""
        return self.reference or ("previous" if self.is_algorithm else "first")

    def task_settings(self, **arguments: Any) -> TaskSettings:
        """Gives the environment's settings for sampling and evaluation, which checks them.

        Args:
            arguments: Settings to add or to replace, as model and prompts.

        Raises:
            ValueError: a setting breaks its rule.
        """
        grading = {"judge_prompt": self.grading.prompt, "judge_concurrency": self.judge_concurrency}
        names = (
            "max_prompt_length", "max_new_tokens", "temperature", "reward_timeout", "reward_wait", "mixed_precision", "device",
            "trust_remote_code", "special_tokens_in_text",
        )  # fmt: skip
        return TaskSettings(**{**{name: getattr(self, name) for name in names}, **grading, **arguments})

    def check(self) -> None:
        """Checks what can be checked before anything is loaded.

        Raises:
            ValueError: a setting breaks its rule.
        """
        self._check_schedule()
        self.check_collection()
        self.check_judge_prompt(self.judge)
        self.check_page_is_used(PEOPLE in self.judge)
        self.check_updates()
        check_settings(self, ITERATION_RULES)
        SEED.check("seed + rounds", self.seed + self.rounds)  # each round has a seed of its own
        self.task_settings()
        TrainingSettings(total_timesteps=self.total_timesteps, n_envs=self.n_envs).check()
        self._check_selection()

    def _check_schedule(self) -> None:
        """Checks the method, or each method of the schedule, and what cannot go with it."""
        if not self.schedule:
            if self.schedule_kwargs:
                raise ValueError("schedule_kwargs are settings of the methods of a schedule: give --schedule.")
            self._check_method()
            return
        for name, default in (("learning_rate", None), ("beta", None), ("method_kwargs", ()), ("keep_rounds", 0)):
            if (value := getattr(self, name)) != default:
                raise ValueError(
                    f"{name}={value!r} is a setting of one method; with a schedule give schedule_kwargs, METHOD.{name}=…"
                    if name != "keep_rounds"
                    else f"keep_rounds={value!r}: a schedule's rounds train on different kinds of data; leave it out."
                )
        for place in range(len(self.schedule)):
            stage = self.of_round(place + 1)
            stage._check_method()
            check_settings(stage, ITERATION_RULES)
            check_settings(stage, {name: TRAINING_RULES[name] for name in ("total_timesteps", "n_envs")})
            stage.check_updates()
            check_pairs(stage.pairs)

    def _check_method(self) -> None:
        """Checks the method, and what cannot go with it."""
        from agents.algorithms.table import ALGORITHMS  # imports torch

        methods = [*METHODS, REJECTION_SAMPLING, *ALGORITHMS]
        if self.method not in methods:
            raise ValueError(f"method={self.method!r} is not known; use one of {', '.join(methods)}.")
        if self.reference is not None:
            check_choice("reference", self.reference, REFERENCES)
        if named_values("method_kwargs", self.method_kwargs) and self.method == REJECTION_SAMPLING:
            raise ValueError("method_kwargs: rejection_sampling has no other settings.")
        if not self.is_algorithm:
            check_settings(self, {"learning_rate": number(above=0), "beta": number(above=0)})
            return
        if not ALGORITHMS[self.method].trains_language_model:
            raise ValueError(f"method={self.method!r} trains no language model further; it cannot be iterated.")
        if self.reference == "first":
            raise ValueError(f"reference='first': {self.method} starts at its reference; leave it out.")
        if self.first_preferences or self.corrector or self.page == CORRECTIONS:
            raise ValueError(
                "first_preferences, corrector and page corrections are about preferences; "
                f"{self.method} generates for itself."
            )
        if self.select and not self.trains_reward_model:
            raise ValueError(
                f"select is about preferences; {self.method} generates for itself. With --opponent a reward model is trained "
                "on what is selected."
            )
        if "margin" in self.select:
            raise ValueError(f"select margin: {self.method}'s reward model is trained on rankings, not on pairs.")
        if len(self.judge) > 1 and not self.trains_reward_model:
            raise ValueError(f"{self.method} takes one judge; got {', '.join(self.judge)}.")

    def _check_selection(self) -> None:
        """Checks the settings that choose what to train on."""
        check_pairs(self.pairs)
        for name in self.select:
            if name not in SELECTIONS:
                raise ValueError(f"select: {name!r} is not known; use {', '.join(SELECTIONS)}.")
        if "lost" in self.select and not self.opponent:
            raise ValueError("select lost: prompts are lost against somebody; give --opponent.")
        if "disputed" in self.select and len(self.judge) < 2 and PEOPLE not in self.judge:
            raise ValueError("select disputed: a single judge disagrees with nobody; give several: --judge A B.")
        if "margin" in self.select and self.method == REJECTION_SAMPLING:
            raise ValueError("select margin: rejection_sampling trains on texts, not on pairs.")
