"""The table of preference methods: each one's loss, its paper, TRL's trainer for it, and the settings that it takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# TRL's trainers by what they train on: pairs; pairs, with the odds of both sides; pairs, without a reference; single sides
PAIRED, ODDS, CONTRASTIVE, UNPAIRED = "DPOTrainer", "ORPOTrainer", "CPOTrainer", "KTOTrainer"


@dataclass(frozen=True)
class Method:
    """A row of `METHODS`.

    Attributes:
        trainer: Name of TRL's trainer: `PAIRED`, `ODDS`, `CONTRASTIVE` or `UNPAIRED`.
        source: The paper that it is from, as a user would cite it.
        beta: Default β, the paper's or TRL's. Its meaning differs between methods.
        config: Further entries of TRL's configuration.
        reference: Whether the loss needs a reference model.
        whole_distributions: Whether the loss needs the reference's whole distributions, which a cache of log-probs does not
            hold.
        options: The settings among `agents.supervised.settings.METHOD_OPTIONS` that the method takes.
    """

    trainer: str
    source: str
    beta: float = 0.1
    config: Mapping[str, Any] = field(default_factory=dict)
    reference: bool = True
    whole_distributions: bool = False
    options: tuple[str, ...] = ()


def _paired(source: str, loss_type: str, *options: str, beta: float = 0.1, **config: Any) -> Method:
    """The row of a loss that TRL's `DPOTrainer` computes."""
    return Method(PAIRED, source, beta, {"loss_type": [loss_type], **config}, options=("sft_coef", *options))


METHODS: dict[str, Method] = {
    "dpo": _paired("Rafailov et al. 2023, arXiv:2305.18290", "sigmoid"),
    "dpop": Method(PAIRED, "Pal et al. 2024, arXiv:2402.13228", 0.3, options=("dpop_lambda",)),
    "tdpo1": Method(PAIRED, "Zeng et al. 2024, arXiv:2404.11999", whole_distributions=True),
    "tdpo2": Method(PAIRED, "Zeng et al. 2024, arXiv:2404.11999", whole_distributions=True, options=("tdpo_alpha",)),
    "ipo": _paired("Azar et al. 2023, arXiv:2310.12036", "ipo"),
    "hinge": _paired("SLiC: Zhao et al. 2023, arXiv:2305.10425", "hinge"),
    "robust": _paired("Chowdhury et al. 2024, arXiv:2403.00409", "robust", "label_smoothing", label_smoothing=0.1),
    "exo_pair": _paired("Ji et al. 2024, arXiv:2402.00856", "exo_pair", "label_smoothing", label_smoothing=1e-3),
    "nca_pair": _paired("Chen et al. 2024, arXiv:2402.05369", "nca_pair"),
    "bco_pair": _paired("Jung et al. 2024, arXiv:2404.04656", "bco_pair"),
    "sppo_hard": _paired("Wu et al. 2024, arXiv:2405.00675", "sppo_hard"),
    "aot": _paired("Melnyk et al. 2024, arXiv:2406.05882", "aot", "label_smoothing"),
    "apo_zero": _paired("D'Oosterlinck et al. 2024, arXiv:2408.06266", "apo_zero"),
    "apo_down": _paired("D'Oosterlinck et al. 2024, arXiv:2408.06266", "apo_down"),
    "discopop": _paired("Lu et al. 2024, arXiv:2406.08414", "discopop", beta=0.05),
    "kto": Method(UNPAIRED, "Ethayarajh et al. 2024, arXiv:2402.01306", config={"loss_type": "kto"}),
    "orpo": Method(ODDS, "Hong et al. 2024, arXiv:2403.07691", reference=False),
    "cpo": Method(
        CONTRASTIVE,
        "Xu et al. 2024, arXiv:2401.08417",
        config={"loss_type": "sigmoid", "cpo_alpha": 1.0},
        reference=False,
        options=("label_smoothing", "sft_coef"),
    ),
    "simpo": Method(
        CONTRASTIVE,
        "Meng et al. 2024, arXiv:2405.14734",
        2.0,
        {"loss_type": "simpo", "cpo_alpha": 0.0, "simpo_gamma": 1.0},
        reference=False,
        options=("label_smoothing", "sft_coef", "simpo_gamma"),
    ),
}


def method(name: str) -> Method:
    """Looks a method up in `METHODS`.

    Raises:
        ValueError: no method has that name; the message lists those there are.
    """
    if name not in METHODS:
        raise ValueError(f"loss={name!r} is not known; use one of {', '.join(METHODS)}.")
    return METHODS[name]
