"""The rooms of the package: arrows point down, nothing goes round in circles, files stay small."""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "vllm_headaware"
NAME = PACKAGE.name
ROOMS = (
    *("plugin", "cli", "vllm_compat", "eval", "observability", "attention", "cache"),
    *("profile", "tasks", "plan", "policies", "config", "kernels", "errors", "__init__"),
)
"""From the top floor down; a room may use those below it."""
MOST_LINES = 300
"""Of a Python file outside kernels/."""

Graph = dict[str, set[str]]


def imports(path: Path, modules: set[str]) -> set[str]:
    """Modules of the package that a file imports, wherever the statement stands."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            inner = names & modules
            found |= inner or {node.module}
    return found & modules


def draw(package: Path) -> Graph:
    """For every module of the package the modules of the package that it imports."""
    paths = {}
    for path in package.rglob("*.py"):
        parts = path.relative_to(package.parent).with_suffix("").parts
        paths[".".join(parts).removesuffix(".__init__")] = path
    return {name: imports(path, set(paths)) - {name} for name, path in paths.items()}


def room_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def upward(graph: Graph) -> list[str]:
    """Imports of a room above the importing one."""
    floor = {room: number for number, room in enumerate(ROOMS)}
    return [
        f"{module} -> {used}"
        for module, all_used in sorted(graph.items())
        for used in sorted(all_used)
        if floor[room_of(used)] < floor[room_of(module)]
    ]


def circle(graph: Graph) -> list[str]:
    """Modules that import each other in a circle; empty where there is none."""
    done: set[str] = set()

    def walk(module: str, path: list[str]) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module in done:
            return []
        for used in sorted(graph[module]):
            if found := walk(used, [*path, module]):
                return found
        done.add(module)
        return []

    return next((found for module in sorted(graph) if (found := walk(module, []))), [])


def test_every_room_is_known() -> None:
    assert {room_of(module) for module in draw(PACKAGE)} == set(ROOMS)


def test_arrows_point_down() -> None:
    assert upward(draw(PACKAGE)) == []


def test_no_circles() -> None:
    assert circle(draw(PACKAGE)) == []


def test_files_are_small() -> None:
    lengths = {
        str(path.relative_to(PACKAGE)): len(path.read_text(encoding="utf-8").splitlines())
        for path in PACKAGE.rglob("*.py")
        if "kernels" not in path.parts
    }
    assert {name: n for name, n in lengths.items() if n > MOST_LINES} == {}


def test_the_drawing_finds_faults(tmp_path: Path) -> None:
    """Two files that import each other, one of them upward and out of a function."""
    package = tmp_path / NAME
    for room in ("plan", "kernels"):
        (package / room).mkdir(parents=True)
        (package / room / "__init__.py").touch()
    (package / "__init__.py").touch()
    (package / "plan" / "a.py").write_text(f"from {NAME}.kernels.b import x\n")
    (package / "kernels" / "b.py").write_text(f"def f():\n    from {NAME}.plan import a\n")
    graph = draw(package)
    assert upward(graph) == [f"{NAME}.kernels.b -> {NAME}.plan.a"]
    assert set(circle(graph)) == {f"{NAME}.kernels.b", f"{NAME}.plan.a"}
