"""TRL's preference trainers, on rows that are encoded as the environment encodes them, and with the losses TRL lacks.

What the subclasses change: rows come encoded (`encode_rankings`), so that prompt and response are split where the policy will
split them and a response that was cut off gets no end token; and `PairTrainer` has a pass over pairs without padding for the
losses that are given to it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer
from trl.import_utils import TRLExperimentalWarning

from agents.supervised.preference.methods import CONTRASTIVE, ODDS, PAIRED, UNPAIRED
from llm_env.lm.causal_lm import CausalLM
from llm_env.lm.log_probs import head_kl, head_log_probs
from llm_env.lm.packed_attention import packed_states
from llm_env.lm.packing import PackedBatch, pack
from llm_env.lm.registry import adapters_off

with (
    warnings.catch_warnings()
):  # TRL says that its experimental part may change; the versions that we allow have been tried
    warnings.simplefilter("ignore", TRLExperimentalWarning)
    from trl.experimental.cpo import CPOConfig, CPOTrainer
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

CONFIGS: dict[str, Any] = {PAIRED: DPOConfig, UNPAIRED: KTOConfig, ODDS: ORPOConfig, CONTRASTIVE: CPOConfig}
"""TRL's configuration class of each of its trainers."""

PairLoss = Callable[[Tensor, Tensor, Tensor | None, Tensor | None], Tensor]
"""(r_w, r_l, sequential KL along y_w, along y_l) -> loss, all of shape (B,); r is log π(y|x) - log π_ref(y|x), in nats."""


def pair_rows(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Splits rows of `encode_rankings`, each a pair with the better response first, as `DPOTrainer`'s collator takes them."""
    return [
        {
            "prompt_ids": row["ids"][0][: row["prompt_length"]],
            "chosen_ids": row["ids"][0][row["prompt_length"] :],
            "rejected_ids": row["ids"][1][row["prompt_length"] :],
        }
        for row in rows
    ]


def sides(pairs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Both sides of each pair of `pair_rows`, as single responses with labels."""
    return [
        {"prompt_ids": pair["prompt_ids"], "completion_ids": pair[name], "label": name == "chosen_ids"}
        for pair in pairs
        for name in ("chosen_ids", "rejected_ids")
    ]


def unpaired_rows(singles: Sequence[dict[str, Any]], batch_size: int, seed: int) -> list[dict[str, Any]]:
    """Makes rows of single responses, as `KTOTrainer`'s collator takes them.

    KTO estimates its KL from responses beside prompts that are not theirs: each row gets the response of the row before it in
    its batch, so the rows are put in a random order first.

    Args:
        singles: Responses with ``prompt_ids``, ``completion_ids`` and ``label``, as `sides` gives them.
        batch_size: Rows that the trainer will put into a batch.
        seed: Seed of the order.
    """
    order = torch.randperm(len(singles), generator=torch.Generator().manual_seed(seed)).tolist()
    rows = [dict(singles[i]) for i in order]
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        for i, row in enumerate(batch):
            row["KL_completion_ids"] = batch[i - 1]["completion_ids"]  # of the first row: the last one's
    return rows


def labeled_rows(pairs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Makes rows of pairs as the ORPO and CPO trainers' collator takes them; the label -100 marks what is not learned."""
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
        args: Positional arguments of `DPOTrainer`.
        pair_loss: A loss to use instead of TRL's; None: TRL computes its own.
        needs_kl: Whether `pair_loss` takes the sequential KLs, which cost a pass over the vocabulary.
        kwargs: Keyword arguments of `DPOTrainer`.
    """

    def __init__(self, *args: Any, pair_loss: PairLoss | None = None, needs_kl: bool = False, **kwargs: Any) -> None:
        self.pair_loss = pair_loss
        self.needs_kl = needs_kl
        self._causal_lms: dict[int, CausalLM] = {}  # by the model's id
        super().__init__(*args, **kwargs)

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The mean of the pairs' losses; logs rewards, log-probs and KLs under TRL's names."""
        collected, count = self._metrics["train" if model.training else "eval"], len(inputs["input_ids"]) // 2
        if self.pair_loss is None:
            result = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            for values in collected.values():
                values += values[-1:] * (count - 1)
            return result
        with self.accelerator.autocast():
            chosen, rejected, log_probs, kls = self._compare(model, inputs)
            loss = self.pair_loss(chosen, rejected, *kls).mean()
        metrics = {
            "rewards/chosen": self.beta * chosen,
            "rewards/rejected": self.beta * rejected,
            "rewards/accuracies": (chosen > rejected).float(),
            "rewards/margins": self.beta * (chosen - rejected),
            "logps/chosen": log_probs.chunk(2)[0],  # the collator puts all chosen responses before all rejected ones
            "logps/rejected": log_probs.chunk(2)[1],
            "logps/shortfall": torch.relu(-chosen),  # nats below the reference, what DPOP's λ charges for
        }
        if kls[0] is not None and kls[1] is not None:
            metrics |= {"kl/chosen": kls[0], "kl/rejected": kls[1]}
        table = torch.stack([values.detach() for values in metrics.values()], 1)  # (B, metrics): one transfer for all
        means = self.accelerator.gather_for_metrics(table).mean(0).tolist()
        for name, mean in zip(metrics, means, strict=True):
            collected[name] += [mean] * count  # TRL takes their mean: a last batch of few pairs counts for as many
        return (loss, {"rewards": (chosen - rejected).detach()}) if return_outputs else loss

    def _compare(
        self, model: Any, inputs: dict[str, Any]
    ) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor] | tuple[None, None]]:
        """Compares the model with its reference on a batch of B pairs.

        Returns:
            log π(y|x) - log π_ref(y|x) of the chosen responses and of the rejected ones, shape (B,) each; log π(y|x) of all,
            chosen before rejected, shape (2B,); the sequential KL along both sides, shape (B,) each, or (None, None).
        """
        batch = _packed(inputs)
        plain = self.accelerator.unwrap_model(model)
        lm = self._lm(plain)
        hidden = self._states(model, plain, inputs, batch)  # (response tokens, H)
        log_probs = _sums(head_log_probs(lm, hidden, batch.targets, 1.0)[0], batch)
        kl: Tensor | None = None
        if self.precompute_ref_logps:
            ref_log_probs = torch.cat([inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]])
        else:
            # without a model of its own the reference is the trained one with its adapters off
            ref_model = model if self.ref_model is None else self.ref_model
            ref_plain = self.accelerator.unwrap_model(ref_model)
            ref_lm = self._lm(ref_plain)
            with torch.no_grad(), adapters_off(ref_lm.model):
                ref_hidden = self._states(ref_model, ref_plain, inputs, batch)
                ref_log_probs = _sums(head_log_probs(ref_lm, ref_hidden, batch.targets, 1.0)[0], batch)
            if self.needs_kl:
                kl = _sums(head_kl(lm, hidden, ref_lm, ref_hidden, 1.0, forward=True), batch)
        chosen, rejected = (log_probs - ref_log_probs).chunk(2)
        kls = (None, None) if kl is None else (kl.chunk(2)[0], kl.chunk(2)[1])
        return chosen, rejected, log_probs, kls

    def _lm(self, model: Any) -> CausalLM:
        """Trunk and head of a model, adapters inside."""
        without_wrapper: Any = model.get_base_model() if isinstance(model, PeftModel) else model
        key = id(without_wrapper)
        if key not in self._causal_lms:  # kept, because making one tries out whether the model can be split
            self._causal_lms[key] = CausalLM(without_wrapper, "model")
        return self._causal_lms[key]

    def _states(self, model: Any, plain: Any, inputs: dict[str, Any], batch: PackedBatch) -> Tensor:
        """Last hidden states at the positions that predict a response's token, shape (n, H)."""
        if self.accelerator.num_processes == 1 and not self.args.gradient_checkpointing:  # without padding
            return packed_states(self._lm(plain).trunk, batch)[batch.index]
        # Through the whole model: distributed training and checkpointing wrap its forward.
        out = model(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            output_hidden_states=True,
            use_cache=False,
        )
        # a position's state predicts the next token: (2B, T - 1, H), masked to (n, H)
        return out.hidden_states[-1][:, :-1][inputs["completion_mask"][:, 1:].bool()]


