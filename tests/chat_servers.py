"""A server for tests that speaks the OpenAI chat-completions protocol."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


def completion(text: str | None, logprobs: Any = None) -> dict[str, Any]:
    """The body of an answer."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "logprobs": logprobs}
    return {"id": "x", "object": "chat.completion", "choices": [choice]}


def said(text: str | None, logprobs: Any = None) -> tuple[int, dict[str, str], bytes]:
    """An answer for `tests.reward_servers.ScriptedServer`."""
    return 200, {}, json.dumps(completion(text, logprobs)).encode()


class ChatServer:
    """A server whose model is a function of the question; it keeps the requests.

    Args:
        reply: Takes the last message's content; returns the model's text, or a whole body.
        name: What its judge's name ends with.
    """

    def __init__(self, reply: Callable[[str], str | dict[str, Any]], name: str = "tiny") -> None:
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.at_once = self.most_at_once = 0
        lock, chat = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    chat.requests.append(request)
                    chat.keys.append(self.headers.get("Authorization"))
                    chat.at_once += 1
                    chat.most_at_once = max(chat.most_at_once, chat.at_once)
                answer = reply(request["messages"][-1]["content"])
                content = json.dumps(answer if isinstance(answer, dict) else completion(answer)).encode()
                with lock:
                    chat.at_once -= 1
                self.send_response(200 if self.path == "/v1/chat/completions" else 404)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)
                self.close_connection = True

            def log_message(self, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.host = f"127.0.0.1:{self.server.server_port}"
        self.judge = f"openai:http://{self.host}/v1#{name}"

    @property
    def questions(self) -> list[str]:
        """What was asked, in the order in which it came."""
        return [request["messages"][-1]["content"] for request in self.requests]

    def __enter__(self) -> ChatServer:
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *args: Any) -> None:
        self.server.shutdown()
        self.server.server_close()
