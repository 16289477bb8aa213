"""What all figures share: a canvas that needs no display, and what happens without matplotlib."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from llm_env.extras import installed, require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 110


def can_draw() -> bool:
    """Whether matplotlib is installed; warns where it is not, for a run goes on without its pictures."""
    if installed("matplotlib"):
        return True
    warnings.warn("matplotlib is not installed, so pictures are left out: pip install 'llm-env[plots]'", stacklevel=2)
    return False


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches that is drawn without a display; save it with ``figure.savefig(path, dpi=DPI)``."""
    require("matplotlib", "plots")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure
