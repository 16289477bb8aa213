"""The table of what each algorithm can be used with, as the README shows it."""

from __future__ import annotations

from agents.algorithms.table import ALGORITHMS

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
}


def capability_table() -> str:
    """The README's table, in Markdown: algorithm by feature, with a note for each no."""
    notes: dict[str, int] = {}
    lines = ["| algorithm | class | " + " | ".join(FEATURES.values()) + " |", "|---" * (len(FEATURES) + 2) + "|"]
    for name, row in ALGORITHMS.items():
        cells = []
        for feature in FEATURES:
            reason = row.reason(feature)
            cells.append("yes" if reason is None else f"no [{notes.setdefault(reason, len(notes) + 1)}]")
        lines.append(
            f"| `{name}` | `{row.cls.__module__.partition('.')[0]}.{row.cls.__name__}` | " + " | ".join(cells) + " |"
        )
    lines += ["", *(f"{number}. {reason[0].upper()}{reason[1:]}." for reason, number in notes.items())]
    return "\n".join(lines) + "\n"
