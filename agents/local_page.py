"""Pages for people that this machine serves: who may open them, and what they can ask for.

gradio serves a page with an API, uploads, files and a proxy. Here it is launched behind `PageGuard`, which lets through what
the page itself needs and nothing else, and asks three things of each request (`agents.runs.report.watch` serves a page
without gradio behind the same guard):

- that it names this machine (``Host``): a name that an attacker's DNS points here (DNS rebinding) is none of ours;
- that it comes from the page itself (``Origin``, ``Sec-Fetch-Site``): other sites' pages cannot answer in somebody's place;
- for the token, where the page can be reached from other machines. It stands in the address that is printed, and is kept in
  a cookie from then on. The environment variable ``LLM_ENV_PAGE_TOKEN`` sets it, on this machine's own page too; else it is
  drawn at random.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
import ipaddress
import os
import re
import secrets
import socket
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias
from urllib.parse import parse_qs, quote, urlsplit

from llm_env.extras import require

TOKEN_VARIABLE = "LLM_ENV_PAGE_TOKEN"  # the variable's name
SHORTEST_TOKEN = 8  # characters

App: TypeAlias = Callable[[dict[str, Any], Any, Any], Awaitable[None]]
"""An ASGI application."""

NEEDED = re.compile(
    r"/|/config/?|/theme\.css|/favicon\.ico|/robots\.txt|/manifest\.json|/(assets|static|svelte)/[^?]*"
    r"|/gradio_api/(startup-events|theme\.css|heartbeat/\w+|queue/(join|data))/?"
)
"""Paths that a page of gradio's without files needs: not the API's description, uploads, files, the proxy, monitoring, …"""

_HOST = re.compile(r"(\[[\da-fA-F:.]+\]|[\w.-]+)(?::(\d+))?", re.ASCII)
"""A ``Host`` header: an address or a name, perhaps a port."""
OPEN = "/gradio_api/startup-events"  # gradio asks it itself when it starts
HEADERS = (
    # The page loads nothing from elsewhere and is shown in no other's frame, whatever a text on it says.
    (
        b"content-security-policy",
        b"default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; frame-ancestors 'none'; base-uri 'self'; "
        b"form-action 'self'",
    ),
    (b"x-frame-options", b"DENY"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),  # its address may hold the token
)
ENTRANCE = """<!doctype html><meta charset="utf-8"><title>Token</title>
<form>This page needs the token that was printed where it was started.
<input name="token" type="password" autofocus> <button>Open</button></form>"""


def page_token(host: str) -> str | None:
    """The token that a page at an address asks for; None where it asks for none, on this machine's own page.

    Raises:
        ValueError: the variable's value is too short.
    """
    given = os.environ.get(TOKEN_VARIABLE, "")
    if 0 < len(given) < SHORTEST_TOKEN:
        raise ValueError(
            f"{TOKEN_VARIABLE} has {len(given)} characters, at least {SHORTEST_TOKEN} are needed. Unset it to have one drawn."
        )
    return given or (None if is_loopback(host) else _drawn_token())


@functools.cache
def _drawn_token() -> str:
    """A token of 144 bits, the same for all pages of this process: rounds open one page after the other."""
    return secrets.token_urlsafe(18)


def is_loopback(host: str) -> bool:
    """Whether an address can be reached from this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_page(host: str, port: int) -> None:
    """Makes sure that a page can be shown, before the work whose results it shows.

    Args:
        host: Address of the page.
        port: Its port; 0: any.

    Raises:
        ImportError: gradio is not installed.
        ValueError: as `check_address`.
    """
    require("gradio", "people")
    check_address(host, port)


def check_address(host: str, port: int) -> None:
    """Makes sure that something can be served at an address.

    Raises:
        ValueError: the address or port is taken or none of this machine's, or the token is too short.
    """
    page_token(host)
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise ValueError(f"port={port} at host={host!r} cannot be used ({error}). Choose another --port.") from error


