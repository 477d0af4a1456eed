"""Draws which room of the package imports which into the page about the code, between two marks.

python .ci/import_picture.py docs/explanation/architecture.md
"""

import ast
import sys
from collections.abc import Mapping
from pathlib import Path

PACKAGE = "neural_polarizer"
SRC = Path(__file__).parents[1] / "src" / PACKAGE
BEGIN, END = "<!-- imports: .ci/import_picture.py -->\n", "<!-- end of imports -->\n"
SPLIT = ("layer", "model_files")
"""Packages whose modules stand on several floors."""


def room_of(name: str) -> str:
    """The room of a module or of what is in it, by its full name without that of the package."""
    words = name.split(".")
    inside = (SRC / words[0]).is_dir() and words[0] in SPLIT and len(words) > 1
    module = inside and ((SRC / words[0] / words[1]).is_dir() or (SRC / words[0] / f"{words[1]}.py").is_file())
    if module:
        return ".".join(words[:2])
    known = (SRC / words[0]).is_dir() or (SRC / f"{words[0]}.py").is_file()
    return words[0] if known else "__init__"


def imports() -> dict[str, set[str]]:
    """The rooms that each room imports; without those that only hold others."""
    found: dict[str, set[str]] = {}
    for path in sorted(SRC.rglob("*.py")):
        words = path.relative_to(SRC).with_suffix("").parts
        room = room_of(".".join(word for word in words if word != "__init__") or "__init__")
        there = found.setdefault(room, set())
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == PACKAGE:
                rest = node.module.partition(".")[2]
                names = [f"{rest}.{each.name}" if rest else each.name for each in node.names]
                there |= {room_of(name) for name in names if name != "__version__"} - {room}
    used = set().union(*found.values())
    return {room: there for room, there in found.items() if there or room in used}


def floors(rooms: Mapping[str, set[str]]) -> list[list[str]]:
    """The rooms by floor: each stands one above the highest that it imports.

    Raises:
        ValueError: some rooms import each other in a circle.
    """
    level: dict[str, int] = {}
    while len(level) < len(rooms):
        ready = [room for room in rooms if room not in level and rooms[room] <= level.keys()]
        if not ready:
            raise ValueError(f"a circle among {', '.join(sorted(rooms.keys() - level.keys()))}")
        level |= {room: 1 + max((level[each] for each in rooms[room]), default=-1) for room in ready}
    return [sorted(room for room in rooms if level[room] == floor) for floor in range(max(level.values()) + 1)]


def direct(room: str, rooms: Mapping[str, set[str]]) -> list[str]:
    """What a room imports and does not reach through another one that it imports."""

    def below(other: str) -> set[str]:
        return rooms[other].union(*(below(each) for each in rooms[other]))

    through = set().union(*(below(each) for each in rooms[room]))
    return sorted(rooms[room] - through)


def picture() -> str:
    """The floors from the ground up, and for each room the arrows that no other arrow implies."""
    rooms = imports()
    width = max(map(len, rooms))
    lines = []
    for number, floor in enumerate(floors(rooms)):
        for place, room in enumerate(floor):
            head = f"{number:>2}" if place == 0 else "  "
            arrows = ", ".join(direct(room, rooms))
            lines.append(f"{head}  {room:<{width}}  {'-> ' + arrows if arrows else ''}".rstrip())
    return "\n".join(lines)


def drawn(page: str) -> str:
    """``page`` with the picture between its marks."""
    before, _, rest = page.partition(BEGIN)
    after = rest.partition(END)[2]
    return f"{before}{BEGIN}\n```text\n{picture()}\n```\n\n{END}{after}"


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.write_text(drawn(target.read_text(encoding="utf-8")), encoding="utf-8")
