"""`RankingTrainer`: TRL's `RewardTrainer` for rankings of any length, several losses and several heads."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from trl import RewardTrainer

from agents.preferences.stars import MOST
from agents.supervised.reward_model.losses import RankingLoss
from agents.supervised.reward_model.stars import StarThresholds, ordinal_loss, regression_loss
from llm_env.lm.packed_attention import packed_states
from llm_env.lm.packing import pack_ends
from llm_env.reward.heads import Gate, MLPHead
from llm_env.reward.reading import pad_token, pooled_length, way_of_reading


def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Lays all responses of all rows into one right-padded batch, so that each response is read once.

    Args:
        rows: Rows of `agents.supervised.rows.encode_rankings`.

    Returns:
        ``input_ids`` and ``attention_mask`` of shape (n, longest) for n responses; for each response, shape (n,), its
        ``lengths``, ``prompt_lengths``, ``heads`` and ``tiers``; for each row its number of responses K, ``counts``, and, one
        after the other, the K² ``margins``.
    """
    sequences = [ids for row in rows for ids in row["ids"]]
    lengths = torch.tensor([len(s) for s in sequences])
    inside = torch.arange(int(lengths.max())) < lengths[:, None]  # (n, longest): True at tokens, False at padding
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
        "margins": torch.tensor([m for row in rows for m in row["margins"]]),
    }


MEANS = {"accuracy": ("right", "pairs"), "mean_reward": ("total_reward", "responses")}
"""What is logged as a sum over another: batches have different numbers of pairs and responses."""


