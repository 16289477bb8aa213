"""TRL's preference trainers, on rows that are encoded as the environment encodes them, and with the losses TRL lacks.

What the subclasses change: rows come encoded (`encode_rankings`), so that prompt and response are split where the policy will
split them and a response that was cut off gets no end token; and `PairTrainer` has a pass over pairs without padding for the
losses that are given to it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # ORPO and CPO live in trl.experimental

from llm_env.extras import require
from llm_env.lm.causal_lm import CausalLM
from llm_env.lm.log_probs import head_kl, head_log_probs
from llm_env.lm.packed_attention import packed_states
from llm_env.lm.packing import PackedBatch, pack
from llm_env.lm.registry import adapters_off

if TYPE_CHECKING:
    from peft import PeftModel
    from trl import DPOTrainer, KTOTrainer
    from trl.experimental.cpo import CPOTrainer
    from trl.experimental.orpo import ORPOTrainer
else:
    PeftModel = require("peft", "supervised").PeftModel
    DPOTrainer, KTOTrainer = (getattr(require("trl", "supervised"), name) for name in ("DPOTrainer", "KTOTrainer"))
    CPOTrainer = require("trl.experimental.cpo", "supervised").CPOTrainer
    ORPOTrainer = require("trl.experimental.orpo", "supervised").ORPOTrainer

PairLoss = Callable[[Tensor, Tensor, Tensor | None, Tensor | None], Tensor]
"""(r_w, r_l, sequential KL along y_w, along y_l) -> loss, all (B,)."""


def pair_rows(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of `encode_rankings` in pairs as `DPOTrainer`'s collator takes them."""
    return [
        {
            "prompt_ids": row["ids"][0][: row["prompt_length"]],
            "chosen_ids": row["ids"][0][row["prompt_length"] :],
            "rejected_ids": row["ids"][1][row["prompt_length"] :],
        }
        for row in rows
    ]


def unpaired_rows(pairs: Sequence[dict[str, Any]], batch_size: int, seed: int) -> list[dict[str, Any]]:
    """The two sides of each pair on their own, as `KTOTrainer`'s collator takes them.

    KTO estimates its KL from responses beside prompts that are not theirs: each gets the one before it in its batch, so the
    rows are put in a random order first.
    """
    sides = [
        {"prompt_ids": pair["prompt_ids"], "completion_ids": pair[name], "label": name == "chosen_ids"}
        for pair in pairs
        for name in ("chosen_ids", "rejected_ids")
    ]
    order = torch.randperm(len(sides), generator=torch.Generator().manual_seed(seed)).tolist()
    rows = [sides[i] for i in order]
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        for i, row in enumerate(batch):
            row["KL_completion_ids"] = batch[i - 1]["completion_ids"]
    return rows


