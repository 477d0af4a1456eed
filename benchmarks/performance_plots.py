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


def plain(axes: Axes, found: dict[str, Any]) -> str:
    """Seconds of every variant, with how many times as fast as the plain one it is."""
    times = {name: median(seconds) for name, seconds in found["seconds"].items()}
    base = next(iter(times.values()))
    bars = axes.barh(list(times), list(times.values()), color=[OTHER if "plain" in name else COLOUR for name in times])
    axes.bar_label(bars, [f" {seconds:.1f} s, {base / seconds:.1f}x" for seconds in times.values()])
    axes.set_xlim(0, 1.3 * base)
    return "seconds, the same epochs of NPD"


def whole(axes: Axes, found: dict[str, Any]) -> str:
    """Seconds of a whole run."""
    plain(axes, found)
    return "seconds, a whole run of NPD"


def ceiling(axes: Axes, found: dict[str, Any]) -> str:
    """FLOP/s of the inner loop and of each convolution."""
    rates = {name: rate / 1e9 for name, rate in found["flops_per_second"].items()}
    axes.barh(
        list(rates), list(rates.values()), color=[COLOUR if name == "the inner loop" else OTHER for name in rates]
    )
    return "GFLOP/s, forwards and backwards to the input, bf16"


def scaling(axes: Axes, found: dict[str, Any]) -> str:
    """Seconds of one epoch."""
    times = {name: median(seconds) for name, seconds in found["seconds"].items()}
    bars = axes.barh(list(times), list(times.values()), color=COLOUR)
    axes.bar_label(bars, [f" {seconds:.1f} s" for seconds in times.values()])
    axes.set_xlim(0, 1.2 * max(times.values()))
    return "seconds, one epoch of NPD"


def memory(axes: Axes, found: dict[str, Any]) -> str:
    """Peak memory of a process."""
    bars = axes.barh(list(found["peak_mib"]), list(found["peak_mib"].values()), color=COLOUR)
    axes.bar_label(bars, [f" {peak:.0f}" for peak in found["peak_mib"].values()])
    axes.set_xlim(0, 1.2 * max(found["peak_mib"].values()))
    return "peak memory of the process, MiB"


def inference(axes: Axes, found: dict[str, Any]) -> str:
    """Latency of purified and folded models, over the original's."""
    for case, models in found.items():
        for name, colour in (("purified", OTHER), ("folded", COLOUR)):
            low, middle, high = models[name]["ratio"]
            errors = [[middle - low], [high - middle]]
            label = f"{case.rpartition(', ')[2]}, {name}"
            axes.errorbar(middle, label, xerr=errors, fmt="o", color=colour, ecolor=colour, capsize=3)
    axes.axvline(1, color="grey", linewidth=0.8)
    return "latency, times the original's (quartiles)"


PLOTS: dict[str, Callable[[Axes, dict[str, Any]], str]] = {
    "plain": plain,
    "whole": whole,
    "ceiling": ceiling,
    "scaling": scaling,
    "memory": memory,
    "inference": inference,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("runs/bench"))
    parser.add_argument("--out", type=Path, default=Path("docs/pictures"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    mpl.rcParams["svg.hashsalt"] = "neural-polarizer"  # the same figures give the same file
    for name, draw in PLOTS.items():
        path = options.results / f"{name}.json"
        if not path.exists():
            continue
        found = read_json(path)
        setting = found.pop("setting")
        figure = Figure(figsize=(8, 0.9 + 0.32 * max(4, len(next(iter(found.values()), {})))), layout="constrained")
        axes = figure.subplots()
        axes.set_xlabel(draw(axes, found))
        axes.invert_yaxis()
        axes.spines[["top", "right"]].set_visible(False)
        figure.supxlabel(setting, fontsize=5, color="grey")
        figure.savefig(options.out / f"{name}.svg", metadata={"Date": None})
        print(options.out / f"{name}.svg")


if __name__ == "__main__":
    main()
