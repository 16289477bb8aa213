"""Reward servers: what scores responses behind an address, over HTTP; docs/reward_server.md describes the protocol."""

from __future__ import annotations

import contextlib
import email.utils
import http.client
import json
import os
import ssl
import time
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import SplitResult, urlsplit

from llm_env.reward.columns import EVERYTHING
from llm_env.reward.limits import (
    SERVER_TIMEOUT,
    SERVER_WAIT,
    CallLimits,
    OutOfTimeError,
    UnavailableError,
    ask_until_answered,
    call_within,
    can_interrupt,
)
from llm_env.reward.scores import RewardModelError, TextReward, checked_scores
from llm_env.reward.shown import one_line
from llm_env.text.prompts import PromptRecord

KEYS_VARIABLE = "LLM_ENV_REWARD_KEYS"
"""Environment variable with the servers' keys, ``host=key`` or ``host:port=key``, with spaces between them."""
PORTS = {"http": 80, "https": 443}
ANSWER_BYTES = 1_000_000
"""Size of an answer that is read at most, besides `SCORE_BYTES` for each score."""
SCORE_BYTES = 100


class ServerReward(TextReward):
    """A reward model behind an address, asked with one request for all responses.

    A server that cannot be reached, breaks off, takes too long or answers 5xx or 429 is asked again, and the caller waits. Any
    other answer than one finite score for each response is an error. Redirects are not followed, and proxies not used.

    Args:
        url: ``http://host:port/path``, or https.
        option: The option that it came from, for error messages.
        limits: How long a request may take, and how long a server that does not answer is waited for. By default
            `SERVER_TIMEOUT` and `SERVER_WAIT` seconds.

    Attributes:
        name: The address, as it was given.

    Raises:
        ValueError: that is no address, or `KEYS_VARIABLE` is malformed.
    """

    def __init__(self, url: str, option: str = "reward_model", limits: CallLimits | None = None) -> None:
        limits = limits or CallLimits()
        self.name = url
        self.option = option
        self.timeout = SERVER_TIMEOUT if limits.timeout is None else limits.timeout
        self.wait = SERVER_WAIT if limits.wait is None else limits.wait
        self._label = f"{option}={url!r}"
        self._address = checked_url(url, option)
        self._key = server_key(self._address, os.environ.get(KEYS_VARIABLE, ""))

    def check_prompts(self, records: Sequence[PromptRecord]) -> None:
        """See `RewardModel.check_prompts`: what the server needs, it says itself."""

    def score_texts(
        self, prompts: Sequence[str], responses: Sequence[str], columns: Sequence[Mapping[str, Any]] | None = None
    ) -> list[float]:
        """Asks the server, and waits for it where it does not answer; see `TextReward.score_texts`.

        Raises:
            RewardModelError: it did not answer for too long, or did not give one finite score for each response.
        """
        # In ASCII, so that any text there is can be sent, half of a surrogate pair too.
        further = {} if columns is None else EVERYTHING.select(columns, prompts, self._label)
        body = json.dumps({"prompts": list(prompts), "responses": list(responses), **further}).encode("ascii")
        most = ANSWER_BYTES + SCORE_BYTES * len(responses)
        answer = ask_until_answered(lambda: self._attempt(body, most), self.wait, self._label)
        try:
            values = json.loads(answer)
        except (ValueError, RecursionError) as error:
            raise RewardModelError(
                f"{self._label} answered with something that is not JSON: {one_line(answer[:120].decode(errors='replace'))}"
            ) from error
        if not isinstance(values, dict) or not isinstance(values.get("scores"), list):
            raise RewardModelError(
                f'{self._label} must answer {{"scores": [one number for each response]}}; it answered '
                f"{one_line(answer[:120].decode(errors='replace'))}"
            )
        return checked_scores(values["scores"], prompts, responses, repr(self.name), self.option)

    def _attempt(self, body: bytes, most: int) -> bytes:
        """Sends one request, and reads the answer within the time limit.

        Raises:
            UnavailableError: the server may answer when it is asked again.
            RewardModelError: it will not.
        """
        try:
            # In another thread, where nothing can be interrupted, the limit is one for each read from the network.
            if can_interrupt():
                return call_within(self.timeout, lambda: self._ask(body, most))
            return self._ask(body, most)
        except (OutOfTimeError, TimeoutError) as error:
            message = f"{self._label} did not answer within {self.timeout:g} s (reward_timeout)"
            raise UnavailableError(message) from error
        except ssl.SSLEOFError as error:  # it broke off
            raise UnavailableError(f"{self._label}: the connection broke off") from error
        except ssl.SSLError as error:
            raise RewardModelError(f"{self._label}: no safe connection: {one_line(str(error))}") from error
        except http.client.IncompleteRead as error:
            raise UnavailableError(f"{self._label}: the answer broke off") from error
        except OSError as error:  # refused, reset, no such host, …
            reason = one_line(error.strerror or str(error))
            raise UnavailableError(f"{self._label} cannot be reached ({reason})") from error
        except http.client.HTTPException as error:
            raise RewardModelError(
                f"{self._label} does not speak HTTP: {type(error).__name__}: {one_line(str(error))}"
            ) from error

    def _ask(self, body: bytes, most: int) -> bytes:
        """Sends one request; returns the answer's body."""
        where = self._address
        kind = http.client.HTTPSConnection if where.scheme == "https" else http.client.HTTPConnection
        assert where.hostname is not None
        connection = kind(where.hostname, where.port or PORTS[where.scheme], timeout=self.timeout)
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "llm-env"}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        try:
            path = (where.path or "/") + (f"?{where.query}" if where.query else "")
            with contextlib.suppress(BrokenPipeError):  # it may have answered before it read all, as with 413
                connection.request("POST", path, body, {**headers, "Connection": "close"})
            with connection.getresponse() as response:
                answer = response.read(most + 1)
                if len(answer) > most:
                    raise RewardModelError(f"{self._label} answered with more than {most:,} bytes.")
                if response.length:  # bytes that were announced and did not come
                    raise UnavailableError(f"{self._label}: the answer broke off")
        finally:
            connection.close()
        self._check_status(response, answer)
        return answer

    def _check_status(self, response: http.client.HTTPResponse, answer: bytes) -> None:
        """Refuses an answer that has no scores; raises `UnavailableError` where a later one may have."""
        status = response.status
        if status == http.HTTPStatus.OK:
            return
        message = f"{self._label} answered {status} {one_line(response.reason or '', 60)}".rstrip()
        if 300 <= status < 400:
            target = one_line(response.getheader("Location", "elsewhere"))
            raise RewardModelError(
                f"{message}, a redirect to {target}. Redirects are not followed: give the address itself."
            )
        if said := error_text(answer):
            message += f": {said}"
        # 501 and 505 are answers of what is no server for this protocol.
        if (status >= 500 and status not in (501, 505)) or status in (408, 425, 429):
            raise UnavailableError(message, retry_after(response.getheader("Retry-After")))
        raise RewardModelError(f"{message}.")


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


def error_text(answer: bytes) -> str:
    """What a server says about an error: the entry ``error`` of its answer, or the answer's beginning, on one line."""
    text = answer[:1000].decode("utf-8", errors="replace")
    try:
        values: Any = json.loads(text)
    except (ValueError, RecursionError):
        return one_line(text, 120)
    if isinstance(values, dict) and "error" in values:
        return one_line(str(values["error"]), 300)
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
