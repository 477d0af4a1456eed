"""The pictures of docs/research/performance.md, from the figures that the other benchmarks have kept.

    python benchmarks/performance_plots.py --results runs/bench --out docs/pictures

Takes whichever of plain.json, whole.json, ceiling.json, scaling.json, memory.json and inference.json are there.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from neural_polarizer.files import read_json

COLOUR, OTHER = "#3b6ea8", "#b8c9dd"


def bars(axes: Axes, values: dict[str, float], highlighted: str, label: str = "") -> None:
    """A bar for each value, with the ``label`` of it; those whose names hold ``highlighted`` stand out."""
    colours = [COLOUR if highlighted in name else OTHER for name in values]
    found = axes.barh(list(values), list(values.values()), color=colours)
    if label:
        first = next(iter(values.values()))
        axes.bar_label(found, [label.format(value, first / value) for value in values.values()])
        axes.set_xlim(0, 1.3 * max(values.values()))


def inference(axes: Axes, found: dict[str, Any]) -> None:
    """Latency of purified and folded models, over the original's."""
    for case, models in found.items():
        for name, colour in (("purified", OTHER), ("folded", COLOUR)):
            low, middle, high = models[name]["ratio"]
            errors = [[middle - low], [high - middle]]
            label = f"{case.rpartition(', ')[2]}, {name}"
            axes.errorbar(middle, label, xerr=errors, fmt="o", color=colour, ecolor=colour, capsize=3)
    axes.axvline(1, color="grey", linewidth=0.8)


def seconds(found: dict[str, Any]) -> dict[str, float]:
    return {name: median(times) for name, times in found["seconds"].items()}


PLOTS: dict[str, tuple[str, Callable[[Axes, dict[str, Any]], None]]] = {
    "plain": (
        "seconds, the same epochs of NPD",
        lambda axes, found: bars(axes, seconds(found), "ours", " {:.1f} s, {:.1f}x"),
    ),
    "whole": (
        "seconds, a whole run of NPD",
        lambda axes, found: bars(axes, seconds(found), "shipped", " {:.1f} s, {:.1f}x"),
    ),
    "ceiling": (
        "GFLOP/s, forwards and backwards to the input, bf16",
        lambda axes, found: bars(
            axes, {name: rate / 1e9 for name, rate in found["flops_per_second"].items()}, "the inner loop"
        ),
    ),
    "scaling": ("seconds, one epoch of NPD", lambda axes, found: bars(axes, seconds(found), "", " {:.1f} s")),
    "memory": (
        "peak memory of the process, MiB",
        lambda axes, found: bars(axes, found["peak_mib"], "", " {:.0f}"),
    ),
    "inference": ("latency, times the original's (quartiles)", inference),
}
"""What is drawn, and what the axis says."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("runs/bench"))
    parser.add_argument("--out", type=Path, default=Path("docs/pictures"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    mpl.rcParams["svg.hashsalt"] = "neural-polarizer"  # the same figures give the same file
    for name, (label, draw) in PLOTS.items():
        path = options.results / f"{name}.json"
        if not path.exists():
            continue
        found = read_json(path)
        setting = found.pop("setting")
        figure = Figure(figsize=(8, 0.9 + 0.32 * max(4, len(next(iter(found.values()), {})))), layout="constrained")
        axes = figure.subplots()
        draw(axes, found)
        axes.set_xlabel(label)
        axes.invert_yaxis()
        axes.spines[["top", "right"]].set_visible(False)
        figure.supxlabel(setting, fontsize=5, color="grey")
        figure.savefig(options.out / f"{name}.svg", metadata={"Date": None})
        print(options.out / f"{name}.svg")


if __name__ == "__main__":
    main()
