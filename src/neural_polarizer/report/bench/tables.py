"""A suite as a table: means over the seeds, the paper's numbers beside them, the best ones marked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Literal, NamedTuple

from neural_polarizer.report.bench.names import MEAN, axis_text, labels_text
from neural_polarizer.report.bench.results import Entry, Label

Key = tuple[Label, ...]
"""The labels of a row or column on the table's axes."""
Place = tuple[Key, Key]
"""The row and the column of a cell."""

Rank = Literal["best", "second"]

RIVALS = ("defense", "variant", "site")
"""The axes along which methods compete with each other."""
FAILED_ATTACK = "\N{DAGGER}"
"""Marks the numbers of a victim that is none."""
REPEATS = ("victim_seed", "seed")
"""The axes along which the same thing is done again."""


@dataclass(frozen=True)
class Figure:
    """One number of a cell; rates are fractions in [0, 1]."""

    mean: float | None  # over the runs that have the number; None where none has, or for an average that lacks a part
    spread: float | None  # sample standard deviation over these runs; None for fewer than two
    n: int  # how many runs, or how many attacks in an average
    paper: float | None  # the paper's number
    rank: Rank | None = None  # among the methods that it competes with

    @property
    def delta(self) -> float | None:
        """Ours minus the paper's."""
        return None if self.mean is None or self.paper is None else self.mean - self.paper


@dataclass(frozen=True)
class Cell:
    """What was planned and what came out at one place of a table."""

    labels: Mapping[str, Label]  # what its runs have in common, on all axes but the seeds
    figures: Mapping[str, Figure]  # by the name of the value
    entries: tuple[Entry, ...]  # its runs; none for an average
    attack_failed: bool = False  # the victim is none (``failed_attacks``); no average counts this cell

    @property
    def failed(self) -> tuple[Entry, ...]:
        """The runs that failed."""
        return tuple(run for run in self.entries if run.record is not None and run.record.get("status") == "failed")

    @property
    def missing(self) -> int:
        """How many runs have not been computed."""
        return sum(entry.record is None for entry in self.entries)


class Span(NamedTuple):
    """A head above neighbouring columns."""

    text: str  # what it says
    first: int  # the index of the first of these columns, not counting those of the values
    length: int  # how many columns there are


@dataclass(frozen=True)
class Table:
    """A suite's cells by row and column."""

    name: str  # of the suite
    title: str  # of the suite
    row_axes: tuple[str, ...]  # the axes of the rows
    column_axes: tuple[str, ...]  # the axes of the columns
    values: tuple[str, ...]  # what each cell shows, in this order
    # In the order of the suite, then the averages over the attacks; places that were not planned are absent.
    cells: Mapping[Place, Cell]

    @property
    def axes(self) -> tuple[str, ...]:
        return self.row_axes + self.column_axes

    @property
    def rows(self) -> tuple[Key, ...]:
        """Grouped by the first axis, labels in the order in which the suite first names them, averages last."""
        return _grouped([row for row, _ in self.cells])

    @property
    def columns(self) -> tuple[Key, ...]:
        return _grouped([column for _, column in self.cells])

    @property
    def measured(self) -> tuple[Cell, ...]:
        """The cells without the averages."""
        return tuple(cell for cell in self.cells.values() if cell.entries)

    def row_labels(self, row: Key) -> dict[str, Label]:
        return dict(zip(self.row_axes, row, strict=True))

    def column_labels(self, column: Key) -> dict[str, Label]:
        return dict(zip(self.column_axes, column, strict=True))

    def row_texts(self, row: Key) -> tuple[str, ...]:
        """The head of a row, a text for each of its axes."""
        return tuple(labels_text(self.row_labels(row)).values())

    def column_texts(self, column: Key) -> tuple[str, ...]:
        """The head of a column, a text for each of its axes."""
        return tuple(labels_text(self.column_labels(column)).values())

    @property
    def corner_texts(self) -> tuple[str, ...]:
        return tuple(axis_text(axis) for axis in self.row_axes)

    @property
    def head_rows(self) -> tuple[tuple[Span, ...], ...]:
        """The heads of the columns, level by level; neighbours with the same head share it."""
        levels = []
        for depth in range(1, len(self.column_axes) + 1):
            spans: list[Span] = []
            for _, columns in groupby(self.columns, key=itemgetter(slice(depth))):
                head, *others = columns
                first = spans[-1].first + spans[-1].length if spans else 0
                spans.append(Span(self.column_texts(head)[depth - 1], first, 1 + len(others)))
            levels.append(tuple(spans))
        return tuple(levels)

    def averaged(self, row: Key) -> bool:
        """Whether a row is a mean over attacks."""
        return self.row_labels(row).get("attack") == MEAN


def error_of(entry: Entry) -> str:
    """What a failed run says of its failure."""
    return str((entry.record or {}).get("error") or "no reason was recorded")


def _grouped(keys: Sequence[Key]) -> tuple[Key, ...]:
    places = [{label: place for place, label in enumerate(dict.fromkeys(labels))} for labels in zip(*keys, strict=True)]
    return tuple(
        sorted(dict.fromkeys(keys), key=lambda key: [order[label] for order, label in zip(places, key, strict=True)])
    )
