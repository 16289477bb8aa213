"""The log of several processes: one row for all of them."""

from __future__ import annotations

import numpy as np
from stable_baselines3.common.logger import Logger

from agents.distributed import ranks

SUMMED = ("time/total_timesteps", "time/fps")
"""Values that processes add up; of others they take the mean, which of joint values is the value itself."""


class JointLogger(Logger):
    """A logger whose rows are those of all processes; rank 0 has the formats that write them."""

    def dump(self, step: int = 0) -> None:
        """Writes the row: the mean of each number, or the sum (`SUMMED`)."""
        own = {n: float(v) for n, v in self.name_to_value.items() if isinstance(v, int | float | np.number)}
        rows = ranks().everyone(own)
        for name in own:
            values = [row[name] for row in rows if name in row]
            joint = sum(values) if name in SUMMED else sum(values) / len(values)
            self.name_to_value[name] = int(joint) if isinstance(self.name_to_value[name], int) else joint
        super().dump(step * ranks().world)
