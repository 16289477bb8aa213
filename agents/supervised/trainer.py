"""What the supervised stages share around `transformers.Trainer`: its arguments, checkpoints, progress, the saved model."""

from __future__ import annotations

import dataclasses
import logging
import math
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import PreTrainedModel, TrainerCallback, TrainingArguments

from agents.checksums import damaged_file, newest_whole, read_object, write_checksums
from agents.console import say
from agents.distributed import ranks
from agents.files import replacing_folder
from agents.flat_settings import to_words
from agents.policies.actor import save_adapter
from agents.processes import launch
from agents.rates import rate_for, rate_note
from agents.supervised.faults import StopAtFaults
from agents.supervised.settings import TrainerSettings
from llm_env.default_task import DEFAULT_MODEL
from llm_env.extras import installed
from llm_env.lm.loading import quiet_loading, resolve_device

CHECKPOINTS = "checkpoints"


def trainer_arguments(settings: TrainerSettings, records: int, width: int) -> dict[str, Any]:
    """Translates settings into keyword arguments of `transformers.TrainingArguments` and its subclasses.

    Args:
        settings: Checked settings of a stage.
        records: Size of the training set; the number of steps, and so of warm-up steps, follows from it.
        width: The model's, from `model_width`; the default learning rate follows from it.
    """
    # `Trainer` counts each process's records; what the user asked for is those of all.
    part = settings.batch_size // settings.world
    micro = settings.micro_batch_size or part
    steps = max(1, math.ceil(settings.epochs * math.ceil(records / settings.batch_size)))
    every = max(1, math.ceil(steps / settings.evaluations))
    on_cpu = resolve_device(settings.device).type == "cpu"
    rate = rate_for(settings.table_rate, width, bool(settings.lora_rank))
    # transformers 5 renamed the argument; both names are in use among the versions that we allow
    names = {f.name for f in dataclasses.fields(TrainingArguments)}
    checkpointing = "activation_checkpointing" if "activation_checkpointing" in names else "gradient_checkpointing"
    return {
        "output_dir": str(settings.output_dir / CHECKPOINTS),
        "num_train_epochs": settings.epochs,
        "learning_rate": rate if settings.learning_rate is None else settings.learning_rate,
        "lr_scheduler_type": settings.lr_schedule,
        "warmup_steps": round(settings.warmup * steps),
        "per_device_train_batch_size": micro,
        "per_device_eval_batch_size": micro,
        "gradient_accumulation_steps": part // micro,
        "ddp_find_unused_parameters": False,  # each gets a gradient; heads are applied outside of the wrapped forward
        "weight_decay": settings.weight_decay,
        "max_grad_norm": settings.max_grad_norm,
        "bf16": settings.mixed_precision == "bf16",
        checkpointing: settings.gradient_checkpointing,
        "eval_strategy": "steps",
        "eval_steps": every,
        "save_strategy": "steps",
        "save_steps": every,
        "save_total_limit": 2,
        "logging_steps": max(1, min(10, steps // 20)),
        "use_cpu": on_cpu,
        "dataloader_pin_memory": not on_cpu,
        "report_to": ["tensorboard"] if installed("tensorboard") else [],
        "seed": settings.seed,
        "data_seed": settings.seed,
        "disable_tqdm": True,  # StageProgress shows it
        "optim": "adamw_torch_fused",
    }


def model_width(model: PreTrainedModel) -> int:
    """Size of a model's token embeddings, which is that of its hidden states."""
    embeddings: Any = model.get_input_embeddings()
    return int(embeddings.weight.shape[1])


def newest_checkpoint(settings: TrainerSettings, console: Console) -> str | None:
    """The newest whole checkpoint of a stage; None without ``resume``, or where there is none. Damaged ones are set aside."""
    folder = settings.output_dir / CHECKPOINTS
    if not settings.resume or not folder.is_dir():
        return None
    # `Trainer` writes trainer_state.json last: a folder without it was cut off.
    written = [p for p in folder.glob("checkpoint-*") if (p / "trainer_state.json").is_file()]
    written.sort(key=lambda p: int(p.name.rpartition("-")[2]))
    whole = newest_whole(written, _damage, lambda text: say(console, text))
    return None if whole is None else str(whole)


def _damage(checkpoint: Path) -> str | None:
    """Says what is wrong with a checkpoint's files; None where each is as it was written."""
    try:
        # It has no checksum yet where the process was killed right after it.
        read_object(checkpoint / "trainer_state.json")
    except ValueError as error:
        return str(error)
    return damaged_file(checkpoint)


def in_processes(command: str, settings: TrainerSettings, report: str) -> dict[str, Any]:
    """Runs a stage's command in several processes, for a caller that is one; returns the report that it wrote.

    Args:
        command: The command's module in `agents.cli`.
        settings: The stage's settings.
        report: The report's file in the output folder.

    Raises:
        ChildProcessError: it failed, and has said why.
    """
    settings.check()
    status = launch(command, to_words(settings), settings.processes)
    if status == 130:
        raise KeyboardInterrupt
    if status:
        raise ChildProcessError(f"{command} in {settings.processes} processes ended with status {status}.")
    return read_object(settings.output_dir / report)


def run_trainer(trainer: Any, settings: TrainerSettings, console: Console) -> PreTrainedModel:
    """Trains, and returns the model in eval mode, LoRA adapters merged; those of a language model stand in ``adapter/`` too.

    Args:
        trainer: A `transformers.Trainer` or one of TRL's, ready to train.
        settings: The stage's settings; with ``resume``, training starts at the newest checkpoint.
        console: Where progress is shown.

    Raises:
        FloatingPointError: gradient, held-out loss or weights are not finite any more.
    """
    from transformers.trainer_callback import PrinterCallback, ProgressCallback

    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    if not ranks().first:
        console.quiet = True
    trainer.add_callback(StageProgress(console))
    trainer.add_callback(CheckpointSums())
    trainer.add_callback(StopAtFaults())
    rate = trainer.args.learning_rate
    if settings.learning_rate is None and not math.isclose(rate, settings.table_rate):
        say(console, rate_note(rate, settings.table_rate, bool(settings.lora_rank)))
    with quiet_loading():
        trainer.train(resume_from_checkpoint=ranks().first_does(lambda: newest_checkpoint(settings, console)))
    # Without the wrapper of mixed precision, which would round the logits of everyone who asks the trained model.
    model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    if settings.lora_rank:
        # A reward model's scores are scaled once it is merged, which adapters alone would not show.
        if ranks().first and model.peft_config["default"].task_type == "CAUSAL_LM":
            with replacing_folder(settings.output_dir / "adapter") as partial:
                save_adapter(model, settings.model or DEFAULT_MODEL, partial)
        model = model.merge_and_unload()
    model.config.use_cache = True  # the trainer turned it off, and a saved model keeps the value
    return model.eval()


def training_log(trainer: Any) -> list[dict[str, float]]:
    """The losses and evaluations of a training, by step.

    Without what would differ where training was interrupted: `Trainer`'s last entry, which sums up this process's part, and
    TRL's count of tokens, which begins anew.
    """
    entries = [entry for entry in trainer.state.log_history if "train_runtime" not in entry]
    return [{name: value for name, value in entry.items() if "num_tokens" not in name} for entry in entries]


def save_model(model: PreTrainedModel, tokenizer: Any, folder: Path) -> None:
    """Writes a model and its tokenizer to a folder, as `from_pretrained` reads them; whole or not at all."""
    with replacing_folder(folder) as partial:
        with quiet_loading():
            model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)


class CheckpointSums(TrainerCallback):
    """Adds ``checksums.json`` to each checkpoint, by which damage is found before training goes on from it."""

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called when the checkpoint's files are written, each process's own among them."""
        ranks().first_does(lambda: None)
        if ranks().first:
            write_checksums(Path(args.output_dir) / f"checkpoint-{state.global_step}")


class StageProgress(TrainerCallback):
    """Shows progress: a bar on a terminal; elsewhere a line at each evaluation and each tenth of the run.

    Args:
        console: Where it is shown.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.progress: Progress | None = None
        self._shown_tenth = -1

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
        values = {k: float(v) for k, v in (logs or {}).items() if k.removeprefix("eval_") in ("loss", "accuracy")}
        if not values:
            return
        text = "  ".join(f"{k.replace('eval_', 'held-out ')} {v:.3f}" for k, v in values.items())
        if self.progress is not None:
            self.progress.update(self._bar, description=text)
        tenth = 10 * state.global_step // max(1, state.max_steps)
        held_out = any(k.startswith("eval_") for k in values)
        if held_out or (self.progress is None and tenth != self._shown_tenth):
            self._shown_tenth = tenth
            say(self.console, f"step {state.global_step:5d} of {state.max_steps}  {text}")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Closes the bar."""
        if self.progress is not None:
            self.progress.stop()
            self.progress = None


def quiet_trainer() -> None:
    """Silences what `Trainer` and TRL log at every start and nobody can act on, and datasets' progress bars."""
    from datasets import disable_progress_bars

    disable_progress_bars()
    for name in ("transformers.trainer", "transformers.trainer_pt_utils", "accelerate", "trl", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.ERROR)
