"""Points and curves on two axes, laid out in SVG units; a template draws them."""

from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import NamedTuple

from neural_polarizer.report.bench.names import (
    RATES,
    UNDEFENDED,
    axis_text,
    label_text,
    labels_text,
    number_text,
    text_of,
    value_text,
)
from neural_polarizer.report.bench.results import Label
from neural_polarizer.report.bench.tables import RIVALS, Cell, Table
from neural_polarizer.report.charts import Axis, Point, Tick, nice_ticks, unbroken
from neural_polarizer.report.values import number
from neural_polarizer.report.values import table as inner

WIDTH, HEIGHT = 400, 268
LEFT, RIGHT, TOP, BOTTOM = 52, 388, 14, 222
SLANT = 74
"""By how much a plot grows if the labels below it are slanted."""
_SMALLEST = 0.01
"""The least range of rates that an axis shows, lest differences look like more than they are."""
_LONG = 6  # characters of a label above which they are

SWEEPS = ("poison_rate", "n_clean", "site")
"""The axes along which a curve can be drawn."""

Groups = dict[str, dict[str, list[Cell]]]
"""Cells by the name of their plot, and in it by the name of their line or bar."""


@dataclass(frozen=True)
class Spot:
    """A point and what it says."""

    at: Point
    text: str


@dataclass(frozen=True)
class Series:
    """What is drawn in one colour."""

    label: str  # its name in the legend
    style: int  # the number of its colour and mark
    runs: tuple[tuple[Point, ...], ...]  # unbroken lines; a missing value leaves a gap
    spots: tuple[Spot, ...]  # our numbers
    paper: tuple[Spot, ...]  # the paper's numbers


@dataclass(frozen=True)
class Plot:
    """One pair of axes with all that is on it."""

    title: str
    x_title: str
    y_title: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    series: tuple[Series, ...]

    @property
    def slanted(self) -> bool:
        """Whether the labels below the plot are too long to stand side by side."""
        return any(len(tick.label) > _LONG for tick in self.x_ticks)

    @property
    def joined(self) -> bool:
        return any(series.runs for series in self.series)

    @property
    def cited(self) -> bool:
        return any(series.paper for series in self.series)

    @property
    def description(self) -> str:
        names = ", ".join(series.label for series in self.series)
        return f"{self.y_title} over {self.x_title}: {names}. The table on this page has the numbers."


class _Dot(NamedTuple):
    """A cell on a plot, in the units of the data; None where there is no number."""

    text: str  # what it says
    ours: Point | None
    paper: Point | None


def make_curves(table: Table) -> tuple[Plot, ...]:
    """A plot for each rate, and for all that the lines do not tell apart; none without an axis to draw along."""
    cells = table.measured
    axis = next((axis for axis in SWEEPS if axis in table.axes and len(_labels_on(cells, axis)) > 1), None)
    if axis is None or not (places := _places(cells, axis)):
        return ()
    x = Axis(min(places.values()), max(places.values()), LEFT + 12, RIGHT - 12)
    x_ticks = tuple(Tick(x(place), _tick(axis, label, place)) for label, place in places.items())
    plots = []
    groups = grouped(table, cells, along=axis)
    for value in (value for value in table.values if value in RATES):
        y, y_ticks = _rates(cells, value, BOTTOM, TOP)
        for facet, lines in groups.items():
            series = tuple(
                _series(name, style, _along(lines[name], axis, places, value), x, y)
                for name, style in _styles(groups).items()
                if name in lines
            )
            title = f"{value_text(value)}, {facet}" if facet else value_text(value)
            plots.append(Plot(title, axis_text(axis), value_text(value), x_ticks, y_ticks, series))
    return tuple(plots)


