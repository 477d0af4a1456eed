"""Suites, stores and engines that take a moment."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from neural_polarizer.bench.cells import Cell, VictimCell
from neural_polarizer.bench.grid import planned
from neural_polarizer.bench.schedule import current, missing, run
from neural_polarizer.bench.store import Store
from neural_polarizer.bench.suite import parse_suite
from neural_polarizer.bench.work import NEEDED, described

TWO_BY_THREE = """
# Two attacks.
title = "Two"
scale = "smoke"
[[grid]]
attack = ["badnets", "blended"]
defense = ["ft", "npd"]
seed = [0, 1, 2]
"""


def cells_of(text: str) -> list[Cell]:
    """The cells of a suite that a text describes."""
    return [each.cell for each in planned(parse_suite(text, "test"))]


def fake_record(cell: Cell, **changes: Any) -> dict[str, Any]:
    """A finished record, quickly made: its figures tell the cell."""
    result: dict[str, Any] = {"acc": int(cell.id[:4], 16) / 65536, "asr": 0.5}
    result["model_sha256"] = cell.id if cell.needs is None else cell.needs.id
    return {**described(cell), "status": "done", "error": None, "result": result, "provenance": {}, **changes}


class Fake:
    """Computes cells without any work, and remembers which."""

    def __init__(self, store: Store, fails: Callable[[Cell], bool] = lambda cell: False) -> None:
        self.store = store
        self.fails = fails
        self.computed: list[str] = []

    def __call__(self, cell: Cell) -> dict[str, Any]:
        self.computed.append(cell.id)
        if self.fails(cell):
            record = fake_record(cell, status="failed", error="on purpose", result=None)
        else:
            record = fake_record(cell)
            if isinstance(cell, VictimCell):
                keep_artefacts(self.store, cell)
        self.store.write(record)
        return record


def keep_artefacts(store: Store, cell: Cell) -> None:
    """Empty files in the places of a victim's."""
    folder = Path(store.url) / "artefacts" / cell.id
    folder.mkdir(parents=True, exist_ok=True)
    for name in NEEDED:
        (folder / name).touch()


def run_missing(cells: list[Cell], store: Store, engine: Any) -> list[str]:
    """Compute what is missing; the states of the cells computed."""
    store.prepare()
    todo = missing(cells, current(cells, store), store)
    return [record["status"] for _, record in run(todo, engine, store) if record is not None]
