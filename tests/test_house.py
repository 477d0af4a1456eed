"""The limits that keep the code readable, and the picture of its imports."""

import ast
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
SRC = ROOT / "src" / "neural_polarizer"
FILES = sorted(SRC.rglob("*.py"))
MOST_LINES, LONGEST = 350, 45
# Functions that are longer, and how long they may be. ``purify`` is documented in full; this list only gets shorter.
LONGER = {"api/purifying.py:purify": 91}
PAGE = ROOT / "docs" / "explanation" / "architecture.md"


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def picture() -> ModuleType:
    spec = importlib.util.spec_from_file_location("import_picture", ROOT / ".ci" / "import_picture.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def module_of(path: Path) -> str:
    return ".".join(["neural_polarizer", *path.relative_to(SRC).with_suffix("").parts]).removesuffix(".__init__")


def test_no_file_is_longer_than_a_reader_bears() -> None:
    counts = {str(path.relative_to(SRC)): len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    assert {name: count for name, count in counts.items() if count > MOST_LINES} == {}


def test_no_function_is_longer_than_a_screen() -> None:
    found = {
        f"{path.relative_to(SRC).as_posix()}:{node.name}": (node.end_lineno or 0) - node.lineno + 1
        for path in FILES
        for node in functions(path)
    }
    assert {name: count for name, count in found.items() if count > LONGER.get(name, LONGEST)} == {}
    assert [name for name in LONGER if found.get(name, 0) <= LONGEST] == [], "these no longer need to be listed"


@pytest.mark.long
def test_no_modules_import_each_other_in_a_circle() -> None:
    names = {module_of(path): path for path in FILES}
    imports: dict[str, set[str]] = {}
    for name, path in names.items():
        nodes = [node for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.ImportFrom)]
        exact = {f"{node.module}.{alias.name}" for node in nodes for alias in node.names}
        imports[name] = {*exact, *(str(node.module) for node in nodes)} & names.keys() - {name, "neural_polarizer"}
    placed: set[str] = set()
    while ready := {name for name in names.keys() - placed if imports[name] <= placed}:
        placed |= ready
    assert names.keys() - placed == set()


def test_the_picture_of_the_imports_is_up_to_date() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert picture().drawn(page) == page


def test_the_picture_knows_floors_arrows_and_circles() -> None:
    rooms = {"a": {"b", "c"}, "b": {"c"}, "c": set[str]()}
    drawing = picture()
    assert drawing.floors(rooms) == [["c"], ["b"], ["a"]]
    assert drawing.direct("a", rooms) == ["b"]
    with pytest.raises(ValueError, match="a circle among a, b"):
        drawing.floors({"a": {"b"}, "b": {"a"}})
