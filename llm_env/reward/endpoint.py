"""An address that is asked over HTTP with one JSON body a request: time limits, what is asked again, keys, sizes.

Reward servers (`llm_env.reward.server`) and judges behind the OpenAI protocol (`llm_env.reward.judges.served`) share it.
"""

from __future__ import annotations

import contextlib
import email.utils
import http.client
import json
import os
import socket
import ssl
import threading
import time
from typing import Any
from urllib.parse import SplitResult, urlsplit

from llm_env.reward.limits import (
    SERVER_TIMEOUT,
    SERVER_WAIT,
    CallLimits,
    Outage,
    UnavailableError,
    ask_until_answered,
)
from llm_env.reward.scores import RewardModelError
from llm_env.reward.shown import one_line

KEYS_VARIABLE = "LLM_ENV_REWARD_KEYS"
"""Environment variable with the servers' keys, ``host=key`` or ``host:port=key``, with spaces between them."""
HIDDEN = "[key]"
"""Stands in messages where an answer repeats the key."""
SECRET_LENGTH = 8
"""Characters of a key that is looked for in answers."""
PORTS = {"http": 80, "https": 443}


class RefusedError(RewardModelError):
    """A server answered with a status that asking again will not change.

    Args:
        message: What it answered, with its name.
        status: The status of the answer.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Endpoint:
    """An address that JSON is posted to.

    A server that cannot be reached, breaks off, takes too long or answers 5xx or 429 is asked again, and the caller waits. Any
    other status than 200 is an error. Redirects are not followed, and proxies not used. Several threads may ask at once.

    Args:
        url: ``http://host:port/path``, or https.
        option: The option that it came from, for error messages.
        limits: How long a request may take, and how long a server that does not answer is waited for. By default
            `SERVER_TIMEOUT` and `SERVER_WAIT` seconds.
        name: What the user wrote, for error messages. None: the address.

    Attributes:
        label: ``option='name'``, how messages begin.

    Raises:
        ValueError: that is no address, or `KEYS_VARIABLE` is malformed.
    """

    def __init__(self, url: str, option: str, limits: CallLimits | None = None, name: str | None = None) -> None:
        limits = limits or CallLimits()
        self.timeout = SERVER_TIMEOUT if limits.timeout is None else limits.timeout
        self.wait = SERVER_WAIT if limits.wait is None else limits.wait
        self.label = f"{option}={name or url!r}"
        self._address = checked_url(url, option)
        self._key = server_key(self._address, os.environ.get(KEYS_VARIABLE, ""))
        self._outage = Outage()

    def ask(self, body: bytes, most: int, stop: threading.Event | None = None) -> bytes:
        """Posts a body, and waits for the server where it does not answer.

        Args:
            body: JSON.
            most: Bytes that the answer may have.
            stop: Once it is set, the server is not asked again.

        Returns:
            The answer's body.

        Raises:
            RewardModelError: it did not answer for too long, or refused.
        """

        def attempt() -> bytes:
            if stop is not None and stop.is_set():
                raise RewardModelError(f"{self.label} is not asked any more.")
            return self._attempt(body, most)

        return ask_until_answered(attempt, self.wait, self.label, self._outage)

    def redacted(self, text: str) -> str:
        """A text of the server's, or about it, in which the key does not stand; one of a few letters stands in any text."""
        return text.replace(self._key, HIDDEN) if self._key is not None and len(self._key) >= SECRET_LENGTH else text

    def _attempt(self, body: bytes, most: int) -> bytes:
        """Sends one request, and reads the answer within the time limit.

        Raises:
            UnavailableError: the server may answer when it is asked again.
            RewardModelError: it will not.
        """
        deadline = _Deadline(self.timeout)
        try:
            return self._ask(body, most, deadline)
        except (RewardModelError, UnavailableError):
            raise
        except Exception as error:
            if deadline.passed or isinstance(error, TimeoutError):
                message = f"{self.label} did not answer within {self.timeout:g} s (reward_timeout)"
                raise UnavailableError(message) from error
            if (explained := self._explained(error)) is None:
                raise
            raise explained from error
        finally:
            deadline.cancel()

    def _explained(self, error: Exception) -> Exception | None:
        """What a failed request means: `UnavailableError` where it may pass, else `RewardModelError`; None for others."""
        if isinstance(error, ssl.SSLEOFError):  # it broke off
            return UnavailableError(f"{self.label}: the connection broke off")
        if isinstance(error, ssl.SSLError):
            return RewardModelError(f"{self.label}: no safe connection: {one_line(str(error))}")
        if isinstance(error, http.client.IncompleteRead):
            return UnavailableError(f"{self.label}: the answer broke off")
        if isinstance(error, OSError):  # refused, reset, no such host, …
            return UnavailableError(f"{self.label} cannot be reached ({one_line(error.strerror or str(error))})")
        if isinstance(error, http.client.HTTPException):
            reason = self.redacted(f"{type(error).__name__}: {one_line(str(error))}")
            return RewardModelError(f"{self.label} does not speak HTTP: {reason}")
        return None

    def _ask(self, body: bytes, most: int, deadline: _Deadline) -> bytes:
        """Sends one request; returns the answer's body."""
        where = self._address
        kind = http.client.HTTPSConnection if where.scheme == "https" else http.client.HTTPConnection
        assert where.hostname is not None
        connection = kind(where.hostname, where.port or PORTS[where.scheme], timeout=self.timeout)
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "llm-env"}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        try:
            deadline.watch(connection)
            connection.connect()
            if deadline.passed:  # while there was no socket to shut
                raise TimeoutError
            path = (where.path or "/") + (f"?{where.query}" if where.query else "")
            with contextlib.suppress(BrokenPipeError):  # it may have answered before it read all, as with 413
                connection.request("POST", path, body, {**headers, "Connection": "close"})
            with connection.getresponse() as response:
                answer = response.read(most + 1)
                if deadline.passed:
                    raise TimeoutError
                if len(answer) > most:
                    raise RewardModelError(f"{self.label} answered with more than {most:,} bytes.")
                if response.length:  # bytes that were announced and did not come
                    raise UnavailableError(f"{self.label}: the answer broke off")
        finally:
            connection.close()
        self._check_status(response, answer)
        return answer

    def _check_status(self, response: http.client.HTTPResponse, answer: bytes) -> None:
        """Refuses an answer of another status than 200; raises `UnavailableError` where a later one may be better."""
        status = response.status
        if status == http.HTTPStatus.OK:
            return
        reason = one_line(self.redacted(response.reason or ""), 60)
        message = f"{self.label} answered {status} {reason}".rstrip()
        if 300 <= status < 400:
            target = one_line(self.redacted(response.getheader("Location", "elsewhere")))
            raise RewardModelError(
                f"{message}, a redirect to {target}. Redirects are not followed: give the address itself."
            )
        # Before it is cut to a length, which could leave half of the key; and after, where JSON had parts of it escaped.
        if said := error_text(self.redacted(answer.decode(errors="replace"))):
            message += f": {self.redacted(said)}"
        # 501 and 505 are answers of what is no server for this protocol.
        if (status >= 500 and status not in (501, 505)) or status in (408, 425, 429):
            raise UnavailableError(message, retry_after(response.getheader("Retry-After")))
        raise RefusedError(f"{message}.", status)


