"""Which cells of a table go into which plot, and there into which line or bar."""

from collections.abc import Mapping, Sequence

from neural_polarizer.report.bench.names import UNDEFENDED, labels_text
from neural_polarizer.report.bench.results import Label
from neural_polarizer.report.bench.tables import RIVALS, Cell, Table

SWEEPS = ("poison_rate", "n_clean", "site")
"""The axes along which a curve can be drawn."""

Groups = dict[str, dict[str, list[Cell]]]
"""Cells by the name of their plot, and in it by the name of their line or bar."""


def sweep_of(table: Table) -> str | None:
    """The axis along which curves are drawn, if the table has one with several labels."""
    varied = [axis for axis in SWEEPS if axis in table.axes and len(labels_on(table.measured, axis)) > 1]
    return varied[0] if varied else None


def labels_on(cells: Sequence[Cell], axis: str) -> tuple[Label, ...]:
    """The labels of an axis, in the order of the cells; undefended models have no layer."""
    return tuple(dict.fromkeys(cell.labels[axis] for cell in cells if axis in cell.labels and not _apart(cell, axis)))


def grouped(table: Table, cells: Sequence[Cell], *, along: str | None = None) -> Groups:
    """Compare methods within a plot and let all else tell the plots apart; without rivals, compare all in one.

    ``along`` is the axis of a curve, whose labels belong to one line.
    """
    drawn = [cell for cell in cells if along is None or not _apart(cell, along)]
    axes = [axis for axis in table.axes if axis != along and len({cell.labels.get(axis) for cell in drawn}) > 1]
    lines = [axis for axis in axes if axis in RIVALS] or axes
    groups: Groups = {}
    for cell in drawn:
        plot = text_of(cell.labels, [axis for axis in axes if axis not in lines])
        groups.setdefault(plot, {}).setdefault(text_of(cell.labels, lines), []).append(cell)
    return groups


def text_of(labels: Mapping[str, Label], axes: Sequence[str]) -> str:
    """The labels on some axes in one text."""
    texts = labels_text(labels)
    return ", ".join(texts[axis] for axis in axes if texts.get(axis, "-") != "-")


def _apart(cell: Cell, axis: str) -> bool:
    return axis == "site" and cell.labels.get("defense") == UNDEFENDED
