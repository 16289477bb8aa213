"""Reward servers: what scores responses behind an address, over HTTP; docs/reward_server.md describes the protocol."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from llm_env.reward.columns import EVERYTHING
from llm_env.reward.endpoint import Endpoint
from llm_env.reward.limits import CallLimits
from llm_env.reward.scores import RewardModelError, TextReward, checked_scores
from llm_env.reward.shown import one_line
from llm_env.text.prompts import PromptRecord

ANSWER_BYTES = 1_000_000
"""Size of an answer that is read at most, besides `SCORE_BYTES` for each score."""
SCORE_BYTES = 100


class ServerReward(TextReward):
    """A reward model behind an address, asked with one request for all responses.

    A server that does not answer is waited for, as `Endpoint` says. Any other answer than one finite score for each response
    is an error.

    Args:
        url: ``http://host:port/path``, or https.
        option: The option that it came from, for error messages.
        limits: How long a request may take, and how long a server that does not answer is waited for.

    Attributes:
        name: The address, as it was given.
        endpoint: The address, with its limits.

    Raises:
        ValueError: that is no address, or the variable with the keys is malformed.
    """

    def __init__(self, url: str, option: str = "reward_model", limits: CallLimits | None = None) -> None:
        self.name = url
        self.option = option
        self.endpoint = Endpoint(url, option, limits)

    def check_prompts(self, records: Sequence[PromptRecord]) -> None:
        """See `RewardModel.check_prompts`: what the server needs, it says itself."""

    def score_texts(
        self, prompts: Sequence[str], responses: Sequence[str], columns: Sequence[Mapping[str, Any]] | None = None
    ) -> list[float]:
        """Asks the server, and waits for it where it does not answer; see `TextReward.score_texts`.

        Raises:
            RewardModelError: it did not answer for too long, or did not give one finite score for each response.
        """
        label = self.endpoint.label
        # In ASCII, so that any text there is can be sent, half of a surrogate pair too.
        further = {} if columns is None else EVERYTHING.select(columns, prompts, label)
        body = json.dumps({"prompts": list(prompts), "responses": list(responses), **further}).encode("ascii")
        most = ANSWER_BYTES + SCORE_BYTES * len(responses)
        answer = self.endpoint.ask(body, most)
        beginning = one_line(self.endpoint.redacted(answer.decode(errors="replace"))[:120])
        try:
            values = json.loads(answer)
        except (ValueError, RecursionError) as error:
            raise RewardModelError(f"{label} answered with something that is not JSON: {beginning}") from error
        if not isinstance(values, dict) or not isinstance(values.get("scores"), list):
            raise RewardModelError(
                f'{label} must answer {{"scores": [one number for each response]}}; it answered {beginning}'
            )
        return checked_scores(values["scores"], prompts, responses, repr(self.name), self.option)
