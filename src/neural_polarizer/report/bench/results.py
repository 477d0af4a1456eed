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
    """How a suite's table is laid out.

    Args:
        rows: axes whose values make the rows.
        columns: axes whose values make the columns.
        values: what is shown of each cell: "acc", "asr", "ra", "der", "seconds" or another number of its result.
    """

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: tuple[str, ...]


@dataclass(frozen=True)
class Entry:
    """A cell of a suite.

    Args:
        labels: its values on the axes; "seed" is among them.
        record: what is stored of it; None if it has not been computed.
    """

    labels: Mapping[str, Label]
    record: Record | None


@dataclass(frozen=True)
class PaperValue:
    """A cell of the paper's table, in our names.

    Args:
        labels: its values on the axes that the paper's table has.
        values: "acc", "asr" and "der" as fractions, "seconds"; what is illegible there is left out.
    """

    labels: Mapping[str, Label]
    values: Mapping[str, float]


@dataclass(frozen=True)
class SuiteResult:
    """A suite with all that is known of it.

    Args:
        name: as in ``table05``.
        title: a heading.
        about: the comment at the head of its file: command, expected time, expected result.
        layout: of its table.
        entries: its cells, in the order of the suite; undefended models have "none" on the axis "defense".
        paper: the numbers to stand beside ours; none for suites of our own.
    """

    name: str
    title: str
    about: str
    layout: Layout
    entries: tuple[Entry, ...]
    paper: tuple[PaperValue, ...]
