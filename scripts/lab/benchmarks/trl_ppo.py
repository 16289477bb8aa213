"""The peer: TRL 1.12.0's PPOTrainer, unmodified, offline; the last release that has one.

It runs in an environment of its own, which `scripts/lab/benchmark.py` sets up. Everything that TRL lets one leave away from
outside is left away: sample generations, saving, evaluation, logging, gradient checkpointing; its scan of all objects by
gc.collect(), twice an iteration, is made cheap by gc.freeze(). TRL clips no gradients.

python -m benchmarks.trl_ppo CASE.json RESULT.json CRITIC, where CRITIC is full (a second network, TRL's recipe) or small (its
first block only).
"""

from __future__ import annotations

import gc
import os
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

os.environ.update(TRL_EXPERIMENTAL_SILENCE="1", TRANSFORMERS_VERBOSITY="error", HF_HUB_OFFLINE="1")
if '"precision": "bf16"' in Path(sys.argv[1]).read_text(encoding="utf-8"):  # PPOTrainer ignores its bf16=True
    os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16"
if '"device": "cpu"' in Path(sys.argv[1]).read_text(encoding="utf-8"):  # before torch looks for a GPU
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
warnings.filterwarnings("ignore")

import torch  # noqa: E402
from datasets import Dataset  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402
from tokenizers.models import WordLevel  # noqa: E402
from transformers import (  # noqa: E402
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedTokenizerFast,
)
from transformers.trainer_callback import PrinterCallback, ProgressCallback  # noqa: E402
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer  # noqa: E402

from benchmarks.case import EOS, Case, Stopwatch, read_case, write_result  # noqa: E402


def load(auto_class: Any, folder: str, blocks: int | None = None) -> Any:
    """A model in float32, cut to its first `blocks` blocks where that is given."""
    model = auto_class.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    if blocks is not None:
        model.base_model.layers = model.base_model.layers[:blocks]
        model.config.num_hidden_layers = blocks
    return model


def make_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """A tokenizer of two words; its pad id lies outside the vocabulary, so no token of a response is taken for padding."""
    words = Tokenizer(WordLevel({"<eos>": EOS, "<pad>": vocab_size}, unk_token="<eos>"))
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>", pad_token="<pad>", padding_side="left")


def ppo_config(case: Case) -> Any:
    """TRL's settings for a case; everything that is not training is left away."""
    return PPOConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=case.batch,
        gradient_accumulation_steps=1,
        num_mini_batches=case.mini_batches,
        num_ppo_epochs=case.epochs,
        total_episodes=case.batch * (case.warmup + case.iterations),
        local_rollout_forward_batch_size=case.batch,
        response_length=case.response,
        stop_token="eos" if case.lengths == "spread" else None,
        temperature=1.0,
        num_sample_generations=0,
        kl_coef=0.05,
        kl_estimator="k1",
        learning_rate=1e-5,
        bf16=case.precision == "bf16",
        gradient_checkpointing=False,
        use_cpu=case.device == "cpu",
        report_to="none",
        save_strategy="no",
        eval_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )


class TimedTrainer(PPOTrainer):  # type: ignore[misc]  # PPO is gone from the TRL that types are checked with
    """Tells the stopwatch when an iteration's updates are done, and keeps TRL's figures of the first iteration."""

    watch: Stopwatch
    figures: dict[str, float] | None = None

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Called by TRL after each iteration's updates."""
        self.watch.lap("train")
        if self.figures is None:
            self.figures = {key: float(value) for key, value in logs.items()}

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Writes no model card."""


def run(case: Case, models: dict[str, str], critic: str, result_path: str) -> None:
    """Trains, timed, and writes the result.

    Args:
        case: The case.
        models: Folders of ``actor``, ``reference`` and ``reward``.
        critic: ``full``: a second network; ``small``: its first block only.
        result_path: JSON file to write.
    """
    policy = load(AutoModelForCausalLM, models["actor"])
    reference = load(AutoModelForCausalLM, models["reference"])
    reward = load(AutoModelForSequenceClassification, models["reward"])
    value = load(AutoModelForSequenceClassification, models["reward"], None if critic == "full" else 1)
    for frozen in (reference, reward):
        frozen.requires_grad_(False).eval()

    prompts, responses = case.script(policy.config.vocab_size)
    trainer = TimedTrainer(
        args=ppo_config(case),
        processing_class=make_tokenizer(policy.config.vocab_size),
        model=policy,
        ref_model=reference,
        reward_model=reward,
        value_model=value,
        train_dataset=Dataset.from_dict({"input_ids": prompts}),
        data_collator=lambda rows: {"input_ids": torch.tensor([r["input_ids"] for r in rows])},
    )
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    trainer.watch = Stopwatch(case.device)
    wrap_phases(trainer.watch, {tuple(p): r for p, r in zip(prompts, responses, strict=True)})
    # TRL collects garbage twice an iteration; what is there now need not be looked at each time.
    gc.collect()
    gc.freeze()
    trainer.train()

    figures = trainer.figures or {}
    objective = {"kl": figures["objective/kl"], "score": figures["objective/scores"]}
    if case.lengths == "equal":  # TRL counts 1 for each padded position into its entropy
        objective["log_prob"] = -figures["objective/entropy"]
    parameters = sum(p.numel() for m in (policy, value) for p in m.parameters())
    write_result(result_path, case, trainer.watch, objective, parameters=parameters)


def wrap_phases(watch: Stopwatch, script: dict[tuple[int, ...], list[int]]) -> None:
    """Puts time stamps around generation and before the epochs, and the script's tokens in place of the drawn ones.

    Args:
        watch: The stopwatch.
        script: Token ids of the response to each prompt, by the prompt's token ids.
    """
    generation, whiten = ppo_trainer.batch_generation, ppo_trainer.masked_whiten
    sampler: Any = torch  # TRL draws tokens with torch.multinomial, which is replaced while it generates
    multinomial = sampler.multinomial

    def timed_generation(model: Any, queries: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if watch.rows:
            watch.lap("train")  # what lies between two iterations
        watch.start()
        rows = [script[tuple(q)] for q in queries.tolist()]
        step = 0

        def scripted(probabilities: torch.Tensor, *rest: Any, **more: Any) -> torch.Tensor:
            nonlocal step
            drawn = multinomial(probabilities, *rest, **more)
            for i, row in enumerate(rows):
                if step < len(row):
                    drawn[i] = row[step]
            step += 1
            return drawn

        sampler.multinomial = scripted
        try:
            result = generation(model, queries, *args, **kwargs)
        finally:
            sampler.multinomial = multinomial
        watch.lap("generate")
        return result

    def timed_whiten(*args: Any, **kwargs: Any) -> Any:  # of the advantages: once an iteration, before the epochs
        result = whiten(*args, **kwargs)
        watch.lap("score")
        return result

    ppo_trainer.batch_generation, ppo_trainer.masked_whiten = timed_generation, timed_whiten


if __name__ == "__main__":
    the_case, the_models = read_case(sys.argv[1])
    if the_case.threads:
        torch.set_num_threads(the_case.threads)
    run(the_case, the_models, sys.argv[3], sys.argv[2])
