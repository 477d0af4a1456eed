"""What the benchmark's report is made from: the cells of a suite with their records, and the paper's numbers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Label = str | int | float | bool
"""What a cell has on one axis, such as "badnets" on "attack" or 0.1 on "poison_rate"."""

Record = Mapping[str, Any]
"""One cell as it is stored (docs/reference/files.md): ``status`` is "done" or "failed", ``result`` or ``error`` says
what came out, ``request`` all that it depends on, ``provenance`` where and when it was computed."""


@dataclass(frozen=True)
class Layout:
    """How a suite's table is laid out."""

    rows: tuple[str, ...]  # axes whose values make the rows
    columns: tuple[str, ...]  # axes whose values make the columns
    # What is shown of each cell: "acc", "asr", "ra", "der", "seconds" or another number of its result.
    values: tuple[str, ...]


@dataclass(frozen=True)
class Entry:
    """A cell of a suite."""

    labels: Mapping[str, Label]  # its values on the axes; "seed" is among them
    record: Record | None  # what is stored of it; None if it has not been computed


@dataclass(frozen=True)
class PaperValue:
    """A cell of the paper's table, in our names."""

    labels: Mapping[str, Label]  # its values on the axes that the paper's table has
    values: Mapping[str, float]  # "acc", "asr" and "der" as fractions, "seconds"; what is illegible there is left out


@dataclass(frozen=True)
class SuiteResult:
    """A suite with all that is known of it."""

    name: str  # as in ``table05``
    title: str  # a heading
    about: str  # the comment at the head of its file: command, expected time, expected result
    layout: Layout  # of its table
    # Its cells, in the order of the suite; undefended models have "none" on the axis "defense".
    entries: tuple[Entry, ...]
    paper: tuple[PaperValue, ...]  # the numbers to stand beside ours; none for suites of our own
