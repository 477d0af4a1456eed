"""Suites with made-up records, shared by the tests of the benchmark's report; run it to write the golden files anew."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from neural_polarizer.report.bench.results import Entry, Label, Layout, PaperValue, Record, SuiteResult
from neural_polarizer.report.bench.table_text import render_csv, render_latex, render_markdown
from neural_polarizer.report.bench.tabulate import make_table

GOLDEN = Path(__file__).parent / "golden"
HOSTILE = "<img src=x onerror=alert(1)>"
ATTACKS = ("badnets", "blended-a2a", "wanet")
DEFENSES = ("none", "fp", "i-bau", "npd")
SEEDS = (0, 1, 2)
FAILURE = "RuntimeError: no layer 'layer9' (anp.py, line 12)"

_ACC = {"none": 0.93, "fp": 0.915, "i-bau": 0.885, "npd": 0.909}
_ASR = {"none": 0.95, "fp": 0.40, "i-bau": 0.05, "npd": 0.008}
_SECONDS = {"none": 840.0, "fp": 90.5, "i-bau": 61.25, "npd": 41.2}


def labels(**changes: Label) -> dict[str, Label]:
    """The labels of a cell on all axes; ``changes`` replace some."""
    usual: dict[str, Label] = {
        "data": "cifar10",
        "model": "preactresnet18",
        "attack": "badnets",
        "poison_rate": 0.1,
        "adaptive": False,
        "victim_seed": 0,
        "defense": "npd",
        "variant": "",
        "site": "",
        "n_clean": 0,
        "seed": 0,
    }
    return usual | changes


def record(own: Mapping[str, Label], result: Mapping[str, Any] | None, error: str | None = None) -> Record:
    """A record of the cell with these labels: done, or failed with an error."""
    name = "-".join(str(label) for label in own.values())
    return {
        "schema": 1,
        "id": hashlib.sha256(name.encode(errors="backslashreplace")).hexdigest()[:20],
        "kind": "victim" if own["defense"] == "none" else "purification",
        "status": "done" if error is None else "failed",
        "error": error,
        "request": {"attack": {"name": own["attack"], "target": 0}, "method": own["defense"], "seed": own["seed"]},
        "result": result,
        "provenance": {
            "started": f"2026-11-25T07:0{own['seed']}:00+00:00",
            "seconds": 55.1,
            "versions": {"neural-polarizer": "0.1.0", "torch": "2.10.0"},
            "device": "cpu",
            "threads": 1,
        },
    }


def result(own: Mapping[str, Label], *, row: int = 0) -> dict[str, Any]:
    """What came out: by seed, ACC rises by 0.1 and ASR by 0.2 points, so their spreads over three seeds are these."""
    defense, seed = str(own["defense"]), int(own["seed"])
    acc = _ACC[defense] - 0.002 * row + 0.001 * seed
    asr = _ASR[defense] + 0.01 * row + 0.002 * seed
    found: dict[str, Any] = {"acc": acc, "asr": asr, "ra": 0.9 - asr, "n_test": 10000, "n_triggered": 9000}
    found |= {"seconds": _SECONDS[defense] + seed, "peak_mb": 1200.0}
    if defense != "none":
        before = {"acc": _ACC["none"] - 0.002 * row, "asr": _ASR["none"] + 0.01 * row}
        found |= {"before": before, "der": (before["asr"] - asr - (before["acc"] - acc) + 1) / 2}
        found |= {"suspect": "next" if str(own["attack"]).endswith("a2a") else 0, "n_clean": own["n_clean"] or 2500}
    return found


def main_suite(**changes: Any) -> SuiteResult:
    """Attacks by defenses; FP on WaNet has not run, all of FP on Blended and one seed of i-BAU on WaNet failed."""
    entries = []
    for row, attack in enumerate(ATTACKS):
        for defense in DEFENSES:
            for seed in SEEDS if defense != "none" else (0,):
                own = labels(attack=attack, defense=defense, seed=seed)
                found: Record | None = record(own, result(own, row=row))
                if (attack, defense) == ("blended-a2a", "fp") or (attack, defense, seed) == ("wanet", "i-bau", 2):
                    found = record(own, None, FAILURE)
                if (attack, defense) == ("wanet", "fp"):
                    found = None
                entries.append(Entry(own, found))
    usual: dict[str, Any] = {
        "name": "table01",
        "title": "Table 1: CIFAR-10 & PreAct-ResNet18",
        "about": "polarizer bench table01\nAbout two hours on one core.",
        "layout": Layout(("attack",), ("defense",), ("acc", "asr", "der")),
        "entries": tuple(entries),
        "paper": (
            published("badnets", "none", acc=0.9182, asr=0.9379),
            published("badnets", "npd", acc=0.8893, asr=0.0126, der=0.9482),
            published("wanet", "fp", acc=0.9065, asr=0.0061),
            published("mean", "npd", acc=0.9, asr=0.01, der=0.9641),
        ),
    }
    return SuiteResult(**(usual | changes))


def published(attack: str, defense: str, **values: float) -> PaperValue:
    """A cell of the paper's table of CIFAR-10."""
    return PaperValue({"data": "cifar10", "attack": attack, "defense": defense}, values)


