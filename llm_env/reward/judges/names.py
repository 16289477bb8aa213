"""Names and settings of judges that are language models; settings are checked against them without importing torch.

``llm:NAME`` is a causal language model on this machine, by its folder or hub id; ``openai:URL#MODEL`` a model behind a server
that speaks the OpenAI chat-completions protocol: vLLM, llama.cpp, Ollama and others.
"""

from __future__ import annotations

from typing import NamedTuple

from llm_env.reward.endpoint import checked_url
from llm_env.rules import Rule, whole

LOCAL, SERVED = "llm:", "openai:"
PAIRWISE, GRADE = "pairwise", "grade"
MODES = (PAIRWISE, GRADE)
"""Ways to judge: which of two responses is better, or how good one is."""
CORRECT, FEEDBACK = "correct", "feedback"
"""What else a language model is asked for: to rewrite a response, and what a user's message says of one."""
CHAT_PATH = "/chat/completions"
CONCURRENCY = 8
"""Requests that a server is sent side by side, by default."""
JUDGE_RULES: dict[str, Rule] = {"judge_concurrency": whole(1, 1000)}


class JudgeOptions(NamedTuple):
    """How a language model judges.

    Attributes:
        prompt: File with the instruction; None: the one that is shipped.
        concurrency: Requests that a server is sent side by side.
    """

    prompt: str | None = None
    concurrency: int = CONCURRENCY


class ServedName(NamedTuple):
    """What ``openai:URL#MODEL`` names.

    Attributes:
        url: The address that requests are posted to, which ends with ``/chat/completions``.
        model: Name of the model, as the server knows it.
    """

    url: str
    model: str


def is_language_judge(name: str) -> bool:
    """Whether a reward model's or judge's name is that of a language model that judges."""
    return name.startswith((LOCAL, SERVED))


def check_judge_name(name: str, option: str) -> None:
    """Refuses a name of a language judge that can name none.

    Raises:
        ValueError: it is ``llm:`` or ``openai:`` with nothing, or no address and model, behind it.
    """
    if name.startswith(SERVED):
        served_name(name, option)
    elif not local_name(name).strip():
        raise ValueError(f"{option}={name!r} names no model. Give llm:FOLDER or llm:HUB_ID.")


def asked_name(name: str) -> str:
    """The name under which a language model is loaded, where a folder or hub id may stand without ``llm:``."""
    return name if is_language_judge(name) else f"{LOCAL}{name}"


def local_name(name: str) -> str:
    """The folder or hub id of ``llm:NAME``."""
    return name.removeprefix(LOCAL)


def served_name(name: str, option: str) -> ServedName:
    """The address and the model of ``openai:URL#MODEL``.

    Args:
        name: The name. The URL is the server's base, as ``http://localhost:8000/v1``, or the whole address.
        option: The option that it came from, for error messages.

    Raises:
        ValueError: there is no address or no model in it.
    """
    url, _, model = name.removeprefix(SERVED).partition("#")
    checked_url(url, option)
    if not model.strip() or not model.isprintable():
        raise ValueError(
            f"{option}={name!r} names no model. Give openai:URL#MODEL, as openai:http://localhost:8000/v1#NAME."
        )
    base, question, query = url.partition("?")
    base = base.rstrip("/")
    if not base.endswith(CHAT_PATH):
        base += CHAT_PATH
    return ServedName(f"{base}{question}{query}", model)
