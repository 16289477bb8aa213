"""A run's page while the run goes on, for this machine alone: Python's own web server behind `agents.local_page.PageGuard`."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from agents.local_page import PageGuard, address_of, check_address, page_token
from agents.runs.report.data import read_run
from agents.runs.report.page import as_json, page

HOST = "127.0.0.1"
NEEDED = re.compile(r"/|/data\.json")
"""Paths that the page needs."""
WATCHED = ("config.yaml", "progress.csv", "samples.jsonl", "actor")
"""What the page is made from."""
PATIENCE = 30  # seconds that a request may take to arrive


class Watched:
    """The ASGI application: the page, and its data where they are newer than what the page has.

    Args:
        folder: The run's folder.

    Raises:
        FileNotFoundError, ValueError: there is no run in it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = Lock()  # requests come in threads
        self._seen: tuple[str | None, dict[str, Any]] = (None, {})
        self.read()

    def version(self) -> str:
        """Another text whenever a file that the page is made from is another."""
        found = [(self.folder / name).stat() for name in WATCHED if (self.folder / name).exists()]
        return "-".join(f"{stat.st_size:x}.{stat.st_mtime_ns:x}" for stat in found)

    def read(self) -> tuple[str, dict[str, Any]]:
        """The data and their version; read again where that has changed.

        Raises:
            FileNotFoundError, ValueError: there is no run there, or no more.
        """
        with self._lock:
            version = self.version()
            if version != self._seen[0]:
                self._seen = (version, read_run(self.folder))
            return version, self._seen[1]

    def live(self, version: str) -> dict[str, Any]:
        """What a live page is told besides the run: the data's version, and their age in seconds."""
        changed = [(self.folder / n).stat().st_mtime for n in WATCHED if (self.folder / n).exists()]
        return {"version": version, "age": round(max(0.0, time.time() - max(changed)), 1) if changed else None}

    def answer(self, path: str, seen: str) -> tuple[int, str, str]:
        """Status, content type and text for a request.

        Args:
            path: ``/`` or ``/data.json``.
            seen: The version of the data that the page has.
        """
        try:
            version, run = self.read()
            live = self.live(version)
        except (OSError, ValueError) as error:  # a folder that was removed, a file that is none of a run's
            return 500, "text/plain", f"{error}\n"
        if path == "/":
            return 200, "text/html", page([run], live)
        if seen == version:
            return 204, "application/json", ""
        return 200, "application/json", as_json({"runs": [run], "live": live})

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Answers a request that the guard let through."""
        seen = parse_qs(scope["query_string"].decode("latin-1")).get("seen", [""])[0]
        status, kind, text = self.answer(scope["path"], seen)
        headers = [(b"content-type", f"{kind}; charset=utf-8".encode()), (b"cache-control", b"no-store")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": text.encode()})


def handler_of(app: Callable[..., Any]) -> type[BaseHTTPRequestHandler]:
    """A handler that has an ASGI application answer each GET; other methods are not there."""

    class Handler(BaseHTTPRequestHandler):
        timeout = PATIENCE

        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            scope = {
                "type": "http",
                "method": "GET",
                "path": unquote(parts.path),
                "query_string": parts.query.encode("latin-1"),
                "headers": [(k.lower().encode("latin-1"), v.encode("latin-1")) for k, v in self.headers.items()],
            }
            with contextlib.suppress(ConnectionError):  # a page that was closed meanwhile
                asyncio.run(app(scope, None, self.send))

        async def send(self, message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                self.send_response_only(message["status"])
                for name, value in message["headers"]:
                    self.send_header(name.decode("latin-1"), value.decode("latin-1"))
                self.end_headers()
            else:
                self.wfile.write(message["body"])

        def log_message(self, *args: Any) -> None:
            """A page that asks every second is no news."""

    return Handler


def serve(folder: Path, port: int, say: Callable[[str], None]) -> None:
    """Serves a run's page on this machine until Ctrl-C.

    Args:
        folder: The run's folder.
        port: The page's port; 0: any.
        say: Is told the address.

    Raises:
        FileNotFoundError: there is no run in the folder.
        ValueError: a file there is none of a run's, the port is taken, or the token is too short.
    """
    app = Watched(folder)
    check_address(HOST, port)
    token = page_token(HOST)
    with ThreadingHTTPServer((HOST, port), handler_of(PageGuard(app, HOST, token, NEEDED))) as server:
        say(f"The page: {address_of(HOST, server.server_port, token)}  Ctrl-C ends.")
        server.serve_forever()
