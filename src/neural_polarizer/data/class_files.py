"""Files that name the classes of a model, in the forms that other tools write."""

import json
import re
from pathlib import Path
from typing import Any

from neural_polarizer.data.classes import ClassNames, class_names
from neural_polarizer.data.tree import read_text
from neural_polarizer.errors import refusing, shown

MAX_BYTES = 8 << 20
_SYNSET = re.compile(r"(n\d{8})(?!\w)")
_WITH_NUMBER = (
    re.compile(r"(?P<number>\d{1,6})[\s:,;]+(?P<name>\S.*)"),
    re.compile(r"(?P<name>.*[^\s:,;])[\s:,;]+(?P<number>\d{1,6})"),
)


def read_class_names(path: Path) -> ClassNames:
    """Names by class number from a file: one a line, or JSON: a list, {name: number} or {number: name}.

    Raises:
        BadInputError: the file cannot be read, or a name or number is there twice.
    """
    text = read_text(path, MAX_BYTES)
    parsed: Any = _of_lines([line.strip() for line in text.splitlines() if line.strip()])
    if text.lstrip()[:1] in ("[", "{"):
        with refusing(f"{shown(path)}: is damaged JSON", ValueError, RecursionError):
            parsed = json.loads(text)
    return class_names(parsed, said_by=shown(path))


def _of_lines(lines: list[str]) -> list[str] | dict[str, int]:
    """One name a line, beside its number from 0 or 1 or alone; of ImageNet's lists the id, as folders are called."""
    ids = [_SYNSET.match(line) for line in lines]
    if all(ids):
        return [each[1] for each in ids if each]
    for pattern in _WITH_NUMBER:
        pairs = {each["name"]: int(each["number"]) for each in map(pattern.fullmatch, lines) if each}
        first = min(pairs.values(), default=0)
        if len(pairs) == len(lines) and first <= 1 and sorted(pairs.values()) == [*range(first, first + len(lines))]:
            return {name: number - first for name, number in pairs.items()}
    return lines
