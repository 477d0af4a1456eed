"""The heads of a table whose columns are grouped by several axes."""

from dataclasses import dataclass

from neural_polarizer.report.bench.names import axis_text, labels_text
from neural_polarizer.report.bench.tables import Key, Table


@dataclass(frozen=True)
class Span:
    """A head above neighbouring columns."""

    text: str  # what it says
    first: int  # the index of the first of these columns, not counting those of the values
    length: int  # how many columns there are


def row_texts(table: Table, row: Key) -> tuple[str, ...]:
    """The head of a row, a text for each of its axes."""
    return tuple(labels_text(table.row_labels(row)).values())


def column_texts(table: Table, column: Key) -> tuple[str, ...]:
    """The head of a column, a text for each of its axes."""
    return tuple(labels_text(table.column_labels(column)).values())


def corner_texts(table: Table) -> tuple[str, ...]:
    """The names of the axes of the rows."""
    return tuple(axis_text(axis) for axis in table.row_axes)


def head_rows(table: Table) -> tuple[tuple[Span, ...], ...]:
    """The heads of the columns, level by level; neighbours with the same head share it."""
    levels = []
    for depth in range(1, len(table.column_axes) + 1):
        spans: list[Span] = []
        previous: Key | None = None
        for index, column in enumerate(table.columns):
            if column[:depth] == previous:
                last = spans.pop()
                spans.append(Span(last.text, last.first, last.length + 1))
            else:
                spans.append(Span(column_texts(table, column)[depth - 1], index, 1))
            previous = column[:depth]
        levels.append(tuple(spans))
    return tuple(levels)