def labelled_rows(pairs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Pairs as the ORPO and CPO trainers' collator takes them: -100 marks what is not learned."""
    rows = []
    for pair in pairs:
        prompt = list(pair["prompt_ids"])
        row: dict[str, Any] = {"prompt": "", "chosen": "", "rejected": "", "prompt_input_ids": prompt}
        row["prompt_attention_mask"] = [1] * len(prompt)
        for side in ("chosen", "rejected"):
            response = list(pair[f"{side}_ids"])
            row[f"{side}_input_ids"] = prompt + response
            row[f"{side}_attention_mask"] = [1] * len(prompt + response)
            row[f"{side}_labels"] = [-100] * len(prompt) + response
        rows.append(row)
    return rows


class PairTrainer(DPOTrainer):
    """`DPOTrainer` on rows of `pair_rows`.

    Args:
        args: As `DPOTrainer`'s.
        pair_loss: A loss to use instead of TRL's.
        needs_kl: Whether it takes the sequential KL.
        kwargs: As `DPOTrainer`'s.
    """

    def __init__(self, *args: Any, pair_loss: PairLoss | None = None, needs_kl: bool = False, **kwargs: Any) -> None:
        self.pair_loss = pair_loss
        self.needs_kl = needs_kl
        self._split: dict[int, CausalLM] = {}
        super().__init__(*args, **kwargs)

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Mean of the pairs' losses."""
        if self.pair_loss is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        with self.accelerator.autocast():
            chosen, rejected, log_probs, kls = self._compare(model, inputs)
            loss = self.pair_loss(chosen, rejected, *kls).mean()
        found = {
            "rewards/chosen": self.beta * chosen,
            "rewards/rejected": self.beta * rejected,
            "rewards/accuracies": (chosen > rejected).float(),
            "rewards/margins": self.beta * (chosen - rejected),
            "logps/chosen": log_probs.chunk(2)[0],
            "logps/rejected": log_probs.chunk(2)[1],
            "logps/shortfall": torch.relu(-chosen),  # nats below the reference, what DPOP's λ charges for
        }
        if kls[0] is not None and kls[1] is not None:
            found |= {"kl/chosen": kls[0], "kl/rejected": kls[1]}
        table = torch.stack([values.detach() for values in found.values()], 1)  # (B, metrics): one transfer for all
        means = self.accelerator.gather_for_metrics(table).mean(0).tolist()
        for name, mean in zip(found, means, strict=True):
            self._metrics["train" if model.training else "eval"][name].append(mean)
        return (loss, {"rewards": (chosen - rejected).detach()}) if return_outputs else loss

    def _compare(
        self, model: Any, inputs: dict[str, Any]
    ) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor] | tuple[None, None]]:
        """Log ratios of both sides, log π of all, (2B,), and sequential KLs."""
        batch = _packed(inputs)
        own = self.accelerator.unwrap_model(model)
        lm = self._lm(own)
        hidden = self._states(model, own, inputs, batch)
        log_probs = _sums(head_log_probs(lm, hidden, batch.targets, 1.0)[0], batch)
        kl: Tensor | None = None
        if self.precompute_ref_logps:
            ref_log_probs = torch.cat([inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]])
        else:
            ref_lm = lm if self.ref_model is None else self._lm(self.accelerator.unwrap_model(self.ref_model))
            with torch.no_grad(), adapters_off(ref_lm.model):
                ref_model = model if self.ref_model is None else self.ref_model
                ref_hidden = self._states(ref_model, self.accelerator.unwrap_model(ref_model), inputs, batch)
                ref_log_probs = _sums(head_log_probs(ref_lm, ref_hidden, batch.targets, 1.0)[0], batch)
            if self.needs_kl:
                kl = _sums(head_kl(lm, hidden, ref_lm, ref_hidden, 1.0, forward=True), batch)
        chosen, rejected = (log_probs - ref_log_probs).chunk(2)
        kls = (None, None) if kl is None else (kl.chunk(2)[0], kl.chunk(2)[1])
        return chosen, rejected, log_probs, kls

    def _lm(self, model: Any) -> CausalLM:
        """Trunk and head of a model, adapters inside."""
        plain: Any = model.get_base_model() if isinstance(model, PeftModel) else model
        if id(plain) not in self._split:  # which tries out whether it can be split
            self._split[id(plain)] = CausalLM(plain, "model")
        return self._split[id(plain)]

    def _states(self, model: Any, own: Any, inputs: dict[str, Any], batch: PackedBatch) -> Tensor:
        """Last hidden states at the positions that predict a response's token, shape (n, H)."""
        if self.accelerator.num_processes == 1 and not self.args.gradient_checkpointing:  # without padding
            return packed_states(self._lm(own).trunk, batch)[batch.index]
        out = model(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            output_hidden_states=True,
            use_cache=False,
        )
        return out.hidden_states[-1][:, :-1][inputs["completion_mask"][:, 1:].bool()]


def _packed(inputs: dict[str, Any]) -> PackedBatch:
    """The collator's padded batch without its padding."""
    lengths = inputs["attention_mask"].sum(1).tolist()
    starts = (inputs["attention_mask"].sum(1) - inputs["completion_mask"].sum(1)).tolist()
    sequences = [ids[:n].tolist() for ids, n in zip(inputs["input_ids"], lengths, strict=True)]
    return pack(sequences, starts, inputs["input_ids"].device)


def _sums(values: Tensor, batch: PackedBatch) -> Tensor:
    """Sums of tokens' values over each sequence, shape (2B,)."""
    rows = torch.repeat_interleave(torch.arange(len(batch.counts)), torch.tensor(batch.counts)).to(values.device)
    return values.new_zeros(len(batch.counts)).index_add(0, rows, values)


class UnpairedTrainer(KTOTrainer):
    """`KTOTrainer` on rows of `unpaired_rows`."""

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset


class OddsTrainer(ORPOTrainer):
    """`ORPOTrainer` on rows of `labelled_rows`."""

    def tokenize_row(self, feature: dict[str, Any], model: Any = None) -> dict[str, Any]:
        """The row is encoded already."""
        return feature


class ContrastiveTrainer(CPOTrainer):
    """`CPOTrainer` on rows of `labelled_rows`: CPO and SimPO."""

    def tokenize_row(self, feature: dict[str, Any], model: Any = None) -> dict[str, Any]:
        """The row is encoded already."""
        return feature
