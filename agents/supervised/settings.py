"""Settings of the supervised stages: fine-tuning, reward models and preference losses. Reading them imports no torch."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from agents.console import named_values
from agents.output_folder import LOCK_FILE, check_output_folder, has_files, locked
from agents.preferences.selection import check_pairs
from agents.processes import ProcessSettings, check_divides, first_rank
from agents.supervised.preference.methods import METHODS, method
from llm_env.lm.names import check_choice, check_mixed_precision
from llm_env.rules import FLAG, SEED, TOKENS, Each, Rule, check_settings, number, whole

REFERENCE_CACHE = "reference_log_probs"
"""Folder of the reference's cached log-probs in a preference stage's output folder."""
LR_SCHEDULES = ("cosine", "linear", "constant")
RANKING_LOSSES = ("bradley_terry", "k_wise", "plackett_luce")
STAR_LOSSES = ("ordinal", "regression")
REWARD_LOSSES = (*RANKING_LOSSES, *STAR_LOSSES)
MARGINS = ("none", "given", "rank")
_WRONG_SHARE = number(least=0, below=0.5)  # from a half on, labels say the contrary
UPDATE_RULES: dict[str, Rule] = {
    "epochs": number(above=0),
    "batch_size": whole(1),
    "micro_batch_size": whole(1),
    "lora_rank": whole(0),
    "trust_remote_code": FLAG,
    "special_tokens_in_text": FLAG,
    "seed": SEED,
}
TRAINER_RULES: dict[str, Rule] = {
    "learning_rate": number(above=0),
    "warmup": number(least=0, below=1),
    "weight_decay": number(least=0),
    "max_grad_norm": number(above=0),
    "gradient_checkpointing": FLAG,
    "evaluations": whole(1),
    "heldout_share": number(above=0, below=1),
    "resume": FLAG,
}
SFT_RULES: dict[str, Rule] = {
    "response_only": FLAG,
    "from_scratch": FLAG,
    "max_length": whole(2, of="tokens"),
    "n_samples": whole(0),
}
REWARD_RULES: dict[str, Rule] = {
    "margin_scale": number(least=0),
    "center_rewards_coefficient": number(least=0),
    "label_smoothing": _WRONG_SHARE,
    "max_length": whole(2, of="tokens"),
    "freeze_layers": whole(0),
    "dropout": number(least=0, below=1),
    "early_stopping": whole(0),
    "head_weights": Each(number()),
    "gate": FLAG,
    "mlp_head": whole(0),
    "train_on_hacks": FLAG,
}
PREFERENCE_RULES: dict[str, Rule] = {
    "beta": number(above=0),
    "cache_reference": FLAG,
    "dpop_lambda": number(least=0),
    "tdpo_alpha": number(least=0),
    "label_smoothing": _WRONG_SHARE,
    "simpo_gamma": number(least=0),
    "sft_coef": number(least=0),
    "max_prompt_length": TOKENS,
    "max_length": TOKENS,
    "n_samples": whole(0),
}
METHOD_OPTIONS = ("dpop_lambda", "tdpo_alpha", "label_smoothing", "simpo_gamma", "sft_coef")
"""Settings of `PreferenceSettings` that only some methods have."""


@dataclass(frozen=True, kw_only=True)
class UpdateSettings(ProcessSettings):
    """Settings of training on records in mini-batches, which supervised stages and the rounds of `agents.iteration` share."""

    output_dir: Path
    """Folder to write to, new or empty. An interrupted stage goes on in it with --resume, rounds with the same command."""
    model: str | None = None
    """Folder or hub id of the model to start from. Default: the embedded tiny actor."""
    epochs: float = 1.0
    """Passes over the training set, or over that of each round; 0.5 reads half of it."""
    lr_schedule: str = "cosine"
    """How the learning rate falls after warm-up, in each training: cosine, linear (both to zero) or constant. For many short
    rounds take constant."""
    batch_size: int = 32
    """Records in an update, of all processes together."""
    micro_batch_size: int | None = None
    """Records in memory at a time, in each process; gradients add up to batch_size, which it must divide. Default: batch_size,
    or a process's part of it."""
    lora_rank: int = 0
    """Rank of LoRA adapters. They are merged into the model that is written; a language model's stand in adapter/ too. 0 trains
    all weights."""
    mixed_precision: str = "no"
    """Arithmetic of the training passes: no (float32) or bf16. Weights stay float32."""
    device: str = "auto"
    """Where models run: auto (a GPU where there is one), cpu or cuda."""
    trust_remote_code: bool = False
    """Run model code that a hub repository brings. Only for repositories that you trust."""
    special_tokens_in_text: bool = False
    """Turn special tokens that the records spell out, as </s>, into those tokens. Default: they are read as characters."""
    seed: int = 0
    """Seed of all that is drawn at random, such as new weights and the order of the records."""

    def check_updates(self) -> None:
        """Checks the numbers and names.

        Raises:
            ValueError: a setting breaks its rule.
        """
        check_settings(self, UPDATE_RULES)
        self.check_processes()
        check_divides("batch_size", self.batch_size, self.world)
        part = self.batch_size // self.world
        if self.micro_batch_size is not None and part % self.micro_batch_size:
            each = f" / {self.world} processes" if self.world > 1 else ""
            raise ValueError(
                f"micro_batch_size={self.micro_batch_size} must divide batch_size={self.batch_size}{each}."
            )
        check_choice("lr_schedule", self.lr_schedule, LR_SCHEDULES)
        check_mixed_precision(self.mixed_precision)


