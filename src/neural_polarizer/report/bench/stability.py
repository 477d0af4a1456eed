"""How much a defense's result depends on its settings, as one figure a defense."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean

from neural_polarizer.report.bench.results import Entry, Label
from neural_polarizer.report.values import number, table


@dataclass(frozen=True)
class Stability:
    """What changed settings do to one defense."""

    change: float  # mean absolute change of DER, as a fraction
    largest: float  # the largest one
    pairs: int  # how many cells were compared with the same cell at the usual settings


def stability(entries: Iterable[Entry]) -> dict[str, Stability]:
    """For each defense how far DER moves between its usual settings (variant "") and each of its variants.

    The variants each change one setting, to half and to twice (suite "stability"). Cells that are not computed, or
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
