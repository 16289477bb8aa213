"""Reward servers for tests: one that answers what a test says, and the example's as a process that can be killed."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.conftest import ROOT

Answer = tuple[int, dict[str, str], bytes]
"""Status, headers and body."""


class ScriptedServer:
    """A server whose answers stand in a list; the last one is given again and again.

    An answer may be `None`, which breaks the connection off, or a function that is given the socket.
    """

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        scripted = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                scripted.requests.append((self.path, dict(self.headers), body))
                answer = scripted.answers.pop(0) if len(scripted.answers) > 1 else scripted.answers[0]
                if answer is None:
                    self.connection.shutdown(socket.SHUT_RDWR)
                elif callable(answer):
                    answer(self.connection)
                else:
                    status, headers, content = answer
                    self.send_response(status)
                    for name, value in {"Content-Length": str(len(content)), **headers}.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(content)
                self.close_connection = True

            def log_message(self, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/score?model=a"

    def __enter__(self) -> ScriptedServer:
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *args: Any) -> None:
        self.server.shutdown()
        self.server.server_close()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextlib.contextmanager
def example_server(
    port: int, *arguments: str, folder: Path = ROOT, **environment: str
) -> Iterator[subprocess.Popen[str]]:
    """Runs examples/reward_server.py until the block ends; it listens when the block begins."""
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "examples" / "reward_server.py"), "--port", str(port), *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("scores at")
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGKILL)
        process.communicate()


def drips(connection: socket.socket) -> None:
    """An answer whose headers never end: a line at a time, until the other side is gone."""
    connection.sendall(b"HTTP/1.1 200 OK\r\n")
    while True:
        try:
            connection.sendall(b"X: y\r\n")
        except OSError:
            return
        time.sleep(0.01)
