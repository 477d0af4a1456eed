"""Horizontal bars, laid out in SVG units; a template draws them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from neural_polarizer.report.bench.names import UNDEFENDED, number_text, value_text
from neural_polarizer.report.bench.plots import grouped
from neural_polarizer.report.bench.tables import Cell, Table
from neural_polarizer.report.charts import Axis, Tick

LEFT, RIGHT, STEP, TOP = 108, 330, 24, 6
"""The ends of the axis, and the height of a bar with its gap."""


@dataclass(frozen=True)
class Bar:
    """A bar from the left to ``end``; ``paper`` is where the paper's number lies."""

    label: str
    text: str
    end: float | None
    paper: float | None


@dataclass(frozen=True)
class BarPlot:
    """Bars with their names and numbers."""

    title: str
    x_title: str
    ticks: tuple[Tick, ...]
    bars: tuple[Bar, ...]

    @property
    def cited(self) -> bool:
        return any(bar.paper is not None for bar in self.bars)

    @property
    def description(self) -> str:
        return f"{self.x_title}: " + ", ".join(f"{bar.label} {bar.text}" for bar in self.bars) + "."


def make_bars(table: Table, value: str) -> tuple[BarPlot, ...]:
    """Plots of "der", or of "seconds" on a logarithmic axis; none where the table has no such value."""
    cells = [cell for cell in table.measured if cell.labels.get("defense") != UNDEFENDED]
    figures = [cell.figures[value] for cell in cells if value in cell.figures]
    known = [amount for figure in figures for amount in (figure.mean, figure.paper) if amount is not None]
    if not known:
        return ()
    place, ticks, axis = _time_axis(known) if value == "seconds" else _share_axis()

    def bar(name: str, cell: Cell) -> Bar:
        figure = cell.figures[value]
        text = "failed" if cell.failed else "-"
        if figure.mean is not None:
            text = number_text(value, figure.mean)
        ends = (None if amount is None else place(amount) for amount in (figure.mean, figure.paper))
        return Bar(name, text, *ends)

    return tuple(
        BarPlot(
            f"{value_text(value)}, {facet}" if facet else value_text(value),
            f"{value_text(value)}, {axis}",
            ticks,
            # the axes that a group leaves open have but one label
            tuple(bar(name, members[0]) for name, members in lines.items()),
        )
        for facet, lines in grouped(table, cells).items()
    )


def _share_axis() -> tuple[Callable[[float], float], tuple[Tick, ...], str]:
    axis = Axis(0.0, 1.0, LEFT, RIGHT)
    ticks = tuple(Tick(axis(share), f"{share:.0%}") for share in (0.0, 0.25, 0.5, 0.75, 1.0))
    return lambda share: axis(min(max(share, 0.0), 1.0)), ticks, "percent"


def _time_axis(known: Sequence[float]) -> tuple[Callable[[float], float], tuple[Tick, ...], str]:
    times = [max(time, 1e-3) for time in known]
    low = math.floor(math.log10(min(times)) - 0.05)  # so that the shortest bar can be seen
    high = max(math.ceil(math.log10(max(times))), low + 1)
    axis = Axis(low, high, LEFT, RIGHT)
    ticks = tuple(Tick(axis(power), f"{10.0**power:,g}") for power in range(low, high + 1))
    return lambda time: axis(math.log10(max(time, 1e-3))), ticks, "seconds on a logarithmic axis"
