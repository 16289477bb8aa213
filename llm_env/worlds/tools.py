"""A conversation with tools: a turn that calls tools is answered with what they return, one that calls none ends it."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable
from typing import Any

from llm_env.lm.names import check_choice
from llm_env.reward.user_code import described, import_function
from llm_env.text.prompts import RawPrompt
from llm_env.worlds.base import WorldError

BAD_CALLS = ("answer", "end")
PARSERS = ("tag", "template")


class BadCallError(ValueError):
    """A call that cannot be made: no such tool, arguments that it does not take, or text that is no JSON."""


class ToolWorld:
    """Tools around a task: the public methods of a class, as TRL's environments have them.

    A call is written in one of two ways (or as `parser` says), and a turn may make several:

    - ``<tool_call>{"name": "add", "arguments": {"a": 54, "b": 10}}</tool_call>``, as the chat templates of Hermes and Qwen have
      it; the tag's name is `tag`.
    - ``<calculate>54 + 10</calculate>``: the tool's name as a tag, for tools with one argument, which is then a text.

    The turn is answered with the results, one a line; what a tool raises is its result, as ``error: …``. A turn without a call
    is the answer: the episode ends, and the reward model scores the whole conversation.

    The class may have a ``reset`` that is given the fields of the prompt's record by name and returns a text for behind the
    prompt, or None, and a ``get_reward`` without arguments, which is paid where a turn without a call ends the episode.

    Args:
        tools: The class, or a function without arguments that makes an object, also by name (``package.module:Class``); each
            slot has an object of its own.
        tag: The tag around a call in JSON.
        role: The role of the results' message, which then is a chat message, as ``tool``; None: they are a plain text, which in
            a chat is the user's.
        bad_calls: What follows a call that cannot be made: ``answer``: its result says why. ``end``: the episode ends, without
            ``get_reward``.
        parser: How calls are found in a turn: ``tag``: as above. ``template``: as the tokenizer's ``response_template`` reads
            them, in whatever form the model's chat template has (transformers 5.13; one that does not read a turn counts as a
            call that cannot be made).

    Attributes:
        tools: The tools as JSON schemas, from their docstrings and annotations; a chat template that knows tools writes them
            into the first state.
        takes_messages: Whether `step` takes a chat message with its ``tool_calls`` instead of a text.

    Raises:
        ValueError: `tools` is not callable or has no public method; a method without docstring or annotations.
    """

    def __init__(
        self,
        tools: str | Callable[[], Any],
        tag: str = "tool_call",
        role: str | None = None,
        bad_calls: str = "answer",
        parser: str = "tag",
    ) -> None:
        from transformers.utils.chat_template_utils import get_json_schema

        check_choice("bad_calls", bad_calls, BAD_CALLS)
        check_choice("parser", parser, PARSERS)
        self._object = (import_function(tools, "tools") if isinstance(tools, str) else tools)()
        self._tools = {
            name: method
            for name, method in inspect.getmembers(self._object, callable)
            if not name.startswith("_") and name not in ("reset", "get_reward", "close")
        }
        if not self._tools:
            raise ValueError(f"tools={tools!r} has no public method, so there is no tool.")
        try:
            self.tools = [get_json_schema(method) for method in self._tools.values()]
        except Exception as error:  # transformers' own kinds
            raise ValueError(f"tools={tools!r}: {' '.join(str(error).split())}") from error
        self.takes_messages = parser == "template"
        self._tag, self._role, self._bad_calls = tag, role, bad_calls
        tags = "|".join(map(re.escape, (tag, *self._tools)))
        self._pattern = re.compile(rf"<(?P<tag>{tags})>(?P<body>.*?)</(?P=tag)>", re.DOTALL)
        self._made = self._bad = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[RawPrompt, dict[str, Any]]:
        """Starts from the record's prompt, with what the class's ``reset`` returns behind it.

        Raises:
            WorldError: there is no record.
        """
        row = dict((options or {}).get("row") or {})
        if "prompt" not in row:
            raise WorldError("Tools stand around a prompt: give prompts.")
        prompt: RawPrompt = row["prompt"]
        self._made = self._bad = 0
        if callable(reset := getattr(self._object, "reset", None)):
            added = reset(**_taken(reset, row))
            if added is not None:
                prompt = _with_text_behind(prompt, str(added))
        return prompt, {}

    def step(self, action: str | dict[str, Any]) -> tuple[RawPrompt, float, bool, bool, dict[str, Any]]:
        """Makes the calls of a turn; ``info`` counts ``tool_calls`` and ``bad_calls``."""
        results: list[str] = []
        bad = False
        for tag, body in self._calls_in(action):
            self._made += 1
            try:
                tool, arguments = self._call(tag, body)
                results.append(str(tool(**arguments)))
            except BadCallError as error:
                bad = True
                self._bad += 1
                results.append(f"error: {error}")
            except Exception as error:  # the tool's own: the policy is told
                results.append(f"error: {described(error)}")
        info = {"tool_calls": self._made, "bad_calls": self._bad}
        # JSON can say half of a character (a lone surrogate), which a tool may repeat, and no state can hold.
        text = "\n".join(results).encode("utf-8", "replace").decode("utf-8")
        if bad and self._bad_calls == "end":
            return text, 0.0, True, False, info
        if not results:
            reward = getattr(self._object, "get_reward", None)
            return "", float(reward()) if callable(reward) else 0.0, True, False, info
        return text if self._role is None else [{"role": self._role, "content": text}], 0.0, False, False, info

    def close(self) -> None:
        """Closes the object, where it can be closed."""
        if callable(close := getattr(self._object, "close", None)):
            close()

    def _calls_in(self, turn: str | dict[str, Any]) -> list[tuple[str, Any]]:
        """The calls of a turn: the tag and what stands in it; of a message, nothing and the call as it was parsed."""
        if isinstance(turn, str):
            return [(call["tag"], call["body"]) for call in self._pattern.finditer(turn)]
        if "parse_error" in turn:
            return [("", BadCallError(f"the turn cannot be parsed ({turn['parse_error']})"))]
        return [("", call.get("function") if isinstance(call, dict) else call) for call in turn.get("tool_calls") or ()]

    def _call(self, tag: str, body: Any) -> tuple[Callable[..., Any], dict[str, Any]]:
        """The tool that a call is for, and its arguments.

        Raises:
            BadCallError: there is no such tool, or it does not take such arguments.
        """
        if isinstance(body, BadCallError):
            raise body
        if tag in self._tools:
            parameters = list(inspect.signature(self._tools[tag]).parameters)
            if len(parameters) != 1:
                raise BadCallError(f"{tag} takes {len(parameters)} arguments; call it by name, in <{self._tag}>.")
            return self._tools[tag], {parameters[0]: body.strip()}
        try:
            call = json.loads(body) if isinstance(body, str) else body
        except (ValueError, RecursionError) as error:
            raise BadCallError(f"the call is not JSON ({error})") from error
        name = str(call.get("name")) if isinstance(call, dict) else ""
        arguments = call.get("arguments", {}) if isinstance(call, dict) else None
        if name not in self._tools or not isinstance(arguments, dict):
            raise BadCallError(f'a call is {{"name": …, "arguments": {{…}}}}; the tools are {", ".join(self._tools)}')
        tool = self._tools[name]
        try:
            inspect.signature(tool).bind(**arguments)
        except TypeError as error:
            raise BadCallError(f"{name}: {error}") from error
        return tool, arguments


def _taken(function: Callable[..., Any], row: dict[str, Any]) -> dict[str, Any]:
    """The fields of a record that a function takes."""
    parameters = inspect.signature(function).parameters.values()
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
        return row
    return {p.name: row[p.name] for p in parameters if p.name in row}


def _with_text_behind(prompt: RawPrompt, text: str) -> RawPrompt:
    """A prompt with a text behind it: behind the last message's, in a chat."""
    if isinstance(prompt, str):
        return f"{prompt}{text}"
    return [*prompt[:-1], {**prompt[-1], "content": f"{prompt[-1]['content']}{text}"}]
