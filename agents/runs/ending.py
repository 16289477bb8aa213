"""Which actor a run ends with, where it is not the one of its last iteration: ``RUN/actor/kept.json``."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path

from agents.checksums import read_object
from agents.files import write_json

KEPT = "kept.json"


@dataclass(frozen=True)
class Ending:
    """The actor of before an over-optimization that ended the run.

    Attributes:
        iteration: The iteration whose update made it.
        timestep: Environment steps until then.
        gold_score: Mean gold score of the last rollouts until the one that it wrote: the highest of the run.
        ended_after: The iteration after which the alarm ended the run.
        eval: The log's ``eval/`` values of this actor, where the run evaluates.
    """

    iteration: int
    timestep: int
    gold_score: float
    ended_after: int
    eval: dict[str, float] = field(default_factory=dict)

    def sentence(self) -> str:
        """What the run says of it, without a full stop."""
        held_out = f", and {self.eval['gold_score']:.3g} on held-out prompts" if "gold_score" in self.eval else ""
        return (
            f"the run ends with the actor of iteration {self.iteration}, whose gold score was the best: "
            f"{self.gold_score:.3g}{held_out}"
        )


def write_ending(folder: Path, ending: Ending | None) -> None:
    """Writes ``kept.json`` to the actor's folder, or takes away that of an earlier ending."""
    if ending is None:
        (folder / KEPT).unlink(missing_ok=True)
    else:
        write_json(folder / KEPT, asdict(ending))


def read_ending(folder: Path) -> Ending | None:
    """Which actor is in the folder; None where it is the one of the run's last iteration, or the file is damaged."""
    try:
        return Ending(**read_object(folder / KEPT)) if (folder / KEPT).is_file() else None
    except (ValueError, TypeError):  # it only informs
        return None
