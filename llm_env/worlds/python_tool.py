"""A tool that runs Python that a model wrote: in a child process with limits and without a network."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile

from llm_env.rules import FLAG, number, whole

MOST_OUTPUT = 10_000
"""Characters of the output that are handed back."""
NO_NETWORK = 77
"""The child's exit status where it could not leave the network."""
# What the child does first. CLONE_NEWUSER | CLONE_NEWNET of Linux: a network namespace without any interface.
_CHILD = f"""
import ctypes, os, resource, sys
memory, seconds = int(sys.argv[1]), int(sys.argv[2])
code = sys.stdin.read()
if ctypes.CDLL(None).unshare(0x10000000 | 0x40000000):
    os._exit({NO_NETWORK})
for kind, most in (
    (resource.RLIMIT_AS, memory), (resource.RLIMIT_CPU, seconds), (resource.RLIMIT_FSIZE, 2**20),
    (resource.RLIMIT_NOFILE, 64), (resource.RLIMIT_CORE, 0),
):
    resource.setrlimit(kind, (most, most))
exec(compile(code, "code", "exec"), {{"__name__": "__main__"}})
"""


class PythonTool:
    """Runs code that a model wrote; off unless `allow_code` says so.

    Each call is a new interpreter in an empty temporary folder, without the environment's variables, in a process group and a
    network namespace of its own (no network, not even loopback), with limits on time, memory and file size. That bounds
    accidents and stops simple mischief; it is no prison: the code can read what the user who trains can read, and a process
    that it starts in a session of its own (`setsid`) is not stopped with it. Run untrusted models in a container.

    Args:
        allow_code: Must be True: model-written code runs on this machine.
        seconds: Wall-clock time of a call, at most; processor time too.
        memory: Address space of a call, in MiB.

    Raises:
        ValueError: `allow_code` is not True.
        OSError: this system has no network namespaces for an ordinary user, so that the code would have the network.
    """

    def __init__(self, allow_code: bool = False, seconds: float = 5.0, memory: int = 512) -> None:
        FLAG.check("allow_code", allow_code)
        if not allow_code:
            raise ValueError("allow_code=False: code that a model wrote runs only if allow_code=True is given.")
        number(above=0).check("seconds", seconds)
        whole(64, of="MiB").check("memory", memory)
        self._seconds, self._memory = float(seconds), memory
        if self._run("")[1] == f"status {NO_NETWORK}":
            raise OSError(
                "Python code cannot be run without a network here: this system makes no network namespaces for its users."
            )

    def python(self, code: str) -> str:
        """Runs Python code and returns what it prints.

        Args:
            code: The code; each call begins anew.
        """
        output, problem = self._run(code)
        return output if problem is None else f"{output}error: {problem}"

    def _run(self, code: str) -> tuple[str, str | None]:
        """The output of a child process, and what went wrong."""
        limits = [str(self._memory * 2**20), str(int(self._seconds) + 1)]
        problem = None
        # Output goes to a file, which the limit on files bounds too.
        with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as output:
            child = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _CHILD, *limits],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env={},
                start_new_session=True,
            )
            try:
                child.communicate(code.encode("utf-8", "replace"), timeout=self._seconds)
            except subprocess.TimeoutExpired:
                problem = f"stopped after {self._seconds:g} s"
            with contextlib.suppress(ProcessLookupError):  # those that it started too
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            output.seek(0)
            written = output.read().decode("utf-8", "replace")
        if problem is None and child.returncode:
            problem = f"status {child.returncode}"
        return written[:MOST_OUTPUT], problem
