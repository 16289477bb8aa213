"""Which preference methods there are: the loss, who brings it, and what it takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

PAIRS, ODDS, CONTRASTIVE, UNPAIRED = "DPOTrainer", "ORPOTrainer", "CPOTrainer", "KTOTrainer"


@dataclass(frozen=True)
class Method:
    """A row of `METHODS`.

    Attributes:
        trainer: TRL's trainer.
        source: The paper.
        beta: Default β, the paper's or TRL's. What it means is the method's own.
        config: What else TRL's configuration is given.
        own: Whether TRL lacks the loss, and it is one of `agents.supervised.preference.losses`.
        reference: Whether it needs a reference model.
        whole: Whether it needs the reference's whole distributions, which no cache of log-probs holds.
        options: Settings of ours that it takes.
    """

    trainer: str
    source: str
    beta: float = 0.1
    config: Mapping[str, Any] = field(default_factory=dict)
    own: bool = False
    reference: bool = True
    whole: bool = False
    options: tuple[str, ...] = ()


def _pairs(source: str, loss_type: str, *options: str, beta: float = 0.1, **config: Any) -> Method:
    """A loss of TRL's `DPOTrainer`."""
    return Method(PAIRS, source, beta, {"loss_type": [loss_type], **config}, options=("sft_coef", *options))


METHODS: dict[str, Method] = {
    "dpo": _pairs("Rafailov et al. 2023, arXiv:2305.18290", "sigmoid"),
    "dpop": Method(PAIRS, "Pal et al. 2024, arXiv:2402.13228", 0.3, own=True, options=("dpop_lambda",)),
    "tdpo1": Method(PAIRS, "Zeng et al. 2024, arXiv:2404.11999", own=True, whole=True),
    "tdpo2": Method(PAIRS, "Zeng et al. 2024, arXiv:2404.11999", own=True, whole=True, options=("tdpo_alpha",)),
    "ipo": _pairs("Azar et al. 2023, arXiv:2310.12036", "ipo"),
    "hinge": _pairs("SLiC: Zhao et al. 2023, arXiv:2305.10425", "hinge"),
    "robust": _pairs("Chowdhury et al. 2024, arXiv:2403.00409", "robust", "label_smoothing", label_smoothing=0.1),
    "exo_pair": _pairs("Ji et al. 2024, arXiv:2402.00856", "exo_pair", "label_smoothing", label_smoothing=1e-3),
    "nca_pair": _pairs("Chen et al. 2024, arXiv:2402.05369", "nca_pair"),
    "bco_pair": _pairs("Jung et al. 2024, arXiv:2404.04656", "bco_pair"),
    "sppo_hard": _pairs("Wu et al. 2024, arXiv:2405.00675", "sppo_hard"),
    "aot": _pairs("Melnyk et al. 2024, arXiv:2406.05882", "aot", "label_smoothing"),
    "apo_zero": _pairs("D'Oosterlinck et al. 2024, arXiv:2408.06266", "apo_zero"),
    "apo_down": _pairs("D'Oosterlinck et al. 2024, arXiv:2408.06266", "apo_down"),
    "discopop": _pairs("Lu et al. 2024, arXiv:2406.08414", "discopop", beta=0.05),
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
    """The row of that name.

    Raises:
        ValueError: there is none.
    """
    if name not in METHODS:
        raise ValueError(f"loss={name!r} is not known; use one of {', '.join(METHODS)}.")
    return METHODS[name]