def make_scatter(table: Table) -> Plot | None:
    """ACC over ASR, a point for each cell; none where the table has not both."""
    if not {"acc", "asr"} <= set(table.values):
        return None
    groups = grouped(table, table.measured)
    x, x_ticks = _rates(table.measured, "asr", LEFT + 8, RIGHT - 8)
    y, y_ticks = _rates(table.measured, "acc", BOTTOM - 8, TOP)
    series = []
    for name, style in _styles(groups).items():
        cells = [cell for lines in groups.values() for cell in lines.get(name, ())]
        dots = []
        for cell in cells:
            asr, acc = cell.figures["asr"], cell.figures["acc"]
            ours, paper = _point(asr.mean, acc.mean), _point(asr.paper, acc.paper)
            dots.append(_Dot(text_of(cell.labels, table.axes), ours, paper))
        series.append(_series(name, style, dots, x, y, joined=False))
    return Plot("ACC against ASR: best is up and left", "ASR", "ACC", x_ticks, y_ticks, tuple(series))


def _labels_on(cells: Sequence[Cell], axis: str) -> tuple[Label, ...]:
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


def _apart(cell: Cell, axis: str) -> bool:
    return axis == "site" and cell.labels.get("defense") == UNDEFENDED


def _styles(groups: Groups) -> dict[str, int]:
    """The same colour for the same name in all plots."""
    names = dict.fromkeys(name for lines in groups.values() for name in lines)
    return {name: style for style, name in enumerate(names)}


def _places(cells: Sequence[Cell], axis: str) -> dict[Label, float]:
    """Where the labels lie on an axis, in this order; layers lie side by side."""
    labels = _labels_on(cells, axis)
    if axis == "site":
        return {label: float(place) for place, label in enumerate(labels)}
    known = [(label, place) for label in labels if (place := _amount(cells, axis, label)) is not None]
    return dict(sorted(known, key=itemgetter(1)))


def _tick(axis: str, label: Label, place: float) -> str:
    if axis == "site":
        return label_text(axis, str(label).rpartition(":")[2])  # for want of room
    return f"{100 * place:g}%" if axis == "poison_rate" else f"{place:,g}"


def _amount(cells: Sequence[Cell], axis: str, label: Label) -> float | None:
    """A label as a number; a share of the clean images as the number of images that it was."""
    if axis != "n_clean" or label:
        return number(label)
    records = [
        entry.record for cell in cells if cell.labels.get(axis) == label for entry in cell.entries if entry.record
    ]
    counts = [number(inner(record, "result").get(axis)) for record in records]
    return next((count for count in counts if count is not None), None)


def _along(cells: Sequence[Cell], axis: str, places: dict[Label, float], value: str) -> list[_Dot]:
    known = [(places[cell.labels[axis]], cell) for cell in cells if cell.labels[axis] in places]
    return [
        _Dot(
            labels_text(cell.labels)[axis],
            _point(place, cell.figures[value].mean),
            _point(place, cell.figures[value].paper),
        )
        for place, cell in sorted(known, key=itemgetter(0))
    ]


def _point(x: float | None, y: float | None) -> Point | None:
    return None if x is None or y is None else (x, y)


def _rates(cells: Sequence[Cell], value: str, start: float, stop: float) -> tuple[Axis, tuple[Tick, ...]]:
    figures = [cell.figures[value] for cell in cells]
    known = [rate for figure in figures for rate in (figure.mean, figure.paper) if rate is not None]
    if value == "asr":
        known.append(0.0)
    low, high = min(known, default=0.0), max(known, default=1.0)
    if high - low < _SMALLEST:
        low = max(high - _SMALLEST, 0.0)
        high = low + _SMALLEST
    levels = nice_ticks(low, high)
    axis = Axis(levels[0], levels[-1], start, stop)
    return axis, tuple(Tick(axis(level), f"{100 * level:.4g}%") for level in levels)


def _series(name: str, style: int, dots: Sequence[_Dot], x: Axis, y: Axis, *, joined: bool = True) -> Series:
    def spot(at: Point, text: str) -> Spot:
        return Spot((x(at[0]), y(at[1])), f"{name}, {text}: {number_text('acc', at[1])}%")

    ours = [None if dot.ours is None else spot(dot.ours, dot.text) for dot in dots]
    runs = unbroken([None if one is None else one.at for one in ours]) if joined else []
    return Series(
        label=name,
        style=style,
        runs=tuple(run for run in runs if len(run) > 1),
        spots=tuple(one for one in ours if one is not None),
        paper=tuple(spot(dot.paper, f"{dot.text} in the paper") for dot in dots if dot.paper is not None),
    )
