"""``polarizer bench``: suites of cells, computed once, and their report."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from neural_polarizer.bench.cells import Cell, GivenCell, Planned, VictimCell
from neural_polarizer.bench.engines import InlineEngine, RayEngine, Resources, ray_engine
from neural_polarizer.bench.grid import planned
from neural_polarizer.bench.results import publish, suite_result
from neural_polarizer.bench.schedule import current, missing
from neural_polarizer.bench.schedule import run as run_cells
from neural_polarizer.bench.sources import parse_sources
from neural_polarizer.bench.store import Store
from neural_polarizer.bench.suite import AXES, BenchScale, Suite, load_suite, suite_names
from neural_polarizer.bench.work import Bench
from neural_polarizer.cli.command import from_options
from neural_polarizer.cli.options import DeviceName, Quiet, look_in_current_folder
from neural_polarizer.cli.output import console, right, show_report
from neural_polarizer.errors import BadInputError
from neural_polarizer.report.bench.site import progress
from neural_polarizer.settings import check_choice

Suites = Annotated[list[str], typer.Argument(help="Suites by name (see bench list), or .toml files.")]
Results = Annotated[str, typer.Option(help="Folder with the records and artefacts; or an address that fsspec knows.")]
ScaleName = Annotated[BenchScale | None, typer.Option(help="Instead of the suite's own scale.")]
Only = Annotated[
    list[str] | None,
    typer.Option("--only", help="Only cells with this value on an axis; repeatable.", metavar="AXIS=VALUE"),
]


_SHOWN = 12
_NAMING = ("victim", *(axis for axis in AXES if axis not in ("victim", "victim_seed", "init")))


@dataclass(frozen=True, kw_only=True)
class _Options:
    suites: Suites
    data: Annotated[
        list[str] | None,
        typer.Option(help="A folder with NAME/train.parquet and test.parquet; or NAME=TRAIN,TEST, repeatable."),
    ] = None
    models: Annotated[
        Path | None, typer.Option(help="Folder with the files of victims that are given, not trained.")
    ] = None
    out: Results = "results"
    scale: ScaleName = None
    only: Only = None
    engine: Annotated[Literal["ray", "inline"], typer.Option(help="Ray, or one cell after the other here.")] = "ray"
    address: Annotated[str | None, typer.Option(help="A running Ray cluster; default: start one here.")] = None
    workers: Annotated[int | None, typer.Option(help="CPUs of a Ray started here; default: all.", min=1)] = None
    cpus: Annotated[int, typer.Option(help="CPUs, and threads, of a cell.", min=1)] = 1
    gpus: Annotated[float, typer.Option(help="GPUs of a cell; may be a fraction.", min=0)] = 0.0
    memory: Annotated[float, typer.Option(help="Memory of a cell in GB; 0 leaves it open.", min=0)] = 0.0
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check the suites and count their cells.")] = False
    device: DeviceName = None
    quiet: Quiet = False


@from_options(_Options)
def run(asked: _Options) -> None:
    """Compute what is missing; a run that was killed goes on where it stopped."""
    found = _chosen(asked.suites, asked.scale, asked.only)
    cells = list({each.cell.id: each.cell for each in found}.values())
    store = Store(asked.out)
    records = current(cells, store)
    todo = missing(cells, records, store)
    if asked.dry_run:
        if not asked.quiet:
            console.print(_plan(cells, todo))
        return
    sources = parse_sources(asked.data or [])
    victims = [cell if cell.needs is None else cell.needs for cell in todo]
    sources.check(sorted({cell.data for cell in victims if isinstance(cell, VictimCell | GivenCell)}))
    _check_models(victims, asked.models)
    store.prepare()
    work = Bench(store, sources, asked.models, asked.device, asked.cpus)
    with (
        store.alone(),
        _engine(asked, work, store) as place,
        _watching(found, records, total=len(cells), todo=todo, quiet=asked.quiet) as view,
    ):
        for cell, record in run_cells(todo, place, store):
            view.note(cell, record)
    failed = [record for record in current(cells, store).values() if record["status"] == "failed"]
    if not asked.quiet:
        counts = f"{len(cells)} cells, {len(todo)} computed, {len(failed)} failed"
        console.print(f"{counts}; records in {asked.out}", markup=False)
    if failed:
        raise typer.Exit(1)


def status(suites: Suites, out: Results = "results", scale: ScaleName = None) -> None:
    """How many cells of a suite are there."""
    table = Table("suite", *right("cells", "done", "failed", "missing"))
    for suite in _loaded(suites):
        counts = progress(suite_result(suite, Store(out), scale).entries)
        table.add_row(suite.name, *map(str, (counts.total, counts.done, counts.failed, counts.missing)))
    console.print(table)


def report(
    suites: Suites,
    out: Annotated[Path, typer.Option(help="Folder for the site.")],
    results: Results = "results",
    scale: ScaleName = None,
    quiet: Quiet = False,
) -> None:
    """Write a static site with the tables, ours beside the paper's."""
    store = Store(results)
    publish([suite_result(suite, store, scale) for suite in _loaded(suites)], store, out)
    if not quiet:
        show_report(out / "index.html", "site")


