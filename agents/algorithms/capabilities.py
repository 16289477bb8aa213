"""What each algorithm can be used with: the table that docs/algorithms.md shows, and the refusals."""

from __future__ import annotations

from agents.algorithms.table import ALGORITHMS, algorithm
from llm_env.extras import require
from llm_env.lm.names import check_base_quantization

FEATURES = {
    "full_weights": "all weights",
    "lora": "LoRA",
    "separate_critic": "critic of its own",
    "masks": "masks",
    "groups": "groups",
    "worlds": "worlds",
    "gpu": "GPU (tests not yet run)",
    "bf16": "bf16",
    "resume": "resume",
    "processes": "several processes",
    "shards": "shards",
}


def capability_table() -> str:
    """The table of docs/algorithms.md: algorithm by feature, with a note for each no, and links to the algorithms' pages."""
    notes: dict[str, int] = {}
    lines = ["| algorithm | class | " + " | ".join(FEATURES.values()) + " |", "|---" * (len(FEATURES) + 2) + "|"]
    for name, row in ALGORITHMS.items():
        cells = []
        for feature in FEATURES:
            reason = row.reason(feature)
            cells.append("yes" if reason is None else f"no [{notes.setdefault(reason, len(notes) + 1)}]")
        lines.append(
            f"| [`{name}`](algorithms/{name}.md) | `{row.cls.__module__.partition('.')[0]}.{row.cls.__name__}` | "
            + " | ".join(cells)
            + " |"
        )
    lines += ["", *(f"{number}. {reason[0].upper()}{reason[1:]}." for reason, number in notes.items())]
    return "\n".join(lines) + "\n"


def check_masks(name: str, masks: bool) -> None:
    """Refuses an environment with mask rules (`masks` is True) for an algorithm that would not heed them.

    Raises:
        ValueError: the algorithm knows no masks; the reason is given.
    """
    if masks:
        algorithm(name).refuse(name, "masks", "top_k, top_p, min_new_tokens, allowed and forbidden tokens")


def check_world(name: str, has_world: bool) -> None:
    """Refuses an environment whose world answers the policy for an algorithm that could not learn from such episodes.

    Raises:
        ValueError: the algorithm's row says why it cannot.
    """
    if has_world:
        algorithm(name).refuse(name, "worlds", "a world")


def check_base(base_quantization: str, lora_rank: int) -> None:
    """Refuses a quantized base without adapters, or without what quantizes it.

    Raises:
        ValueError: the quantization is not known, or there are no adapters.
        ImportError: bitsandbytes or PEFT is not installed.
    """
    check_base_quantization(base_quantization, lora_rank)
    if base_quantization != "none":
        require("peft", "lora")
        require("bitsandbytes", "quantized")


def check_processes(name: str, processes: int) -> None:
    """Refuses several processes for an algorithm that cannot share its update among them.

    Raises:
        ValueError: there are several, and the algorithm's row says why it cannot.
    """
    if processes > 1:
        algorithm(name).refuse(name, "processes", f"processes={processes}")


def check_shards(
    name: str, episodes: str | None, mask_refresh: int | None = None, optimizer: str = "adamw", base: str = "none"
) -> None:
    """Refuses weights in shards where ranks would not all ask for them as often.

    Args:
        name: The algorithm's name in `agents.algorithms.table`.
        episodes: How episodes follow each other; None: as the algorithm has it.
        mask_refresh: Rollouts between refreshes of the masks' actor.
        optimizer: One of `agents.rules.OPTIMIZERS`.
        base: The setting ``base_quantization``.

    Raises:
        ValueError: the algorithm's row says why it cannot, or a setting cannot be had with shards.
    """
    algorithm(name).refuse(name, "shards", "sharding='full'")
    if episodes == "continuous":
        raise ValueError(
            "episodes='continuous' cannot be used with sharding='full': only where rollouts are whole episodes do all "
            "processes ask for as many values. Take episodes='synchronous'."
        )
    if optimizer == "adamw_8bit":
        raise ValueError(
            "optimizer='adamw_8bit' cannot be used with sharding='full': its blocks would lie across the shards. Leave it out: "
            "in shards each process has a part of the states."
        )
    if base != "none":
        raise ValueError(
            f"base_quantization={base!r} cannot be used with sharding='full': its blocks would lie across the shards. Leave "
            "one of them out."
        )
    if mask_refresh:
        raise ValueError(
            f"mask_refresh={mask_refresh} cannot be used with sharding='full': its copy of the actor is made of whole weights. "
            "Leave it out: the masks then look at the reference."
        )
