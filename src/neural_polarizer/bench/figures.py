"""Plots of the analyses as PNG files, by matplotlib."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

from neural_polarizer.errors import BadInputError

Points = Sequence[Sequence[float]]
_MARKERS = ("o", "x", "^", "s")


def curve_png(x: Sequence[float], lines: Mapping[str, Sequence[float | None]], label: str) -> bytes:
    """Lines over a common axis, by name; None is a gap."""
    figure, axes = _axes()
    for name, values in lines.items():
        axes.plot(x, [float("nan") if value is None else value for value in values], label=name)
    axes.set_xlabel(label)
    axes.legend(frameon=False)
    return _png(figure)


def scatter_png(groups: Mapping[str, Points], title: str) -> bytes:
    """Groups of points in the plane, by name."""
    figure, axes = _axes()
    for marker, (name, points) in zip(_MARKERS, groups.items(), strict=False):
        axes.scatter(*zip(*points, strict=True), s=10, marker=marker, label=name)
    axes.set_title(f"{title}: two principal components")
    axes.legend(frameon=False)
    return _png(figure)


def _axes() -> tuple[Any, Any]:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise BadInputError("matplotlib is not installed: pip install 'neural-polarizer[bench]'") from None
    figure = Figure(figsize=(6, 4), layout="constrained")
    return figure, figure.subplots()


def _png(figure: Any) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=120)
    return file.getvalue()