def list_suites() -> None:
    """The suites that come with the package."""
    table = Table("name", "what", "cells", "victims")
    for name in suite_names():
        suite = load_suite(name)
        cells = {each.cell.id: each.cell for each in planned(suite)}.values()
        victims = sum(isinstance(cell, VictimCell | GivenCell) for cell in cells)
        table.add_row(name, suite.title, str(len(cells)), str(victims))
    console.print(table)


COMMANDS: Mapping[str, Callable[..., None]] = {"run": run, "status": status, "report": report, "list": list_suites}
"""What can follow ``polarizer bench``."""


def _loaded(names: Sequence[str]) -> list[Suite]:
    """The suites of that name; "paper" stands for all of the paper's."""
    known = suite_names()
    of_paper = [name for name in known if name.startswith(("table", "fig", "lemma"))]
    wanted = [each for name in names for each in (of_paper if name == "paper" else [name])]
    found = [load_suite(name) for name in dict.fromkeys(wanted)]
    for suite in found:
        for label in (label for grid in suite.grids for axis in ("attack", "defense") for label in grid.get(axis, ())):
            look_in_current_folder(str(label))
    return found


def _chosen(names: Sequence[str], scale: BenchScale | None, only: Sequence[str] | None) -> list[Planned]:
    found = [each for suite in _loaded(names) for each in planned(suite, scale)]
    wanted: dict[str, set[str]] = {}
    for text in only or []:
        axis, equals, value = text.partition("=")
        if not equals:
            raise typer.BadParameter(f"--only {text!r}: expected AXIS=VALUE")
        check_choice("an axis", axis, AXES)
        wanted.setdefault(axis, set()).add(value)
    return [each for each in found if all(str(each.labels.get(axis, "")) in values for axis, values in wanted.items())]


def _check_models(victims: Sequence[Cell], models: Path | None) -> None:
    """Refuse a folder of models that lacks files, before anything is computed."""
    for cell in victims:
        given = cell.given if isinstance(cell, GivenCell) else cell.init if isinstance(cell, VictimCell) else None
        lacking = None if given is None else given.missing(models)
        if lacking is not None:
            raise BadInputError(lacking)


def _plan(cells: Sequence[Cell], todo: Sequence[Cell]) -> Table:
    table = Table("kind", *right("cells", "to compute"))
    for kind in dict.fromkeys(cell.kind for cell in cells):
        counts = [sum(cell.kind == kind for cell in some) for some in (cells, todo)]
        table.add_row(kind, *map(str, counts))
    return table


def _engine(asked: _Options, work: Bench, store: Store) -> AbstractContextManager[InlineEngine | RayEngine]:
    if asked.engine == "inline":
        return nullcontext(InlineEngine(work.compute))
    each = Resources(asked.cpus, asked.gpus, round(asked.memory * 1e9))
    return ray_engine(work.compute, store, each, address=asked.address, workers=asked.workers)


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
def _watching(
    found: Sequence[Planned], records: Mapping[str, Any], *, total: int, todo: Sequence[Cell], quiet: bool
) -> Iterator[_View]:
    """What is told of a run and shows it; nothing if ``quiet``."""
    shown = Console(quiet=True) if quiet else console
    names = {each.cell.id: _name(each) for each in found}
    done = sum(record["status"] == "done" for record in records.values())
    view = _View(shown, names, done, total, len(todo))
    with nullcontext() if quiet or not console.is_terminal else Live(view, console=console, refresh_per_second=2):
        yield view


def _name(each: Planned) -> str:
    """A cell in words: what its axes say, defaults left out."""
    return " ".join(str(each.labels[axis]) for axis in _NAMING if each.labels.get(axis) not in (None, "", 0))
