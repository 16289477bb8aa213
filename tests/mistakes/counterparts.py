"""Mistakes around reward functions and reward servers: what others write, and what may fail or hang."""

from __future__ import annotations

from tests.mistakes import Mutation

_FUNCTIONS = ("tests/llm_env/reward/test_functions.py",)
_SERVER = ("tests/llm_env/reward/test_server.py",)
_LIMITS = "llm_env/reward/limits.py"
_SCORES = "llm_env/reward/scores.py"
_USERS = "llm_env/reward/user_code.py"
_HTTP = "llm_env/reward/endpoint.py"

COUNTERPARTS = [
    Mutation(
        "a text with a number in it is a score",
        _SCORES,
        "if isinstance(value, str | bytes):",
        "if isinstance(value, bytes):",
        _FUNCTIONS,
    ),
    Mutation(
        "a dict's keys are scores",
        _SCORES,
        "if not isinstance(values, Sequence) or isinstance(values, str | bytes):",
        "values = list(values) if isinstance(values, dict) else values\n    if not isinstance(values, Sequence | list):",
        _FUNCTIONS,
    ),
    Mutation(
        "an array of any shape is flattened",
        _SCORES,
        "not in ((count,), (count, 1))",
        "not in ((count,), (count, 1), (1, count))",
        _FUNCTIONS,
    ),
    Mutation("infinity is a score", _SCORES, "not math.isfinite(score)", "math.isnan(score)", _FUNCTIONS),
    Mutation(
        "escape characters of a prompt reach the terminal",
        "llm_env/reward/shown.py",
        'return repr(text if len(text) <= most else f"{text[:half]} … {text[-half:]}")',
        "return f\"'{text if len(text) <= most else text[:half]}'\"",
        _FUNCTIONS,
    ),
    Mutation(
        "sys.exit in a reward function ends the process",
        "llm_env/reward/functions.py",
        "except SystemExit as error:",
        "except LookupError as error:",
        _FUNCTIONS,
    ),
    Mutation(
        "sys.exit in a module ends the process",
        _USERS,
        "except BaseException as error:  # SystemExit too",
        "except Exception as error:  # SystemExit too",
        _FUNCTIONS,
    ),
    Mutation(
        "the line of an error is a library's",
        _USERS,
        "chosen = users[-1:] or frames[:1]",
        "chosen = frames[:1]",
        _FUNCTIONS,
    ),
    Mutation(
        "an alarm that was set before is lost",
        _LIMITS,
        "if left:  # somebody's alarm",
        "if False:  # somebody's alarm",
        _FUNCTIONS,
    ),
    Mutation(
        "a function that swallows the interruption goes on",
        _LIMITS,
        "if fired:  # the function swallowed",
        "if False:  # the function swallowed",
        _FUNCTIONS,
    ),
    Mutation(
        "a pause is drawn from the random numbers of training",
        _LIMITS,
        "draw = random.SystemRandom()",
        "draw = random",
        _SERVER,
    ),
    Mutation(
        "waiting has no end",
        _LIMITS,
        "if left <= 0:",
        "if left <= -1:",
        _SERVER,
    ),
    Mutation("Retry-After is not heeded", _LIMITS, "max(pause, error.retry_after)", "pause", _SERVER),
    Mutation("a key is sent to any host", _HTTP, "if host.lower() in (", "if True or host.lower() in (", _SERVER),
    Mutation(
        "an answer that broke off is read as whole",
        _HTTP,
        "if response.length:",
        "if False:",
        _SERVER,
    ),
    Mutation("an answer of any size is read", _HTTP, "response.read(most + 1)", "response.read()[: most]", _SERVER),
    Mutation("a server that is overloaded ends the run", _HTTP, "(408, 425, 429)", "(408, 425)", _SERVER),
    Mutation(
        "a slow server is waited for without end",
        _HTTP,
        "        self._timer.start()",
        "        pass",
        _SERVER,
    ),
    Mutation(
        "a password in an address is written to config.yaml",
        _HTTP,
        "if parts.username is not None or parts.password is not None:",
        "if False:",
        _SERVER,
    ),
    Mutation(
        "a resumed run imports from its folder",
        "agents/runs/run.py",
        "import_nothing_from(folder)",
        "pass",
        ("tests/agents/runs/test_imports.py",),
    ),
    Mutation(
        "rollouts of one score each, and not the same, count as one row",
        "agents/callbacks/constant_scores.py",
        "if scores[0] != self.score:",
        "if self.score is None:",
        ("tests/agents/callbacks/test_constant_scores.py",),
    ),
    Mutation(
        "a row of equal scores begins anew after a resume",
        "agents/runs/run.py",
        'self.callback.constant_scores.load(extra.get("constant_scores", {}))',
        "self.callback.constant_scores.load({})",
        ("tests/agents/callbacks/test_constant_scores.py",),
    ),
]
