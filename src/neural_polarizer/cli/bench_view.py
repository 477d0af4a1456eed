"""What a benchmark run shows while it goes on."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from neural_polarizer.bench.cells import Cell, Planned
from neural_polarizer.bench.suite import AXES
from neural_polarizer.cli.output import console

_SHOWN = 12
_NAMING = ("victim", *(axis for axis in AXES if axis not in ("victim", "victim_seed", "init")))


class _View:
    """The state of a run: a table on a terminal, a line for each finished cell elsewhere."""

    def __init__(self, console: Console, names: Mapping[str, str], done: int, total: int, todo: int) -> None:
        self._console = console
        self._names = names
        self._before, self._total, self._todo = done, total, todo
        self._done = self._failed = 0
        self._running: dict[str, float] = {}
        self._begun = time.monotonic()

    def note(self, cell: Cell, record: Mapping[str, Any] | None) -> None:
        """A cell begins, or has its record."""
        if record is None:
            self._running[cell.id] = time.monotonic()
            return
        begun = self._running.pop(cell.id, time.monotonic())
        self._done += 1
        self._failed += record["status"] == "failed"
        error = f": {record['error']}" if record["error"] else ""
        if not self._console.is_terminal or error:
            spent = time.monotonic() - begun
            line = f"{self._done}/{self._todo} {record['status']} {self._names.get(cell.id, cell.id)} {spent:.0f} s"
            self._console.print(line + error, markup=False, highlight=False, soft_wrap=True)

    def __rich__(self) -> Group:
        spent = time.monotonic() - self._begun
        left = spent / self._done * (self._todo - self._done) if self._done else None
        counts = (
            f"{self._before + self._done - self._failed} of {self._total} done, {self._failed} failed, "
            f"{len(self._running)} running, {spent / 60:.0f} min"
            + ("" if left is None else f", about {left / 60:.0f} min left")
        )
        table = Table(box=None, show_header=False)
        for name, begun in list(self._running.items())[:_SHOWN]:
            table.add_row(self._names.get(name, name), f"{time.monotonic() - begun:.0f} s")
        return Group(table, Text(counts))


@contextmanager
def watching(
    planned: Sequence[Planned], records: Mapping[str, Any], *, total: int, todo: Sequence[Cell], quiet: bool
) -> Iterator[_View]:
    """What is told of a run and shows it; nothing if ``quiet``."""
    shown = Console(quiet=True) if quiet else console
    names = {each.cell.id: _name(each) for each in planned}
    done = sum(record["status"] == "done" for record in records.values())
    view = _View(shown, names, done, total, len(todo))
    with nullcontext() if quiet or not console.is_terminal else Live(view, console=console, refresh_per_second=2):
        yield view


def _name(planned: Planned) -> str:
    """A cell in words: what its axes say, defaults left out."""
    return " ".join(str(planned.labels[axis]) for axis in _NAMING if planned.labels.get(axis) not in (None, "", 0))
