"""Settings of rounds of generating, ranking and training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from agents.console import named_values
from agents.preferences.selection import check_pairs
from agents.preferences.settings import CORRECTIONS, CollectionSettings
from agents.runs.settings import TrainingSettings
from agents.supervised.preference.methods import METHODS
from agents.supervised.settings import UpdateSettings
from llm_env.lm.names import check_choice
from llm_env.rules import SEED, SHARE, Rule, check_settings, number, whole
from llm_env.settings import TaskSettings

REJECTION_SAMPLING = "rejection_sampling"
PEOPLE = "people"
SELECTIONS = ("lost", "margin", "disputed")
REFERENCES = ("first", "previous")
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
    opponent: str | None = None
    """A stronger model: half the responses are its. With --select lost, the arena: learn where the actor loses."""
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
    actor that the round starts from). Default: first; algorithms of train.py have previous."""
    learning_rate: float | None = None
    """Step size. Default: 3e-4 for pairs, 1e-3 for rejection_sampling, the algorithm's own else; all for the tiny model."""
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
        self._check_method()
        self.check_collection()
        self.check_judge_prompt(self.judge)
        self.check_page_is_used(PEOPLE in self.judge)
        self.check_updates()
        check_settings(self, ITERATION_RULES)
        SEED.check("seed + rounds", self.seed + self.rounds)  # each round has a seed of its own
        self.task_settings()
        TrainingSettings(total_timesteps=self.total_timesteps, n_envs=self.n_envs).check()
        self._check_selection()

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
        if self.select or self.opponent or self.first_preferences or self.corrector or self.page == CORRECTIONS:
            raise ValueError(
                "select, opponent, first_preferences, corrector and page corrections are about preferences; "
                f"{self.method} generates for itself."
            )
        if len(self.judge) > 1:
            raise ValueError(f"{self.method} takes one judge; got {', '.join(self.judge)}.")

    def _check_selection(self) -> None:
        """Checks the settings that choose what to train on."""
        check_pairs(self.pairs)
        for name in self.select:
            if name not in SELECTIONS:
                raise ValueError(f"select: {name!r} is not known; use {', '.join(SELECTIONS)}.")
        if "lost" in self.select and self.opponent is None:
            raise ValueError("select lost: prompts are lost against somebody; give --opponent.")
        if "disputed" in self.select and len(self.judge) < 2 and PEOPLE not in self.judge:
            raise ValueError("select disputed: a single judge disagrees with nobody; give several: --judge A B.")
        if "margin" in self.select and self.method == REJECTION_SAMPLING:
            raise ValueError("select margin: rejection_sampling trains on texts, not on pairs.")
