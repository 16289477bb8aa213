"""A peer's run: TRL's PPO (1.12.0), RLOO or GRPO (1.16.0), unmodified, on a task's models and prompts.

It runs in a virtual environment of its own and imports nothing of this project. The reward is the reward model's
normalized score of prompt and response ids, end token included, as in `llm_env.reward.models`.

python trl_peer.py JOB.json OUT, which writes OUT/actor and OUT/result.json.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any

os.environ.update(TRL_EXPERIMENTAL_SILENCE="1", TRANSFORMERS_VERBOSITY="error", HF_HUB_OFFLINE="1")
os.environ["CUDA_VISIBLE_DEVICES"] = ""
warnings.filterwarnings("ignore")

import torch  # noqa: E402
from datasets import Dataset  # noqa: E402
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer  # noqa: E402
from transformers.trainer_callback import PrinterCallback, ProgressCallback  # noqa: E402

LEAST_LENGTH = (
    6  # tokens of a response: TRL counts episodes or steps, of which there must be enough to spend the budget
)


class Enough(Exception):  # noqa: N818
    """Raised where the budget is spent, to leave TRL's training loop."""


class Progress:
    """Counts tokens against the budget, and keeps (tokens, score, gold score, KL) of each batch."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.tokens = 0
        self.curve: list[list[float]] = []
        self.started = time.perf_counter()

    def check(self) -> None:
        """Ends training once the budget is spent; called after an update."""
        if self.tokens >= self.budget:
            raise Enough


def anneal(trainer_class: Any, progress: Progress) -> Any:
    """The trainer with a learning rate that falls to 0 over the tokens of the budget, as ours does over the same."""

    class Annealed(trainer_class):  # type: ignore[misc]
        def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
                optimizer or self.optimizer, lambda _: max(0.0, 1.0 - progress.tokens / progress.budget)
            )
            return self.lr_scheduler

    return Annealed


def load(job: dict[str, Any]) -> tuple[Any, Any, Any]:
    """Actor, tokenizer, and the reward model with its normalization in its head."""
    actor = AutoModelForCausalLM.from_pretrained(job["actor"], dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(job["actor"])
    tokenizer.padding_side = "left"
    return actor, tokenizer, reward_network(job["reward_model"])


def reward_network(folder: str) -> Any:
    """The reward model, whose head gives (score - mean) / std."""
    network = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    mean, std = network.config.score_mean, network.config.score_std
    head = torch.nn.Linear(network.score.in_features, 1)
    with torch.no_grad():
        head.weight.copy_(network.score.weight / std)
        head.bias.fill_(-mean / std)
        if network.score.bias is not None:
            head.bias.add_(network.score.bias / std)
    network.score = head
    return network


def read_prompts(path: str) -> list[str]:
    """The prompts of a .jsonl file."""
    lines = Path(path).read_text(encoding="utf-8").split("\n")  # not `splitlines`: U+2028 may stand in a text
    return [json.loads(line)["prompt"] for line in lines if line]


def common(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Arguments of TRL's configurations that all trainers share."""
    return {
        "output_dir": str(folder), "seed": job["seed"], "learning_rate": job["params"]["learning_rate"],
        "adam_epsilon": 1e-5, "weight_decay": 0.0, "use_cpu": True, "bf16": False,
        "gradient_checkpointing": False, "gradient_accumulation_steps": 1, "report_to": "none", "save_strategy": "no",
        "eval_strategy": "no", "disable_tqdm": True, "temperature": 1.0, "max_grad_norm": 1.0,
    }  # fmt: skip


def run_out(trainer: Any) -> None:
    """Trains without a progress bar, until the budget is spent."""
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    with contextlib.suppress(Enough):
        trainer.train()


