"""Settings of rounds of generating, ranking and training."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from agents.algorithms.table import ALGORITHMS
from agents.console import named_values
from agents.preferences.selection import PAIRS
from agents.supervised.preference.methods import METHODS

REJECTION_SAMPLING = "rejection_sampling"
PEOPLE = "people"
SELECTIONS = ("lost", "margin", "disputed")
REFERENCES = ("first", "previous")


@dataclass(frozen=True, kw_only=True)
class IterationSettings:
    """Settings of `iterate`."""

    output_dir: Path
    """Folder to write to; the same command goes on in it."""
    model: str | None = None
    """Where the first round starts: model folder or hub id. Default: the embedded tiny actor."""
    method: str = "dpo"
    """A loss of train_preference.py (dpo, dpop, tdpo1, tdpo2, ipo, kto, orpo, simpo, …), rejection_sampling (fine-tune on the
    best of each prompt: RAFT, Llama 2), or an algorithm of train.py (ppo, grpo, rloo, …)."""
    rounds: int = 3
    """Rounds in all; more may be asked for later."""
    judge: tuple[str, ...] = ()
    """Who ranks: a reward model's folder, gold (the embedded default's rule), package.module:function, or people (a page in the
    browser); several rank one after the other. Default: the embedded reward model."""
    noise: float = 0.0
    """Temperature of the judges: 0 ranks by score; 1 makes Bradley-Terry annotators."""
    first_preferences: str | None = None
    """File of rankings or pairs that are there already: trained on in the first round too."""
    prompts: str | None = None
    """Prompts, as for train.py. Default: the embedded ones."""
    eval_prompts: str | None = None
    """Prompts to evaluate on. Default: with the embedded prompts theirs, else a tenth of the prompts, held out."""
    prompts_per_round: int | None = None
    """Prompts of each round, other ones until all were used. Default: all."""
    n_responses: int = 4
    """Responses to each prompt."""
    temperature: float = 1.0
    """Sampling temperature."""
    max_prompt_length: int = 64
    """Tokens; longer prompts are cut on the left."""
    max_new_tokens: int = 32
    """Length cap of a response, in tokens."""
    opponent: str | None = None
    """A stronger model: half the responses are its. With --select lost, the arena: learn where the actor loses."""
    pairs: str = "best_worst"
    """Which pairs of a ranking are trained on: best_worst, or all."""
    select: tuple[str, ...] = ()
    """What to train on, one after the other: lost (prompts where the opponent stands above all the actor's responses), disputed
    (prompts on which the judges agree least, first), margin (pairs that lie furthest apart, first)."""
    select_share: float = 0.5
    """How much of it disputed and margin keep."""
    keep_rounds: int = 0
    """Earlier rounds whose pairs are trained on again."""
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
    """Pairs or texts in an update."""
    micro_batch_size: int | None = None
    """Pairs or texts in memory at a time. Default: batch_size."""
    beta: float | None = None
    """The loss's beta; for algorithms of train.py kl_coef. Default: the method's."""
    method_kwargs: tuple[str, ...] = ()
    """Other settings of the method, as name=value: those of train_preference.py (dpop_lambda=5 sft_coef=0.1 …) and of TRL's
    trainer, or those of the algorithm (n_epochs=2 …)."""
    total_timesteps: int = 20_480
    """For algorithms of train.py: environment steps of a round."""
    n_envs: int = 64
    """For algorithms of train.py: slots."""
    checkpoints: int = 2
    """Checkpoints of a round's training on pairs or texts, from which it goes on when interrupted."""
    lora_rank: int = 0
    """Rank of LoRA adapters, merged after each round; 0 trains all weights."""
    mixed_precision: str = "no"
    """no or bf16."""
    gold: str | None = None
    """package.module:function that nobody trains on, for the evaluation. Default: with the embedded model, its rule."""
    reward_model: str | None = None
    """Scores the evaluation. Default: the first judge, or the embedded reward model."""
    n_eval: int = 180
    """Prompts of each evaluation."""
    evaluate_every: int = 1
    """Rounds between evaluations; the last one always is."""
    host: str = "127.0.0.1"
    """Address of the page for people."""
    port: int = 7860
    """Its port."""
    device: str = "auto"
    """auto, cpu, cuda."""
    trust_remote_code: bool = False
    """Let model code from a hub run."""
    seed: int = 0
    """Seed of everything."""

    @property
    def is_algorithm(self) -> bool:
        """Whether the method is an algorithm of `agents.algorithms.table`, which generates for itself."""
        return self.method in ALGORITHMS

    @property
    def reference_name(self) -> str:
        """The reference of each round: ``first`` or ``previous``."""
        return self.reference or ("previous" if self.is_algorithm else "first")

    def check(self) -> None:
        """Checks what can be checked before anything is loaded.

        Raises:
            ValueError: a setting breaks its rule.
        """
        known = [*METHODS, REJECTION_SAMPLING, *ALGORITHMS]
        if self.method not in known:
            raise ValueError(f"method={self.method!r} is not known; use one of {', '.join(known)}.")
        if self.is_algorithm and not ALGORITHMS[self.method].trains_language_model:
            raise ValueError(f"method={self.method!r} trains no language model further; it cannot be iterated.")
        least = ("rounds", "batch_size", "n_envs", "total_timesteps", "n_eval", "evaluate_every", "checkpoints")
        for name in (*least, "max_prompt_length", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1.")
        if self.prompts_per_round is not None and self.prompts_per_round < 1:
            raise ValueError(f"prompts_per_round={self.prompts_per_round} must be at least 1.")
        if self.n_responses < 2:
            raise ValueError(f"n_responses={self.n_responses} must be at least 2: one response cannot be ranked.")
        if self.keep_rounds < 0:
            raise ValueError(f"keep_rounds={self.keep_rounds} must be at least 0.")
        if not math.isfinite(self.temperature) or self.temperature <= 0:
            raise ValueError(f"temperature={self.temperature} must be a finite number above 0.")
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
        if self.reference is not None and self.reference not in REFERENCES:
            raise ValueError(f"reference={self.reference!r} is not known; use {' or '.join(REFERENCES)}.")
        if self.is_algorithm and self.reference == "first":
            raise ValueError(f"reference='first': {self.method} starts at its reference; leave it out.")
        if self.is_algorithm and (self.select or self.opponent or self.first_preferences):
            raise ValueError(
                f"select, opponent and first_preferences are about preferences; {self.method} generates for itself."
            )
        if self.is_algorithm and len(self.judge) > 1:
            raise ValueError(f"{self.method} takes one judge; got {', '.join(self.judge)}.")
        if named_values("method_kwargs", self.method_kwargs) and self.method == REJECTION_SAMPLING:
            raise ValueError("method_kwargs: rejection_sampling has no other settings.")
