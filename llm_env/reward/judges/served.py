"""A model behind a server that speaks the OpenAI chat-completions protocol, as a judge.

What is used of the protocol (https://platform.openai.com/docs/api-reference/chat): ``model``, ``messages``, ``temperature`` 0,
``max_tokens``, ``logprobs`` and ``top_logprobs``; of the answer, ``choices[0].message.content`` and ``choices[0].logprobs``.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from llm_env.reward.endpoint import Endpoint, RefusedError
from llm_env.reward.judges.names import CONCURRENCY, served_name
from llm_env.reward.judges.reading import Reply, without_thoughts
from llm_env.reward.judges.side_by_side import side_by_side
from llm_env.reward.limits import CallLimits
from llm_env.reward.scores import RewardModelError
from llm_env.reward.shown import one_line

MAX_TOKENS = 1024
"""Tokens that a reply may have. The instruction asks for one; a model that thinks first takes more."""
TOP_LOGPROBS = 20
"""The most that the protocol gives for a token."""
ANSWER_BYTES = 4_000_000
"""Size of an answer that is read at most."""
UNDECIDED = 0.01
"""Share of a "1" of which it is not known whether a "0" would follow, above which the written number counts."""


class ServedJudge:
    """A model behind an address.

    A server that cannot be reached, breaks off, takes too long or answers 5xx or 429 is asked again (`Endpoint`).

    Args:
        name: ``openai:URL#MODEL``.
        option: The option that it came from, for error messages.
        limits: How long a request may take, and how long a server that does not answer is waited for.
        concurrency: Requests at the same time.

    Raises:
        ValueError: the name has no address or no model.
    """

    def __init__(
        self, name: str, option: str = "judge", limits: CallLimits | None = None, concurrency: int = CONCURRENCY
    ) -> None:
        self.name = name
        self.concurrency = concurrency
        url, self.model = served_name(name, option)
        self.endpoint = Endpoint(url, option, limits, name)
        self.label = self.endpoint.label
        self._gives_logprobs = True  # until the server refuses

    def replies(self, questions: Sequence[str], options: Sequence[str]) -> Iterator[tuple[int, Reply]]:
        """Asks questions, several at once.

        Args:
            questions: The questions, whole instructions.
            options: What may be answered: letters, which are read from the text, or grades, from their probabilities too.

        Yields:
            The place of a question, and the reply; as they come.

        Raises:
            RewardModelError: the server did not answer for too long, refused, or does not speak the protocol.
        """

        def ask(question: str, stop: threading.Event) -> Reply:
            return self._reply(question, options, stop)

        yield from side_by_side(ask, questions, self.concurrency, self.endpoint.timeout)

    def written(self, questions: Sequence[str], max_new_tokens: int) -> Iterator[tuple[int, Reply]]:
        """Has an answer written to each question, several at once; see `replies`.

        Args:
            questions: The questions, whole instructions.
            max_new_tokens: Length cap of an answer, in the model's tokens; a model that thinks first has `MAX_TOKENS` beside.
        """

        def ask(question: str, stop: threading.Event) -> Reply:
            return self._read(self._ask(self._request(question, MAX_TOKENS + max_new_tokens), stop), ())

        yield from side_by_side(ask, questions, self.concurrency, self.endpoint.timeout)

    def _request(self, question: str, max_tokens: int) -> dict[str, Any]:
        message = {"role": "user", "content": question}
        return {"model": self.model, "messages": [message], "temperature": 0, "max_tokens": max_tokens}

    def _reply(self, question: str, options: Sequence[str], stop: threading.Event) -> Reply:
        """Asks one question."""
        request = self._request(question, MAX_TOKENS)
        wants_shares = all(option.isdigit() for option in options)
        extra = {"logprobs": True, "top_logprobs": TOP_LOGPROBS} if wants_shares and self._gives_logprobs else {}
        try:
            answer = self._ask({**request, **extra}, stop)
        except RefusedError as error:
            # Some servers refuse what they do not know instead of leaving it aside.
            if not extra or error.status not in (400, 422) or "logprobs" not in str(error):
                raise
            self._gives_logprobs = False
            answer = self._ask(request, stop)
        return self._read(answer, options if wants_shares else ())

    def _ask(self, request: dict[str, Any], stop: threading.Event) -> bytes:
        # In ASCII, so that any text there is can be sent, half of a surrogate pair too.
        return self.endpoint.ask(json.dumps(request).encode("ascii"), ANSWER_BYTES, stop)

    def _read(self, answer: bytes, options: Sequence[str]) -> Reply:
        """Reads an answer.

        Raises:
            RewardModelError: it is none of the protocol.
        """
        beginning = one_line(self.endpoint.redacted(answer.decode(errors="replace"))[:120])
        try:
            values = json.loads(answer)
        except (ValueError, RecursionError) as error:
            raise RewardModelError(f"{self.label} answered with something that is not JSON: {beginning}") from error
        try:
            choice = values["choices"][0]
            content = choice["message"]["content"]
            if not isinstance(content, str | None):
                raise TypeError
        except (TypeError, KeyError, IndexError) as error:
            raise RewardModelError(
                f'{self.label} must answer {{"choices": [{{"message": {{"content": a text}}}}]}}; it answered {beginning}'
            ) from error
        text = without_thoughts(self.endpoint.redacted(content or ""))
        text = text.encode("utf-8", "replace").decode("utf-8")  # half of a surrogate pair cannot be written to a file
        shares, mass = None, None
        if options and (found := grade_shares(choice.get("logprobs"), options)) is not None:
            shares, mass = found
        reason = choice.get("finish_reason")
        return Reply(shares, mass, text, None if reason is None else reason != "length")


def grade_shares(logprobs: Any, options: Sequence[str]) -> tuple[dict[str, float], float] | None:
    """Probabilities of grades from a reply's ``logprobs``.

    Args:
        logprobs: ``{"content": [{"token": …, "top_logprobs": [{"token": …, "logprob": …}, …]}, …]}``, one entry a token.
        options: The grades, as whole numbers.

    Returns:
        The probability of each grade, divided by the sum of all, and the sum. None where they cannot be told: the server gives
        none, the reply does not begin with a grade, or much of a "1" may have been the beginning of "10".
    """
    content = logprobs.get("content") if isinstance(logprobs, dict) else None
    entries = [e for e in content if isinstance(e, dict)] if isinstance(content, list) else []
    while entries and not str(entries[0].get("token", "")).strip():
        entries = entries[1:]  # a blank before the grade
    if not entries or str(entries[0].get("token", "")).strip() not in options:
        return None
    weights = _weights(entries[0], options)
    total = sum(weights.values())
    if not total:
        return None
    if "10" in options and not weights["10"] and weights["1"] > UNDECIDED * total:
        # This tokenizer writes numbers digit by digit. Behind a "1" that was written the next token tells.
        following = _weights(entries[1], ("0",)) if len(entries) > 1 and entries[0]["token"].strip() == "1" else None
        if following is None:
            return None
        weights["10"] = weights["1"] * min(1.0, following["0"])
        weights["1"] -= weights["10"]
    return {option: weight / total for option, weight in weights.items()}, min(1.0, total)


def _weights(entry: dict[str, Any], options: Sequence[str]) -> dict[str, float]:
    """The probability of each of some tokens at one place of a reply; 0 where it is not among those that were told."""
    weights = dict.fromkeys(options, 0.0)
    for candidate in entry.get("top_logprobs") or ():
        token = candidate.get("token") if isinstance(candidate, dict) else None
        log_prob = candidate.get("logprob") if isinstance(candidate, dict) else None
        if (
            isinstance(token, str)
            and token.strip() in weights
            and isinstance(log_prob, int | float)
            and log_prob <= 1e-6
        ):
            weights[token.strip()] += math.exp(log_prob)
    return weights
