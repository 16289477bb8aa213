"""Builds the documentation: ``make docs``, then open docs/_build/html/index.html."""

from __future__ import annotations

import importlib
import inspect
import os
import re
import sys
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
ROOT = DOCS.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # what the tutorials print does not depend on how many cores there are

from llm_env import __version__  # noqa: E402

project = "llm-env"
author = "the llm-env authors"
version = release = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.intersphinx",
    "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build", "tutorials"]
myst_heading_anchors = 4
suppress_warnings = ["myst.header"]  # GitHub shows pages that begin at any level

default_role = "code"  # docstrings put names between single backticks
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_default_options = {"show-inheritance": True}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

# Only where the network may be used: `sphinx-build -t online`.
intersphinx_mapping = {}
if "online" in tags:  # type: ignore[name-defined]  # noqa: F821
    intersphinx_mapping = {
        "python": ("https://docs.python.org/3", None),
        "gymnasium": ("https://gymnasium.farama.org", None),
        "stable_baselines3": ("https://stable-baselines3.readthedocs.io/en/master", None),
        "torch": ("https://docs.pytorch.org/docs/stable", None),
        "transformers": ("https://huggingface.co/docs/transformers/main/en", None),
    }

# The tutorials run while the site is built, a changed one again; `-D plot_gallery=0` leaves out what they print and draw.
sphinx_gallery_conf = {
    "examples_dirs": "tutorials",
    "gallery_dirs": "gallery",
    "filename_pattern": r"/\d\d_",
    "within_subsection_order": "FileNameSortKey",
    "capture_repr": (),
    "show_signature": False,
    "write_computation_times": False,
    "min_reported_time": 86_400,  # how long it took says more about the machine than about the tutorial
}

html_theme = "furo"
html_title = f"llm-env {version}"
html_static_path: list[str] = []
copybutton_exclude = ".linenos, .gp, .go"

OUTSIDE = re.compile(r"\[([^\]]+)\]\((\.\./[^)#]+)(?:#[^)]*)?\)")
"""A link from a page to a file above it, as GitHub follows it; the site has none of the repository's other files."""

TUTORIAL = re.compile(r"\]\(((?:\.\./)*)tutorials/(\w*)(?:\.py)?\)")
"""A link to a tutorial's script, or to their folder, as GitHub follows it; the site has the page made from it."""


DOCSTRING = re.compile(r"<!-- docstring: (\S+) -->")
"""Where the Markdown docstring of ``module:name`` stands."""


def _loaded(name: str) -> Any:
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _prepare_page(app: Any, name: str, source: list[str]) -> None:
    """Makes links to files of the repository into text, one that leads nowhere a warning; gives scripts' pages a title."""
    from sphinx.util import logging

    # The environment's docstring is a page, as Gymnasium's are.
    source[0] = DOCSTRING.sub(lambda match: inspect.getdoc(_loaded(match[1])) or "", source[0])

    def as_text(match: re.Match[str]) -> str:
        target = (DOCS / f"{name}.md").parent.joinpath(match[2]).resolve()
        if not target.exists():
            logging.getLogger(__name__).warning("%s: there is no %s", name, match[2])
        return match[0] if target.is_relative_to(DOCS) else match[1]  # another page of the site

    source[0] = TUTORIAL.sub(lambda found: f"]({found[1]}gallery/{found[2] or 'index'}.rst)", source[0])
    source[0] = OUTSIDE.sub(as_text, source[0])
    # Tables and samples that a script wrote, shown by the page that links to them.
    if "/" in name and not name.startswith(("algorithms/", "gallery/")):
        title = "" if source[0].startswith("# ") else f"# {name.split('/')[-1].replace('_', ' ').capitalize()}\n\n"
        source[0] = f"---\norphan: true\n---\n{title}{source[0]}"


def _from_the_root(app: Any, path: Path, name: str, content: list[str]) -> None:
    """Leads the changelog's links, which start at the repository's root, to pages."""
    content[0] = content[0].replace("](docs/", "](").replace("](README.md", "](index.md")


def setup(app: Any) -> None:
    """See Sphinx."""
    app.connect("include-read", _from_the_root)
    app.connect("source-read", _prepare_page)