def swept_suite(axis: str, points: Sequence[Label], *, defenses: Sequence[str] = DEFENSES) -> SuiteResult:
    """Two attacks by defenses by the labels of an axis, one seed."""
    entries: list[Entry] = []
    for row, attack in enumerate(ATTACKS[:2]):
        for defense in defenses:
            for place, point in enumerate(points):
                fixed: dict[str, Label] = {"site": ""} if axis == "site" and defense == "none" else {axis: point}
                own = labels(attack=attack, defense=defense, **fixed)
                if not any(entry.labels == own for entry in entries):
                    entries.append(Entry(own, record(own, result(own, row=row + place))))
    return SuiteResult(
        name=f"sweep-{axis}",
        title=f"Along {axis}",
        about="",
        layout=Layout(("attack",), (axis, "defense"), ("acc", "asr", "der")),
        entries=tuple(entries),
        paper=(PaperValue({"attack": "badnets", "defense": "npd", axis: points[-1]}, {"acc": 0.85, "asr": 0.02}),),
    )


def time_suite() -> SuiteResult:
    """Seconds of each defense."""
    entries = [Entry(own, record(own, result(own))) for defense in DEFENSES for own in [labels(defense=defense)]]
    paper = (PaperValue({"data": "cifar10", "defense": "fp"}, {"seconds": 1000.0}),)
    return SuiteResult(
        "table09", "Running time", "", Layout(("data",), ("defense",), ("seconds",)), tuple(entries), paper
    )


def hostile_suite(text: str = HOSTILE) -> SuiteResult:
    """The main suite with this text for every name that a user could choose, and for what errors say."""
    suite = main_suite()
    entries = []
    for entry in suite.entries:
        own = {**entry.labels, "model": text}
        own |= {"attack": text} if own["attack"] == "badnets" else {}
        own |= {"defense": text} if own["defense"] == "fp" else {}
        found = entry.record
        if found is not None:
            found = {**found, "request": {text: text}, "error": None if found["error"] is None else text}
            found |= {"provenance": {**found["provenance"], "device": text}}
        entries.append(Entry(own, found))
    layout = Layout(("model", "attack"), ("defense",), ("acc", "asr", text))
    return SuiteResult(text, text, text, layout, tuple(entries), suite.paper)


FORMATS = {"md": render_markdown, "csv": render_csv, "tex": render_latex}


def golden_suites() -> list[SuiteResult]:
    """The suites whose tables are kept as files."""
    return [main_suite(), swept_suite("n_clean", [500, 50], defenses=("i-bau", "npd"))]


if __name__ == "__main__":
    for each in golden_suites():
        for ending, render in FORMATS.items():
            (GOLDEN / f"{each.name}.{ending}").write_text(render(make_table(each)), encoding="utf-8")
