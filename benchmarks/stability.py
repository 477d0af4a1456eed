"""Prints the stability figure of each defense: the mean absolute change of DER over half and twice each main setting.

    polarizer bench run benchmarks/published/stability.toml --data DATA --models FOLDER --out results
    python benchmarks/stability.py results

Takes no time beside the first command; cells that have not been computed are left out, and "cells" tells how many
were compared.
"""

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from neural_polarizer.bench.results import suite_result
from neural_polarizer.bench.store import Store
from neural_polarizer.bench.suite import load_suite
from neural_polarizer.defenses import title_of
from neural_polarizer.report.bench.results import Entry, Label
from neural_polarizer.report.values import number, table

SUITE = Path(__file__).parent / "published" / "stability.toml"


@dataclass(frozen=True)
class Stability:
    """What changed settings do to one defense."""

    change: float  # mean absolute change of DER, as a fraction
    largest: float  # the largest one
    pairs: int  # how many cells were compared with the same cell at the usual settings


def stability(entries: Iterable[Entry]) -> dict[str, Stability]:
    """For each defense how far DER moves between its usual settings (variant "") and each of its variants.

    The variants each change one setting, to half and to twice (``SUITE``). Cells that are not computed, or
    whose usual form is not, have no part in it.
    """
    found = {_key(entry.labels): der for entry in entries if (der := _der(entry)) is not None}
    changes: dict[str, list[float]] = {}
    for (defense, variant, others), der in found.items():
        usual = found.get((defense, "", others))
        if variant and usual is not None:
            changes.setdefault(defense, []).append(abs(der - usual))
    return {name: Stability(fmean(each), max(each), len(each)) for name, each in changes.items()}


def _key(labels: Mapping[str, Label]) -> tuple[str, str, tuple[tuple[str, Label], ...]]:
    others = sorted(item for item in labels.items() if item[0] not in ("defense", "variant"))
    return str(labels.get("defense", "")), str(labels.get("variant", "")), tuple(others)


def _der(entry: Entry) -> float | None:
    done = entry.record is not None and entry.record.get("status") == "done"
    return number(table(entry.record or {}, "result").get("der")) if done else None


def markdown(found: dict[str, Stability]) -> str:
    """The steadiest first, in points of DER."""
    lines = ["| defense | mean change of DER | largest | cells |", "|---|---|---|---|"]
    for name, each in sorted(found.items(), key=lambda item: item[1].change):
        lines.append(f"| {title_of(name)} | {100 * each.change:.2f} | {100 * each.largest:.2f} | {each.pairs} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(markdown(stability(suite_result(load_suite(str(SUITE)), Store(sys.argv[1])).entries)))
