"""Mistakes in worlds that come with the package: tools, adapters, the game."""

from __future__ import annotations

from tests.mistakes import Mutation

_TOOLS = ("tests/llm_env/worlds/test_tools.py",)
_ADAPTERS = ("tests/llm_env/worlds/test_adapters.py",)
_GAME = ("tests/llm_env/guess_the_number/test_world.py",)

TOOLS = [
    Mutation(
        "a private method is a tool",
        "llm_env/worlds/tools.py",
        "if name not in self._tools or not isinstance(arguments, dict):",
        "if not hasattr(self._object, str(name)) or not isinstance(arguments, dict):",
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