def _packed(inputs: dict[str, Any]) -> PackedBatch:
    """Lays the 2B sequences of the collator's padded batch end to end, without padding."""
    lengths = inputs["attention_mask"].sum(1).tolist()
    starts = (inputs["attention_mask"].sum(1) - inputs["completion_mask"].sum(1)).tolist()
    sequences = [ids[:n].tolist() for ids, n in zip(inputs["input_ids"], lengths, strict=True)]
    return pack(sequences, starts, inputs["input_ids"].device)


def _sums(values: Tensor, batch: PackedBatch) -> Tensor:
    """Sums values of response tokens, shape (n,), over each sequence; shape (2B,)."""
    rows = torch.repeat_interleave(torch.arange(len(batch.counts)), torch.tensor(batch.counts)).to(values.device)
    return values.new_zeros(len(batch.counts)).index_add(0, rows, values)


class UnpairedTrainer(KTOTrainer):
    """`KTOTrainer` on rows of `unpaired_rows`."""

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset


class _PairByPair:
    """Has the metrics of a batch count for as many as it has pairs, for trainers that take the mean over batches."""

    def get_batch_loss_metrics(self, model: Any, batch: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """See TRL's trainer."""
        self._count = len(batch["chosen_input_ids"])
        return super().get_batch_loss_metrics(model, batch, *args, **kwargs)  # type: ignore[misc]

    def store_metrics(self, *args: Any, **kwargs: Any) -> None:
        """See TRL's trainer."""
        for _ in range(self._count):
            super().store_metrics(*args, **kwargs)  # type: ignore[misc]


class OddsTrainer(_PairByPair, ORPOTrainer):
    """`ORPOTrainer` on rows of `labeled_rows`."""

    def tokenize_row(self, feature: dict[str, Any], model: Any = None) -> dict[str, Any]:
        """The row is encoded already."""
        return feature


class ContrastiveTrainer(_PairByPair, CPOTrainer):
    """`CPOTrainer` on rows of `labeled_rows`: CPO and SimPO."""

    def tokenize_row(self, feature: dict[str, Any], model: Any = None) -> dict[str, Any]:
        """The row is encoded already."""
        return feature
