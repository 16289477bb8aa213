"""One HTML file of one run or several: the page's script and style, and the runs' data as JSON. It loads nothing.

Texts of models and users are in the JSON, in which no ``<`` stands, and the script puts them on the page as texts. The page
names the hashes of its script and style (Content-Security-Policy), so that a browser runs no other.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from agents.files import write_text
from agents.runs.report.data import read_run
from llm_env.rendering import ABOVE, BELOW

REPORT = "report.html"


def page(runs: Sequence[Mapping[str, Any]], live: Mapping[str, Any] | None = None) -> str:
    """The page as HTML.

    Args:
        runs: What `agents.runs.report.data.read_run` gave; two or more are shown beside each other.
        live: What a page that asks for newer data says of them; None: the page is a file, and asks nobody.
    """
    files = resources.files("agents.runs.report")
    template, style, script = ((files / f"report.{kind}").read_text(encoding="utf-8") for kind in ("html", "css", "js"))
    colors = {name: ", ".join(map(str, rgb)) for name, rgb in (("above", ABOVE), ("below", BELOW))}
    style = _filled(style, colors)
    asks = "'none'" if live is None else "'self'"
    parts = {
        "title": html.escape(" · ".join(str(run["name"]) for run in runs)),
        "style": style,
        "script": script,
        "policy": f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; "
        f"img-src data:; connect-src {asks}; base-uri 'none'; form-action 'none'",
        "data": as_json({"runs": list(runs), "live": live}).replace("<", "\\u003c"),
    }
    return _filled(template, parts)


def _filled(template: str, parts: Mapping[str, str]) -> str:
    """A template with its ``{{name}}``s filled in, in one pass: what is put in is not looked at again."""
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)


def as_json(value: Any) -> str:
    """Plain values as JSON of ASCII characters: half a surrogate pair, which a model may write, has no UTF-8."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def write_report(folder: Path, path: Path | None = None) -> Path:
    """Writes a run's ``report.html``.

    Args:
        folder: The run's folder.
        path: The file to write; None: ``report.html`` in the folder.

    Returns:
        The file's path.

    Raises:
        FileNotFoundError, ValueError: there is no run in the folder, or one of its files is none of a run's.
        OSError: the file cannot be written.
    """
    path = path or folder / REPORT
    write_text(path, page([read_run(folder)]))
    return path


def _hash(text: str) -> str:
    """A source for Content-Security-Policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
