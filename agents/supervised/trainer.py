"""What the supervised stages share: settings of `transformers.Trainer`, a folder that can be gone on with, a quiet console."""

from __future__ import annotations

import dataclasses
import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import PreTrainedModel, TrainerCallback, TrainingArguments

from llm_env.extras import installed
from llm_env.lm.loading import quiet_loading, resolve_device

CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class TrainerSettings:
    """Settings of a supervised stage."""

    output_dir: Path
    """Folder to write to; must be new or empty, unless --resume True."""
    model: str | None = None
    """Folder or hub id of the model to start from. Default: the embedded tiny actor."""
    epochs: float = 1.0
    """Passes over the training set."""
    learning_rate: float = 1e-3
    """Step size of AdamW after warm-up. The default suits the tiny model; for 100M parameters and more take 1e-5 to 1e-4."""
    lr_schedule: str = "cosine"
    """cosine, linear (both to zero) or constant."""
    warmup: float = 0.05
    """Share of the steps in which the learning rate rises."""
    batch_size: int = 32
    """Records in an update, of one device."""
    micro_batch_size: int | None = None
    """Records in memory at a time. Default: batch_size."""
    weight_decay: float = 0.01
    """AdamW's."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm."""
    lora_rank: int = 0
    """Rank of LoRA adapters; they are merged into what is written in the end. 0 trains all weights."""
    mixed_precision: str = "no"
    """no or bf16."""
    gradient_checkpointing: bool = False
    """Less memory, a third more time."""
    evaluations: int = 4
    """Evaluations and checkpoints over the run, evenly spread."""
    heldout_share: float = 0.1
    """Share of the records that is held out, where no file of held-out ones is given."""
    resume: bool = False
    """Go on at the newest checkpoint in output_dir, with the same settings."""
    device: str = "auto"
    """auto, cpu, cuda."""
    trust_remote_code: bool = False
    """Let model code from a hub run."""
    seed: int = 0
    """Seed of new weights, of the order of the records and of the split."""

    def check(self) -> None:
        """Checks the numbers, and that the folder is free.

        Raises:
            ValueError, FileExistsError, FileNotFoundError: a setting breaks its rule.
        """
        for name in ("epochs", "learning_rate", "max_grad_norm"):
            value = getattr(self, name)
            if not math.isfinite(value) or value <= 0:
                raise ValueError(f"{name}={value} must be a finite number above 0.")
        for name in ("batch_size", "evaluations"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1.")
        if self.micro_batch_size is not None and (self.micro_batch_size < 1 or self.batch_size % self.micro_batch_size):
            raise ValueError(f"micro_batch_size={self.micro_batch_size} must divide batch_size={self.batch_size}.")
        if self.lr_schedule not in ("cosine", "linear", "constant"):
            raise ValueError(f"lr_schedule={self.lr_schedule!r} is not known; use 'cosine', 'linear' or 'constant'.")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup={self.warmup} must be a share of the steps, at least 0 and below 1.")
        if not 0 < self.heldout_share < 1:
            raise ValueError(f"heldout_share={self.heldout_share} must be above 0 and below 1.")
        if self.lora_rank < 0:
            raise ValueError(f"lora_rank={self.lora_rank} must be at least 0 (0 trains all weights).")
        used = self.output_dir.exists() and any(self.output_dir.iterdir())
        if used and not self.resume:
            raise FileExistsError(
                f"output_dir={str(self.output_dir)!r} is not empty. Choose another folder, or go on in it: --resume True"
            )
        if self.resume and not used:
            raise FileNotFoundError(f"output_dir={str(self.output_dir)!r}: there is nothing to go on with.")

    def trainer_arguments(self, records: int) -> dict[str, Any]:
        """Keyword arguments of `transformers.TrainingArguments` and its subclasses.

        Args:
            records: Size of the training set.
        """
        micro = self.micro_batch_size or self.batch_size
        steps = max(1, math.ceil(self.epochs * math.ceil(records / self.batch_size)))
        every = max(1, math.ceil(steps / self.evaluations))
        known = {f.name for f in dataclasses.fields(TrainingArguments)}
        checkpointing = "activation_checkpointing" if "activation_checkpointing" in known else "gradient_checkpointing"
        return {
            "output_dir": str(self.output_dir / CHECKPOINTS),
            "num_train_epochs": self.epochs,
            "learning_rate": self.learning_rate,
            "lr_scheduler_type": self.lr_schedule,
            "warmup_steps": round(self.warmup * steps),
            "per_device_train_batch_size": micro,
            "per_device_eval_batch_size": micro,
            "gradient_accumulation_steps": self.batch_size // micro,
            "weight_decay": self.weight_decay,
            "max_grad_norm": self.max_grad_norm,
            "bf16": self.mixed_precision == "bf16",
            checkpointing: self.gradient_checkpointing,
            "eval_strategy": "steps",
            "eval_steps": every,
            "save_strategy": "steps",
            "save_steps": every,
            "save_total_limit": 2,
            "logging_steps": max(1, min(10, steps // 20)),
            "use_cpu": resolve_device(self.device).type == "cpu",
            "dataloader_pin_memory": resolve_device(self.device).type != "cpu",
            "report_to": ["tensorboard"] if installed("tensorboard") else [],
            "seed": self.seed,
            "data_seed": self.seed,
            "disable_tqdm": True,  # StageProgress shows it
            "optim": "adamw_torch_fused",
        }

    @property
    def newest_checkpoint(self) -> str | None:
        """The newest whole checkpoint, where `resume` says to go on and there is one."""
        folder = self.output_dir / CHECKPOINTS
        if not self.resume or not folder.is_dir():
            return None
        # `Trainer` writes trainer_state.json last: a folder without it was cut off
        whole = [p for p in folder.glob("checkpoint-*") if (p / "trainer_state.json").is_file()]
        return str(max(whole, key=lambda p: int(p.name.rpartition("-")[2]))) if whole else None


def run_trainer(trainer: Any, settings: TrainerSettings, console: Console) -> PreTrainedModel:
    """Trains, from the newest checkpoint where the settings say so, and gives the model, adapters merged, in eval mode."""
    from transformers.trainer_callback import PrinterCallback, ProgressCallback

    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    trainer.add_callback(StageProgress(console))
    with quiet_loading():
        trainer.train(resume_from_checkpoint=settings.newest_checkpoint)
    model = trainer.accelerator.unwrap_model(trainer.model)
    if settings.lora_rank:
        model = model.merge_and_unload()
    model.config.use_cache = True
    return model.eval()


class StageProgress(TrainerCallback):
    """A bar on a terminal, a line now and then elsewhere."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.progress: Progress | None = None
        self._shown = -1

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Opens the bar."""
        if self.console.is_terminal:
            columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
            self.progress = Progress(*columns, console=self.console)
            self.progress.start()
            self._bar = self.progress.add_task("first step …", total=state.max_steps, completed=state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Moves the bar."""
        if self.progress is not None:
            self.progress.update(self._bar, completed=state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        """Shows losses and accuracies."""
        shown = {k: float(v) for k, v in (logs or {}).items() if k.removeprefix("eval_") in ("loss", "accuracy")}
        if not shown:
            return
        text = "  ".join(f"{k.replace('eval_', 'held-out ')} {v:.3f}" for k, v in shown.items())
        if self.progress is not None:
            self.progress.update(self._bar, description=text)
        tenth = 10 * state.global_step // max(1, state.max_steps)
        held_out = any(k.startswith("eval_") for k in shown)
        if held_out or (self.progress is None and tenth != self._shown):
            self._shown = tenth
            self.console.print(f"step {state.global_step:5d} of {state.max_steps}  {text}", highlight=False)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Closes the bar."""
        if self.progress is not None:
            self.progress.stop()
            self.progress = None


def quiet_trainer() -> None:
    """Drops what `Trainer` and TRL say at every start and nobody can act on."""
    for name in ("transformers.trainer", "transformers.trainer_pt_utils", "accelerate", "trl", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.ERROR)