def train_ppo(job: dict[str, Any], folder: Path, progress: Progress) -> Any:
    """PPOTrainer with a second network, started from the reward model, as critic: its own recipe."""
    from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

    params = job["params"]
    actor, tokenizer, reward = load(job)
    reference = AutoModelForCausalLM.from_pretrained(job["actor"], dtype=torch.float32)
    value = reward_network(job["reward_model"])
    ids = [tokenizer(p, add_special_tokens=False)["input_ids"] for p in read_prompts(job["prompts"])]

    class Trainer(anneal(PPOTrainer, progress)):  # type: ignore[misc]
        def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
            progress.curve.append([progress.tokens, logs["objective/scores"], float("nan"), logs["objective/kl"]])

        def create_model_card(self, *args: Any, **kwargs: Any) -> None:
            """Writes no model card."""

    generation = ppo_trainer.batch_generation

    def counted(model: Any, queries: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        progress.check()
        query_responses, logits = generation(model, queries, *args, **kwargs)
        for row in query_responses[:, queries.shape[1] :].tolist():
            progress.tokens += row.index(tokenizer.eos_token_id) + 1 if tokenizer.eos_token_id in row else len(row)
        return query_responses, logits

    ppo_trainer.batch_generation = counted
    batch = params["batch_size"]
    args = PPOConfig(
        **common(job, folder),
        per_device_train_batch_size=batch,
        num_mini_batches=4,
        num_ppo_epochs=params["n_epochs"],
        total_episodes=max(batch, job["tokens"] // LEAST_LENGTH),
        local_rollout_forward_batch_size=batch,
        response_length=job["max_new_tokens"],
        stop_token="eos",
        num_sample_generations=0,
        kl_coef=job["kl_coef"],
        vf_coef=params["vf_coef"],
        gamma=1.0,
        lam=0.95,
        logging_strategy="no",
    )
    trainer = Trainer(
        args=args,
        processing_class=tokenizer,
        model=actor,
        ref_model=reference,
        reward_model=reward,
        value_model=value,
        train_dataset=Dataset.from_dict({"input_ids": ids}),
    )
    run_out(trainer)
    return actor, tokenizer


def reward_function(tokenizer: Any, reward: Any, progress: Progress) -> Any:
    """The reward as TRL calls it: texts and token ids of prompts and responses in, a score for each out."""

    @torch.no_grad()
    def score(prompts: list[str], completions: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        if progress.tokens:  # the updates on the batches before this one are done
            progress.check()
        rows = [
            tokenizer(p, add_special_tokens=False)["input_ids"] + c
            for p, c in zip(prompts, completion_ids, strict=True)
        ]
        progress.tokens += sum(len(c) for c in completion_ids)
        # ids and mask are (n, longest), padded on the right; the score is read at each row's last token
        width = max(map(len, rows))
        ids = torch.tensor([row + [tokenizer.pad_token_id] * (width - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        hidden = reward.base_model(input_ids=ids, attention_mask=mask).last_hidden_state
        last = hidden[torch.arange(len(rows)), torch.tensor([len(row) - 1 for row in rows])]
        scores: list[float] = reward.score(last)[:, 0].tolist()
        progress.curve.append([progress.tokens, sum(scores) / len(scores), float("nan"), float("nan")])
        return scores

    return score


def train_group(job: dict[str, Any], folder: Path, progress: Progress) -> Any:
    """RLOOTrainer or GRPOTrainer with their own defaults, and the comparison's β."""
    import trl

    params = job["params"]
    actor, tokenizer, reward = load(job)
    reward.eval()
    config_class, trainer_class = {
        "trl_rloo": (trl.RLOOConfig, trl.RLOOTrainer),
        "trl_grpo": (trl.GRPOConfig, trl.GRPOTrainer),
    }[job["algo"]]

    batch = params["batch_size"]
    steps = max(1, job["tokens"] // LEAST_LENGTH // batch) * params["n_epochs"] * 4
    args = config_class(
        **common(job, folder),
        per_device_train_batch_size=batch // 4,
        steps_per_generation=4,
        num_iterations=params["n_epochs"],
        num_generations=params["group_size"],
        max_completion_length=job["max_new_tokens"],
        beta=job["kl_coef"],
        max_steps=steps,
        logging_steps=1_000_000,
    )
    trainer = anneal(trainer_class, progress)(
        model=actor,
        args=args,
        reward_funcs=reward_function(tokenizer, reward, progress),
        processing_class=tokenizer,
        train_dataset=Dataset.from_dict({"prompt": read_prompts(job["prompts"])}),
    )
    run_out(trainer)
    return trainer.model, tokenizer


def main(job_path: str, out: str) -> None:
    """Runs the job."""
    torch.set_num_threads(1)
    job = json.loads(Path(job_path).read_text(encoding="utf-8"))
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    progress = Progress(job["tokens"])
    train = train_ppo if job["algo"] == "trl_ppo" else train_group
    model, tokenizer = train(job, folder / "work", progress)
    seconds = time.perf_counter() - progress.started
    model.save_pretrained(folder / "actor")
    tokenizer.save_pretrained(folder / "actor")
    result = {"trained_tokens": progress.tokens, "curve": progress.curve, "seconds": seconds}
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
