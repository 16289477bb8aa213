from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from agents.runs.csv_log import CsvRows
from agents.runs.figure import draw_report, read_progress


def rows(path: Path) -> CsvRows:
    written = CsvRows(path)
    for step in (1, 2, 3):
        values = {"time/total_timesteps": step * 10, "rollout/tokens": step * 7, "rollout/rm_score": step / 2}
        if step > 1:
            values["train/late"] = step
        written.write(values, {"time/total_timesteps": ("tensorboard",)})
    return written


def test_rows_survive_new_columns_and_going_back(tmp_path: Path) -> None:
    path = tmp_path / "progress.csv"
    rows(path)
    table = read_progress(path)
    np.testing.assert_allclose(table["rollout/rm_score"], [0.5, 1.0, 1.5])
    np.testing.assert_allclose(table["train/late"], [np.nan, 2, 3])
    again = CsvRows(path)
    again.drop_after(20)
    again.write({"time/total_timesteps": 30, "rollout/rm_score": 9.0}, {})
    np.testing.assert_allclose(read_progress(path)["rollout/rm_score"], [0.5, 1.0, 9.0])


def test_the_picture_shows_the_curve(tmp_path: Path) -> None:
    flat = {"rollout/tokens": np.arange(5.0), "rollout/rm_score": np.zeros(5), "rollout/kl": np.zeros(5)}
    rising = {**flat, "rollout/rm_score": np.arange(5.0)}
    pictures = []
    for name, run in (("flat", flat), ("rising", rising)):
        draw_report(run, tmp_path / f"{name}.png", "run")
        pictures.append(np.asarray(Image.open(tmp_path / f"{name}.png")))
    height, width = pictures[0].shape[:2]
    extents = []
    for picture in pictures:  # of the curve's blue, matplotlib's C0, in the score's panel
        panel = picture[: height // 2, : width // 2, :3].astype(int)
        blue = (abs(panel - [31, 119, 180]).sum(-1) < 30).any(1).nonzero()[0]
        extents.append(int(blue.max() - blue.min()))
    assert extents[0] < 20
    assert extents[1] > 150


def test_a_dotted_line_stands_where_alarms_begin(tmp_path: Path) -> None:
    run = {name: np.arange(12.0) for name in ("rollout/tokens", "rollout/rm_score", "rollout/kl")}

    def lines(alarms: list[float]) -> int:
        """Columns of the score's panel that have the alarms' color, but for the dots' gaps."""
        draw_report({**run, "train/alarms": np.array(alarms)}, tmp_path / "run.png", "run")
        picture = np.asarray(Image.open(tmp_path / "run.png"))[..., :3].astype(int)
        panel = picture[: picture.shape[0] // 2, : picture.shape[1] // 2]
        orange = (panel[..., 0] - panel[..., 2] > 60).sum(0) > 20
        return int((np.diff(orange.astype(int), prepend=0) > 0).sum())

    assert lines([0.0] * 12) == 0
    assert lines([0, 0, 1, 1, 2, 0, 0, 0, 3, 0, 0, np.nan]) == 2
    assert lines([1.0] * 12) == 1  # one that never ends is no curtain