@dataclass(frozen=True, kw_only=True)
class TrainerSettings(UpdateSettings):
    """Settings that all supervised stages share; most become `transformers.TrainingArguments`."""

    table_rate: ClassVar[float] = 1e-3  # see agents.rates
    learning_rate: float | None = None
    """Step size of AdamW after warm-up. Default: 1e-3 (losses of train_preference.py: 3e-4) for all weights of the embedded
    model, less for a wider one, and for LoRA ten times that."""
    warmup: float = 0.05
    """Share of the steps, at the start, in which the learning rate rises from zero."""
    weight_decay: float = 0.01
    """Weight decay of AdamW."""
    max_grad_norm: float = 1.0
    """Gradients whose norm over all weights is larger are scaled down to this norm."""
    gradient_checkpointing: bool = False
    """Compute activations a second time in the backward pass instead of keeping them: less memory, a third more time."""
    evaluations: int = 4
    """Evaluations and checkpoints over the run, evenly spread."""
    heldout_share: float = 0.1
    """Share of the records that is held out, where no file of held-out ones is given."""
    resume: bool = False
    """Go on at the newest checkpoint in output_dir. All other settings must be those of the run that stopped."""

    def check(self) -> None:
        """Checks the values, and that the folder is free.

        Raises:
            ValueError: a setting breaks its rule.
            FileExistsError: the folder is not empty, and `resume` is off.
            FileNotFoundError: `resume` is on, and the folder is empty.
            NotADirectoryError, PermissionError: the folder cannot be written to.
        """
        self.check_values()
        if first_rank():
            check_output_folder(self.output_dir)
            self._check_folder()

    def check_values(self) -> None:
        """Checks the values, before anything is read.

        Raises:
            ValueError: a setting breaks its rule.
        """
        self.check_updates()
        check_settings(self, TRAINER_RULES)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Keeps other processes from writing to the folder during a `with` block.

        Raises:
            FileExistsError: another process writes there, or has done so since `check`.
        """
        if not first_rank():  # rank 0 writes for all
            yield
            return
        with locked(self.output_dir):
            self._check_folder()
            if not self.resume:
                for folder in self._leftovers():
                    shutil.rmtree(folder, ignore_errors=True)
            yield

    def _leftovers(self) -> tuple[Path, ...]:
        """What a stage that failed before its first checkpoint leaves: TensorBoard's files and cached log-probs, no results."""
        return (self.output_dir / "checkpoints" / "runs", self.output_dir / REFERENCE_CACHE)

    def _check_folder(self) -> None:
        files = [path for path in self.output_dir.rglob("*") if not path.is_dir() and path.name != LOCK_FILE]
        used = any(not any(path.is_relative_to(folder) for folder in self._leftovers()) for path in files)
        if used and not self.resume:
            raise FileExistsError(
                f"output_dir={str(self.output_dir)!r} is not empty. Choose another folder, or go on in it: --resume"
            )
        if self.resume and not has_files(self.output_dir):
            raise FileNotFoundError(f"output_dir={str(self.output_dir)!r}: there is nothing to go on with.")


@dataclass(frozen=True, kw_only=True)
class SFTSettings(TrainerSettings):
    """Settings of supervised fine-tuning."""

    texts: str
    """File or dataset of texts to learn: records with prompt and response, messages, or text."""
    heldout_texts: str | None = None
    """File or dataset of texts to evaluate on. Default: a share of the others, heldout_share."""
    response_only: bool = True
    """Compute the loss on responses only, not on their prompts."""
    from_scratch: bool = False
    """Keep the model's architecture and tokenizer, and start from new weights."""
    max_length: int = 256
    """Tokens of a text; longer texts are cut on the right."""
    n_samples: int = 8
    """Held-out prompts to respond to after training."""

    def check_values(self) -> None:
        """Checks the values; see `TrainerSettings.check_values`."""
        super().check_values()
        check_settings(self, SFT_RULES)


@dataclass(frozen=True, kw_only=True)
class RankingsSettings(TrainerSettings):
    """Settings of the stages that learn from preferences."""

    preferences: str
    """File of rankings, pairs or stars (.jsonl, .json, .csv, .parquet), or a dataset id; for --loss kto also of single
    responses with labels."""
    eval_preferences: str | None = None
    """File of held-out preferences, of other prompts. Default: the preferences of a share of the prompts, heldout_share."""


@dataclass(frozen=True, kw_only=True)
class RewardSettings(RankingsSettings):
    """Settings of a reward model."""

    loss: str = "k_wise"
    """bradley_terry: each pair an element of a batch (Stiennon et al. 2020). k_wise: all pairs of a prompt in one, each
    response read once (InstructGPT). plackett_luce: the likelihood of the whole ranking. Of stars, 1 to 5: ordinal
    (proportional odds, McCullagh 1980) or regression."""
    margins: str = "none"
    """How far apart the scores of a pair should lie: none; given: the difference of their scores or stars, else the
    record's margin; rank: how many places lie between the two responses (Llama 2)."""
    margin_scale: float = 1.0
    """Factor of the margins, in units of the score."""
    center_rewards_coefficient: float = 0.0
    """Weight of a term that keeps scores around 0 (Eisenstein et al. 2023); 0 leaves it out."""
    label_smoothing: float = 0.0
    """Share of pairs that are taken to be labeled the wrong way round (Wang et al. 2024)."""
    max_length: int = 512
    """Tokens of prompt and response; a longer prompt is cut on the left, a longer response on the right."""
    freeze_layers: int = 0
    """Number of lower layers that are not trained; above 0 the embedding is not trained either."""
    dropout: float = 0.0
    """Dropout while training; the model that is written has none."""
    early_stopping: int = 0
    """Stop after that many evaluations without a better held-out accuracy, and keep the best; 0: train to the end."""
    heads: tuple[str, ...] = ()
    """Aspects that get a head each, for example helpful polite. A ranking's aspect says which head it trains; one without an
    aspect trains their weighted sum. Default: a single head."""
    head_weights: tuple[float, ...] = ()
    """Weight of each head in the overall score. Default: all the same."""
    hacks: str | None = None
    """File of adversarial pairs, as find_hacks.py writes them: trained on beside the preferences, but for those to held-out
    prompts, of which it is reported how often the reward model resists them."""
    train_on_hacks: bool = True
    """Train on the hacks; --no-train-on-hacks only reports, on the same held-out ones."""
    mlp_head: int = 0
    """Units of a hidden layer in the head, for example 64: a small MLP instead of a linear head; 0: linear."""
    gate: bool = False
    """Learn from the prompt how much each head weighs in the overall score."""
    gold: str | None = None
    """package.module:function, a rule that knows better than the annotators. It is only reported, never trained on."""
    normalize_on: str | None = None
    """File of rankings whose responses are to score mean 0, variance 1; a thousand of them are read. Default: the training
    preferences."""

    def check_values(self) -> None:
        """Checks the values; see `TrainerSettings.check_values`."""
        super().check_values()
        check_settings(self, REWARD_RULES)
        self._check_loss()
        if len(self.heads) == 1 or len(set(self.heads)) < len(self.heads):
            raise ValueError(f"heads={self.heads} must be two or more different aspects, or none.")
        if self.head_weights and (self.gate or len(self.head_weights) != len(self.heads)):
            raise ValueError(
                f"head_weights={self.head_weights} must be one for each of heads={self.heads}, without a gate."
            )
        if self.gate and not self.heads:
            raise ValueError("gate=True weighs several heads; name them: --heads helpful polite.")
        if self.mlp_head == 1 or (self.mlp_head and self.heads):
            raise ValueError(f"mlp_head={self.mlp_head} must be 0 or two units or more, and goes with a single head.")

    def _check_loss(self) -> None:
        check_choice("loss", self.loss, REWARD_LOSSES)
        check_choice("margins", self.margins, MARGINS)
        if self.learns_stars:
            self._check_star_loss()
        if self.loss == "plackett_luce" and (self.margins != "none" or self.label_smoothing):
            raise ValueError("plackett_luce has neither margins nor label smoothing; use k_wise.")

    @property
    def learns_stars(self) -> bool:
        """Whether the loss is one of stars, and not of rankings."""
        return self.loss in STAR_LOSSES

    def _check_star_loss(self) -> None:
        if self.margins != "none" or self.label_smoothing or self.center_rewards_coefficient:
            raise ValueError(
                f"loss={self.loss!r} learns stars: it has no margins, no label smoothing and no center_rewards_coefficient."
            )
        if self.heads:
            raise ValueError(f"loss={self.loss!r} has a single score; leave heads out, or train on rankings.")
        if self.hacks is not None and self.train_on_hacks:
            raise ValueError(
                f"loss={self.loss!r} learns stars, and hacks are pairs: add --no-train-on-hacks to report on them."
            )


