"""The house: imports point one way and in no circle, on every floor, and no file or function outgrows a reader."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

FORBIDDEN = {"llm_env": {"agents", "scripts", "stable_baselines3", "sb3_contrib"}, "agents": {"scripts"}}
# agents' packages, bottom up; those on one floor may look at each other, in no circle. Modules beside them are the ground.
FLOORS = (
    {"engines"},
    {"policies"},
    {"rollouts"},
    {"algorithms", "callbacks"},
    {"runs", "evaluation", "probes"},
    {"preferences", "memory"},
    {"supervised", "conversations", "chat"},
    {"iteration"},
    {"pipeline"},
    {"cli"},
)
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60  # the docstring is not counted
# What is larger today, with its size. A size here may fall, and its line go; none may rise or come.
LARGE_FILES: dict[str, int] = {}
LARGE_FUNCTIONS: dict[str, int] = {}
# Packages that look up today; a pair here may go, and none may come.
LOOKING_UP: set[tuple[str, str]] = set()


def sources(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> Iterator[str]:
    """Every module or name imported in a file, in functions and for types too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path.name}:{node.lineno}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def module_graph() -> dict[str, set[str]]:
    """Which modules of the two packages each imports."""
    files = {module_name(path): path for path in sources("llm_env", "agents")}
    graph: dict[str, set[str]] = {}
    for name, path in files.items():
        graph[name] = set()
        for imported in imports(path):  # a module, or a name in a module
            target = imported if imported in files else imported.rpartition(".")[0]
            if target in files:
                graph[name].add(target)
    return graph


def package_of(module: str) -> str:
    """`agents.policies.actor` is in `agents.policies`; a module beside the packages stands for itself."""
    return ".".join(module.split(".")[:2])


def package_graph() -> dict[str, set[str]]:
    """Which packages each package imports; the modules beside the packages are left to `module_graph`."""
    packages = {module_name(path) for name in FORBIDDEN for path in (ROOT / name).glob("*/__init__.py")}
    graph: dict[str, set[str]] = {package: set() for package in packages}
    for module, targets in module_graph().items():
        if package_of(module) in packages:
            graph[package_of(module)] |= {package_of(t) for t in targets} & packages - {package_of(module)}
    return graph


def circle(graph: dict[str, set[str]]) -> list[str]:
    """A circle of imports, or nothing."""
    finished: set[str] = set()

    def visit(node: str, way: list[str]) -> list[str]:
        if node in way:
            return [*way[way.index(node) :], node]
        if node in finished:
            return []
        for target in sorted(graph[node]):
            if found := visit(target, [*way, node]):
                return found
        finished.add(node)
        return []

    for start in sorted(graph):
        if found := visit(start, []):
            return found
    return []


def function_sizes(path: Path) -> Iterator[tuple[str, int]]:
    """Each function with its lines from the signature to the end, less its docstring's."""

    def walk(body: ast.AST, prefix: str) -> Iterator[tuple[str, int]]:
        for node in ast.iter_child_nodes(body):
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                name = f"{prefix}{node.name}"
                if not isinstance(node, ast.ClassDef):
                    assert node.end_lineno
                    first = node.body[0]
                    lines = node.end_lineno - node.lineno + 1
                    if ast.get_docstring(node) is not None:
                        lines -= (first.end_lineno or 0) - first.lineno + 1
                    yield name, lines
                yield from walk(node, f"{name}.")
            else:
                yield from walk(node, prefix)

    yield from walk(ast.parse(path.read_text(encoding="utf-8")), f"{path.relative_to(ROOT).as_posix()}:")


@pytest.mark.parametrize("package", FORBIDDEN)
def test_imports_point_one_way(package: str) -> None:
    files = sources(package)
    assert len(files) > 8
    for path in files:
        assert not {name.partition(".")[0] for name in imports(path)} & FORBIDDEN[package], path.name


def test_a_circle_is_seen() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []
    graph = module_graph()
    assert "llm_env.lm.causal_lm" in graph["llm_env.lm.decoding"]


def test_no_circle_of_modules() -> None:
    assert circle(module_graph()) == []


def test_no_circle_of_packages() -> None:
    graph = package_graph()
    for package, target in LOOKING_UP:
        assert target in graph[package], f"{package} imports {target} no more: take it off the list"
        graph[package].remove(target)
    assert circle(graph) == []


def test_no_package_looks_up() -> None:
    floor = {f"agents.{name}": number for number, names in enumerate(FLOORS, 1) for name in names}
    graph = {package: targets for package, targets in package_graph().items() if package.startswith("agents.")}
    assert set(graph) == set(floor)
    upward = {
        (package, target) for package in graph for target in graph[package] if floor.get(target, 0) > floor[package]
    }
    assert not upward - LOOKING_UP


def test_the_modules_beside_the_packages_are_the_ground() -> None:
    graph = module_graph()
    beside = {module for module in graph if module.startswith("agents.") and module == package_of(module)}
    beside -= package_graph().keys()
    assert {"agents.files", "agents.figures"} <= beside
    for module in beside:
        assert not {t for t in graph[module] if t.startswith("agents")} - beside, module


def test_no_file_outgrows_a_reader() -> None:
    large = {}
    for path in sources("llm_env", "agents", "scripts"):
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > MAX_FILE_LINES:
            large[path.relative_to(ROOT).as_posix()] = lines
    assert not {name: n for name, n in large.items() if n > LARGE_FILES.get(name, 0)}
    assert not LARGE_FILES.keys() - large.keys(), "small now: take them off the list"


def test_no_function_outgrows_a_reader() -> None:
    large = {
        name: lines
        for path in sources("llm_env", "agents", "scripts")
        for name, lines in function_sizes(path)
        if lines > MAX_FUNCTION_LINES
    }
    assert not {name: n for name, n in large.items() if n > LARGE_FUNCTIONS.get(name, 0)}
    assert not LARGE_FUNCTIONS.keys() - large.keys(), "short now: take them off the list"


@pytest.mark.parametrize(
    "statement",
    ["import llm_env", "import agents", "import agents.cli.train"],
)
def test_no_torch_is_loaded_before_it_is_needed(statement: str) -> None:
    program = f"""
import sys
{statement}
assert "torch" not in sys.modules and "transformers" not in sys.modules, sorted(m for m in sys.modules if "torch" in m)[:5]
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_assets_are_safetensors_and_small() -> None:
    files = [p for p in (ROOT / "llm_env" / "default_task" / "assets").rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) <= 8_000_000
    assert {p.suffix for p in files} == {".json", ".jsonl", ".safetensors"}


def test_each_mutation_still_finds_its_place() -> None:
    from tests.mutations import MUTATIONS

    mutations = {m.name: m for m in MUTATIONS}
    counts = {name: (ROOT / m.file).read_text(encoding="utf-8").count(m.text) for name, m in mutations.items()}
    assert len(counts) > 50
    assert {name: n for name, n in counts.items() if n != 1} == {}
    tests = {test for m in MUTATIONS for test in m.tests}
    assert all((ROOT / test.partition("::")[0]).is_file() for test in tests), tests
