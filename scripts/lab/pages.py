r"""Makes the pictures of docs/pages.md: trains three runs, and photographs their pages in headless Chromium.

python scripts/lab/pages.py --output-dir docs/pages         some minutes on two cores; needs Chromium and playwright
python scripts/lab/pages.py --output-dir docs/pages --runs runs/pages       again, of the runs that are there
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import tyro

from agents.runs.report.page import write_report

RUNS = {
    "demo": ("--total-timesteps", "102400", "--eval-every", "10"),
    "strict": ("--total-timesteps", "61440", "--kl-coef", "0.2", "--learning-rate", "1e-4"),
    "grpo": ("--total-timesteps", "40960", "--algo", "grpo", "--group-size", "8"),
}
"""Options of each run."""
ROOT = Path(__file__).resolve().parents[2]


class Shot(NamedTuple):
    """A picture.

    Attributes:
        page: The page, in the folder of the runs.
        scheme: ``light`` or ``dark``.
        color: What tokens are colored by.
        moment: The slider's place, a share.
        first: Whether the first samples stand beside the others.
        part: What is photographed, as a selector; empty: the page from its top.
        height: Pixels from its top.
    """

    page: str
    scheme: Literal["light", "dark"]
    color: str = "kl"
    moment: float = 1.0
    first: bool = False
    part: str = ""
    height: int = 1310


SHOTS = {
    "report": Shot("demo/report.html", "light"),
    "advantage": Shot("demo/report.html", "dark", "advantage", 0.3, True, "#samples-section", 800),
    "compare": Shot("compared/compare.html", "light", height=970),
    "compare_samples": Shot("compared/compare.html", "light", part="#samples-section", height=900),
}


@dataclass(frozen=True)
class Args:
    """Make the pictures."""

    output_dir: Path
    """Folder for the pictures."""
    runs: Path = Path("runs/pages")
    """Folder of the runs; what is there already is not trained again."""


def train(folder: Path) -> None:
    """Trains what is not there, and writes all pages."""
    for name, options in RUNS.items():
        if not (folder / name / "actor").is_dir():
            words = ["scripts/train.py", *options, "--output-dir", str(folder / name)]
            subprocess.run([sys.executable, *words], cwd=ROOT, check=True)
        write_report(folder / name)
    runs = [str(folder / name) for name in RUNS]
    words = ["-m", "agents.cli.main", "compare", *runs, "--output-dir", str(folder / "compared")]
    subprocess.run([sys.executable, *words], cwd=ROOT, check=True)


def photograph(page: Any, shot: Shot, path: Path) -> None:
    """Brings an open page into the state of a shot, and takes it."""
    page.locator("#color").select_option(shot.color)
    slider = page.locator("#time")
    slider.fill(str(round(shot.moment * int(slider.get_attribute("max")))))
    if shot.first:
        page.locator("#first").check()
    top = page.locator(shot.part).evaluate("node => node.getBoundingClientRect().top + scrollY") if shot.part else 0
    clip = {"x": 0, "y": top, "width": page.viewport_size["width"], "height": shot.height}
    page.screenshot(path=path, full_page=True, clip=clip)


def main(args: Args) -> int:
    """Makes the pictures; returns the exit status."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        sys.stderr.write("error: there is no Chromium here: apt-get install chromium\n")
        return 1
    folder = args.runs.absolute()
    train(folder)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--headless", "--no-sandbox"])
        for name, shot in SHOTS.items():
            page = browser.new_page(viewport={"width": 1100, "height": 900}, color_scheme=shot.scheme)
            page.goto((folder / shot.page).as_uri())
            photograph(page, shot, args.output_dir / f"{name}.png")
        browser.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Args, description=__doc__)))
