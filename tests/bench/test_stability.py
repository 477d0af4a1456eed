"""The stability figure: what it averages, and that its suite holds half and twice of each setting."""

from collections import Counter

import pytest

from benchmark_scripts import script
from neural_polarizer.bench.cells import PurificationCell
from neural_polarizer.bench.grid import planned
from neural_polarizer.bench.suite import load_suite
from neural_polarizer.report.bench.results import Entry
from neural_polarizer.settings import setting_names

STABILITY = script("stability")


def entry(attack: str, variant: str, der: float | None, *, defense: str = "a", status: str = "done") -> Entry:
    record = None if der is None else {"status": status, "result": {"der": der}}
    return Entry({"attack": attack, "defense": defense, "variant": variant, "seed": 0}, record)


def test_the_mean_change_between_each_variant_and_the_usual_settings_by_hand() -> None:
    entries = [
        entry("x", "", 0.90),
        entry("x", "half", 0.80),
        entry("x", "twice", 0.95),
        entry("y", "", 0.70),
        entry("y", "half", 0.76),
        entry("y", "twice", None),  # not computed
        entry("z", "half", 0.10),  # nothing to compare it with
        entry("z", "", 0.5, status="failed"),
        entry("x", "", 0.60, defense="b"),
        entry("x", "half", 0.60, defense="b"),
        entry("x", "", None, defense="c"),
        entry("x", "", 0.4, defense="none"),
    ]
    found = STABILITY.stability(entries)
    assert set(found) == {"a", "b"}
    assert found["a"].change == pytest.approx((0.10 + 0.05 + 0.06) / 3)
    assert found["a"].largest == pytest.approx(0.10)
    assert found["a"].pairs == 3
    assert found["b"] == STABILITY.Stability(0.0, 0.0, 1)
    assert STABILITY.stability([]) == {}


def test_the_suite_changes_one_setting_of_each_defense_to_half_and_to_twice() -> None:
    cells = planned(load_suite(str(STABILITY.SUITE)))
    by_variant = {
        (str(each.labels["defense"]), str(each.labels["variant"])): each.cell.defense
        for each in cells
        if isinstance(each.cell, PurificationCell)
    }
    seen: Counter[tuple[str, str]] = Counter()
    for (defense, variant), changed in by_variant.items():
        if not variant:
            continue
        usual = by_variant[defense, ""]
        differing = [name for name in setting_names(usual) if value(usual, name) != value(changed, name)]
        assert len(differing) == 1, (variant, differing)
        factor = 2.0 if variant.endswith("-twice") else 0.5
        for before, after in zip(*(numbers(value(each, differing[0])) for each in (usual, changed)), strict=True):
            assert after == pytest.approx(factor * before), variant
        seen[defense, differing[0]] += 1
    assert set(seen.values()) == {2}
    assert {defense for defense, _ in seen} == {defense for defense, _ in by_variant}


def value(settings: object, name: str) -> object:
    for part in name.split("."):
        settings = getattr(settings, part)
    return settings


def numbers(found: object) -> list[float]:
    return [float(each) for each in (found if isinstance(found, tuple) else [found])]  # type: ignore[arg-type]
