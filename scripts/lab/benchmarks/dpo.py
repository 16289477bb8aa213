"""DPO on pairs: our pass over them without padding, or TRL's own, in the same trainer class.

Each response is a pair with the next prompt's response as the rejected one; forward passes of policy and reference, backward,
optimizer step.

python -m benchmarks.dpo CASE.json RESULT.json ours|trl
"""

from __future__ import annotations

import sys
import tempfile
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM
from trl import DPOConfig

from agents.supervised.preference.losses import dpo_loss
from agents.supervised.preference.trainers import PairTrainer
from benchmarks.case import Stopwatch, read_case, write_result
from llm_env.default_task import DEFAULT_MODEL
from llm_env.lm.loading import load_tokenizer


def main(case_path: str, result_path: str, variant: str) -> None:
    """Times one variant and writes its result.

    Args:
        case_path: Case, as `benchmarks.case.write_case` wrote it.
        result_path: JSON file to write.
        variant: ``ours`` or ``trl``.
    """
    case, models = read_case(case_path)
    if case.threads:
        torch.set_num_threads(case.threads)
    policy, reference = (
        AutoModelForCausalLM.from_pretrained(models[name], dtype=torch.float32, local_files_only=True)
        for name in ("actor", "reference")
    )
    # A pair for each prompt: its response is chosen, the next prompt's is rejected.
    prompts, responses = case.script(policy.config.vocab_size)
    rows = [
        {"prompt_ids": prompt, "chosen_ids": responses[i], "rejected_ids": responses[(i + 1) % case.batch]}
        for i, prompt in enumerate(prompts)
    ]
    size = max(1, case.batch // case.mini_batches)
    work = tempfile.mkdtemp()
    config = DPOConfig(
        work, per_device_eval_batch_size=size, bf16=case.precision == "bf16", use_cpu=case.device == "cpu",
        gradient_checkpointing=False, max_length=None, report_to=[], disable_tqdm=True,
    )  # fmt: skip
    trainer = PairTrainer(
        model=policy,
        ref_model=reference,
        args=config,
        train_dataset=Dataset.from_list(rows),
        eval_dataset=Dataset.from_list(rows),
        processing_class=load_tokenizer(DEFAULT_MODEL),
        pair_loss=(lambda chosen, rejected, *_: dpo_loss(chosen, rejected, 0.1)) if variant == "ours" else None,
    )
    # Batches come from the evaluation loader, which does not shuffle: both variants see the same ones.
    batches = [trainer._prepare_inputs(batch) for batch in trainer.get_eval_dataloader()]
    policy.train()
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-5, fused=True)
    watch = Stopwatch(case.device)
    objective: dict[str, Any] = {}

    def loss_of(batch: dict[str, Any]) -> torch.Tensor:
        with trainer.compute_loss_context_manager():
            return trainer.compute_loss(policy, batch)

    with torch.no_grad():
        objective["dpo_loss"] = float(sum(loss_of(b) for b in batches)) / len(batches)
    for _ in range(case.warmup + case.iterations):
        watch.start()
        for _ in range(case.epochs):
            for batch in batches:
                optimizer.zero_grad()
                loss_of(batch).backward()
                optimizer.step()
        watch.lap("train")
    write_result(result_path, case, watch, objective)


if __name__ == "__main__":
    main(*sys.argv[1:])