class RankingTrainer(RewardTrainer):
    """`RewardTrainer` on rows of `agents.supervised.rows.encode_rankings`.

    Args:
        args: Positional arguments of `RewardTrainer`.
        ranking_loss: The loss of one prompt's scores. None: rows are those of `encode_stars`, and the loss is ``ordinal`` where
            the model has an attribute ``thresholds``, else ``regression``.
        star_mean: Mean of the training stars, for ``regression``.
        head_weights: Weight of each head in the overall score; None with a single head, or with a gate.
        kwargs: Keyword arguments of `RewardTrainer`. Where the model has an attribute ``gate``, the gate weighs the heads;
            where it has ``mlp_head``, that makes a score of its labels.
    """

    def __init__(
        self,
        *args: Any,
        ranking_loss: RankingLoss | None,
        star_mean: float = 0.0,
        head_weights: list[float] | None = None,
        **kwargs: Any,
    ) -> None:
        self.ranking_loss = ranking_loss
        self.star_mean = star_mean
        self.head_weights = head_weights
        model = kwargs["model"]
        # Trained is what is scored later: a decoder's head on packed texts, or the model's own forward pass.
        self.is_packed = way_of_reading(model) == "packed"
        with _single_label(kwargs["model"].config):
            super().__init__(*args, **{**kwargs, "data_collator": collate})
        self.pad = pad_token(model)  # which `RewardTrainer` has set

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset  # encoded already

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns: Any = ["ids", "prompt_length", "tiers", "head", "margins"]

    def scores(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """Scores each response, in the head of its ranking's aspect, or overall where the ranking has none.

        Args:
            model: The model as the trainer calls it, perhaps wrapped for distributed training.
            inputs: A batch of `collate`.

        Returns:
            Raw scores, shape (n,), float32.
        """
        plain = self.accelerator.unwrap_model(model)
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        mlp: MLPHead | None = getattr(plain, "mlp_head", None)
        if not self.is_packed:  # an encoder, which pools by itself
            if self.pad is not None:  # RoBERTa and its like count positions by the pad id
                ids = ids.masked_fill(mask == 0, self.pad)
            labels = model(input_ids=ids, attention_mask=mask).logits
            return (labels if mlp is None else mlp(labels))[:, 0].float()
        ends, prompt_ends = (states.float() for states in self._states(model, plain, inputs))
        values = plain.score(ends)  # (n, heads), or the hidden units of an MLP
        if mlp is not None:
            values = mlp(values)
        if values.shape[1] == 1:
            return values[:, 0]
        rows = torch.arange(len(ids), device=values.device)
        gate: Gate | None = getattr(plain, "gate", None)
        if gate is not None:
            weights = gate(
                prompt_ends.detach()
            )  # (n, heads); the gate learns from the prompt and does not change the trunk
        else:
            weights = torch.tensor(self.head_weights, device=values.device).expand_as(values)
        overall = (values * weights).sum(-1)
        heads = inputs["heads"]  # (n,); -1 where the ranking has no aspect
        return torch.where(heads < 0, overall, values[rows, heads.clamp(min=0)])

    def _states(self, model: Any, plain: Any, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Hidden states at the token of each text that is scored, and at its prompt's last one, shape (n, H) each.

        The scored token is the one that the model's own forward pools, which the reward model's users will read: with a pad
        token that is the end token too, the one before the end.
        """
        lengths, prompts = inputs["lengths"], inputs["prompt_lengths"]
        sequences = [ids[:n].tolist() for ids, n in zip(inputs["input_ids"], lengths.tolist(), strict=True)]
        pooled = torch.tensor([pooled_length(s, self.pad) for s in sequences], device=lengths.device)  # (n,)
        if self.accelerator.num_processes == 1 and not self.args.gradient_checkpointing:  # without padding
            batch = pack_ends(sequences, lengths.device)
            without_adapters: Any = plain.get_base_model() if isinstance(plain, PeftModel) else plain
            with self.accelerator.autocast():  # which wraps the forward of the whole model, and that is not called here
                states = packed_states(without_adapters.base_model, batch)  # (tokens, H)
            return states[batch.index - (lengths - pooled)], states[batch.index - (lengths - prompts)]
        # Through the whole model, for the wrappers of distributed training. Its logits are not used: with several heads the
        # prompts' states are needed too.
        out = model(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            output_hidden_states=True,
            use_cache=False,
        )
        rows = torch.arange(len(lengths), device=lengths.device)
        return out.hidden_states[-1][rows, pooled - 1], out.hidden_states[-1][rows, prompts - 1]

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The mean of the rows' losses; logs the share of pairs in the right order, and the mean score."""
        mode = "train" if model.training else "eval"
        scores = self.scores(model, inputs)  # (n,)
        if self.ranking_loss is None:
            loss = self._star_loss(model, scores, MOST - inputs["tiers"])
            # stars are absolute: all responses of the batch can be compared
            right, pairs = _in_order(scores.detach(), inputs["tiers"])
        else:
            loss, right, pairs = self._ranking_loss(self.ranking_loss, scores, inputs)
        with torch.no_grad():  # counts are added up over the devices before they are divided
            counts = torch.tensor([[right, pairs, float(scores.sum()), len(scores)]], device=loss.device)
            gathered = self.accelerator.gather_for_metrics(counts).sum(0).tolist()
            for name, count in zip(itertools.chain(*MEANS.values()), gathered, strict=True):
                self._metrics[mode][name].append(count)
        return (loss, {"scores": scores.detach()}) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """See `RewardTrainer.log`, which takes means over batches: here every pair and every response counts once."""
        model: Any = self.model
        collected = self._metrics["train" if model.training else "eval"]
        for name, (part, whole) in MEANS.items():
            if whole in collected:
                collected[name] = [sum(collected.pop(part)) / max(1.0, sum(collected.pop(whole)))]
        super().log(logs, start_time)

    def _star_loss(self, model: Any, scores: Tensor, stars: Tensor) -> Tensor:
        """The loss of stars, of scores and stars of shape (n,) each."""
        thresholds: StarThresholds | None = getattr(self.accelerator.unwrap_model(model), "thresholds", None)
        if thresholds is None:
            return regression_loss(scores, stars, self.star_mean)
        return ordinal_loss(scores, stars, thresholds())

    @staticmethod
    def _ranking_loss(ranking_loss: RankingLoss, scores: Tensor, inputs: dict[str, Any]) -> tuple[Tensor, float, int]:
        """The mean of the rows' losses, how many pairs are in the right order, and how many there are."""
        counts = inputs["counts"].tolist()
        losses, right, pairs = [], 0.0, 0
        of_rows = inputs["margins"].split([k * k for k in counts])
        for row_scores, tiers, margins in zip(
            scores.split(counts), inputs["tiers"].split(counts), of_rows, strict=True
        ):
            losses.append(ranking_loss(row_scores, tiers.tolist(), margins.view(len(tiers), len(tiers))))
            row_right, row_pairs = _in_order(row_scores.detach(), tiers)
            right, pairs = right + row_right, pairs + row_pairs
        return torch.stack(losses).mean(), right, pairs


def _in_order(scores: Tensor, tiers: Tensor) -> tuple[float, int]:
    """How many pairs have scores in the right order, equal ones counting one half; and how many there are that do not tie.

    Args:
        scores: Shape (K,).
        tiers: 0 the best, shape (K,).
    """
    is_better = tiers[:, None] < tiers[None]  # (K, K): [i, j] is True where i was ranked above j
    differences = (scores[:, None] - scores[None])[is_better]
    return float((differences > 0).sum()) + 0.5 * float((differences == 0).sum()), int(is_better.sum())


@contextlib.contextmanager
def _single_label(config: Any) -> Iterator[None]:
    """Lets a model's configuration say one label: `RewardTrainer` refuses others, and `RankingTrainer` combines the heads."""
    labels = config.num_labels
    config.num_labels = 1
    try:
        yield
    finally:
        config.num_labels = labels
