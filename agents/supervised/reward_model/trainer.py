"""`RankingTrainer`: TRL's `RewardTrainer` for rankings of any length, several losses and several heads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from agents.supervised.reward_model.losses import LOSSES, centring_loss, pairwise_loss, plackett_luce_loss
from llm_env.extras import require
from llm_env.lm.packed_attention import packed_states
from llm_env.lm.packing import pack_ends
from llm_env.reward.heads import Gate

if TYPE_CHECKING:
    from peft import PeftModel
    from trl import RewardTrainer
else:
    PeftModel = require("peft", "supervised").PeftModel
    RewardTrainer = require("trl", "supervised").RewardTrainer

MARGINS = ("none", "given", "rank")


@dataclass(frozen=True)
class RankingLoss:
    """Which loss, with what.

    Attributes:
        name: ``bradley_terry`` (each pair an element of the batch), ``k_wise`` (each prompt with all its pairs), or
            ``plackett_luce`` (each prompt with its ranking).
        margins: ``none``; ``given``: the records' own; ``rank``: how many tiers lie between two responses.
        margin_scale: Factor of the margins, in score.
        centring: Coefficient of `centring_loss`.
        label_smoothing: See `pairwise_loss`.
    """

    name: str = "k_wise"
    margins: str = "none"
    margin_scale: float = 1.0
    centring: float = 0.0
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        """Checks.

        Raises:
            ValueError: a setting breaks its rule.
        """
        if self.name not in LOSSES:
            raise ValueError(f"loss={self.name!r} is not known; use one of {', '.join(LOSSES)}.")
        if self.margins not in MARGINS:
            raise ValueError(f"margins={self.margins!r} is not known; use one of {', '.join(MARGINS)}.")
        if not 0 <= self.label_smoothing < 0.5:
            raise ValueError(f"label_smoothing={self.label_smoothing} must be at least 0 and below 0.5.")
        if self.centring < 0 or self.margin_scale < 0:
            raise ValueError(f"centring={self.centring} and margin_scale={self.margin_scale} must be at least 0.")
        if self.name == "plackett_luce" and (self.margins != "none" or self.label_smoothing):
            raise ValueError("plackett_luce has neither margins nor label smoothing; use k_wise.")

    def __call__(self, scores: Tensor, tiers: Sequence[int], given: float | None = None) -> Tensor:
        """The loss of one prompt's scores, shape (K,)."""
        if self.name == "plackett_luce":
            loss = plackett_luce_loss(scores, tiers)
        else:
            loss = pairwise_loss(scores, tiers, self._margins(tiers, given), self.label_smoothing)
        return loss + self.centring * centring_loss(scores) if self.centring else loss

    def _margins(self, tiers: Sequence[int], given: float | None) -> Tensor | None:
        if self.margins == "none":
            return None
        if self.margins == "given":
            return torch.full((len(tiers), len(tiers)), self.margin_scale * (given or 0.0))
        ranks = torch.tensor(tiers)
        return self.margin_scale * (ranks[None] - ranks[:, None] - 1).clamp(min=0).float()


