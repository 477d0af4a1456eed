"""Prints the stability figure of each defense: the mean absolute change of DER over half and twice each main setting.

    polarizer bench run stability --data DATA --out results
    python benchmarks/stability.py results

Takes no time beside the first command; cells that have not been computed are left out, and "cells" tells how many
were compared.
"""

import sys

from neural_polarizer.bench.results import suite_result
from neural_polarizer.bench.store import Store
from neural_polarizer.bench.suite import load_suite
from neural_polarizer.defenses import title_of
from neural_polarizer.report.bench.stability import Stability, stability


def markdown(found: dict[str, Stability]) -> str:
    """The steadiest first, in points of DER."""
    lines = ["| defense | mean change of DER | largest | cells |", "|---|---|---|---|"]
    for name, each in sorted(found.items(), key=lambda item: item[1].change):
        lines.append(f"| {title_of(name)} | {100 * each.change:.2f} | {100 * each.largest:.2f} | {each.pairs} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(markdown(stability(suite_result(load_suite("stability"), Store(sys.argv[1])).entries)))
