"""The geometry of line charts; a template turns it into SVG."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from neural_polarizer.report.values import number, percent

WIDTH, HEIGHT = 460, 270
LEFT, RIGHT, TOP, BOTTOM = 52, 446, 14, 226
_MARKERS_UP_TO = 25  # more epochs than this and the markers would merge into a smear
_CURVE = (400, 120)
_LARGEST = 1e100  # beyond it, differences and tick steps could overflow

Point = tuple[float, float]


@dataclass(frozen=True)
class Tick:
    """A mark on an axis: where, and what it says."""

    at: float
    label: str


@dataclass(frozen=True)
class Line:
    """One series: unbroken runs of points in SVG units, with a gap where a value is missing."""

    label: str
    runs: tuple[tuple[Point, ...], ...]
    markers: tuple[Point, ...]
    latest: str


@dataclass(frozen=True)
class Chart:
    """Everything a template needs to draw one chart; ``mark`` is a vertical line at a chosen place."""

    title: str
    x_label: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    lines: tuple[Line, ...]
    mark: Tick | None = None


@dataclass(frozen=True)
class Axis:
    """A range of data, and where its ends lie in SVG units."""

    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low) if self.high > self.low else 0.5
        return round(self.start + share * (self.stop - self.start), 2)


def line_chart(
    title: str, history: Sequence[Mapping[str, Any]], labels: Mapping[str, str], *, shares: bool = False
) -> Chart | None:
    """Lay out the values of ``history``, a mapping for each epoch, over its epochs; None if there is nothing to draw.

    Missing and non-finite values leave a gap; epochs that are no numbers are counted. ``labels`` are the keys to draw,
    each with its name in the legend; with ``shares``, values lie in [0, 1] and are labelled as percentages.
    """
    stated = [_plottable(row.get("epoch")) for row in history]
    epochs = [float(index) if at is None else at for index, at in enumerate(stated, start=1)]
    columns = {key: [_plottable(row.get(key)) for row in history] for key in labels}
    columns = {key: column for key, column in columns.items() if any(value is not None for value in column)}
    values = [value for column in columns.values() for value in column if value is not None]
    if not values:
        return None
    levels = [0.0, 0.25, 0.5, 0.75, 1.0] if shares else nice_ticks(min(0.0, *values), max(values))
    x, y = Axis(min(epochs), max(epochs), LEFT, RIGHT), Axis(levels[0], levels[-1], BOTTOM, TOP)
    show = percent if shares else "{:.3g}".format
    return Chart(
        title=title,
        x_label="epoch",
        x_ticks=tuple(Tick(x(epoch), f"{epoch:g}") for epoch in epoch_ticks(x.low, x.high)),
        y_ticks=tuple(Tick(y(level), f"{level:.0%}" if shares else f"{level:.4g}") for level in levels),
        lines=tuple(
            _line(labels[key], _places(x, y, epochs, column), show([each for each in column if each is not None][-1]))
            for key, column in columns.items()
        ),
    )


def dial_chart(
    title: str, x_label: str, dials: Sequence[float], columns: Mapping[str, Sequence[float]], chosen: int
) -> Chart:
    """Lay out shares over the places of a dial, one of which was chosen.

    ``dials`` rise, and all numbers are finite. ``columns`` are the shares in [0, 1] at each place, by their name in the
    legend, whose range alone the axis covers. The place of the index ``chosen`` is marked, and the legend has its
    shares.
    """
    values = [value for column in columns.values() for value in column]
    levels = nice_ticks(min(values), max(values))
    x, y = Axis(dials[0], dials[-1], LEFT, RIGHT), Axis(levels[0], levels[-1], BOTTOM, TOP)
    ticks = [at for at in nice_ticks(dials[0], dials[-1]) if dials[0] <= at <= dials[-1]]
    return Chart(
        title=title,
        x_label=x_label,
        x_ticks=tuple(Tick(x(at), f"{at:.4g}") for at in ticks),
        y_ticks=tuple(Tick(y(level), f"{100 * level:.4g}%") for level in levels),
        lines=tuple(
            _line(name, _places(x, y, dials, column), percent(column[chosen])) for name, column in columns.items()
        ),
        mark=Tick(x(dials[chosen]), "chosen"),
    )


def nice_ticks(low: float, high: float) -> list[float]:
    """About five round numbers at equal steps that enclose [low, high]."""
    step = _nice_step((high - low if high > low else max(abs(high), 1.0)) / 5)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [index * step for index in range(first, max(last, first + 1) + 1)]


def epoch_ticks(low: float, high: float) -> list[float]:
    """Whole epochs in [low, high], the first included, at most about six of them."""
    step = max(1.0, float(math.ceil(_nice_step((high - low) / 6)))) if high > low else 1.0
    round_ones = range(math.floor(low / step) + 1, math.floor(high / step) + 1)
    wanted = [low, *(step * index for index in round_ones)]
    return [x for index, x in enumerate(wanted) if index != 1 or x - low > step / 2]


def _nice_step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(max(rough, 1e-12)))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10, 20) if factor * power >= rough * (1 - 1e-9))


def _plottable(value: Any) -> float | None:
    known = number(value)
    return None if known is None or abs(known) > _LARGEST else known


def _places(x: Axis, y: Axis, across: Sequence[float], column: Sequence[float | None]) -> list[Point | None]:
    return [None if value is None else (x(at), y(value)) for at, value in zip(across, column, strict=True)]


def unbroken(places: Sequence[Point | None]) -> list[tuple[Point, ...]]:
    """The points between the gaps."""
    return [tuple(place for place in run if place is not None) for there, run in groupby(places, key=bool) if there]


def _line(label: str, places: Sequence[Point | None], latest: str) -> Line:
    runs = unbroken(places)
    known = tuple(place for place in places if place is not None)
    alone = tuple(run[0] for run in runs if len(run) == 1)  # a run of one point has no line to be seen by
    return Line(
        label=label,
        runs=tuple(run for run in runs if len(run) > 1),
        markers=known if len(known) <= _MARKERS_UP_TO else alone,
        latest=latest,
    )


def spectrum_curve(found: Mapping[str, Any]) -> dict[str, Any]:
    """The singular values of a layer's change (``audit.Spectrum``) as a curve, with the numbers told beside it."""
    changes, (width, height) = found["changes"], _CURVE
    top = max(*changes, 1.0)
    step = width / max(len(changes) - 1, 1)
    dots = " ".join(f"{place * step:.1f},{height * (1 - value / top):.1f}" for place, value in enumerate(changes))
    return {
        "dots": dots,
        "width": width,
        "height": height,
        "one": height * (1 - 1 / top),
        "largest": f"{changes[0]:.2f}",
        "channels": len(changes),
        "directions": found["directions"],
        "distance": percent(found["distance"]),
    }