def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Lays all responses of all rows into one right-padded batch: each is read once."""
    sequences = [ids for row in rows for ids in row["ids"]]
    lengths = torch.tensor([len(s) for s in sequences])
    inside = torch.arange(int(lengths.max())) < lengths[:, None]
    input_ids = torch.zeros(inside.shape, dtype=torch.long)
    input_ids[inside] = torch.tensor([t for s in sequences for t in s])
    return {
        "input_ids": input_ids,
        "attention_mask": inside.long(),
        "lengths": lengths,
        "prompt_lengths": torch.tensor([row["prompt_length"] for row in rows for _ in row["ids"]]),
        "heads": torch.tensor([row["head"] for row in rows for _ in row["ids"]]),
        "counts": torch.tensor([len(row["ids"]) for row in rows]),
        "tiers": torch.tensor([t for row in rows for t in row["tiers"]]),
        "margins": torch.tensor([row["margin"] for row in rows]),
    }


class RankingTrainer(RewardTrainer):
    """`RewardTrainer` on rows of `agents.supervised.rows.encode_rankings`.

    Args:
        args: As `RewardTrainer`'s.
        ranking_loss: What is minimised.
        head_weights: How much each head counts in the overall score; None with a single head.
        kwargs: As `RewardTrainer`'s. A gate is taken from the model's attribute ``gate``, where it has one.
    """

    def __init__(
        self, *args: Any, ranking_loss: RankingLoss, head_weights: list[float] | None = None, **kwargs: Any
    ) -> None:
        self.ranking_loss = ranking_loss
        self.head_weights = head_weights
        config = kwargs["model"].config
        labels = config.num_labels
        config.num_labels = 1  # TRL refuses others; the heads are put together below
        super().__init__(*args, **{**kwargs, "data_collator": collate})
        config.num_labels = labels

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset  # encoded already

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns: Any = ["ids", "prompt_length", "tiers", "head", "margin"]

    def scores(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """One score a response, in the head of its ranking, or overall; shape (n,), float32."""
        own = self.accelerator.unwrap_model(model)
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        head = getattr(own, "score", None)
        if head is None:  # an encoder, which pools by itself
            return model(input_ids=ids, attention_mask=mask).logits[:, 0].float()
        ends, prompt_ends = (states.float() for states in self._states(model, own, inputs))
        values = head(ends)
        if values.shape[1] == 1:
            return values[:, 0]
        rows = torch.arange(len(ids), device=values.device)
        gate: Gate | None = getattr(own, "gate", None)
        if gate is not None:
            weights = gate(prompt_ends.detach())
        else:
            weights = torch.tensor(self.head_weights, device=values.device).expand_as(values)
        overall = (values * weights).sum(-1)
        asked = inputs["heads"]
        return torch.where(asked < 0, overall, values[rows, asked.clamp(min=0)])

    def _states(self, model: Any, own: Any, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Hidden states at the last token of each response, and of each prompt, (n, H) each."""
        lengths, prompts = inputs["lengths"], inputs["prompt_lengths"]
        if self.accelerator.num_processes == 1 and not self.args.gradient_checkpointing:  # without padding
            sequences = [ids[:n].tolist() for ids, n in zip(inputs["input_ids"], lengths.tolist(), strict=True)]
            batch = pack_ends(sequences, lengths.device)
            plain: Any = own.get_base_model() if isinstance(own, PeftModel) else own
            with self.accelerator.autocast():  # else it wraps the model's own forward only
                states = packed_states(plain.base_model, batch)
            return states[batch.index], states[batch.index - (lengths - prompts)]
        # Through the whole model, for the wrappers of distributed training. Its pooled logits look for the pad id and are not
        # used: an end token that is also the pad would be passed over.
        out = model(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            output_hidden_states=True,
            use_cache=False,
        )
        rows = torch.arange(len(lengths), device=lengths.device)
        return out.hidden_states[-1][rows, lengths - 1], out.hidden_states[-1][rows, prompts - 1]

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Mean of the rows' losses; logs the share of pairs in the right order."""
        mode = "train" if model.training else "eval"
        scores = self.scores(model, inputs)
        counts = inputs["counts"].tolist()
        losses, right, pairs = [], 0.0, 0
        for own, tiers, margin in zip(
            scores.split(counts), inputs["tiers"].split(counts), inputs["margins"].tolist(), strict=True
        ):
            losses.append(self.ranking_loss(own, tiers.tolist(), None if margin != margin else margin))
            with torch.no_grad():
                before = tiers[:, None] < tiers[None]
                difference = (own[:, None] - own[None])[before]
                right += float((difference > 0).sum()) + 0.5 * float((difference == 0).sum())
                pairs += int(before.sum())
        loss = torch.stack(losses).mean()
        with torch.no_grad():
            found = torch.tensor([[right, float(pairs)]], device=loss.device)
            gathered = self.accelerator.gather_for_metrics(found).sum(0)
            self._metrics[mode]["accuracy"].append(float(gathered[0] / gathered[1].clamp(min=1)))
            self._metrics[mode]["mean_reward"].append(float(scores.mean()))
        return (loss, {"scores": scores.detach()}) if return_outputs else loss
