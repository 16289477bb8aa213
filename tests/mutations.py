"""Breaks the code in one small way after another, and says which of them the tests notice.

    python -m tests.mutations                     all of them, against the fast tier
    python -m tests.mutations --tier all          the slow tests too
    python -m tests.mutations --only kl           those with "kl" in their names
    python -m tests.mutations --list

A test that passes on broken code guards nothing. Each mutation in `tests.mistakes` is a mistake that someone could make, and
names the tests that should see it; only these are run. The code is broken in a copy of the repository, never in the working
tree. The exit status is 1 if a mutation is missed, or if its text is no longer in its file: then look for where the idea went,
and move the mutation there.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.mistakes import Mutation
from tests.mistakes.agents import ADVANTAGES, FILES
from tests.mistakes.arena import ARENA, CHAT, CRITIC
from tests.mistakes.columns import COLUMNS
from tests.mistakes.counterparts import COUNTERPARTS
from tests.mistakes.engines import ENGINES
from tests.mistakes.environment import DECODING, PROBABILITIES, REWARDS, TEXTS, TURNS
from tests.mistakes.faults import FAULTS
from tests.mistakes.feedback import FEEDBACK
from tests.mistakes.front_door import FRONT_DOOR
from tests.mistakes.judges import JUDGES
from tests.mistakes.memory import MEMORY
from tests.mistakes.pages import PAGES
from tests.mistakes.plans import PLANS
from tests.mistakes.processes import PROCESSES
from tests.mistakes.rules import RULES
from tests.mistakes.wiring import WIRING, WORLDS
from tests.mistakes.worlds import STOPS, TOOLS

ROOT = Path(__file__).resolve().parent.parent
COPIED = ("llm_env", "agents", "scripts", "tests", "examples", "docs", "README.md", "pyproject.toml")
FAILED = 1  # pytest's exit status where tests ran and one failed; others say that they could not be run

MUTATIONS = [
    *(
        *DECODING,
        *PROBABILITIES,
        *REWARDS,
        *TEXTS,
        *TURNS,
        *ADVANTAGES,
        *FILES,
        *STOPS,
        *TOOLS,
        *WIRING,
        *COLUMNS,
        *WORLDS,
        *COUNTERPARTS,
        *FAULTS,
        *FEEDBACK,
        *FRONT_DOOR,
        *JUDGES,
        *PAGES,
        *MEMORY,
        *PLANS,
        *ENGINES,
        *PROCESSES,
        *RULES,
        *ARENA,
        *CHAT,
        *CRITIC,
    ),
]


class LostTextError(LookupError):
    """A mutation's text does not stand in its file, or more than once."""


def broken(mutation: Mutation, source: str) -> str:
    """The source with the mistake in it.

    Raises:
        LostTextError: the text is not there once.
    """
    count = source.count(mutation.text)
    if count != 1:
        raise LostTextError(f"{mutation.file} has {mutation.text!r} {count} times, and should once")
    return source.replace(mutation.text, mutation.broken)


def failing_test(mutation: Mutation, folder: Path, tier: str) -> tuple[str | None, str]:
    """Breaks the copy in `folder`, runs the tests, and mends it.

    Returns:
        The test that failed, or None; and what to print: "caught by …", "MISSED", or "ERROR: …".
    """
    for name in (mutation.file, *(test.partition("::")[0] for test in mutation.tests)):
        if not (folder / name).is_file():
            return None, f"ERROR: there is no {name}"
    path = folder / mutation.file
    source = path.read_text(encoding="utf-8")
    try:
        path.write_text(broken(mutation, source), encoding="utf-8")
        done = run_tests(folder, mutation.tests, tier)
    except LostTextError as error:
        return None, f"ERROR: {error}"
    finally:
        path.write_text(source, encoding="utf-8")
    if done.returncode == 0:
        return None, "MISSED"
    failed = re.search(r"^FAILED (\S+::.+?)(?: - |$)", done.stdout, re.MULTILINE)
    if done.returncode != FAILED or failed is None:
        return None, f"ERROR: pytest ended with status {done.returncode}: {' '.join(done.stdout.split())[-300:]}"
    return failed[1], f"caught by {failed[1].removeprefix('tests/')}"


def run_tests(folder: Path, tests: tuple[str, ...], tier: str) -> subprocess.CompletedProcess[str]:
    """Runs tests in the copy up to the first that fails."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(folder),  # before an editable installation of the working tree
        "PYTHONDONTWRITEBYTECODE": "1",  # a broken file and the mended one can have the same time and size
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    command += ["-m", "not slow"] if tier == "fast" else []
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def copy_repository(folder: Path) -> None:
    """Copies what tests need; neither caches nor environments."""
    ignored = shutil.ignore_patterns("__pycache__", ".*")
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=ignored)
        else:
            shutil.copy2(source, folder / name)


def main(argv: list[str]) -> int:
    """Runs the mutations asked for; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tier", choices=("fast", "all"), default="fast", help="which of the named tests are run")
    parser.add_argument("--only", default="", help="only mutations with this in their name or file")
    parser.add_argument("--list", action="store_true", help="name them, and run nothing")
    args = parser.parse_args(argv)
    chosen = [m for m in MUTATIONS if args.only in m.name or args.only in m.file]
    if args.list:
        print("\n".join(f"{m.name} ({m.file})" for m in chosen))
        return 0
    caught: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        copy_repository(Path(name))
        for mutation in chosen:
            start = time.perf_counter()
            test, result = failing_test(mutation, Path(name), args.tier)
            caught += [test] if test is not None else []
            print(f"{mutation.name:<62} {result} ({time.perf_counter() - start:.0f} s)", flush=True)
        # a test that fails on the code as it is has caught nothing
        mended = run_tests(Path(name), tuple(dict.fromkeys(caught)), args.tier) if caught else None
    if mended is not None and mended.returncode != 0:
        print("ERROR: of these tests, some fail on the code as it is:", mended.stdout, sep="\n")
        return 1
    print(f"{len(caught)} of {len(chosen)} mutations caught by the {args.tier} tests")
    return int(len(caught) < len(chosen))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
