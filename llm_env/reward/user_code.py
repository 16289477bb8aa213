"""Code of the user's: importing it by name, and the file and line where it failed."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from llm_env.reward.shown import one_line

_STANDARD = tuple({os.path.realpath(sysconfig.get_path(name)) + os.sep for name in ("stdlib", "platstdlib")})
"""Where Python's own library lies."""
_OURS = tuple(str(Path(__file__).parents[2] / name) for name in ("llm_env", "agents"))
"""Our own packages, where they are not installed."""
_INSTALLED = {"site-packages", "dist-packages"}
"""Names of folders that packages are installed to."""


def import_function(name: str, option: str) -> Callable[..., Any]:
    """Imports a function by its name; the module is looked for in the current folder too.

    Args:
        name: ``package.module:function``.
        option: The option that the name came from, for error messages.

    Raises:
        ValueError: there is no such module or function, or the module fails when it is imported; file and line are named.
    """
    module_name, _, function_name = name.partition(":")
    module = import_module(module_name, name, option)
    try:
        function: Callable[..., Any] = getattr(module, function_name)
    except AttributeError as error:
        raise ValueError(f"{option}={name!r}: module {module_name!r} has no {function_name!r}.") from error
    if not callable(function):
        raise ValueError(f"{option}={name!r} is not a function.")
    return function


def import_module(module_name: str, name: str, option: str) -> ModuleType:
    """Imports a module of the user's, which is looked for in the current folder too.

    Args:
        module_name: ``package.module``.
        name: What the user named, for error messages.
        option: The option that it came from, for error messages.

    Raises:
        ValueError: there is no such module, or it fails when it is imported; file and line are named.
    """
    # In sys.path the empty string stands for the current folder.
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())  # a script's own folder is there, the folder that it is called from is not
    try:
        return importlib.import_module(module_name)
    except KeyboardInterrupt:
        raise
    except ImportError as error:
        raise ValueError(
            f"{option}={name!r}: module {module_name!r} cannot be imported ({one_line(str(error))}{place_of_error(error)}). "
            "A function is named 'package.module:function', and its module must be in the current folder or on PYTHONPATH."
        ) from error
    except BaseException as error:  # SystemExit too: a module that ends the process ends it without a word
        raise ValueError(f"{option}={name!r}: module {module_name!r} cannot be imported: {told(error)}.") from error


def told(error: BaseException) -> str:
    """An error, and where it was raised; without a full stop at the end, which the sentence around it has."""
    return f"{described(error).rstrip('.')}{place_of_error(error)}"


def described(error: BaseException) -> str:
    """An error's type and message, on one line."""
    if isinstance(error, SystemExit):
        return f"it called sys.exit({error.code!r})"
    text = str(error.msg if isinstance(error, SyntaxError) else error)
    return f"{type(error).__name__}: {one_line(text)}" if text else type(error).__name__


def place_of(function: Callable[..., Any]) -> str:
    """Where a function is written, as `` (file, line n)``; nothing of one that is written in C."""
    written = function if hasattr(function, "__code__") or inspect.ismethod(function) else type(function).__call__
    code = getattr(inspect.unwrap(written), "__code__", None)
    return _place(code.co_filename, code.co_firstlineno) if isinstance(code, CodeType) else ""


def place_of_error(error: BaseException) -> str:
    """Where the user's code failed, as ``, file, line n``: the innermost frame that is neither a library's nor ours.

    Of a function that was installed with a library, the library's first frame; nothing if there is none.
    """
    if isinstance(error, SyntaxError) and error.filename and error.lineno:
        return _place(error.filename, error.lineno)
    frames = []
    trace = error.__traceback__
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        is_ours = os.path.dirname(file).startswith(_OURS)
        if not (is_ours or file.startswith("<frozen") or _is_standard(file)):
            frames.append((file, trace.tb_lineno))
        trace = trace.tb_next
    users = [frame for frame in frames if not _is_installed(frame[0])]
    chosen = users[-1:] or frames[:1]
    return _place(*chosen[0]) if chosen else ""


def _place(file: str, line: int) -> str:
    return f" ({one_line(file)}, line {line})"


def _is_installed(file: str) -> bool:
    return not _INSTALLED.isdisjoint(Path(file).parts)


def _is_standard(file: str) -> bool:
    return os.path.realpath(file).startswith(_STANDARD) and not _is_installed(file)