class PageGuard:
    """ASGI middleware that refuses what the module's docstring says.

    Args:
        app: The page's application.
        host: The address that it listens at.
        token: What a request has to bring; None: nothing.
        needed: Paths that the page needs; others are not there.
    """

    def __init__(self, app: App, host: str, token: str | None, needed: re.Pattern[str] = NEEDED) -> None:
        self.app = app
        self.needed = needed
        name = socket.gethostname().lower()
        self.names = {"localhost", host.lower(), name, f"{name}.local"}
        self.token = token
        # The cookie holds a hash, so that the token itself can be of any characters.
        self.secret = hashlib.sha256((token or "").encode()).hexdigest()

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Passes a request on, or answers it."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return  # the page opens no WebSockets
        headers = {key.decode("latin-1").lower(): value.decode("latin-1") for key, value in scope["headers"]}
        refusal = self.refusal(scope["method"], scope["path"], headers)
        if refusal is not None:
            await _answer(send, *refusal)
            return
        if self.token is not None and scope["path"] != OPEN and not self._has_cookie(headers):
            await self._entrance(scope, headers, send)
            return

        async def send_with_headers(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *HEADERS]
            await send(message)

        await self.app(scope, receive, send_with_headers)

    def refusal(self, method: str, path: str, headers: dict[str, str]) -> tuple[int, str] | None:
        """Status and reason where a request is refused whoever sends it, or None.

        Args:
            method: ``GET``, ``POST``, …
            path: The path that is asked for.
            headers: By name in lower case.
        """
        host = headers.get("host", "").lower()
        if not self._is_ours(host):
            return 403, "This name is not one of this machine's. Open the page at its IP address.\n"
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin.lower()).netloc != host:
            return 403, "Another site's page cannot use this one.\n"
        # A link from elsewhere may open the page; nothing else may come from elsewhere.
        is_link = method == "GET" and path == "/" and headers.get("sec-fetch-mode") == "navigate"
        if headers.get("sec-fetch-site", "none") not in ("same-origin", "none") and not is_link:
            return 403, "Another site's page cannot use this one.\n"
        if not self.needed.fullmatch(path):
            return 404, "There is no such thing on this page.\n"
        return None

    def _is_ours(self, host: str) -> bool:
        """Whether a ``Host`` header names this machine: by an IP address, which needs no DNS, or by a name of its own."""
        match = _HOST.fullmatch(host)
        if match is None:
            return False
        name = match[1].strip("[]")
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name in self.names
        return True

    def _cookie_name(self, headers: dict[str, str]) -> str:
        """One for each port: cookies are shared by all ports of a host."""
        match = _HOST.fullmatch(headers["host"])
        return f"llm_env_page_{(match and match[2]) or 80}"

    def _has_cookie(self, headers: dict[str, str]) -> bool:
        # Not `SimpleCookie`, which gives up at a cookie that another program on this host has set in its own way.
        pairs = [pair.strip().partition("=") for pair in headers.get("cookie", "").split(";")]
        given = next((value for name, _, value in pairs if name == self._cookie_name(headers)), None)
        return given is not None and hmac.compare_digest(given.encode(), self.secret.encode())

    async def _entrance(self, scope: dict[str, Any], headers: dict[str, str], send: Any) -> None:
        """Takes the token from the address and keeps it in a cookie, or asks for it."""
        query = parse_qs(scope["query_string"].decode("latin-1"))
        given = hashlib.sha256(query.get("token", [""])[0].encode()).hexdigest()
        if scope["path"] == "/" and hmac.compare_digest(given, self.secret):
            cookie = f"{self._cookie_name(headers)}={self.secret}; Path=/; HttpOnly; SameSite=Lax"
            await _answer(send, 303, "", (b"location", b"/"), (b"set-cookie", cookie.encode()))
        elif scope["path"] == "/":
            await _answer(send, 401, ENTRANCE, (b"content-type", b"text/html; charset=utf-8"))
        else:
            await _answer(send, 401, "This page needs its token.\n")


async def _answer(send: Any, status: int, text: str, *headers: tuple[bytes, bytes]) -> None:
    """Sends a short answer."""
    await send({"type": "http.response.start", "status": status, "headers": [*headers, *HEADERS]})
    await send({"type": "http.response.body", "body": text.encode()})


def launch(page: Any, host: str, port: int) -> str:
    """Serves a page in the background, behind `PageGuard`; `page.close()` ends it.

    Args:
        page: A `gradio.Blocks`.
        host: Address to listen at.
        port: Port to listen at.

    Returns:
        The address to open, token included.

    Raises:
        OSError: the port is taken.
        ValueError: the token is too short.
    """
    from starlette.middleware import Middleware  # comes with gradio

    token = page_token(host)
    page.launch(
        server_name=host,
        server_port=port,
        prevent_thread_lock=True,
        quiet=True,
        share=False,
        footer_links=[],
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
        run_history=False,
        app_kwargs={
            "middleware": [Middleware(PageGuard, host=host, token=token)],  # type: ignore[arg-type]
            "docs_url": None,
            "redoc_url": None,
            "openapi_url": None,
        },
    )
    shown = socket.gethostname() if host in ("0.0.0.0", "::", "") else f"[{host}]" if ":" in host else host
    return address_of(shown, page.server_port, token)


def address_of(host: str, port: int, token: str | None) -> str:
    """What to open in a browser, token included."""
    return f"http://{host}:{port}/" + (f"?token={quote(token, safe='')}" if token else "")