@dataclass(frozen=True, kw_only=True)
class PreferenceSettings(RankingsSettings):
    """Settings of training on preferences without a reward model."""

    table_rate: ClassVar[float] = 3e-4
    loss: str = "dpo"
    """The method: dpo, dpop, tdpo1, tdpo2, ipo, kto, orpo, cpo, simpo, hinge (SLiC), robust, exo_pair, nca_pair, bco_pair,
    sppo_hard, aot, apo_zero, apo_down, discopop."""
    pairs: str = "all"
    """Which pairs of a ranking are trained on: all, or best_worst."""
    beta: float | None = None
    """How much the method holds to its reference. For cpo and simpo it is the temperature of the log-probs, for orpo lambda,
    the weight of the odds ratio. Default: the paper's, mostly 0.1."""
    ref_model: str | None = None
    """Folder or hub id of the reference. Default: the model as it starts; with LoRA, the adapters switched off."""
    cache_reference: bool = False
    """Compute the reference's log-probs once, before training, and keep them in output_dir: no second model in memory, and less
    time over several epochs."""
    dpop_lambda: float | None = None
    """DPOP's lambda, the price of making a preferred response less likely than the reference does. Default: the
    paper's 50, under which the tiny default model hardly moves; 0.5 lets it learn."""
    tdpo_alpha: float | None = None
    """TDPO2's alpha, the weight of the sequential KL. Default: 0.5."""
    label_smoothing: float | None = None
    """Share of pairs that are taken to be labeled the wrong way round, for robust, exo_pair, aot, cpo and simpo. Default: 0.1
    for robust, 0.001 for exo_pair, else 0."""
    simpo_gamma: float | None = None
    """SimPO's target margin gamma. Default: 1."""
    sft_coef: float | None = None
    """Weight of the preferred response's log-likelihood beside the loss (RPO, Pang et al. 2024; cpo's alpha). Default: 1 for
    cpo, else 0."""
    max_prompt_length: int = 64
    """Tokens of a prompt; longer prompts are cut on the left, as the environment does."""
    max_length: int = 512
    """Tokens of prompt and response; longer responses are cut on the right."""
    n_samples: int = 8
    """Held-out prompts to respond to after training."""
    trl_kwargs: tuple[str, ...] = ()
    """Any other setting of TRL's configuration, as name=value, for example f_divergence_type=js_divergence."""

    def check_values(self) -> None:
        """Checks the values, and that the method has the settings given; see `TrainerSettings.check_values`."""
        super().check_values()
        check_settings(self, PREFERENCE_RULES)
        if self.cache_reference and self.world > 1:
            raise ValueError(
                "cache_reference: several processes would write one cache. Leave it out, or take one process."
            )
        self._check_method()
        if self.max_prompt_length >= self.max_length:
            raise ValueError(
                f"max_prompt_length={self.max_prompt_length} must be below max_length={self.max_length} tokens."
            )
        check_pairs(self.pairs)
        named_values("trl_kwargs", self.trl_kwargs)

    def _check_method(self) -> None:
        row = method(self.loss)
        for name in METHOD_OPTIONS:
            if getattr(self, name) is not None and name not in row.options:
                able = ", ".join(n for n, m in METHODS.items() if name in m.options)
                raise ValueError(f"{name}: loss={self.loss!r} does not have it; {able} do.")
        if not row.reference and (self.ref_model is not None or self.cache_reference):
            raise ValueError(f"loss={self.loss!r} has no reference: leave ref_model and cache_reference out.")
        if row.whole_distributions and self.cache_reference:
            raise ValueError(
                f"loss={self.loss!r} compares whole distributions with the reference's; cached log-probs do not hold them. "
                "Leave cache_reference out."
            )
