"""The floor: the model calls that no PPO on a language model can avoid, on the same tokens, and nothing else.

Prefill and cached decoding (a row that has ended leaves the batch), one reference pass, one reward pass, and for each
epoch one forward and backward pass and the optimizer's step (fused AdamW). No sampling, no values, no rewards, no
advantages, no clipping, no metrics. Every call goes to transformers' own models.

python -m benchmarks.floor CASE.json RESULT.json
"""

from __future__ import annotations

import contextlib
import copy
import sys
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, DynamicCache

from benchmarks.case import Case, Stopwatch, read_case, write_result


class Floor:
    """The models, and one method for each phase of an iteration."""

    def __init__(self, case: Case, models: dict[str, str]) -> None:
        self.case = case
        self.device = torch.device(case.device)
        self.actor = self.load(AutoModelForCausalLM, models["actor"])
        self.reference = self.load(AutoModelForCausalLM, models["reference"]).eval()
        self.reward = self.load(AutoModelForSequenceClassification, models["reward"]).eval()
        self.optimizer = torch.optim.AdamW(self.actor.parameters(), lr=1e-5, eps=1e-5, weight_decay=0.0, fused=True)
        # Sorted by length, longest first: a mini-batch's rows are nearly equally long, and ended rows are the last ones.
        prompts, responses = case.script(self.actor.config.vocab_size)
        pairs = sorted(zip(prompts, responses, strict=True), key=lambda pair: -len(pair[1]))
        self.prompts = torch.tensor([p for p, _ in pairs], device=self.device)
        self.lengths = torch.tensor([len(r) for _, r in pairs])
        padded = [r + [0] * (case.response - len(r)) for _, r in pairs]
        self.ids = torch.cat([self.prompts, torch.tensor(padded, device=self.device)], 1)  # (batch, prompt + response)
        self.groups = torch.arange(case.batch).chunk(case.mini_batches)

    def load(self, auto_class: Any, folder: str) -> Any:
        """A model in float32 on the case's device."""
        return auto_class.from_pretrained(folder, dtype=torch.float32, local_files_only=True).to(self.device)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """A context of bf16 arithmetic where the case says so."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.case.precision == "bf16")

    @torch.no_grad()
    def generate(self) -> None:
        """Prefill, and one decoding step for each further token."""
        actor = self.actor if self.case.precision == "no" else copy.deepcopy(self.actor).bfloat16()
        cache: Any = DynamicCache(config=actor.config)
        actor(self.prompts, past_key_values=cache, logits_to_keep=1)
        rows = self.case.batch
        for step in range(int(self.lengths.max()) - 1):
            # rows whose response goes on stay in the cache
            still = int((self.lengths > step + 1).sum())
            if still < rows:
                cache.batch_select_indices(torch.arange(still, device=self.device))
                rows = still
            place = self.case.prompt + step
            actor(self.ids[:rows, place : place + 1], past_key_values=cache)

    def log_probs(self, model: Any, rows: Tensor) -> Tensor:
        """Log π of the response tokens of a mini-batch's rows, shape (n_tokens,), in nats."""
        lengths = self.lengths[rows]
        ids = self.ids[rows.to(self.device), : self.case.prompt + int(lengths.max())]
        hidden = model.model(ids[:, :-1], use_cache=False).last_hidden_state[:, self.case.prompt - 1 :]
        # (rows, longest): which places hold a response token
        inside = (torch.arange(int(lengths.max())) < lengths[:, None]).to(self.device)
        logits = model.lm_head(hidden[inside]).float()
        targets = ids[:, self.case.prompt :][inside]
        return logits.gather(1, targets[:, None])[:, 0] - logits.logsumexp(1)

    @torch.no_grad()
    def score(self) -> tuple[Tensor, Tensor]:
        """The reference's log-probs, shape (n_tokens,), and the reward model's scores, shape (batch,)."""
        reference, scores = [], []
        with self.autocast():
            for rows in self.groups:
                reference.append(self.log_probs(self.reference, rows))
                ends = self.case.prompt + self.lengths[rows]
                ids = self.ids[rows.to(self.device), : int(ends.max())]
                hidden = self.reward.model(ids, use_cache=False).last_hidden_state
                last = hidden[torch.arange(len(rows), device=self.device), ends.to(self.device) - 1]
                scores.append(self.reward.score(last)[:, 0])
        return torch.cat(reference), torch.cat(scores)

    def train(self) -> None:
        """A forward and a backward pass over everything, and the optimizer's steps, for each epoch."""
        for _ in range(self.case.epochs):
            for rows in self.groups:
                with self.autocast():
                    loss = -self.log_probs(self.actor, rows).mean()
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()


def main(case_path: str, result_path: str) -> None:
    """Runs the floor on a case, and writes the result.

    Args:
        case_path: Case, as `benchmarks.case.write_case` wrote it.
        result_path: JSON file to write.
    """
    case, models = read_case(case_path)
    if case.threads:
        torch.set_num_threads(case.threads)
    floor, watch = Floor(case, models), Stopwatch(case.device)
    with torch.no_grad(), floor.autocast():
        actor_log_probs = torch.cat([floor.log_probs(floor.actor, rows) for rows in floor.groups])
    objective: dict[str, float] = {}
    for _ in range(case.warmup + case.iterations):
        watch.start()
        floor.generate()
        watch.lap("generate")
        reference, scores = floor.score()
        watch.lap("score")
        floor.train()
        watch.lap("train")
        if not objective:
            objective = {
                "log_prob": float(actor_log_probs.sum()) / case.batch,
                "kl": float((actor_log_probs - reference).sum()) / case.batch,
                "score": float(scores.float().mean()),
            }
    write_result(result_path, case, watch, objective)


if __name__ == "__main__":
    main(*sys.argv[1:])
