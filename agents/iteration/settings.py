"""Settings of rounds of generating, ranking and training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agents.algorithms.table import ALGORITHMS
from agents.console import named_values
from agents.preferences.selection import PAIRS
from agents.runs.settings import TrainingSettings, check_at_least
from agents.supervised.preference.methods import METHODS
from llm_env.settings import TaskSettings

REJECTION_SAMPLING = "rejection_sampling"
PEOPLE = "people"
SELECTIONS = ("lost", "margin", "disputed")
REFERENCES = ("first", "previous")


@dataclass(frozen=True, kw_only=True)
class IterationSettings:
    """Settings of `iterate`. A default that the environment or a training run has too is taken from there."""

    output_dir: Path
    """Folder to write to. The same command goes on with the rounds in it."""
    model: str | None = None
    """The model that the first round starts from: folder or hub id. Default: the embedded tiny actor."""
    method: str = "dpo"
    """A loss of train_preference.py (dpo, dpop, tdpo1, tdpo2, ipo, kto, orpo, simpo, …), rejection_sampling (fine-tune on the
    best of each prompt: RAFT, Llama 2), or an algorithm of train.py (ppo, grpo, rloo, …)."""
    rounds: int = 3
    """Number of rounds in all. The same command with a larger number adds rounds later."""
    judge: tuple[str, ...] = ()
    """Who ranks: a reward model's folder, gold (the embedded default's rule), package.module:function, or people (a page in the
    browser); several rank one after the other. Default: the embedded reward model."""
    noise: float = 0.0
    """Temperature of the judges: 0 ranks by score; 1 makes Bradley-Terry annotators."""
    first_preferences: str | None = None
    """File of rankings or pairs that exist already. The first round trains on them too."""
    prompts: str | None = None
    """Prompts to respond to: a .txt, .jsonl, .csv or .parquet file, or a dataset id. Default: the embedded ones."""
    eval_prompts: str | None = None
    """Prompts to evaluate on. Default: with the embedded prompts theirs, else a tenth of the prompts, held out."""
    prompts_per_round: int | None = None
    """Number of prompts of each round; a prompt comes again when all were used. Default: all."""
    n_responses: int = 4
    """Number of responses to each prompt, at least 2."""
    temperature: float = TaskSettings.temperature
    """Sampling temperature."""
    max_prompt_length: int = TaskSettings.max_prompt_length
    """Length cap of a prompt, in tokens; longer prompts are cut on the left."""
    max_new_tokens: int = TaskSettings.max_new_tokens
    """Length cap of a response, in tokens."""
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
    epochs: float = 1.0
    """Passes over a round's pairs or texts."""
    learning_rate: float | None = None
    """Step size. Default: 3e-4 for pairs, 1e-3 for rejection_sampling, the algorithm's own else; all for the tiny model."""
    lr_schedule: str = "cosine"
    """cosine, linear or constant, within a round. For many short rounds take constant."""
    batch_size: int = 32
    """Number of pairs or texts in an update."""
    micro_batch_size: int | None = None
    """Number of pairs or texts in memory at a time; it must divide batch_size. Default: batch_size."""
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
    lora_rank: int = 0
    """Rank of LoRA adapters, merged after each round; 0 trains all weights."""
    mixed_precision: str = TaskSettings.mixed_precision
    """Arithmetic of the training: no (float32) or bf16."""
    gold: str | None = None
    """package.module:function that nobody trains on, for the evaluation. Default: with the embedded model, its rule."""
    reward_model: str | None = None
    """Reward model that scores the evaluation. Default: the first judge, or the embedded reward model."""
    n_eval: int = 180
    """Number of held-out prompts of each evaluation, at most."""
    evaluate_every: int = 1
    """Number of rounds between evaluations; the last round is always evaluated."""
    host: str = "127.0.0.1"
    """Address of the page on which people rank."""
    port: int = 7860
    """Port of the page on which people rank."""
    device: str = TaskSettings.device
    """Where models run: auto, cpu or cuda."""
    trust_remote_code: bool = TaskSettings.trust_remote_code
    """Let model code from a hub run."""
    seed: int = TrainingSettings.seed
    """Seed of prompts, sampling, judges and training; each round derives its own from it."""

    @property
    def is_algorithm(self) -> bool:
        """Whether the method is an algorithm of `agents.algorithms.table`, which generates for itself."""
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
        names = ("max_prompt_length", "max_new_tokens", "temperature", "mixed_precision", "device", "trust_remote_code")
        return TaskSettings(**{**{name: getattr(self, name) for name in names}, **arguments})

    def check(self) -> None:
        """Checks what can be checked before anything is loaded.

        Raises:
            ValueError: a setting breaks its rule.
        """
        self._check_method()
        check_at_least(self, 1, "rounds", "batch_size", "n_envs", "total_timesteps", "n_eval", "evaluate_every")
        check_at_least(self, 1, "checkpoints", "prompts_per_round")
        check_at_least(self, 0, "keep_rounds")
        if self.n_responses < 2:
            raise ValueError(f"n_responses={self.n_responses} must be at least 2: one response cannot be ranked.")
        self.task_settings()
        self._check_selection()

    def _check_method(self) -> None:
        """Checks the method, and what cannot go with it."""
        methods = [*METHODS, REJECTION_SAMPLING, *ALGORITHMS]
        if self.method not in methods:
            raise ValueError(f"method={self.method!r} is not known; use one of {', '.join(methods)}.")
        if self.reference is not None and self.reference not in REFERENCES:
            raise ValueError(f"reference={self.reference!r} is not known; use {' or '.join(REFERENCES)}.")
        if named_values("method_kwargs", self.method_kwargs) and self.method == REJECTION_SAMPLING:
            raise ValueError("method_kwargs: rejection_sampling has no other settings.")
        if not self.is_algorithm:
            return
        if not ALGORITHMS[self.method].trains_language_model:
            raise ValueError(f"method={self.method!r} trains no language model further; it cannot be iterated.")
        if self.reference == "first":
            raise ValueError(f"reference='first': {self.method} starts at its reference; leave it out.")
        if self.select or self.opponent or self.first_preferences:
            raise ValueError(
                f"select, opponent and first_preferences are about preferences; {self.method} generates for itself."
            )
        if len(self.judge) > 1:
            raise ValueError(f"{self.method} takes one judge; got {', '.join(self.judge)}.")

    def _check_selection(self) -> None:
        """Checks the settings that choose what to train on."""
        if self.pairs not in PAIRS:
            raise ValueError(f"pairs={self.pairs!r} is not known; use one of {', '.join(PAIRS)}.")
        for name in self.select:
            if name not in SELECTIONS:
                raise ValueError(f"select: {name!r} is not known; use {', '.join(SELECTIONS)}.")
        if not 0 < self.select_share <= 1:
            raise ValueError(f"select_share={self.select_share} must be above 0 and at most 1.")
        if "lost" in self.select and self.opponent is None:
            raise ValueError("select lost: prompts are lost against somebody; give --opponent.")
        if "disputed" in self.select and len(self.judge) < 2 and PEOPLE not in self.judge:
            raise ValueError("select disputed: a single judge disagrees with nobody; give several: --judge A B.")
        if "margin" in self.select and self.method == REJECTION_SAMPLING:
            raise ValueError("select margin: rejection_sampling trains on texts, not on pairs.")