class _Deadline:
    """Shuts a connection when a request's time is over, in whatever thread it is read.

    A socket's own limit is one for each read: an answer that comes in drops would never pass it.

    Args:
        seconds: How long the request may take.
    """

    def __init__(self, seconds: float) -> None:
        self.passed = False
        self._connection: http.client.HTTPConnection | None = None
        self._timer = threading.Timer(seconds, self._end)
        self._timer.daemon = True

    def watch(self, connection: http.client.HTTPConnection) -> None:
        """Starts the time of a connection."""
        self._connection = connection
        self._timer.start()

    def cancel(self) -> None:
        """Stops the clock."""
        self._timer.cancel()

    def _end(self) -> None:
        self.passed = True
        sock = self._connection.sock if self._connection is not None else None
        if sock is not None:
            with contextlib.suppress(OSError, ValueError):
                sock.shutdown(socket.SHUT_RDWR)


def is_url(name: str) -> bool:
    """Whether a reward model's name is an address."""
    return name.lower().startswith(("http://", "https://"))


def checked_url(url: str, option: str) -> SplitResult:
    """The parts of an address.

    Args:
        url: Scheme, host, port and path, in ASCII.
        option: The option that it came from, for error messages.

    Raises:
        ValueError: it is none that a request can be sent to.
    """
    rule = "must be http://HOST:PORT/PATH or https://HOST:PORT/PATH"
    if not (url.isascii() and url.isprintable()) or " " in url:
        raise ValueError(f"{option}={url!r} {rule}, with characters other than ASCII's percent-encoded.")
    try:
        parts = urlsplit(url)
        is_whole = parts.hostname is not None and parts.port != 0 and not parts.fragment
        (parts.hostname or "").encode("idna")  # as the connection will; no part of a name is empty or too long
    except ValueError as error:  # or the port is no number, or a bracket is missing
        raise ValueError(f"{option}={url!r} {rule}: {error}.") from error
    if parts.username is not None or parts.password is not None:
        # Not repeated: the address would be printed, and written to the run's config.yaml.
        raise ValueError(
            f"{option}: the address of {parts.hostname} has a user or a password in it. Give a key in the environment, "
            f"{KEYS_VARIABLE}=HOST=KEY; it is never written to disk."
        )
    if not is_whole:
        raise ValueError(f"{option}={url!r} {rule}.")
    return parts


def server_key(address: SplitResult, keys: str) -> str | None:
    """The key for a server; None where there is none. A key is for one host, so that no other address is ever sent it.

    Args:
        address: The server's address.
        keys: What `KEYS_VARIABLE` holds: ``host=key`` or ``host:port=key``, with spaces between them.

    Raises:
        ValueError: an entry has another form; its number is named, and not what it says.
    """
    found = None
    for number, entry in enumerate(keys.split(), 1):
        host, equals, key = entry.partition("=")
        if not (host and equals and key and key.isascii() and key.isprintable()):
            raise ValueError(f"{KEYS_VARIABLE}: entry {number} must be HOST=KEY or HOST:PORT=KEY.")
        if host.lower() in (address.hostname, address.netloc.lower()):
            found = key
    return found


def error_text(answer: str) -> str:
    """What a server says about an error: the entry ``error`` of its answer, or the answer's beginning, on one line.

    The OpenAI protocol has ``{"error": {"message": …}}``.
    """
    text = answer[:10_000]
    try:
        values: Any = json.loads(text)
    except (ValueError, RecursionError):
        return one_line(text, 120)
    if isinstance(values, dict) and "error" in values:
        said = values["error"]
        return one_line(str(said["message"] if isinstance(said, dict) and "message" in said else said), 300)
    return one_line(text, 120)


def retry_after(value: str | None) -> float:
    """Seconds that a ``Retry-After`` header asks for, given as a number or as a date; 0 where it says nothing."""
    if value is None:
        return 0.0
    if value.strip().isascii() and value.strip().isdigit():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError, OverflowError):
        return 0.0
