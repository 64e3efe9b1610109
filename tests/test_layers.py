"""The picture of the house in `docs/architecture.md`, held against the code."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "attnbench"
PICTURE = re.search(r"```layers\n(.*?)```", (ROOT / "docs/architecture.md").read_text(), re.DOTALL)
assert PICTURE
LAYER = {
    name: int(line.split()[0]) for line in PICTURE[1].splitlines() for name in line.split("#")[0].split()[1:]
}


def modules() -> list[Path]:
    return [
        p
        for p in PACKAGE.rglob("*.py")
        if p.name not in ("__init__.py", "__main__.py") or p.parent != PACKAGE
    ]


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(tree: ast.AST) -> Iterator[str]:
    """Rooms that a module imports at any depth, save under TYPE_CHECKING."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            if name == "attnbench" or name.startswith("attnbench."):
                rest = name.split(".")[1:]
                yield (
                    rest[0]
                    if rest and (PACKAGE / rest[0]).exists() | (PACKAGE / f"{rest[0]}.py").exists()
                    else ""
                )
        yield from imports(node)


def test_every_module_has_its_place_in_the_picture() -> None:
    assert {room(path) for path in modules()} == LAYER.keys()


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_module_imports_only_from_layers_above_it(path: Path) -> None:
    here = room(path)
    for other in imports(ast.parse(path.read_text())):
        if here == "builtin":
            assert other == "", "built-in plugins import only the bare attnbench, like anybody's"
        elif other and other != here:
            assert LAYER[other] < LAYER[here], f"{here} imports {other}"


def test_only_the_command_line_prints() -> None:
    for path in modules():
        calls = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
        if room(path) != "cli":
            assert not [n for n in calls if isinstance(n.func, ast.Name) and n.func.id == "print"], path
