"""How a run ended, where an alarm ended it, and with which actor: ``RUN/actor/ending.json``."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path

from agents.checksums import read_object
from agents.files import write_json

ENDING = "ending.json"


@dataclass(frozen=True)
class Kept:
    """The actor of before an over-optimization.

    Attributes:
        iteration: The iteration whose update made it.
        timestep: Environment steps until then.
        gold_score: Mean gold score of the last rollouts until the one that it wrote: the highest of the run.
        eval: The log's ``eval/`` values of this actor, where the run evaluates.
    """

    iteration: int
    timestep: int
    gold_score: float
    eval: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Ending:
    """What ended a run before its steps were used up.

    Attributes:
        alarm: The alarm, one of `agents.rules.ALARMS`.
        iteration: The run's last iteration.
        kept: The actor that the run ends with; None: the last iteration's.
    """

    alarm: str
    iteration: int
    kept: Kept | None = None

    def sentence(self) -> str:
        """What the run says of it, without a full stop."""
        ended = f"Ended after iteration {self.iteration:,} by the alarm '{self.alarm}' (stop_on)"
        if self.kept is None:
            return f"{ended}: the actor is the one of that iteration"
        gold = self.kept.eval.get("gold_score")
        held_out = "" if gold is None else f", and {gold:.3g} on held-out prompts"
        return (
            f"{ended}: the run ends with the actor of iteration {self.kept.iteration:,}, whose gold score was the best: "
            f"{self.kept.gold_score:.3g}{held_out}"
        )


def write_ending(folder: Path, ending: Ending | None) -> None:
    """Writes ``ending.json`` to the actor's folder, or takes away that of an earlier ending."""
    if ending is None:
        (folder / ENDING).unlink(missing_ok=True)
    else:
        write_json(folder / ENDING, asdict(ending))


def read_ending(folder: Path) -> Ending | None:
    """How the run of an actor's folder ended; None where its steps were used up, or the file is damaged."""
    try:
        if not (folder / ENDING).is_file():
            return None
        record = read_object(folder / ENDING)
        kept = None if record["kept"] is None else Kept(**record["kept"])
        return Ending(**{**record, "kept": kept})
    except (ValueError, TypeError, KeyError):  # it only informs
        return None
