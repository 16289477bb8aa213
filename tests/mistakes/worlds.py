"""Mistakes in worlds that come with the package: tools, adapters, the game."""

from __future__ import annotations

from tests.mistakes import Mutation

_TOOLS = ("tests/llm_env/worlds/test_tools.py",)
_ADAPTERS = ("tests/llm_env/worlds/test_adapters.py",)
_GAME = ("tests/llm_env/guess_the_number/test_world.py",)
_STOPS = ("tests/llm_env/test_stop_strings.py",)

STOPS = [
    Mutation(
        "a stop string has to stand at a text's end",
        "llm_env/text/ends.py",
        "if any(stop in text for stop in self.stop_strings):",
        "if any(text.endswith(stop) for stop in self.stop_strings):",
        _STOPS,
    ),
    Mutation(
        "a special token is no stop string",
        "llm_env/task.py",
        "skip_special_tokens=not special_tokens))",
        "skip_special_tokens=True))",
        _STOPS,
    ),
    Mutation(
        "parts of characters complete nothing",
        "llm_env/text/ends.py",
        'is_part_of_a_character = "\\ufffd" in text',
        "is_part_of_a_character = False",
        _STOPS,
    ),
    Mutation(
        "too little of a turn is read for a stop string",
        "llm_env/text/ends.py",
        "BYTES_PER_CHARACTER = 4",
        "BYTES_PER_CHARACTER = 1",
        _STOPS,
    ),
    Mutation(
        "a turn is searched together with those before it",
        "llm_env/episode.py",
        "said = ends.end_of(self.response_ids, self.turn_start)",
        "said = ends.end_of(self.response_ids)",
        _STOPS,
    ),
    Mutation(
        "a response that stops lacks its end",
        "llm_env/episode.py",
        "self.has_end = bool(said)",
        'self.has_end = said == "end_token"',
        _STOPS,
    ),
]

TOOLS = [
    Mutation(
        "a world's error ends in two full stops",
        "llm_env/reward/user_code.py",
        "{described(error).rstrip('.')}",
        "{described(error)}",
        ("tests/llm_env/worlds/test_tools.py::test_a_world_that_cannot_be_made_is_told_in_a_whole_sentence",),
    ),
    Mutation(
        "a message's calls are lost",
        "llm_env/worlds/tools.py",
        'for call in turn.get("tool_calls") or ()]',
        'for call in turn.get("calls") or ()]',
        _TOOLS,
    ),
    Mutation(
        "a turn that cannot be parsed is an answer",
        "llm_env/worlds/tools.py",
        'if "parse_error" in turn:',
        'if "error" in turn:',
        _TOOLS,
    ),
    Mutation(
        "turns are played again as texts",
        "llm_env/turns.py",
        "self.calls.step(slot, self._told(ids, before)))",
        "self.calls.step(slot, turn.text))",
        _TOOLS,
    ),
    Mutation(
        "a private method is a tool",
        "llm_env/worlds/tools.py",
        "if name not in self._tools or not isinstance(arguments, dict):",
        "if not hasattr(self._object, str(name)) or not isinstance(arguments, dict):",
        _TOOLS,
    ),
    Mutation(
        "the wanted tag has to be a word",
        "llm_env/worlds/tools.py",
        "map(re.escape, (tag, *self._tools))",
        "map(re.escape, (tag.replace('-', ''), *self._tools))",
        _TOOLS,
    ),
    Mutation(
        "half of a character that a tool repeats ends the run",
        "llm_env/worlds/tools.py",
        '"\\n".join(results).encode("utf-8", "replace").decode("utf-8")',
        '"\\n".join(results)',
        _TOOLS,
    ),
    Mutation(
        "the calculator reckons with floats",
        "llm_env/worlds/calculator.py",
        "        return Fraction(str(node.value))",
        "        return node.value",
        _TOOLS,
    ),
    Mutation(
        "calls are counted on from episode to episode",
        "llm_env/worlds/tools.py",
        "self._made = self._bad = 0\n        if callable(reset",
        "if callable(reset",
        _TOOLS,
    ),
    Mutation(
        "a bad call is answered in any case",
        "llm_env/worlds/tools.py",
        'if bad and self._bad_calls == "end":',
        'if bad and self._bad_calls == "never":',
        _TOOLS,
    ),
    Mutation(
        "tools are not written into the first state",
        "llm_env/turns.py",
        "self.settings.max_prompt_length, tools=answer.tools)",
        "self.settings.max_prompt_length)",
        _TOOLS,
    ),
    Mutation(
        "the calculator raises to powers",
        "llm_env/worlds/calculator.py",
        "    ast.Mod: operator.mod,\n",
        "    ast.Mod: operator.mod,\n    ast.Pow: operator.pow,\n",
        _TOOLS,
    ),
    Mutation(
        "model-written code has the network",
        "llm_env/worlds/python_tool.py",
        "unshare(0x10000000 | 0x40000000)",
        "unshare(0x10000000)",
        _TOOLS,
    ),
    Mutation(
        "model-written code sees the environment's variables",
        "llm_env/worlds/python_tool.py",
        "                env={},\n",
        "",
        _TOOLS,
    ),
    Mutation(
        "what code has started lives on",
        "llm_env/worlds/python_tool.py",
        "os.killpg(child.pid, signal.SIGKILL)",
        "child.kill()",
        _TOOLS,
    ),
    Mutation(
        "worlds share the global generators",
        "llm_env/worlds/global_random.py",
        "                random.setstate(self._state[0])\n",
        "",
        _ADAPTERS,
    ),
    Mutation(
        "a world leaves its global generators behind",
        "llm_env/worlds/global_random.py",
        "                random.setstate(others[0])\n",
        "",
        _ADAPTERS,
    ),
    Mutation(
        "a player is told its own move",
        "llm_env/worlds/textarena.py",
        "for sender, text, _ in messages if sender != 0)",
        "for sender, text, _ in messages)",
        _ADAPTERS,
    ),
    Mutation(
        "higher and lower are exchanged",
        "llm_env/guess_the_number/world.py",
        "HIGHER if guess < self._number else LOWER",
        "LOWER if guess < self._number else HIGHER",
        _GAME,
    ),
    Mutation(
        "what is no guess is free",
        "llm_env/guess_the_number/world.py",
        "        self._made += 1\n",
        "        self._made += action.strip().isdigit()\n",
        _GAME,
    ),
]
